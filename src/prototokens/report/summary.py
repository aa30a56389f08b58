"""Summaries of many results: means, shares, and both definitions of capacity. These are pure functions of rows.

A row is a dict of columns, as the study's store gives it. Values that are missing or not finite are left out, of the
count too.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

REACHED = 0.99
"""Token accuracy at which a text counts as reconstructed, or above (both papers)."""


@dataclass(frozen=True)
class Summary:
    """A number, with the count and spread of the values that it summarises.

    Attributes:
        value: a mean, or a single value.
        n: number of values; None where a paper does not say.
        sd: standard deviation of the sample (n - 1); None for fewer than two values.
        interval: the 95 % interval of a share.
    """

    value: float
    n: int | None = None
    sd: float | None = None
    interval: tuple[float, float] | None = None


def mean(values: Iterable[Any]) -> Summary | None:
    """Mean and standard deviation of the sample (n - 1) of the numbers among `values`; None if there are none."""
    numbers = _numbers(values)
    if not numbers:
        return None
    n, middle = len(numbers), math.fsum(numbers) / len(numbers)
    sd = math.sqrt(math.fsum((x - middle) ** 2 for x in numbers) / (n - 1)) if n > 1 else None
    return Summary(middle, n, sd)


def share(values: Iterable[Any]) -> Summary | None:
    """Share of ones among zeros and ones, with its 95 % interval; None if there are none.

    The interval is Wilson's: with p the share, z = 1.96,
    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).

    Reference: Probable inference, the law of succession, and statistical inference (Wilson, 1927).
    """
    numbers = _numbers(values)
    if not numbers:
        return None
    n, p, z = len(numbers), sum(map(bool, numbers)) / len(numbers), 1.959964
    centre, scale = p + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Summary(
        p, n, interval=(max(0.0, min(p, (centre - half) / scale)), min(1.0, max(p, (centre + half) / scale)))
    )


def best_capacity(rows: Iterable[Row]) -> int:
    """Longest length that any text and seed reached, 0 if none did: the definition of the one-step paper (section 3).

    Args:
        rows: one for each text, seed and length, with `tokens` and `token_accuracy`.
    """
    return max((row["tokens"] for row in rows if _reached(row)), default=0)


def mean_capacity(rows: Iterable[Row]) -> int:
    """Longest length at which the mean token accuracy over texts and seeds is at least 0.99 (cramming, section 3).

    A length counts only if it was measured for as many texts and seeds as any other length. So a grid that is half
    done, or failed on its hardest texts, cannot look better than it is. 0 if no length counts.

    Args:
        rows: one for each text, seed and length, with `tokens` and `token_accuracy`.
    """
    by_length: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        by_length[row["tokens"]] += _numbers([row["token_accuracy"]])
    full = max(map(len, by_length.values()), default=0)
    # The mean of numbers that are all at the bound may be below it by a rounding error.
    reached = [t for t, x in by_length.items() if len(x) == full and math.fsum(x) >= (REACHED - 1e-9) * full > 0]
    return max(reached, default=0)


def longest_by_text(rows: Iterable[Row]) -> list[Row | None]:
    """For each text, in order, the row of its longest reconstruction over lengths and seeds, or None.

    Args:
        rows: one for each text, seed and length, with `source`, `text`, `tokens` and `token_accuracy`.
    """
    best: dict[tuple[str, str], Row | None] = {}
    for row in rows:
        text = (str(row.get("source")), str(row["text"]))
        before = best.setdefault(text, None)
        if _reached(row) and (before is None or row["tokens"] > before["tokens"]):
            best[text] = row
    return [best[text] for text in sorted(best)]


def _reached(row: Row) -> bool:
    accuracy = row["token_accuracy"]
    return accuracy is not None and accuracy >= REACHED - 1e-9


def _numbers(values: Iterable[Any]) -> list[float]:
    return [float(x) for x in values if x is not None and math.isfinite(x)]
