"""Which rows may be averaged: those of one model under one set of conditions. These are pure functions of rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from .summary import Row

SETTINGS = ("source", "corpus", "recipe", "recipe_hash", "start_hash", "arrangement", "tokens_per_vector", "max_steps",
            "group_size", "m_texts", "fingerprint", "dtype", "device")  # fmt: skip
"""Columns that may change a result. Model and scale always separate series. These do where they differ."""


def series(rows: Iterable[Row], laid_out: Sequence[str], more: Sequence[str] = ()) -> dict[str, list[Row]]:
    """Rows by model, scale and every setting that differs between rows which a table would put into one cell.

    Args:
        rows: of one study.
        laid_out: columns that the table lays out itself. Rows that differ in them are never in one cell.
        more: settings that matter to this table besides SETTINGS, e.g. threads for a timing.

    Returns:
        A label such as `smollm2-135m (laptop)` or `smollm2-135m (laptop, max_steps 400)` -> its rows, in the order of
        the labels.
    """
    rows = list(rows)
    apart = ("model", "scale", *laid_out)
    differing = [name for name in (*SETTINGS, *more) if name not in laid_out and _differs(rows, name, apart)]
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        conditions = [str(row.get("scale")), *(f"{setting} {str(row.get(setting))[:24]}" for setting in differing)]
        groups[f"{row.get('model')} ({', '.join(conditions)})"].append(row)
    return {label: groups[label] for label in sorted(groups)}


def by(rows: Iterable[Row], *columns: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by their values in some columns, in the order of the values, numbers before names."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row.get(column) for column in columns)].append(row)
    return {values: groups[values] for values in sorted(groups, key=lambda v: tuple(map(_rank, v)))}


def distinct(rows: Iterable[Row], column: str) -> list[Any]:
    """The values of a column, each once, in order. Rows without a value are skipped."""
    return sorted({row[column] for row in rows if row.get(column) is not None}, key=_rank)


def of_method(rows: Iterable[Row], method: str) -> list[Row]:
    """Rows of one method."""
    return [row for row in rows if row.get("method") == method]


def ordered(values: Iterable[Any], first: Iterable[Any]) -> list[Any]:
    """Values in the order of `first`. Values that are not in it follow, in order."""
    rank = {value: i for i, value in enumerate(first)}
    return sorted(set(values), key=lambda value: (rank.get(value, len(rank)), _rank(value)))


def _differs(rows: Iterable[Row], setting: str, laid_out: Sequence[str]) -> bool:
    return any(len({str(row.get(setting)) for row in cell}) > 1 for cell in by(rows, *laid_out).values())


def _rank(value: Any) -> tuple[int, float, str]:
    return (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, str(value))
