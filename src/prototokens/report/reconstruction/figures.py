"""The paper's figures, drawn from the numbers of the tables, each with a description for readers who do not see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...study import published
from ..conditions import by, distinct, of_method, ordered, series
from ..drawing import INK, MARKERS, PALETTE, legend, logarithmic, octaves, panels
from ..exhibit import Entry, listed
from ..summary import REACHED, Row, mean
from .comparisons import AUTOREGRESSIVE, GAIN, METHOD_ORDER, RATIO, information, paired_nats, throughput, way
from .tables import BEST, M_SHARED, NATS, SHARED_M, SOURCE_LABELS, capacity, searched_capacity


def draw_capacity(rows: Sequence[Row]) -> Any:
    """Figure 1: capacity in tokens and in nats by source, ours beside the paper's six models."""
    measured = _capacity_points(rows)
    if not measured:
        return None
    published_points = [(e.row[:2], e.row[2], e.column, e.summary.value) for e in capacity(()) if e.published]
    heads = list(dict.fromkeys([*(head for head, *_ in published_points), *(head for head, *_ in measured)]))
    figure, axes = panels(1, 2, 1.4 + 0.42 * len(heads))
    for ax, quantity in zip(axes, (BEST, NATS), strict=True):
        for family, marker in (("Pythia", "o"), ("Llama", "s")):
            models = [model for model in published.MODELS if model.startswith(family)]
            for size, model in enumerate(models):
                points = [(v, float(heads.index(h))) for h, q, m, v in published_points if (q, m) == (quantity, model)]
                name = f"paper: {family} {', '.join(m.split()[-1] for m in models)} (by size)"
                drawn = {"facecolors": "none", "edgecolors": INK, "linewidths": 0.8, "alpha": 0.7}
                ax.scatter(*zip(*points, strict=True), s=12 + 16 * size, marker=marker, label=name, **drawn)
        labels = list(dict.fromkeys(label for *_, label, _ in measured))
        for i, label in enumerate(labels):
            aside = 0.16 * (i - (len(labels) - 1) / 2)
            points = [
                (v, heads.index(h) + aside) for h, q, name, v in measured if (q, name) == (quantity, label) and v > 0
            ]
            if points:
                colour, marker = PALETTE[i % len(PALETTE)], MARKERS[-1 - i % len(MARKERS)]
                ax.scatter(*zip(*points, strict=True), s=44, color=colour, marker=marker, label=label, zorder=3)
        ax.set(ylim=(len(heads) - 0.5, -0.5), xlabel=_AXIS[quantity])
        logarithmic(ax.xaxis)
    axes[0].set_yticks(range(len(heads)), [f"{source.split(' (')[0]}, {shared} m" for source, shared in heads])
    axes[1].set_yticks(range(len(heads)), [""] * len(heads))
    legend(figure, axes)
    return figure


def tell_capacity(rows: Sequence[Row]) -> str:
    """Figure 1 in words."""
    parts = [
        f"{label}, {source}, {shared} m: {value:.0f} {'tokens' if quantity == BEST else 'nats'}"
        for (source, shared), quantity, label, value in _capacity_points(rows)
    ]
    return f"Capacity by source, on logarithmic axes, beside the six models of the paper. {listed(parts)}"


