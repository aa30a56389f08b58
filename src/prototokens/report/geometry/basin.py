"""The basin: how far vectors may be moved before their tokens go wrong, and which tokens go first."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from ..conditions import by, distinct, ordered, series
from ..drawing import INK, MARKERS, PALETTE, above, heat_map, legend, octaves, panels
from ..exhibit import Entry, listed
from ..reconstruction.tables import entry, of_method
from ..summary import REACHED, Row, mean, share

VECTORS = ("e", "m", "both")
KINDS = {
    "noise": "noise, of the vector's length",
    "scaling": "scaling, factor",
    "rounding": "rounding, bits kept",
    "projection": "principal directions kept",
    "random projection": "random directions kept",
}
"""Kinds of change, with what their amount is told in."""

NO_CHANGE, MOVED = "none", "moved"
LARGEST, SMALLEST = "largest still exact", "smallest still exact"
RANK, POSITION = "margin rank of what goes first, by chance 0.5", "position of what goes first, by chance 0.5"

_SIDES = {"noise": {LARGEST: 1}, "scaling": {LARGEST: 1, SMALLEST: -1}}
"""What the amount furthest from no change is called, and the sign of such amounts; else SMALLEST, positive."""

_OWN = ("method", "kind", "amount", "vectors", "draw", "margin", "text", "tokens")
_LINES = ("-", "--", ":", "-.")


def basin(rows: Sequence[Row]) -> list[Entry]:
    """Token accuracy after every change, of texts that were exact before it, and how far it moved the vectors."""
    entries = []
    for label, own in series(rows, _OWN).items():
        cells = by(_changes(own), "kind", "vectors")
        for kind, vectors in product(ordered((kind for kind, _ in cells), KINDS), VECTORS):
            entries += _of_kind(label, kind, vectors, cells.get((kind, vectors), []))
        for (margin,), cell in by(own, "margin").items():
            fits = [row["exact"] for row in of_method(cell, "fit")]
            entries += entry((NO_CHANGE, "none", "share exact"), label, f"margin {margin:g}", share(fits), 2)
    return entries


def _of_kind(label: str, kind: str, vectors: str, rows: Sequence[Row]) -> list[Entry]:
    head, entries = (KINDS.get(kind, kind), vectors), []
    for (amount, margin), cell in by(rows, "amount", "margin").items():
        row, column = (*head, f"{told(kind, amount):g}"), f"margin {margin:g}"
        entries += entry(row, label, column, mean(one["token_accuracy"] for one in cell))
        entries += entry(row, label, f"{column}, {MOVED}", mean(one["moved"] for one in cell))
    for (margin,), cell in by(rows, "margin").items():
        column = f"margin {margin:g}"
        for side, sign in _SIDES.get(kind, {SMALLEST: 1}).items():
            entries += entry((*head, side), label, column, mean(_still_exact(cell, kind, sign)))
        first = _first_losses(cell)
        entries += entry((*head, RANK), label, column, mean(one["lost_margin_rank"] for one in first), 2)
        entries += entry((*head, POSITION), label, column, mean(_lost_position(one["right"]) for one in first), 2)
    return entries


def told(kind: str, amount: float) -> float:
    """The amount of a change as a reader wants it: factor, bits kept, share of directions kept."""
    if kind == "scaling":
        return round(1 + amount, 6)
    if kind == "rounding":
        return 32 - amount
    return round(1 - amount, 6) if "projection" in kind else amount


def _changes(rows: Sequence[Row]) -> list[Row]:
    return [row for row in of_method(rows, "change") if row["fit_exact"]]


def _still_exact(rows: Sequence[Row], kind: str, sign: int) -> list[float]:
    """For each text and draw the furthest amount of that sign, as told, that it and all nearer ones leave exact.

    That of no change where none does; nothing where no amount has that sign.
    """
    found = []
    for runs in by([row for row in rows if row["amount"] * sign > 0], "text", "draw").values():
        kept = 0.0
        for row in sorted(runs, key=lambda row: abs(row["amount"])):
            if not row["exact"]:
                break
            kept = row["amount"]
        found.append(told(kind, kept))
    return found


def _first_losses(rows: Sequence[Row]) -> list[Row]:
    """For each text and draw the change that moves least of those that lose some tokens and not all."""
    found = []
    for runs in by(rows, "text", "draw").values():
        losing = [row for row in runs if row.get("lost_margin_rank") is not None]
        if losing:
            found.append(min(losing, key=lambda row: row["moved"]))
    return found


def _lost_position(right: str) -> float:
    """Mean position of the lost tokens of a text, from 0 (the first alone is lost) to 1 (the last alone is)."""
    lost = [i for i, digit in enumerate(right) if digit == "0"]
    return sum(lost) / len(lost) / (len(right) - 1)


def draw_basin(rows: Sequence[Row]) -> Any:
    """Accuracy against the amount of every kind of change, a line for each vector and margin."""
    labelled = {label: own for label, rows_of in series(rows, _OWN).items() if (own := _changes(rows_of))}
    if not labelled:
        return None
    everything = [row for own in labelled.values() for row in own]
    kinds, margins = ordered(distinct(everything, "kind"), KINDS), distinct(everything, "margin")
    places = [(label, kind) for label in labelled for kind in kinds]
    height = -(-len(places) // 2)
    figure, axes = panels(height, 2, 1.0 + 2.1 * height)
    for ax, (label, kind) in zip(axes, places, strict=False):
        _lines(ax, [row for row in labelled[label] if row["kind"] == kind], kind, margins)
        ax.axhline(REACHED, color=INK, linewidth=0.8, linestyle=":")
        ax.set(xlabel=KINDS.get(kind, kind), ylabel="token accuracy", ylim=(-0.03, 1.05))
        ax.set_title(above(label, labelled, 2), fontsize=8.5)
    for ax in axes[len(places) :]:
        ax.remove()
    legend(figure, axes[: len(places)], columns=3)
    return figure


def _lines(ax: Any, rows: Sequence[Row], kind: str, margins: Sequence[float]) -> None:
    """Means over texts and draws: a colour for each vector, a line style for each margin."""
    cells = by(rows, "vectors", "margin")
    for (i, vectors), (j, margin) in product(enumerate(VECTORS), enumerate(margins)):
        points = [
            (told(kind, amount), found.value)
            for (amount,), texts in by(cells.get((vectors, margin), []), "amount").items()
            if (found := mean(row["token_accuracy"] for row in texts))
        ]
        if points:
            style = {"color": PALETTE[i], "marker": MARKERS[i], "linestyle": _LINES[j % len(_LINES)]}
            ax.plot(*zip(*sorted(points), strict=True), label=f"{vectors}, margin {margin:g}", **style)
    if kind in ("noise", "scaling", "rounding"):
        octaves(ax.xaxis, (told(kind, amount) for amount in distinct(rows, "amount")), 1.3)


def tell_basin(rows: Sequence[Row]) -> str:
    """The basin in words."""
    radii = [e for e in basin(rows) if (e.row[0], e.row[2]) == (KINDS["noise"], LARGEST)]
    found = [f"{e.group}, {e.column}, {e.row[1]}: {e.summary.value:.3f}" for e in radii]
    return (
        "Token accuracy against the amount of noise, scaling, rounding and projection of e, m and both. Mean of the "
        f"largest noise, of the vector's length, that leaves a text exact: {listed(found)}"
    )


def draw_positions(rows: Sequence[Row]) -> Any:
    """Share of right tokens by position and amount of noise, a panel for each vector and margin."""
    found = _position_panels(rows)
    if not found:
        return None
    figure, axes = panels(len(found), len(VECTORS), 0.6 + 2.1 * len(found))
    labels = {label for label, _ in found}
    places = [(label, margin, vectors, own[vectors]) for (label, margin), own in found.items() for vectors in VECTORS]
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
    """Which positions go first, in words."""
    told_of = []
    for (label, margin), own in _position_panels(rows).items():
        for vectors, (amounts, shares) in own.items():
            if amounts:
                means = [sum(column) / len(column) for column in zip(*shares, strict=True)]
                worst = sorted(range(len(means)), key=lambda i: means[i])[:3]
                places = ", ".join(f"{i} ({means[i]:.2f} right)" for i in worst)
                told_of.append(f"{label}, margin {margin:g}, {vectors}: {places}")
    return (
        "Share of right tokens by position under noise. Positions that go wrong most, counted from 0: "
        f"{listed(told_of)}"
    )


_Shares = dict[str, tuple[list[float], list[list[float]]]]


def _position_panels(rows: Sequence[Row]) -> dict[tuple[str, float], _Shares]:
    """By label and margin, for each vector: amounts of noise, and for each the share right at every position."""
    found: dict[tuple[str, float], _Shares] = {}
    for label, own in series(rows, _OWN).items():
        noisy = [row for row in _changes(own) if row["kind"] == "noise"]
        cells = by(noisy, "margin", "vectors")
        for margin in distinct(noisy, "margin"):
            found[label, margin] = {vectors: _shares(cells.get((margin, vectors), [])) for vectors in VECTORS}
    return found


def _shares(rows: Sequence[Row]) -> tuple[list[float], list[list[float]]]:
    length = min((len(row["right"]) for row in rows), default=0)
    amounts = by(rows, "amount")
    shares = [
        [sum(row["right"][i] == "1" for row in cell) / len(cell) for i in range(length)] for cell in amounts.values()
    ]
    return [amount for (amount,) in amounts], shares
