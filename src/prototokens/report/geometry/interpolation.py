"""Interpolation: how much of two texts is decoded on the line through their vectors, between and beyond them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..conditions import by, of_method, ordered, series
from ..drawing import INK, PALETTE, above, legend, panels
from ..exhibit import Entry, entry, listed
from ..summary import Row, Summary, mean, share
from .profiles import draw_means, means

VECTOR_LABELS = {"both": "e and m", "e": "e alone", "m": "m alone"}
"""Which vectors are moved, in the order of the page."""

TEXT_LABELS = {"first": "the first text", "last": "the last text", "other": "other texts (control)"}
"""Texts that what is decoded is compared with, token by token."""

NOT_MOVED, ITSELF = "none", "itself"
FROM, TO, AT_END = "whole from tau", "whole to tau", "share whole at its end"

_LAID_OUT = ("method", "vectors", "text", "other_text", "tokens")
_SETTINGS = ("taus", "tau_from", "tau_to", "margin", "start")
_SHOWN_TAUS = (-0.5, 0.0, 0.5, 1.0, 1.5)
"""Places that the table shows, of those that were measured."""

_STYLES = {"first": (PALETTE[0], "-"), "last": (PALETTE[1], "--"), "other": (PALETTE[2], ":")}


def interpolation(rows: Sequence[Row]) -> list[Entry]:
    """Share of tokens of both texts and of others at some places, and how far each stays whole, over exact pairs."""
    entries = []
    for label, series_rows in _series(rows).items():
        solved = share(row["exact"] for row in of_method(series_rows, "fit"))
        entries += entry((NOT_MOVED, ITSELF), label, "share exact", solved, 2)
        for vectors, pairs in _moved(series_rows).items():
            for compared, name in TEXT_LABELS.items():
                head = (VECTOR_LABELS.get(vectors, vectors), name)
                summary = _along(pairs, compared)
                for tau in _SHOWN_TAUS:
                    entries += entry(head, label, f"tau {tau:g}", summary.get(tau))
                if compared != "other":
                    at_end = share(row[f"{compared}_to"] is not None for row in pairs)
                    entries += entry(head, label, AT_END, at_end, 2)
                    entries += entry(head, label, FROM, mean(row[f"{compared}_from"] for row in pairs), 2)
                    entries += entry(head, label, TO, mean(row[f"{compared}_to"] for row in pairs), 2)
    return entries


def draw_interpolation(rows: Sequence[Row]) -> Any:
    """Share of tokens of both texts and of others against tau, with a panel for each set of moved vectors."""
    labelled = {label: moved for label, series_rows in _series(rows).items() if (moved := _moved(series_rows))}
    if not labelled:
        return None
    figure, axes = panels(len(labelled), len(VECTOR_LABELS), 0.9 + 2.3 * len(labelled))
    drawn = []
    for line, (label, moved) in enumerate(labelled.items()):
        for ax, (vectors, name) in zip(axes[line * len(VECTOR_LABELS) :], VECTOR_LABELS.items(), strict=False):
            if vectors not in moved:
                ax.remove()
                continue
            drawn.append(ax)
            for compared, text_name in TEXT_LABELS.items():
                colour, dashes = _STYLES[compared]
                if summaries := _along(moved[vectors], compared):
                    draw_means(ax, summaries, colour, text_name, dashes)
            for end in (0, 1):
                ax.axvline(end, color=INK, linewidth=0.8, linestyle=":")
            ax.set_title(f"{above(label, labelled, 3)}\n{name}".strip(), fontsize=8.5)
            ax.set(xlabel="tau", ylabel="share of tokens", ylim=(-0.03, 1.05))
    legend(figure, drawn, columns=len(TEXT_LABELS))
    return figure


def tell_interpolation(rows: Sequence[Row]) -> str:
    """The same in words."""
    parts = [
        f"{label}, {VECTOR_LABELS.get(vectors, vectors)}, {len(pairs)} pairs, {name}: {_in_words(pairs, compared)}"
        for label, series_rows in _series(rows).items()
        for vectors, pairs in _moved(series_rows).items()
        for compared, name in TEXT_LABELS.items()
        if _along(pairs, compared)
    ]
    return (
        "Share of tokens, position by position, that agree with the first text, the last and others, where the first "
        f"text's vectors are moved to the last's and beyond. {listed(parts)}"
    )


def _in_words(pairs: Sequence[Row], compared: str) -> str:
    """One line of the figure in words, and how far the text is whole around its own end."""
    summaries = _along(pairs, compared)
    words = ", ".join(f"{summaries[tau].value:.2f} at tau {tau:g}" for tau in _SHOWN_TAUS if tau in summaries)
    if compared == "other":
        return words
    low, high = (mean(row[f"{compared}_{side}"] for row in pairs) for side in ("from", "to"))
    if low is None or high is None:
        return f"{words}, whole at its end in no pair"
    return f"{words}, whole from {low.value:.2f} to {high.value:.2f} on average over {low.n} pairs"


def _along(pairs: Sequence[Row], compared: str) -> dict[float, Summary]:
    """Mean share of tokens at every place; pairs of one series have the same places."""
    return means(pairs, f"{compared}_accuracies", pairs[0]["tau_from"], pairs[0]["tau_to"])


def _series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return series(rows, _LAID_OUT, more=_SETTINGS)


def _moved(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Lines through pairs of exact texts, by what is moved."""
    cells = by([row for row in of_method(rows, "segment") if row["both_exact"]], "vectors")
    return {vectors: cells[vectors,] for vectors in ordered((vectors for (vectors,) in cells), VECTOR_LABELS)}
