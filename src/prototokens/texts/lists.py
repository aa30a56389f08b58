"""Lists of texts: many texts in one file, each with the number of its row."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from .corpora import SOURCES, check_file, documents
from .tables import Row, table_rows, text_lines


def read_list(source: str | Path, column: str = "text") -> list[Row]:
    """All rows of a list of texts, the blank ones and those that cannot be read among them.

    Args:
        source: a .txt file with one text a line, a .jsonl, .csv or .parquet file with one a row, or the name of a
            source that has documents.
        column: the column of a .jsonl, .csv or .parquet file that holds the text.

    Returns:
        Rows in order, at least one of which has a text.

    Raises:
        InputError: there is no such file, it cannot be read, or none of its rows has a text.
    """
    if str(source) in SOURCES:
        return [Row(number, document.text) for number, document in enumerate(documents(source), 1)]
    path = check_file(source)
    rows = list(text_lines(path) if path.suffix.lower() == ".txt" else table_rows(path, column))
    if not any(row.text for row in rows):
        problems = (row.problem for row in rows if row.problem)
        raise InputError(next(problems, f"{path} is empty: give a file with some text in it"))
    return rows
