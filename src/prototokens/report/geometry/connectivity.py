"""Connectivity: what is decoded on the ways between two solutions of one text; figure 7 and its numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from ...study import published
from ..conditions import by, of_method, ordered, series
from ..drawing import PALETTE, above, legend, panels
from ..exhibit import PAPER, Entry, entry, listed
from ..summary import Row, Summary, mean, share
from .profiles import draw_means, even_taus, means

WAYS = {
    "segment": "straight segment",
    "bezier": "quadratic Bezier curve",
    "chain": "two straight pieces",
    "cubic": "cubic Bezier curve",
}
"""Ways between two solutions, with their names on the page. All but the first are fitted."""

SOLUTIONS, BETWEEN, WHOLE, LONGEST = "the solutions", "mean accuracy between the ends", "share whole", "longest"

_LAID_OUT = ("method", "inner", "text", "tokens", "fit_seed", "other_seed")
_SETTINGS = ("margin", "taus", "curve_steps", "curve_hash")
_SCORES = {"accuracies": "token accuracy", "losses_nats": "loss, nats per token"}


def connectivity(rows: Sequence[Row]) -> list[Entry]:
    """Figure 7 in numbers: accuracy, barrier and length of each way, over pairs of exact solutions."""
    entries = []
    for label, series_rows in _series(rows).items():
        solved = share(row["exact"] for row in of_method(series_rows, "fit"))
        entries += entry((SOLUTIONS,), label, "share exact", solved, 2)
        for method, pairs in _ways(series_rows).items():
            head = (WAYS.get(method, method),)
            ratios = [row["length_ratio"] for row in pairs if row["length_ratio"] is not None]
            for heading, summary, decimals in (
                ("lowest accuracy", mean(row["lowest_accuracy"] for row in pairs), 3),
                (BETWEEN, mean(_between_ends(row) for row in pairs), 3),
                (WHOLE, share(row["lowest_accuracy"] == 1 for row in pairs), 2),
                ("barrier, nats per token", mean(row["barrier_nats"] for row in pairs), 3),
                ("length / segment's", mean(ratios), 3),
                (LONGEST, Summary(max(ratios), len(ratios)) if ratios else None, 3),
                ("steps", mean(row["steps"] for row in pairs), 0),
            ):
                entries += entry(head, label, heading, summary, decimals)
    pairs_of_paper = published.FIGURE_7_TEXTS * math.comb(published.FIGURE_7_SOLUTIONS, 2)
    for heading, value, decimals in (
        ("accuracy, about", published.CURVE_ACCURACY, 0),
        ("length, at most", published.CURVE_LENGTH, 1),
    ):
        entries += entry((WAYS["bezier"],), PAPER, heading, Summary(value, pairs_of_paper), decimals, True)
    return entries


def draw_connectivity(rows: Sequence[Row]) -> Any:
    """Figure 7: accuracy and loss along the ways: means over pairs, their spread, and each pair as a thin line."""
    labelled = {label: ways for label, series_rows in _series(rows).items() if (ways := _ways(series_rows))}
    if not labelled:
        return None
    figure, axes = panels(len(labelled), len(_SCORES), 0.8 + 2.6 * len(labelled))
    for line, (label, ways) in enumerate(labelled.items()):
        for ax, (column, name) in zip(axes[line * len(_SCORES) :], _SCORES.items(), strict=False):
            for method, pairs in ways.items():
                _along(ax, pairs, column, method)
            ax.set(xlabel="tau", ylabel=name)
            if column == "accuracies":
                ax.set_ylim(-0.03, 1.05)
            ax.set_title(above(label, labelled, 2), fontsize=8.5)
    legend(figure, axes, columns=len(WAYS))
    return figure


def tell_connectivity(rows: Sequence[Row]) -> str:
    """Figure 7 in words."""
    parts = []
    for label, series_rows in _series(rows).items():
        for method, pairs in _ways(series_rows).items():
            accuracies, losses = (means(pairs, column) for column in _SCORES)
            low = min(accuracies, key=lambda tau: accuracies[tau].value)
            high = max(losses, key=lambda tau: losses[tau].value, default=None)
            worst = "" if high is None else f", highest loss {losses[high].value:.2f} nats per token at {high:.2f}"
            parts.append(
                f"{label}, {WAYS.get(method, method)}, {len(pairs)} pairs: lowest accuracy {accuracies[low].value:.2f} "
                f"at tau {low:.2f}{worst}"
            )
    return (
        f"Token accuracy and loss along the ways between two solutions of one text, means over pairs. {listed(parts)}"
    )


def _series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return series(rows, _LAID_OUT, more=_SETTINGS)


def _ways(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The ways between pairs of exact solutions that were scored, by kind."""
    cells = by([row for row in rows if row.get("both_exact") and row.get("accuracies")], "method")
    return {method: cells[method,] for method in ordered((method for (method,) in cells), WAYS)}


def _between_ends(row: Row) -> float | None:
    """Mean accuracy of all places but the two ends, which are exact; None if there are no others."""
    inner = json.loads(row["accuracies"])[1:-1]
    return fmean(inner) if inner else None


def _along(ax: Any, rows: Sequence[Row], column: str, method: str) -> None:
    """Draw one kind of way: its pairs, their mean, and one standard deviation to both sides."""
    colour = PALETTE[(list(WAYS).index(method) if method in WAYS else len(WAYS)) % len(PALETTE)]
    for row in rows:
        values = [math.nan if value is None else value for value in json.loads(row[column])]
        ax.plot(even_taus(len(values)), values, color=colour, linewidth=0.6, alpha=0.4)
    draw_means(ax, means(rows, column), colour, WAYS.get(method, method))
