"""Texts in files of the user's: one document a row, and one line for what cannot be read."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from byte_lm import ByteLM, one_line
from prototokens.errors import InputError
from prototokens.texts.corpora import documents
from prototokens.texts.sampling import sample
from prototokens.texts.tables import FORMATS


@pytest.fixture
def lm() -> Any:
    return ByteLM()


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), path)


@pytest.mark.parametrize("suffix", FORMATS[1:])
def test_tables_give_one_document_a_row(lm: Any, tmp_path: Path, suffix: str) -> None:
    texts = ["first, “quoted”", " ", "third\nline", "NA", "long " * 40_000]
    path = tmp_path / f"table [1]*{suffix}"
    write_table(path, [{"n": n, "text": text} for n, text in enumerate(texts, 1)])
    from_table = documents(path)
    assert [d.text for d in from_table] == [text for text in texts if text.strip()]
    assert [d.name for d in from_table] == [f"{path.name}:{n}" for n in (1, 3, 4, 5)]
    assert documents(path, "train") == documents(path, "test") == from_table
    assert sample(str(path), lm, 10, 3, start="document").shape == (3, 10)
    with pytest.raises(InputError, match=r"row 1 of .* has no column 'body': choose one of n, text") as error:
        documents(path, column="body")
    one_line(error)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_column_without_text_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"table{suffix}"
    write_table(path, [{"n": 1, "text": None}, {"n": 2, "text": "two"}])
    assert [d.text for d in documents(path)] == ["two"]
    with pytest.raises(InputError, match=r"column 'n' of table[.]\w+ holds int, not text: choose another"):
        documents(path, column="n")


def test_every_field_of_a_csv_file_is_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,n\n1,2\nNA\n")
    assert [d.text for d in documents(path)] == ["1", "NA"]
    assert [d.text for d in documents(path, column="n")] == ["2"]


def test_a_text_file_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufefftwo\r\nlines <|im_start|> \n".encode())
    assert documents(path)[0].text == "two\r\nlines <|im_start|> \n"


@pytest.mark.parametrize("suffix", FORMATS)
def test_missing_empty_and_foreign_files_are_refused_in_one_line(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with pytest.raises(InputError, match="no such file: ") as error:
        documents(path)
    assert str(path) in one_line(error)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"a[.]\w+ is empty: give a file with some text in it"):
        documents(path)
    path.write_bytes(b'{"text": "caf\xe9"}\n')
    with pytest.raises(InputError, match=r"a[.]\w+ is not UTF-8 .*: convert it|a.parquet is no Parquet") as error:
        documents(path)
    one_line(error)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "one"}\n\n{"text": ', "line 3, is not JSON .*: correct it"),
        ("a.jsonl", '{"text": "one"}\n"two"\n', "line 2, is no JSON object: write one object a line"),
        ("a.csv", 'text\n"one', "a.csv is no CSV file .*: correct it"),
    ],
)
def test_a_broken_table_is_refused_in_one_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        documents(path)
    one_line(error)
