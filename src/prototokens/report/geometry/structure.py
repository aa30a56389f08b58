"""Structured solutions: what following a teacher costs in accuracy, and how well nearest neighbours are found."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import product
from typing import Any

from ..conditions import by, series
from ..drawing import INK, MARKERS, PALETTE, above, dots, legend, named_ticks, panels
from ..exhibit import Entry, entry, listed
from ..summary import Row, Summary, mean, share

PLAIN = "none"
LOSS_LABELS = {"anchor": "anchor", "relational": "relational distillation"}
TAUGHT_VECTORS = ("e", "m")
FOLLOWED = {"anchor": "anchor_cosine", "relational": "relation_correlation"}
"""The measure that each loss raises: a column, to which the vector's name is appended."""

_AXIS = {"anchor": "cosine with the anchor", "relational": "correlation of cosines with the teacher's"}
_FOUND_BY = {"e": "by e", "m": "by m", "both": "by both", "text": "by the mean embedding", "teacher": "by the teacher"}
_LAID_OUT = ("loss", "vector", "weight", "hold", "chunk", "chunk_tokens", "text", "tokens")


def trade(rows: Sequence[Row]) -> list[Entry]:
    """Accuracy, and how closely the teacher is followed, by auxiliary loss, vector and weight."""
    entries = []
    for label, series_rows in series(rows, _LAID_OUT).items():
        for head, vectors, cell in _ways(series_rows):
            for column, heading, decimals in (
                ("token_accuracy", "token accuracy", 3),
                ("exact", "share exact", 2),
                ("loss_nats", "loss, nats per token", 3),
                ("steps", "steps", 0),
            ):
                values = [row.get(column) for row in cell]
                entries += entry(head, label, heading, share(values) if column == "exact" else mean(values), decimals)
            for vector in vectors:
                for column, heading in (
                    ("anchor_cosine", "cosine with the anchor"),
                    ("relation_error", "error of cosines"),
                    ("relation_correlation", "correlation of cosines"),
                    ("relation_correlation_shuffled", "the same, teacher shuffled"),
                ):
                    summary = mean(row.get(f"{column}_{vector}") for row in cell)
                    if summary and column.startswith("relation_correlation"):  # of all chunks, in each of their rows
                        spread = mean(row.get(f"{column}_sd_{vector}") for row in cell)
                        summary = Summary(summary.value, sd=spread.value if spread else None)
                    entries += entry(head, label, f"{heading}, {vector}", summary)
    return entries


def retrieval(rows: Sequence[Row]) -> list[Entry]:
    """How often a chunk's neighbour in its text is the nearest of all chunks, by auxiliary loss, vector and weight."""
    entries = []
    for label, series_rows in series(rows, _LAID_OUT).items():
        for head, _, cell in _ways(series_rows):
            for name, heading in _FOUND_BY.items():
                entries += entry(head, label, heading, share(_nearest_found(cell, name)), 2)
            chance = mean(1 / row["candidates"] for row in cell if row.get("candidates"))
            entries += entry(head, label, "by chance", chance and Summary(chance.value), 2)
    return entries


def _by_loss(labels: Collection[str], height: float) -> tuple[Any, list[tuple[Any, str, str]]]:
    """A row of panels for every label, of some height in inches, with a titled panel for every loss."""
    figure, axes = panels(len(labels), len(LOSS_LABELS), 0.9 + height * len(labels))
    titled = [(ax, label, loss) for ax, (label, loss) in zip(axes, product(labels, LOSS_LABELS), strict=True)]
    for ax, label, loss in titled:
        ax.set_title(f"{above(label, labels, 2)}\n{LOSS_LABELS[loss]}".strip(), fontsize=8.5)
    return figure, titled


def draw_retrieval(rows: Sequence[Row]) -> Any:
    """How often the neighbour is the nearest by the vector that follows the teacher, against the loss's weight."""
    labelled = {
        label: cells_of for label, series_rows in series(rows, _LAID_OUT).items() if (cells_of := _nearest(series_rows))
    }
    if not labelled:
        return None
    figure, shown = _by_loss(labelled, 2.6)
    for ax, label, loss in shown:
        for i, vector in enumerate(TAUGHT_VECTORS):
            cells = labelled[label].get((loss, vector), {})
            dots(ax, [share(_nearest_found(cell, vector)) for cell in cells.values()], i, 2, f"by {vector}")
            if cells:
                named_ticks(ax, [f"{weight:g}" for weight in cells])
            for row in next(iter(cells.values()), [])[:1]:
                ax.axhline(1 / row["candidates"], color=INK, linewidth=0.8, linestyle=":")
        ax.set(xlabel="weight", ylabel="neighbour is nearest", ylim=(-0.03, 1.05))
    legend(figure, figure.axes, columns=2)
    return figure


