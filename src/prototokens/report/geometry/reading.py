"""Reading without decoding: what ordinary generation from the vectors is like, beside the text and its context."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from ..conditions import by, distinct, ordered, series
from ..drawing import INK, above, dots, legend, named_ticks, panels
from ..exhibit import Entry, listed
from ..reconstruction.tables import entry
from ..summary import Row, mean, share

BEGINNINGS = {"e": "e", "m": "m", "both": "e and m", "first": "first token (control)"}

_OWN = ("start", "text_tokens", "part", "bos", "sampled", "text")
_MEASURES = {"tfidf": "TF-IDF", "semantic": "semantic"}
_TARGETS = ("text", "context")


def reading(rows: Sequence[Row]) -> list[Entry]:
    """What generation from the vectors of exactly decoded texts is like: own text or context, and those of others."""
    entries = []
    for label, own in _exact(rows).items():
        ways = by(own, "part", "bos", "sampled")
        for part, bos, sampled in product(ordered(distinct(own, "part"), BEGINNINGS), (0, 1), (0, 1)):
            cell = ways.get((part, bos, sampled), [])
            begin = f"{'BOS, ' if bos else ''}{BEGINNINGS.get(part, part)}"
            for target in _TARGETS:
                head = (begin, "sampled" if sampled else "greedy", target)
                for measure, name in _MEASURES.items():
                    for what, heading in (("own", "own"), ("other", "others"), ("auc", "AUC")):
                        found = mean(row.get(f"{measure}_{what}_{target}") for row in cell)
                        entries += entry(head, label, f"{name}, {heading}", found, 2)
                if target == "text" and part != "first":  # the control's is given
                    entries += entry(head, label, "first token right", share(r["first_right"] for r in cell), 2)
    return entries


def draw_reading(rows: Sequence[Row]) -> Any:
    """How well the own text and context are told from others, by what generation begins with."""
    found = _exact(rows)
    if not found:
        return None
    figure, axes = panels(len(found), len(_TARGETS), 0.9 + 2.5 * len(found))
    for line, (label, own) in enumerate(found.items()):
        parts = ordered(distinct(own, "part"), BEGINNINGS)
        for ax, target in zip(axes[line * len(_TARGETS) :], _TARGETS, strict=False):
            for i, (measure, bos) in enumerate(product(_MEASURES, (0, 1))):
                cells = by([row for row in own if row["bos"] == bos], "part")
                of = [mean(row.get(f"{measure}_auc_{target}") for row in cells.get((part,), [])) for part in parts]
                dots(ax, of, i, 4, f"{_MEASURES[measure]}{', BOS before' if bos else ''}")
            named_ticks(ax, [BEGINNINGS.get(part, part) for part in parts])
            ax.axhline(0.5, color=INK, linewidth=0.8, linestyle=":")
            ax.set_title(f"{above(label, found, 2)}\nown {target} told from others".strip(), fontsize=8.5)
            ax.set(ylabel="AUC", ylim=(-0.05, 1.05))
    legend(figure, axes, columns=2)
    return figure


def tell_reading(rows: Sequence[Row]) -> str:
    """The reading in words."""
    told = []
    for label, own in _exact(rows).items():
        for part, target in product(ordered(distinct(own, "part"), BEGINNINGS), _TARGETS):
            found = mean(row.get(f"semantic_auc_{target}") for row in own if row["part"] == part)
            if found:
                told.append(f"{label}, from {BEGINNINGS.get(part, part)}: own {target} {found.value:.2f}")
    return (
        "The share of other texts that lie farther, in meaning, from what is generated than the own one, over greedy "
        f"and sampled generation with and without BOS; 0.5 by chance. {listed(told)}"
    )


def _exact(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of exactly fitted texts that were read from, by series."""
    return series([row for row in rows if row["exact"] and row.get("reading") is not None], _OWN)
