"""Where solutions lie: figures 5 and 6 with their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from ...geometry.distances import MEASURES, PAIR_KINDS, PARTS
from ...geometry.separation import Estimate, Pair, correlation, gap, separation, shuffled
from ..conditions import by, of_method, series
from ..drawing import MARKERS, PALETTE, above, legend, panels
from ..exhibit import Entry, entry, listed
from ..summary import Row, Summary, mean

SAME_TEXT, SAME_CONTEXT, DIFFERENT = PAIR_KINDS
COMPARED_KINDS = ((SAME_TEXT, SAME_CONTEXT), (SAME_CONTEXT, DIFFERENT), (SAME_TEXT, DIFFERENT))
BEFORE, SHUFFLED = "before the fit", "labels shuffled"
TEXT_DISTANCES = {"tfidf_distance": "TF-IDF", "semantic_distance": "semantic"}
CLOSER = "same context closer by"

_LAID_OUT = ("start", "method", "kind", "context", "text", "fit_seed", "other_context", "other_text", "other_seed")


def locality(rows: Sequence[Row]) -> list[Entry]:
    """Figure 6 in numbers: mean distances by kind of pair, and AUCs; the same before the fit; shuffled labels."""
    entries = []
    for (label, start), pairs_of_start in _solved(rows).items():
        for measure, part in product(MEASURES, PARTS):
            head, column = (start, measure), f"{measure}_{part}"
            for kind in PAIR_KINDS:
                pairs, quantity = [row for row in pairs_of_start if row["kind"] == kind], f"distance, {kind}"
                entries += entry((*head, quantity), label, part, mean(row[column] for row in pairs))
                before = mean(row[f"start_{column}"] for row in pairs)
                entries += entry((*head, f"{quantity}: {BEFORE}"), label, part, before)
            for near, far in COMPARED_KINDS:
                quantity = f"AUC, {near} | {far}"
                entries += _estimate((*head, quantity), label, part, _auc(pairs_of_start, column, near, far))
                began = _auc(pairs_of_start, f"start_{column}", near, far)
                entries += _estimate((*head, f"{quantity}: {BEFORE}"), label, part, began)
            control = _auc(pairs_of_start, column, SAME_TEXT, DIFFERENT, statistic=shuffled)
            entries += _estimate((*head, f"AUC, {SAME_TEXT} | {DIFFERENT}: {SHUFFLED}"), label, part, control)
    return entries


def likeness(rows: Sequence[Row]) -> list[Entry]:
    """Figure 5 in numbers: how vector distances correlate with text distances, and what a common context adds."""
    entries = []
    for (label, start), start_rows in _solved(rows).items():
        for (text_column, text_name), part in product(TEXT_DISTANCES.items(), PARTS):
            pairs = {kind: _pairs(start_rows, f"cosine_{part}", kind, text_column) for kind in PAIR_KINDS}
            for kind in (SAME_CONTEXT, DIFFERENT):
                estimate = correlation(pairs[kind]) if pairs[kind] else None
                count = len(pairs[kind])
                entries += _estimate((start, text_name, f"correlation, {kind}"), label, part, (estimate, count))
            estimate = gap(pairs[SAME_CONTEXT], pairs[DIFFERENT])
            count = len(pairs[SAME_CONTEXT]) + len(pairs[DIFFERENT])
            entries += _estimate((start, text_name, CLOSER), label, part, (estimate, count))
    return entries


def draw_locality(rows: Sequence[Row]) -> Any:
    """Figure 6: densities of the cosine distances of each kind of pair, for e, m and both."""
    solved = _solved(rows)
    if not solved:
        return None
    labels = {label for label, _ in solved}
    figure, axes = panels(len(solved), len(PARTS), 0.8 + 2.1 * len(solved))
    for i, ((label, start), start_rows) in enumerate(solved.items()):
        for j, part in enumerate(PARTS):
            ax, column = axes[i * len(PARTS) + j], f"cosine_{part}"
            values = {kind: [row[column] for row in start_rows if row["kind"] == kind] for kind in PAIR_KINDS}
            for kind, colour in zip(PAIR_KINDS, PALETTE, strict=False):
                _density(ax, values[kind], [x for estimate in values.values() for x in estimate], kind, colour)
            estimate, _ = _auc(start_rows, column, SAME_TEXT, SAME_CONTEXT)
            title = f"{part}, AUC {_in_words(estimate)}" if estimate else part
            ax.set_title(f"{above(label, labels, 3)}\n{title}".strip(), fontsize=8.5)
            ax.set_yticks([])
            ax.set_ylim(bottom=0)
        axes[i * len(PARTS)].set_ylabel(f"from {start}")
    for ax in axes[-len(PARTS) :]:
        ax.set_xlabel("cosine distance")
    legend(figure, axes, columns=3)
    return figure


def tell_locality(rows: Sequence[Row]) -> str:
    """Figure 6 in words."""
    parts = []
    for (label, start), start_rows in _solved(rows).items():
        for part in PARTS:
            estimate, _ = _auc(start_rows, f"cosine_{part}", SAME_TEXT, SAME_CONTEXT)
            means = [mean(row[f"cosine_{part}"] for row in start_rows if row["kind"] == kind) for kind in PAIR_KINDS]
            parts = [f"{kind} {m.value:.3f}" for kind, m in zip(PAIR_KINDS, means, strict=True) if m]
            auc = f", AUC {_in_words(estimate)}" if estimate else ""
            parts.append(f"{label}, from {start}, {part}: mean distances {', '.join(parts)}{auc}")
    return f"Densities of cosine distances by kind of pair. {listed(parts)}"


def draw_likeness(rows: Sequence[Row]) -> Any:
    """Figure 5: cosine distance of e, of m and of both against the distance of the texts, pair by pair."""
    solved = {
        key: start_rows
        for key, start_rows in _solved(rows).items()
        if any(row["kind"] != SAME_TEXT for row in start_rows)
    }
    if not solved:
        return None
    lines, labels = list(product(solved.items(), PARTS)), {label for label, _ in solved}
    figure, axes = panels(len(lines), len(TEXT_DISTANCES), 0.8 + 1.8 * len(lines))
    for i, (((label, start), start_rows), part) in enumerate(lines):
        for j, (column, name) in enumerate(TEXT_DISTANCES.items()):
            ax = axes[i * len(TEXT_DISTANCES) + j]
            for k, kind in reversed(list(enumerate(PAIR_KINDS))[1:]):
                points = [(p.text_distance, p.distance) for p in _pairs(start_rows, f"cosine_{part}", kind, column)]
                if points:
                    style = {"color": PALETTE[k], "marker": MARKERS[k], "s": 14, "alpha": 0.7, "linewidths": 0}
                    ax.scatter(*zip(*points, strict=True), label=kind, **style)
            ax.set_title(above(label, labels, 2), fontsize=8.5)
            if i == len(lines) - 1:
                ax.set_xlabel(f"{name} distance of the texts")
        axes[i * len(TEXT_DISTANCES)].set_ylabel(f"cosine distance, {part}\nfrom {start}")
    legend(figure, axes, columns=2)
    return figure


def tell_likeness(rows: Sequence[Row]) -> str:
    """Figure 5 in words."""
    parts = [
        f"{e.group}, from {e.row[0]}, {e.column}, {e.row[1]}: {e.summary.value:.3f}"
        for e in likeness(rows)
        if e.row[2] == CLOSER
    ]
    return (
        "Cosine distance of the vectors against the distance of the texts, for pairs of the same context and of "
        f"different ones. At equal text distance, pairs of the same context lie closer by: {listed(parts)}"
    )


def _solved(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Pairs of two exact solutions, by series and start."""
    pairs = [row for row in of_method(rows, "pair") if row["both_exact"]]
    return {
        (label, start): start_rows
        for label, series_rows in series(pairs, _LAID_OUT).items()
        for (start,), start_rows in by(series_rows, "start").items()
    }


