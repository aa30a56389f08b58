"""Profiles: means of numbers along a way, which rows have as JSON lists, and how they are drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..summary import Row, Summary, mean


def even_taus(count: int, first: float = 0.0, last: float = 1.0) -> list[float]:
    """`count` evenly spaced places from `first` to `last`, both included. Without torch, which no report loads."""
    return [first + (last - first) * i / (count - 1) for i in range(count)]


def means(rows: Sequence[Row], column: str, first: float = 0.0, last: float = 1.0) -> dict[float, Summary]:
    """Means over rows at places from `first` to `last`. Places without numbers are left out."""
    lists = [json.loads(row[column]) for row in rows if row.get(column)]
    summaries = [mean(values) for values in zip(*lists, strict=True)]
    return {
        tau: summary for tau, summary in zip(even_taus(len(summaries), first, last), summaries, strict=True) if summary
    }


def draw_means(ax: Any, summaries: Mapping[float, Summary], colour: str, name: str, line: str = "-") -> None:
    """Draw means along a way as a line, and one standard deviation to both sides as a band."""
    low, high = ([s.value + sign * (s.sd or 0) for s in summaries.values()] for sign in (-1, 1))
    ax.fill_between(list(summaries), low, high, color=colour, alpha=0.15, linewidth=0)
    ax.plot(
        list(summaries), [s.value for s in summaries.values()], color=colour, linewidth=1.8, linestyle=line, label=name
    )
