"""Interpolation: how much of either text decodes on the line through the vectors of two, between and beyond them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..conditions import by, ordered, series
from ..drawing import INK, PALETTE, above, legend, panels
from ..exhibit import Entry, listed
from ..reconstruction.tables import entry, of_method
from ..summary import Row, Summary, mean, share
from .profiles import draw_means, means

VECTORS = {"both": "e and m", "e": "e alone", "m": "m alone"}
"""What is moved, in its order."""

COMPARED = {"first": "the first text", "last": "the last text", "other": "other texts (control)"}
"""What is decoded is compared with these, token by token."""

NOT_MOVED, ITSELF = "none", "itself"
FROM, TO, AT_END = "whole from tau", "whole to tau", "share whole at its end"

_OWN = ("method", "vectors", "text", "other_text", "tokens")
_SETTINGS = ("taus", "tau_from", "tau_to", "margin", "start")
_TOLD = (-0.5, 0.0, 0.5, 1.0, 1.5)
"""Places that a table has room for, of those that were measured."""

_STYLES = {"first": (PALETTE[0], "-"), "last": (PALETTE[1], "--"), "other": (PALETTE[2], ":")}


def interpolation(rows: Sequence[Row]) -> list[Entry]:
    """Share of tokens of either text and of others at some places, and how far either stays whole, over exact pairs."""
    entries = []
    for label, own in _series(rows).items():
        solved = share(row["exact"] for row in of_method(own, "fit"))
        entries += entry((NOT_MOVED, ITSELF), label, "share exact", solved, 2)
        for vectors, pairs in _moved(own).items():
            for compared, name in COMPARED.items():
                head = (VECTORS.get(vectors, vectors), name)
                found = _along(pairs, compared)
                for tau in _TOLD:
                    entries += entry(head, label, f"tau {tau:g}", found.get(tau))
                if compared != "other":
                    at_end = share(row[f"{compared}_to"] is not None for row in pairs)
                    entries += entry(head, label, AT_END, at_end, 2)
                    entries += entry(head, label, FROM, mean(row[f"{compared}_from"] for row in pairs), 2)
                    entries += entry(head, label, TO, mean(row[f"{compared}_to"] for row in pairs), 2)
    return entries


def draw_interpolation(rows: Sequence[Row]) -> Any:
    """Share of tokens of either text and of others against tau, a panel for each way of moving the vectors."""
    labelled = {label: moved for label, own in _series(rows).items() if (moved := _moved(own))}
    if not labelled:
        return None
    figure, axes = panels(len(labelled), len(VECTORS), 0.9 + 2.3 * len(labelled))
    shown = []
    for line, (label, moved) in enumerate(labelled.items()):
        for ax, (vectors, name) in zip(axes[line * len(VECTORS) :], VECTORS.items(), strict=False):
            if vectors not in moved:
                ax.remove()
                continue
            shown.append(ax)
            for compared, told in COMPARED.items():
                colour, dashes = _STYLES[compared]
                if found := _along(moved[vectors], compared):
                    draw_means(ax, found, colour, told, dashes)
            for end in (0, 1):
                ax.axvline(end, color=INK, linewidth=0.8, linestyle=":")
            ax.set_title(f"{above(label, labelled, 3)}\n{name}".strip(), fontsize=8.5)
            ax.set(xlabel="tau", ylabel="share of tokens", ylim=(-0.03, 1.05))
    legend(figure, shown, columns=len(COMPARED))
    return figure


def tell_interpolation(rows: Sequence[Row]) -> str:
    """The same in words."""
    told = [
        f"{label}, {VECTORS.get(vectors, vectors)}, {len(pairs)} pairs, {name}: {_told(pairs, compared)}"
        for label, own in _series(rows).items()
        for vectors, pairs in _moved(own).items()
        for compared, name in COMPARED.items()
        if _along(pairs, compared)
    ]
    return (
        "Share of tokens, position by position, that are those of the first text, of the last and of others, where the "
        f"vectors of the first are moved towards the last's and beyond. {listed(told)}"
    )


def _told(pairs: Sequence[Row], compared: str) -> str:
    """One line of the figure in words, and how far the text is whole around its own end."""
    found = _along(pairs, compared)
    words = ", ".join(f"{found[tau].value:.2f} at tau {tau:g}" for tau in _TOLD if tau in found)
    if compared == "other":
        return words
    low, high = (mean(row[f"{compared}_{side}"] for row in pairs) for side in ("from", "to"))
    if low is None or high is None:
        return f"{words}, whole at its end in no pair"
    return f"{words}, whole from {low.value:.2f} to {high.value:.2f} in the mean of {low.n} pairs"


def _along(pairs: Sequence[Row], compared: str) -> dict[float, Summary]:
    """Mean share of tokens at every place; pairs of one series have the same places."""
    return means(pairs, f"{compared}_accuracies", pairs[0]["tau_from"], pairs[0]["tau_to"])


def _series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return series(rows, _OWN, more=_SETTINGS)


def _moved(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Lines through pairs of exact texts, by what is moved."""
    cells = by([row for row in of_method(rows, "segment") if row["both_exact"]], "vectors")
    return {vectors: cells[vectors,] for vectors in ordered((vectors for (vectors,) in cells), VECTORS)}
