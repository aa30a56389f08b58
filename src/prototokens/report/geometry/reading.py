"""Reading without decoding: how near ordinary generation from the vectors is to the text and its context."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from ..conditions import by, distinct, ordered, series
from ..drawing import INK, above, dots, legend, named_ticks, panels
from ..exhibit import Entry, entry, listed
from ..summary import Row, mean, share

BEGINNINGS = {"e": "e", "m": "m", "both": "e and m", "first": "first token (control)"}

_LAID_OUT = ("start", "text_tokens", "part", "bos", "sampled", "text")
_MEASURES = {"tfidf": "TF-IDF", "semantic": "semantic"}
_TARGETS = ("text", "context")


def reading(rows: Sequence[Row]) -> list[Entry]:
    """How near generation from the vectors of exact texts is to the own text and context, and to those of others."""
    entries = []
    for label, series_rows in _exact(rows).items():
        ways = by(series_rows, "part", "bos", "sampled")
        for part, bos, sampled in product(ordered(distinct(series_rows, "part"), BEGINNINGS), (0, 1), (0, 1)):
            cell = ways.get((part, bos, sampled), [])
            begin = f"{'BOS, ' if bos else ''}{BEGINNINGS.get(part, part)}"
            for target in _TARGETS:
                head = (begin, "sampled" if sampled else "greedy", target)
                for measure, name in _MEASURES.items():
                    for what, heading in (("own", "own"), ("other", "others"), ("auc", "AUC")):
                        summary = mean(row.get(f"{measure}_{what}_{target}") for row in cell)
                        entries += entry(head, label, f"{name}, {heading}", summary, 2)
                if target == "text" and part != "first":  # the control is given that token
                    entries += entry(head, label, "first token right", share(r["first_right"] for r in cell), 2)
    return entries


def draw_reading(rows: Sequence[Row]) -> Any:
    """How well the own text and context are told from others, by what generation begins with."""
    labelled = _exact(rows)
    if not labelled:
        return None
    figure, axes = panels(len(labelled), len(_TARGETS), 0.9 + 2.5 * len(labelled))
    for line, (label, series_rows) in enumerate(labelled.items()):
        parts = ordered(distinct(series_rows, "part"), BEGINNINGS)
        for ax, target in zip(axes[line * len(_TARGETS) :], _TARGETS, strict=False):
            for i, (measure, bos) in enumerate(product(_MEASURES, (0, 1))):
                cells = by([row for row in series_rows if row["bos"] == bos], "part")
                summaries = [
                    mean(row.get(f"{measure}_auc_{target}") for row in cells.get((part,), [])) for part in parts
                ]
                dots(ax, summaries, i, 4, f"{_MEASURES[measure]}{', BOS before' if bos else ''}")
            named_ticks(ax, [BEGINNINGS.get(part, part) for part in parts])
            ax.axhline(0.5, color=INK, linewidth=0.8, linestyle=":")
            ax.set_title(f"{above(label, labelled, 2)}\nown {target} told from others".strip(), fontsize=8.5)
            ax.set(ylabel="AUC", ylim=(-0.05, 1.05))
    legend(figure, axes, columns=2)
    return figure


def tell_reading(rows: Sequence[Row]) -> str:
    """The figure in words."""
    parts = []
    for label, series_rows in _exact(rows).items():
        for part, target in product(ordered(distinct(series_rows, "part"), BEGINNINGS), _TARGETS):
            summary = mean(row.get(f"semantic_auc_{target}") for row in series_rows if row["part"] == part)
            if summary:
                parts.append(f"{label}, from {BEGINNINGS.get(part, part)}: own {target} {summary.value:.2f}")
    return (
        "The share of other texts that lie farther in meaning from what is generated than the own text, over greedy "
        f"and sampled generation with and without BOS; 0.5 is chance. {listed(parts)}"
    )


def _exact(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows with a generated text of exact fits, by series."""
    return series([row for row in rows if row["exact"] and row.get("reading") is not None], _LAID_OUT)