def _pairs(rows: Sequence[Row], column: str, kind: str, text_column: str = "tfidf_distance") -> list[Pair]:
    return [
        Pair(row[column], (row["context"], row["other_context"]), row[text_column])
        for row in rows
        if row["kind"] == kind
    ]


def _auc(
    rows: Sequence[Row], column: str, near: str, far: str, statistic: Any = separation
) -> tuple[Estimate | None, int]:
    """The AUC of two kinds of pairs, None where a kind has no pairs; and the number of pairs."""
    first, second = _pairs(rows, column, near), _pairs(rows, column, far)
    return (statistic(first, second) if first and second else None), len(first) + len(second)


def _estimate(row: tuple[str, ...], group: str, column: str, estimated: tuple[Estimate | None, int]) -> list[Entry]:
    estimate, count = estimated
    summary = None if estimate is None else Summary(estimate.value, count, interval=estimate.interval)
    return entry(row, group, column, summary)


def _density(ax: Any, values: Sequence[float], all_values: Sequence[float], name: str, colour: str) -> None:
    """Draw a density estimate with a Gaussian kernel of Scott's width, and the values as ticks below it."""
    if not values:
        return
    sample, low, high = np.array(values), min(all_values), max(all_values)
    margin = 0.15 * (high - low) or 0.01
    width = max(float(sample.std()) * len(sample) ** -0.2, 0.02 * margin)
    x = np.linspace(low - margin, high + margin, 300)
    y = np.exp(-(((x[:, None] - sample) / width) ** 2) / 2).mean(1) / (width * np.sqrt(2 * np.pi))
    ax.plot(x, y, color=colour, label=name)
    ax.fill_between(x, y, color=colour, alpha=0.15, linewidth=0)
    ax.plot(sample, np.zeros_like(sample), "|", color=colour, markersize=7, alpha=0.5, clip_on=False)


def _in_words(estimate: Estimate) -> str:
    if estimate.interval is None:
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} ({estimate.interval[0]:.2f} to {estimate.interval[1]:.2f})"
