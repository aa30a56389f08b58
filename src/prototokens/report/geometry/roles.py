"""The roles of e and m: swaps, probes with their controls, and attention by layer and head."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from ..conditions import by, of_method, ordered, series
from ..drawing import above, dots, heat_map, legend, named_ticks, panels
from ..exhibit import Entry, entry, listed
from ..summary import Row, Summary, mean

TARGET_LABELS = {
    "words": "words, AUC",
    "length": "length, R²",
    "source": "kind of text, balanced accuracy",
    "teacher": "teacher's embedding, cosine",
}
"""What probes predict, each with its score."""

FEATURE_LABELS = {"e": "e", "m": "m", "both": "e and m", "text": "mean embedding"}
INPUT_LABELS = {"vectors": "e and m", "text": "ordinary text"}
PLACE_LABELS = {"e": "where e stands", "first": "position 0"}

_LAID_OUT = ("method", "source", "text", "tokens", "target", "features", "inputs", "place", "m_source", "m_text",
        "chunk_start", "chunk_tokens")  # fmt: skip
_SCORES = {"accuracy": "token accuracy", "overlap": "tokens in common"}
_COMPARED = {"e": "the text of e", "m": "the text of m", "other": "others of their kinds"}


def swaps(rows: Sequence[Row]) -> list[Entry]:
    """What e of one text and m of another decode to, over pairs of exact texts."""
    entries = []
    for label, series_rows in series(rows, _LAID_OUT).items():
        pairs = [row for row in of_method(series_rows, "swap") if row["both_exact"]]
        for same, m_from in ((1, "the same text"), (0, "another text")):
            cell = [row for row in pairs if row["own"] == same]
            for compared, name in _COMPARED.items():
                if same and compared == "m":  # the text of e
                    continue
                for column, heading in _SCORES.items():
                    summary = mean(row.get(f"{compared}_{column}") for row in cell)
                    entries += entry((m_from, name), label, heading, summary)
            entries += entry((m_from, "itself"), label, "tokens that differ", mean(row["distinct"] for row in cell))
    return entries


def draw_swaps(rows: Sequence[Row]) -> Any:
    """How much of both texts, and of others, e of one and m of another decode to."""
    labelled = {label: cell for label, cell in _swapped(rows).items() if cell}
    if not labelled:
        return None
    figure, axes = panels(len(labelled), 2, 0.8 + 2.4 * len(labelled))
    for line, (label, cell) in enumerate(labelled.items()):
        for ax, (column, heading) in zip(axes[2 * line :], _SCORES.items(), strict=False):
            dots(ax, [mean(row.get(f"{compared}_{column}") for row in cell) for compared in _COMPARED], 0, 1, "")
            named_ticks(ax, list(_COMPARED.values()))
            ax.set_title(f"{above(label, labelled, 2)}\n{heading}".strip(), fontsize=8.5)
            ax.set(ylim=(-0.05, 1.05))
    return figure


def tell_swaps(rows: Sequence[Row]) -> str:
    """The swaps in words."""
    parts = []
    for label, cell in _swapped(rows).items():
        shares = [(name, mean(row.get(f"{compared}_overlap") for row in cell)) for compared, name in _COMPARED.items()]
        parts.append(f"{label}: " + ", ".join(f"{share.value:.2f} with {name}" for name, share in shares if share))
    return f"Tokens that e of one text with m of another has in common, in whatever order. {listed(parts)}"


def _swapped(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """By label, the pairs of two different exact texts."""
    return {
        label: [row for row in of_method(series_rows, "swap") if row["both_exact"] and not row["own"]]
        for label, series_rows in series(rows, _LAID_OUT).items()
    }


def probes(rows: Sequence[Row]) -> list[Entry]:
    """Scores of linear probes, beside the same probes on shuffled labels."""
    entries = []
    for label, series_rows in series(rows, _LAID_OUT).items():
        cells = by(
            [row for row in of_method(series_rows, "probe") if row.get("score") is not None], "target", "features"
        )
        for target, features in _places(cells, TARGET_LABELS, FEATURE_LABELS):
            cell = cells[target, features]
            head = (TARGET_LABELS.get(target, target), FEATURE_LABELS.get(features, features))
            for column, heading, count, spread, decimals in (
                ("score", "score", "rows", "", 3),
                ("shuffled", "shuffled labels", "shuffles", "shuffled_sd", 3),
                ("beaten", "shuffles beaten", "shuffles", "", 2),
                ("chance", "chance", "", "", 3),
                ("rows_exact", "exact chunks", "rows", "", 0),
            ):
                entries += entry(head, label, heading, _counted(cell, column, count, spread), decimals)
    return entries


def draw_probes(rows: Sequence[Row]) -> Any:
    """Scores of the probes of each target, beside those on shuffled labels."""
    cells = {
        (label, target): cell
        for label, series_rows in series(rows, _LAID_OUT).items()
        for (target,), cell in by(
            [r for r in of_method(series_rows, "probe") if r.get("score") is not None], "target"
        ).items()
    }
    if not cells:
        return None
    lines, labels = -(-len(cells) // 2), {label for label, _ in cells}
    figure, axes = panels(lines, 2, 0.8 + 2.2 * lines)
    for ax, ((label, target), cell) in zip(axes, cells.items(), strict=False):
        names = ordered({row["features"] for row in cell}, FEATURE_LABELS)
        by_feature = {name: [row for row in cell if row["features"] == name] for name in names}
        dots(ax, [mean(row["score"] for row in by_feature[name]) for name in names], 0, 2, "probe")
        dots(
            ax,
            [_counted(by_feature[name], "shuffled", "shuffles", "shuffled_sd") for name in names],
            1,
            2,
            "shuffled labels",
        )
        named_ticks(ax, [FEATURE_LABELS.get(name, name) for name in names])
        ax.set_title(f"{above(label, labels, 2)}\n{TARGET_LABELS.get(target, target)}".strip(), fontsize=8.5)
    for ax in axes[len(cells) :]:
        ax.remove()
    legend(figure, axes[: len(cells)], columns=2)
    return figure


def tell_probes(rows: Sequence[Row]) -> str:
    """The probes in words."""
    parts = [
        f"{label}, {TARGET_LABELS.get(row['target'], row['target'])} from "
        f"{FEATURE_LABELS.get(row['features'], row['features'])}: "
        f"{row['score']:.2f}, shuffled {row['shuffled']:.2f}"
        for label, series_rows in series(rows, _LAID_OUT).items()
        for row in of_method(series_rows, "probe")
        if row.get("score") is not None and row.get("shuffled") is not None
    ]
    return f"Scores of linear probes, and the mean over shuffled labels. {listed(parts)}"


def draw_attention(rows: Sequence[Row]) -> Any:
    """Attention to e, and to position 0, by layer and head, for vectors and for ordinary text."""
    maps = _attention_panels(rows)
    if not maps:
        return None
    lines = -(-len(maps) // 2)
    tall = max(len(heads) for heads in maps.values())
    figure, axes = panels(lines, 2, 0.6 + lines * max(1.8, min(5.0, 0.6 + 0.1 * tall)))
    mesh = None
    labels = {label for label, *_ in maps}
    for ax, ((label, place, inputs), heads) in zip(axes, maps.items(), strict=False):
        mesh = heat_map(ax, heads)
        title = f"{above(label, labels, 2)}\n{INPUT_LABELS.get(inputs, inputs)}: {PLACE_LABELS.get(place, place)}"
        ax.set_title(title.strip(), fontsize=8.5)
        ax.set(xlabel="head, from 0", ylabel="attention layer, from 0")
    for ax in axes[len(maps) :]:
        ax.remove()
    figure.colorbar(mesh, ax=axes[: len(maps)], label="share of attention", shrink=0.8)
    return figure


def tell_attention(rows: Sequence[Row]) -> str:
    """Attention in words."""
    parts = []
    for (label, place, inputs), heads in _attention_panels(rows).items():
        top, layer, head = max((value, i, j) for i, line in enumerate(heads) for j, value in enumerate(line))
        values = [value for line in heads for value in line]
        where = f"{label}, {INPUT_LABELS.get(inputs, inputs)}, {PLACE_LABELS.get(place, place)}"
        average = sum(values) / len(values)
        parts.append(f"{where}: {average:.2f} on average, most in attention layer {layer}, head {head} ({top:.2f})")
    missing = sorted({row["missing"] for row in of_method(rows, "attention") if row.get("missing")})
    summary = listed([*parts, *missing])
    return f"Share of attention that later positions give to a place, by layer and head, mean over texts. {summary}"


def attention(rows: Sequence[Row]) -> list[Entry]:
    """Attention to e and to position 0 over all heads."""
    entries = []
    for (label, place, inputs), cell in _attention_cells(rows).items():
        head = (PLACE_LABELS.get(place, place), INPUT_LABELS.get(inputs, inputs))
        for column, heading, count, decimals in (
            ("attention", "mean over heads", "texts", 3),
            ("attention_top", "most of a head", "texts", 3),
            ("layer_top", "in attention layer, from 0", "", 0),
            ("even", "if attention were even", "", 3),
        ):
            entries += entry(head, label, heading, _counted(cell, column, count), decimals)
    return entries


def _attention_cells(rows: Sequence[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Rows with attention by label, place and inputs."""
    labelled: dict[tuple[str, str, str], list[Row]] = {}
    for label, series_rows in series(rows, _LAID_OUT).items():
        cells = by([row for row in of_method(series_rows, "attention") if row.get("heads")], "place", "inputs")
        labelled |= {(label, *where): cells[where] for where in _places(cells, PLACE_LABELS, INPUT_LABELS)}
    return labelled