def draw_accuracy(rows: Sequence[Row]) -> Any:
    """Figure 1, in detail: token accuracy against length for every source."""
    grid = of_method(rows, "grid")
    sources = ordered(distinct(grid, "source"), SOURCE_LABELS)
    if not sources:
        return None
    columns = min(2, len(sources))
    figure, axes = panels(-(-len(sources) // columns), columns, 0.8 + 2.3 * -(-len(sources) // columns))
    labelled = series(grid, ("source", "m_shared", "text", "seed", "tokens"))
    for ax, source in zip(axes, sources, strict=False):
        for i, (label, series_rows) in enumerate(labelled.items()):
            for (shared,), cell in by([row for row in series_rows if row["source"] == source], "m_shared").items():
                line = "--" if shared else "-"
                name = f"{label}, {M_SHARED[bool(shared)]} m"
                _means(ax, cell, "token_accuracy", 2 * i + bool(shared), name, line)
        ax.axhline(REACHED, color=INK, linewidth=0.8, linestyle=":", label=f"accuracy {REACHED:g}")
        ax.set(title=SOURCE_LABELS.get(source, source), ylim=(-0.03, 1.05), xlabel="tokens", ylabel="token accuracy")
        octaves(ax.xaxis, distinct(grid, "tokens"))
    for ax in axes[len(sources) :]:
        ax.remove()
    legend(figure, axes[: len(sources)])
    return figure


def tell_accuracy(rows: Sequence[Row]) -> str:
    """Figure 1, in detail, in words."""
    parts = []
    for label, series_rows in series(of_method(rows, "grid"), ("source", "m_shared", "text", "seed", "tokens")).items():
        for (source, shared), cell in by(series_rows, "source", "m_shared").items():
            curve = by(cell, "tokens")
            first, last = (mean(row["token_accuracy"] for row in curve[end]) for end in (min(curve), max(curve)))
            if first and last:
                where = f"{label}, {SOURCE_LABELS.get(source, source)}, {M_SHARED[bool(shared)]} m"
                parts.append(
                    f"{where}: {first.value:.2f} at {min(curve)[0]} tokens, {last.value:.2f} at {max(curve)[0]}"
                )
    return f"Mean token accuracy against length of text, one panel for each source. {listed(parts)}"


def draw_information(rows: Sequence[Row]) -> Any:
    """Figure 3: H_LM of each text in one step against autoregressively."""
    labelled = {label: paired_nats(series_rows) for label, series_rows in _information_series(rows).items()}
    labelled = {label: pairs for label, pairs in labelled.items() if pairs}
    if not labelled:
        return None
    figure, axes = panels(len(labelled), 1, 5.8 * len(labelled))
    for ax, (label, pairs) in zip(axes, labelled.items(), strict=True):
        top = 1.08 * max([1.0, *(value for _, *values in pairs for value in values)])
        ax.plot([0, top], [0, top], color=INK, linewidth=0.8, label="equal")
        ax.plot([0, top], [0, top / 2], color=INK, linewidth=0.8, linestyle="--", label="half (paper: natural text)")
        _scatter_pairs(ax, pairs)
        ax.set(title=label, xlim=(0, top), ylim=(0, top), box_aspect=1)
        ax.set(xlabel="H_LM, autoregressive, nats", ylabel="H_LM, one step, nats")
    legend(figure, axes, columns=2)
    return figure


def tell_information(rows: Sequence[Row]) -> str:
    """Figure 3 in words."""
    ratios = [e for e in information(rows) if e.row[2] == RATIO]
    parts = [f"{e.group}, {e.row[0]}, {e.row[1]} vectors: {e.summary.value:.2f}" for e in ratios]
    return f"Nats in one step against nats autoregressively, a point for each text. Ratios of the sums: {listed(parts)}"


def draw_throughput(rows: Sequence[Row]) -> Any:
    """Figure 4: tokens per second against length for each way to decode."""
    labelled = series(
        [row for row in rows if row["tokens_per_second"]], ("method", "batch", "tokens"), more=("threads",)
    )
    if not labelled:
        return None
    figure, axes = panels(len(labelled), 1, 0.9 + 3.2 * len(labelled))
    for ax, (label, series_rows) in zip(axes, labelled.items(), strict=True):
        ways = by(series_rows, "method", "batch")
        for i, (method, batch) in enumerate(sorted(ways, key=lambda w: (METHOD_ORDER.index(w[0]), w[1] or 0))):
            line = "--" if method.startswith(AUTOREGRESSIVE) else "-"
            _means(ax, ways[method, batch], "tokens_per_second", i, way(method, batch), line)
        ax.set(title=label, xlabel="tokens", ylabel="tokens per second")
        logarithmic(ax.yaxis)
        octaves(ax.xaxis, distinct(series_rows, "tokens"))
    legend(figure, axes)
    return figure


def tell_throughput(rows: Sequence[Row]) -> str:
    """Figure 4 in words."""
    gains = [e for e in throughput(rows) if not e.published and e.row[1] == GAIN]
    parts = [f"{e.group}, {e.row[0]}, {e.column}: {e.summary.value:.1f} times autoregressive" for e in gains]
    return f"Tokens per second against length of text, both axes logarithmic. {listed(parts)}"


_AXIS = {BEST: "capacity, tokens", NATS: "H_LM, nats"}


def _capacity_points(rows: Sequence[Row]) -> list[tuple[tuple[str, ...], str, str, float]]:
    """(source and m, BEST or NATS, label, value) of what was measured, of searches too."""

    def point(e: Entry, label: str, quantity: str, how: str) -> tuple[tuple[str, ...], str, str, float]:
        return e.row[:2], quantity, f"{label.removesuffix(')')}, {how})", e.summary.value

    quantities = {"C, tokens: best": BEST, "H_LM, nats: mean": NATS}
    grid = [e for e in capacity(rows) if not e.published and e.row[2] in (BEST, NATS)]
    searched = [e for e in searched_capacity(rows) if e.column in quantities]
    points = [point(e, e.column, e.row[2], "grid") for e in grid]
    return points + [point(e, e.group, quantities[e.column], e.row[2]) for e in searched]


def _information_series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    searched = [row for row in rows if row.get("method") != SHARED_M]
    return series(searched, ("source", "vectors", "method", "text", "seed"))


def _scatter_pairs(ax: Any, pairs: Sequence[tuple[Row, float, float]]) -> None:
    """Pairs of nats as points: a colour for each source, a marker for each number of vectors."""
    rows = [row for row, *_ in pairs]
    for vectors in distinct(rows, "vectors"):
        for i, source in enumerate(ordered({*SOURCE_LABELS, *distinct(rows, "source")}, SOURCE_LABELS)):
            points = [(y, x) for row, x, y in pairs if (row["source"], row["vectors"]) == (source, vectors)]
            name = f"{SOURCE_LABELS.get(source, source).split(' (')[0]}, {vectors} vector{'s' if vectors != 1 else ''}"
            kind = {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[(vectors - 1) % len(MARKERS)]}
            if points:
                ax.scatter(*zip(*points, strict=True), alpha=0.8, label=name, **kind)


def _means(ax: Any, rows: Sequence[Row], column: str, i: int, name: str, line: str) -> None:
    """Means against length as a line with the standard deviation as bars."""
    summaries = [(length, s) for (length,), cell in by(rows, "tokens").items() if (s := mean(r[column] for r in cell))]
    lengths, means = [length for length, _ in summaries], [s.value for _, s in summaries]
    spread = [s.sd or 0 for _, s in summaries]
    style = {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)], "linestyle": line}
    ax.errorbar(lengths, means, yerr=spread, label=name, capsize=2, elinewidth=0.8, **style)
