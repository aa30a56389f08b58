"""The basin: how far vectors may be moved before tokens become wrong, and which tokens are lost first."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from ..conditions import by, distinct, of_method, ordered, series
from ..drawing import INK, MARKERS, PALETTE, above, heat_map, legend, octaves, panels
from ..exhibit import Entry, entry, listed
from ..summary import REACHED, Row, mean, share

VECTOR_ORDER = ("e", "m", "both")
CHANGE_NAMES = {
    "noise": "noise, of the vector's length",
    "scaling": "scaling, factor",
    "rounding": "rounding, bits kept",
    "projection": "principal directions kept",
    "random projection": "random directions kept",
}
"""Kinds of change, with the unit in which their amount is shown."""

NO_CHANGE, MOVED = "none", "moved"
LARGEST, SMALLEST = "largest still exact", "smallest still exact"
RANK, POSITION = "margin rank of the first lost, at random 0.5", "position of the first lost, at random 0.5"

_SIDES = {"noise": {LARGEST: 1}, "scaling": {LARGEST: 1, SMALLEST: -1}}
"""Names of the amounts furthest from no change, and their sign. Other kinds have SMALLEST, of amounts above 0."""

_LAID_OUT = ("method", "kind", "amount", "vectors", "draw", "margin", "text", "tokens")
_LINES = ("-", "--", ":", "-.")


def basin(rows: Sequence[Row]) -> list[Entry]:
    """Token accuracy after every change, of texts that were exact before, and how far it moved the vectors."""
    entries = []
    for label, series_rows in series(rows, _LAID_OUT).items():
        cells = by(_changes(series_rows), "kind", "vectors")
        for kind, vectors in product(ordered((kind for kind, _ in cells), CHANGE_NAMES), VECTOR_ORDER):
            entries += _of_kind(label, kind, vectors, cells.get((kind, vectors), []))
        for (margin,), cell in by(series_rows, "margin").items():
            fits = [row["exact"] for row in of_method(cell, "fit")]
            entries += entry((NO_CHANGE, "none", "share exact"), label, f"margin {margin:g}", share(fits), 2)
    return entries


def _of_kind(label: str, kind: str, vectors: str, rows: Sequence[Row]) -> list[Entry]:
    head, entries = (CHANGE_NAMES.get(kind, kind), vectors), []
    for (amount, margin), cell in by(rows, "amount", "margin").items():
        row, column = (*head, f"{shown_amount(kind, amount):g}"), f"margin {margin:g}"
        entries += entry(row, label, column, mean(change["token_accuracy"] for change in cell))
        entries += entry(row, label, f"{column}, {MOVED}", mean(change["moved"] for change in cell))
    for (margin,), cell in by(rows, "margin").items():
        column = f"margin {margin:g}"
        for side, sign in _SIDES.get(kind, {SMALLEST: 1}).items():
            entries += entry((*head, side), label, column, mean(_still_exact(cell, kind, sign)))
        losing = _least_losing(cell)
        entries += entry((*head, RANK), label, column, mean(change["lost_margin_rank"] for change in losing), 2)
        entries += entry(
            (*head, POSITION), label, column, mean(_lost_position(change["right"]) for change in losing), 2
        )
    return entries


def shown_amount(kind: str, amount: float) -> float:
    """The amount of a change as the page shows it: factor, bits kept, share of directions kept."""
    if kind == "scaling":
        return round(1 + amount, 6)
    if kind == "rounding":
        return 32 - amount
    return round(1 - amount, 6) if "projection" in kind else amount


def _changes(rows: Sequence[Row]) -> list[Row]:
    return [row for row in of_method(rows, "change") if row["fit_exact"]]


def _still_exact(rows: Sequence[Row], kind: str, sign: int) -> list[float]:
    """For each text and draw the amount furthest from no change at which it and all nearer ones leave the text exact.

    Only amounts of that sign count, and they are as shown. Where even the nearest loses tokens, it is that of no
    change. Texts and draws without such amounts are left out.
    """
    furthest = []
    for runs in by([row for row in rows if row["amount"] * sign > 0], "text", "draw").values():
        kept = 0.0
        for row in sorted(runs, key=lambda row: abs(row["amount"])):
            if not row["exact"]:
                break
            kept = row["amount"]
        furthest.append(shown_amount(kind, kept))
    return furthest


def _least_losing(rows: Sequence[Row]) -> list[Row]:
    """For each text and draw, of the changes that lose some tokens and not all, the one that moves least."""
    losing_changes = []
    for runs in by(rows, "text", "draw").values():
        losing = [row for row in runs if row.get("lost_margin_rank") is not None]
        if losing:
            losing_changes.append(min(losing, key=lambda row: row["moved"]))
    return losing_changes


def _lost_position(right: str) -> float:
    """Mean position of a text's lost tokens: 0 where only the first is lost, 1 where only the last is."""
    lost = [i for i, digit in enumerate(right) if digit == "0"]
    return sum(lost) / len(lost) / (len(right) - 1)


