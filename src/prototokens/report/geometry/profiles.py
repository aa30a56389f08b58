"""Profiles: numbers along a way, tau by tau, over rows that hold them as JSON lists, and how they are drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..summary import Row, Summary, mean


def even_taus(count: int, first: float = 0.0, last: float = 1.0) -> list[float]:
    """`count` places from `first` to `last`, evenly spaced, both included; without torch, which no report loads."""
    return [first + (last - first) * i / (count - 1) for i in range(count)]


def means(rows: Sequence[Row], column: str, first: float = 0.0, last: float = 1.0) -> dict[float, Summary]:
    """Means over rows at every place from `first` to `last` that has one; rows without the column take no part."""
    lists = [json.loads(row[column]) for row in rows if row.get(column)]
    found = [mean(values) for values in zip(*lists, strict=True)]
    return {tau: one for tau, one in zip(even_taus(len(found), first, last), found, strict=True) if one}


def draw_means(ax: Any, found: Mapping[float, Summary], colour: str, name: str, line: str = "-") -> None:
    """Means along a way as a line, and one standard deviation to both sides as a band."""
    low, high = ([s.value + sign * (s.sd or 0) for s in found.values()] for sign in (-1, 1))
    ax.fill_between(list(found), low, high, color=colour, alpha=0.15, linewidth=0)
    ax.plot(list(found), [s.value for s in found.values()], color=colour, linewidth=1.8, linestyle=line, label=name)
