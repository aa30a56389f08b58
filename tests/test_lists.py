"""Laws of lists of texts: cut at line ends only, rows keep their numbers, and a bad row is told and does no harm."""

from __future__ import annotations

import codecs
import json
import os
import re
from pathlib import Path

import pytest

from prototokens import InputError
from prototokens.cli.terminal import read_text
from prototokens.texts.corpora import documents
from prototokens.texts.lists import read_list
from prototokens.texts.tables import FORMATS


def test_a_list_is_cut_at_line_ends_only(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    lines = ["a\u2028b", "c\x0cd\x0b", "e\x85f", "g\rh", " i ", "\ufeffj"]
    path.write_bytes("\n".join(lines).encode())
    assert [row.text for row in read_list(path)] == lines
    path.write_bytes("\r\n".join(["\ufeff" + lines[0], *lines[1:], ""]).encode())  # the first mark is the file's
    assert [row.text for row in read_list(path)] == lines
    assert documents(path)[0].text == "\r\n".join([*lines, ""])
    path.write_text(json.dumps({"text": "one\u2028"}, ensure_ascii=False) + "\n" + json.dumps({"text": "two"}))
    assert [row.text for row in read_list(path.rename(tmp_path / "list.jsonl"))] == ["one\u2028", "two"]


def test_a_byte_order_mark_is_no_text_in_a_list_or_alone(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_bytes(codecs.BOM_UTF8 + "\ufeffa".encode())
    assert read_text(None, path) == read_list(path)[0].text == documents(path)[0].text == "\ufeffa"
    path.write_bytes(codecs.BOM_UTF8)
    with pytest.raises(InputError, match=r"one\.txt is empty"):
        read_text(None, path)


LISTS: dict[str, bytes] = {
    "a.txt": b"one\n \ncaf\xe9\nfour\n",
    "a.jsonl": b'{"text": "one"}\n\n{"text": "\\ud800"}\n{"text": "four"}\n',
    "b.jsonl": b'{"text": "one"}\n{"text": null}\n{"text": \n{"text": "four"}\n',
    "c.jsonl": b'{"text": "one"}\n{"text": ""}\n{"tex": "three"}\n{"text": "four"}\n',
    "d.jsonl": b'{"text": "one"}\n{"text": ""}\n{"text": "\xff"}\n{"text": "four"}\n',
    "e.jsonl": b'{"text": "one"}\n{"text": ""}\n' + b"[" * 100_000 + b'\n{"text": "four"}\n',
    "a.csv": b"n,text\n1,one\n2,\n3,caf\xe9\n4,four\n",
}


@pytest.mark.parametrize("name", LISTS)
def test_a_bad_row_is_told_with_file_and_number_and_the_others_are_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(LISTS[name])
    rows = read_list(path)
    assert [(row.number, row.text) for row in rows] == [(1, "one"), (2, None), (3, None), (4, "four")]
    assert [row.problem is None for row in rows] == [True, True, False, True]
    problem = rows[2].problem or ""
    assert name in problem
    assert re.search(r"\b(line|row) 3\b", problem)
    with pytest.raises(InputError) as error:  # a source of samples is refused as a whole
        documents(path)
    assert str(error.value).split("(")[0] == problem.split("(")[0]
    assert "\n" not in str(error.value)


def test_numbers_of_rows_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "three"}\n')
    assert [document.name for document in documents(path)] == ["a.jsonl:1", "a.jsonl:3"]
    path.write_text('text\n"one')
    with pytest.raises(InputError, match=r"is no CSV file \(row 1: unexpected end of data\)"):
        documents(path.rename(tmp_path / "a.csv"))


def test_a_list_without_any_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for content, message in (
        ("", "a.jsonl is empty"),
        ("\n\n", "a.jsonl is empty"),
        ('{"words": "x"}\n', r"row 1 of a.jsonl has no column 'text': choose one of words"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            read_list(path)
    with pytest.raises(InputError, match="no such file: "):
        read_list(tmp_path / "b.csv")
    with pytest.raises(InputError, match="unknown source 'news'"):
        read_list("news")
    assert [row.text for row in read_list("recent")] == [document.text for document in documents("recent")]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_is_read_under_a_name_that_is_no_utf_8(tmp_path: Path, suffix: str) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9" + suffix.encode())
    contents = {".txt": "one\n", ".jsonl": '{"text": "one"}', ".csv": "text\none\n"}
    try:
        odd.write_text(contents.get(suffix, ""))
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    if suffix == ".parquet":
        table = pytest.importorskip("pyarrow").Table.from_pylist([{"text": "one"}])
        with odd.open("wb") as file:
            pytest.importorskip("pyarrow.parquet").write_table(table, file)
    assert [row.text for row in read_list(odd)] == ["one"]
    assert documents(odd)[0].text.strip() == "one"
