"""Export: a store's rows as a table in a file. Imports no torch."""

from __future__ import annotations

import csv
import importlib
import os
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files.atomic import new_file

Row = dict[str, Any]


def columns(rows: list[Row]) -> list[str]:
    """All columns of the rows, in the order in which they first appear: the key first."""
    return list(dict.fromkeys(name for row in rows for name in row))


def write_csv(path: str | os.PathLike[str], rows: list[Row], *, overwrite: bool = False) -> Path:
    """Write rows to a CSV file; a column that a row lacks stays empty.

    Raises:
        InputError: the file exists (and `overwrite` is not set), or cannot be written.
    """
    with (
        new_file(path, overwrite=overwrite) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, columns(rows) or ["key"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return Path(path)


def write_parquet(path: str | os.PathLike[str], rows: list[Row], *, overwrite: bool = False) -> Path:
    """Write rows to a Parquet file; a column that a row lacks is null.

    Raises:
        InputError: pyarrow is not installed, the file exists (and `overwrite` is not set), or cannot be written.
    """
    try:
        pyarrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise InputError("Parquet needs the package pyarrow: pip install 'prototokens[study]'") from None
    names = columns(rows) or ["key"]
    held = pyarrow.table({name: _column([row.get(name) for row in rows]) for name in names})
    with new_file(path, overwrite=overwrite) as temporary:
        parquet.write_table(held, temporary)
    return Path(path)


def _column(values: list[Any]) -> list[Any]:
    """One type per column: whole numbers among fractions become fractions."""
    if any(isinstance(value, float) for value in values):
        return [None if value is None else float(value) for value in values]
    return values