def draw_basin(rows: Sequence[Row]) -> Any:
    """Accuracy against the amount of every kind of change, a line for each vector and margin."""
    labelled = {
        label: changes for label, series_rows in series(rows, _LAID_OUT).items() if (changes := _changes(series_rows))
    }
    if not labelled:
        return None
    all_changes = [row for changes in labelled.values() for row in changes]
    kinds, margins = ordered(distinct(all_changes, "kind"), CHANGE_NAMES), distinct(all_changes, "margin")
    places = [(label, kind) for label in labelled for kind in kinds]
    height = -(-len(places) // 2)
    figure, axes = panels(height, 2, 1.0 + 2.1 * height)
    for ax, (label, kind) in zip(axes, places, strict=False):
        _lines(ax, [row for row in labelled[label] if row["kind"] == kind], kind, margins)
        ax.axhline(REACHED, color=INK, linewidth=0.8, linestyle=":")
        ax.set(xlabel=CHANGE_NAMES.get(kind, kind), ylabel="token accuracy", ylim=(-0.03, 1.05))
        ax.set_title(above(label, labelled, 2), fontsize=8.5)
    for ax in axes[len(places) :]:
        ax.remove()
    legend(figure, axes[: len(places)], columns=3)
    return figure


def _lines(ax: Any, rows: Sequence[Row], kind: str, margins: Sequence[float]) -> None:
    """Means over texts and draws: a colour for each vector, a line style for each margin."""
    cells = by(rows, "vectors", "margin")
    for (i, vectors), (j, margin) in product(enumerate(VECTOR_ORDER), enumerate(margins)):
        points = [
            (shown_amount(kind, amount), summary.value)
            for (amount,), texts in by(cells.get((vectors, margin), []), "amount").items()
            if (summary := mean(row["token_accuracy"] for row in texts))
        ]
        if points:
            style = {"color": PALETTE[i], "marker": MARKERS[i], "linestyle": _LINES[j % len(_LINES)]}
            ax.plot(*zip(*sorted(points), strict=True), label=f"{vectors}, margin {margin:g}", **style)
    if kind in ("noise", "scaling", "rounding"):
        octaves(ax.xaxis, (shown_amount(kind, amount) for amount in distinct(rows, "amount")), 1.3)


def tell_basin(rows: Sequence[Row]) -> str:
    """The basin in words."""
    radii = [e for e in basin(rows) if (e.row[0], e.row[2]) == (CHANGE_NAMES["noise"], LARGEST)]
    parts = [f"{e.group}, {e.column}, {e.row[1]}: {e.summary.value:.3f}" for e in radii]
    return (
        "Token accuracy against the amount of noise, scaling, rounding and projection of e, m and both. Mean of the "
        f"largest noise, in lengths of the vector, that leaves a text exact: {listed(parts)}"
    )


def draw_positions(rows: Sequence[Row]) -> Any:
    """Share of right tokens by position and amount of noise, a panel for each vector and margin."""
    shares_of = _position_panels(rows)
    if not shares_of:
        return None
    figure, axes = panels(len(shares_of), len(VECTOR_ORDER), 0.6 + 2.1 * len(shares_of))
    labels = {label for label, _ in shares_of}
    places = [
        (label, margin, vectors, by_vectors[vectors])
        for (label, margin), by_vectors in shares_of.items()
        for vectors in VECTOR_ORDER
    ]
    meshes = {}
    for ax, (label, margin, vectors, (amounts, shares)) in zip(axes, places, strict=True):
        if not amounts:
            ax.remove()
            continue
        meshes[ax] = heat_map(ax, shares)
        ax.set_yticks(range(len(amounts)), [f"{amount:g}" for amount in amounts])
        ax.set_title(f"{above(label, labels, 3)}\n{vectors}, margin {margin:g}".strip(), fontsize=8.5)
        ax.set(xlabel="position, from 0", ylabel="noise")
    figure.colorbar(next(iter(meshes.values())), ax=list(meshes), label="share right", shrink=0.8)
    return figure


def tell_positions(rows: Sequence[Row]) -> str:
    """Which positions are lost first, in words."""
    parts = []
    for (label, margin), by_vectors in _position_panels(rows).items():
        for vectors, (amounts, shares) in by_vectors.items():
            if amounts:
                means = [sum(column) / len(column) for column in zip(*shares, strict=True)]
                worst = sorted(range(len(means)), key=lambda i: means[i])[:3]
                places = ", ".join(f"{i} ({means[i]:.2f} right)" for i in worst)
                parts.append(f"{label}, margin {margin:g}, {vectors}: {places}")
    return f"Share of right tokens by position under noise. Positions that are lost most often, from 0: {listed(parts)}"


_Shares = dict[str, tuple[list[float], list[list[float]]]]


def _position_panels(rows: Sequence[Row]) -> dict[tuple[str, float], _Shares]:
    """By label and margin, for each vector: amounts of noise, and for each the share right at every position."""
    shares_of: dict[tuple[str, float], _Shares] = {}
    for label, series_rows in series(rows, _LAID_OUT).items():
        noisy = [row for row in _changes(series_rows) if row["kind"] == "noise"]
        cells = by(noisy, "margin", "vectors")
        for margin in distinct(noisy, "margin"):
            shares_of[label, margin] = {vectors: _shares(cells.get((margin, vectors), [])) for vectors in VECTOR_ORDER}
    return shares_of


def _shares(rows: Sequence[Row]) -> tuple[list[float], list[list[float]]]:
    length = min((len(row["right"]) for row in rows), default=0)
    amounts = by(rows, "amount")
    shares = [
        [sum(row["right"][i] == "1" for row in cell) / len(cell) for i in range(length)] for cell in amounts.values()
    ]
    return [amount for (amount,) in amounts], shares