def _attention_panels(rows: Sequence[Row]) -> dict[tuple[str, str, str], list[list[float]]]:
    """By label, place and inputs: attention by layer and head. Layers with fewer heads are padded with zeros."""
    return {
        where: _mean_heads([json.loads(row["heads"]) for row in cell]) for where, cell in _attention_cells(rows).items()
    }


def _mean_heads(maps: list[list[list[float]]]) -> list[list[float]]:
    layers, heads = len(maps[0]), max(len(layer) for heads_of in maps for layer in heads_of)

    def at(heads_of: list[list[float]], i: int, j: int) -> float:
        return heads_of[i][j] if i < len(heads_of) and j < len(heads_of[i]) else 0.0

    return [[sum(at(heads_of, i, j) for heads_of in maps) / len(maps) for j in range(heads)] for i in range(layers)]


def _places(cells: Mapping[Any, Any], first: Iterable[str], second: Iterable[str]) -> list[tuple[str, str]]:
    """The cells that exist, in the order of their two names."""
    firsts, seconds = (ordered((cell[i] for cell in cells), order) for i, order in enumerate((first, second)))
    return [place for place in product(firsts, seconds) if place in cells]


def _counted(rows: Sequence[Row], column: str, count: str = "", spread: str = "") -> Summary | None:
    """A number that summarises many texts already. Its count and spread are columns of its row too."""
    summary, n, sd = (mean(row.get(name) for row in rows) for name in (column, count, spread))
    return summary and Summary(summary.value, round(n.value) if n else None, sd.value if sd else None)
