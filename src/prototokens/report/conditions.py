"""Which rows may be averaged: those of one model under one set of conditions. Pure functions of rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from .summary import Row

SETTINGS = ("source", "corpus", "recipe", "recipe_hash", "start_hash", "arrangement", "max_steps", "group_size",
            "m_texts", "fingerprint", "dtype", "device")  # fmt: skip
"""Columns that may change a result. The model and the scale always tell series apart; these where they differ."""


def series(rows: Iterable[Row], own: Sequence[str], more: Sequence[str] = ()) -> dict[str, list[Row]]:
    """Rows by model, scale and whichever settings differ between rows that a table would put into one cell.

    Args:
        rows: of one study.
        own: columns that the table lays out itself; rows that differ there never meet in a cell.
        more: settings that matter to this table beyond SETTINGS, e.g. threads for a timing.

    Returns:
        A label such as `smollm2-135m (laptop)` or `smollm2-135m (laptop, max_steps 400)` -> its rows, in the order of
        the labels.
    """
    rows = list(rows)
    differing = [s for s in (*SETTINGS, *more) if s not in own and _differs(rows, s, ("model", "scale", *own))]
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        told = [str(row.get("scale")), *(f"{setting} {str(row.get(setting))[:24]}" for setting in differing)]
        found[f"{row.get('model')} ({', '.join(told)})"].append(row)
    return {label: found[label] for label in sorted(found)}


def by(rows: Iterable[Row], *columns: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by their values in some columns, in the order of the values, numbers before names."""
    found: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        found[tuple(row.get(column) for column in columns)].append(row)
    return {values: found[values] for values in sorted(found, key=lambda v: tuple(map(_rank, v)))}


def distinct(rows: Iterable[Row], column: str) -> list[Any]:
    """The values of a column, each once, in order; rows without the column are passed over."""
    return sorted({row[column] for row in rows if row.get(column) is not None}, key=_rank)


def ordered(values: Iterable[Any], known: Iterable[Any]) -> list[Any]:
    """Values in the order of `known`; what is not known comes after, in its own order."""
    place = {value: i for i, value in enumerate(known)}
    return sorted(set(values), key=lambda value: (place.get(value, len(place)), _rank(value)))


def _differs(rows: Iterable[Row], setting: str, own: Sequence[str]) -> bool:
    return any(len({str(row.get(setting)) for row in cell}) > 1 for cell in by(rows, *own).values())


def _rank(value: Any) -> tuple[int, float, str]:
    return (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, str(value))