def tell_retrieval(rows: Sequence[Row]) -> str:
    """The figure in words."""
    parts = []
    for label, series_rows in series(rows, _LAID_OUT).items():
        for (loss, vector), cells in _nearest(series_rows).items():
            shares = [(weight, share(_nearest_found(cell, vector))) for weight, cell in cells.items()]
            weights = ", ".join(f"{summary.value:.2f} at weight {weight:g}" for weight, summary in shares if summary)
            parts.append(f"{label}, {LOSS_LABELS[loss]} of {vector}: {weights}")
    return f"Share of chunks whose neighbour in the text is the nearest of all. Dotted: chance. {listed(parts)}"


def _nearest(rows: Sequence[Row]) -> dict[tuple[str, str], dict[float, list[Row]]]:
    """By loss and vector: rows by weight, the plain fits at weight 0."""
    plain = [row for row in rows if row["loss"] == PLAIN]
    cells_of = {}
    for loss, vector in product(LOSS_LABELS, TAUGHT_VECTORS):
        followed = [row for row in rows if (row["loss"], row["vector"]) == (loss, vector)]
        if any(rank is not None for rank in _nearest_found(followed, vector)):
            cells_of[loss, vector] = {weight: cell for (weight,), cell in by([*plain, *followed], "weight").items()}
    return cells_of


def _nearest_found(rows: Sequence[Row], name: str) -> list[int | None]:
    """Whether each row's neighbour is the nearest by a vector; None where that was not measured."""
    ranks = [row.get(f"rank_{name}") for row in rows]
    return [None if rank is None else int(rank == 1) for rank in ranks]


def draw_trade(rows: Sequence[Row]) -> Any:
    """Accuracy against the measure that each loss raises, a line for each vector, from weight 0 to the largest."""
    labelled = {
        label: points for label, series_rows in series(rows, _LAID_OUT).items() if (points := _points(series_rows))
    }
    if not labelled:
        return None
    figure, shown = _by_loss(labelled, 2.9)
    for ax, label, loss in shown:
        points = labelled[label]
        for i, vector in enumerate(TAUGHT_VECTORS):
            if (loss, vector) not in points:
                continue
            weights, xs, ys = zip(*points[loss, vector], strict=True)
            ax.plot(xs, ys, color=PALETTE[i], marker=MARKERS[i], label=vector)
            for n, (weight, x, y) in enumerate(zip(weights, xs, ys, strict=True)):
                aside = (4, -9 if n % 2 else 4)  # the points of small weights lie close together
                ax.annotate(f"{weight:g}", (x, y), textcoords="offset points", xytext=aside, fontsize=7)
        ax.set(xlabel=_AXIS[loss], ylabel="token accuracy", ylim=(-0.03, 1.1))
    legend(figure, figure.axes, columns=2)
    return figure


def tell_trade(rows: Sequence[Row]) -> str:
    """The figure in words."""
    parts = [
        f"{label}, {LOSS_LABELS[loss]} of {vector}: "
        + ", ".join(f"weight {weight:g}: {x:.2f} at accuracy {y:.2f}" for weight, x, y in points)
        for label, series_rows in series(rows, _LAID_OUT).items()
        for (loss, vector), points in _points(series_rows).items()
    ]
    return (
        "Mean token accuracy against how far a vector follows the teacher: for the anchor the cosine with it, for "
        f"relational distillation the correlation of the cosines between texts. {listed(parts)}"
    )


def _ways(rows: Sequence[Row]) -> list[tuple[tuple[str, ...], tuple[str, ...], list[Row]]]:
    """Row head, vectors and rows of each auxiliary loss; rows without one first."""
    ways: list[tuple[tuple[str, ...], tuple[str, ...], list[Row]]] = []
    for (loss, vector, weight), cell in by(rows, "loss", "vector", "weight").items():
        if loss == PLAIN:
            ways.append(((PLAIN, "none", "0"), TAUGHT_VECTORS, cell))
        else:
            ways.append(((LOSS_LABELS.get(loss, str(loss)), str(vector), f"{weight:g}"), (str(vector),), cell))
    return sorted(ways, key=lambda way: way[0][0] != PLAIN)


def _points(rows: Sequence[Row]) -> dict[tuple[str, str], list[tuple[float, float, float]]]:
    """By loss and vector: (weight, measure that the loss raises, token accuracy), the plain fits at weight 0."""
    points_of = {}
    for loss, column in FOLLOWED.items():
        for vector in TAUGHT_VECTORS:
            followed = [row for row in rows if (row["loss"], row["vector"]) == (loss, vector)]
            if not followed:
                continue
            cells = by([*(row for row in rows if row["loss"] == PLAIN), *followed], "weight")
            means = [(w, mean(r.get(f"{column}_{vector}") for r in c), mean(r["token_accuracy"] for r in c))
                     for (w,), c in cells.items()]  # fmt: skip
            if points := [(w, x.value, y.value) for w, x, y in means if x and y]:
                points_of[loss, vector] = points
    return points_of
