"""Roles: what e and m each do: exchanged between texts, read by linear probes, and attended to.

A text of the grid is a window of a drawn text, cut into chunks of several lengths; chunks are fitted from
text-independent starts. Then

    swap       e of a chunk with the m of another text's chunk of the same length, compared with both texts
    probe      what a linear map reads out of e, m or both; beside it shuffled labels, and the chunk's mean embedding
    attention  how much of each head's attention goes to e, and to position 0, for exact texts; beside it that of the
               same texts read as usual
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from ...decoding import decode
from ...errors import InputError
from ...fitting.fit import FitResult, fit_batch
from ...geometry.attention import attention_to, attention_to_vectors, e_positions, even_attention
from ...geometry.probes import ProbeTarget, bag_of_words, classes, embeddings, lengths, probe
from ...geometry.swaps import bag_overlap, swapped
from ...geometry.teacher import load_teacher
from ...lm.frozen import FrozenLM
from ...metrics import token_accuracy
from ..cells import Batch, Settings, cell_settings
from ..fits import measured, recipe
from ..jobs import Measurement
from ..scales import PAPER_SOURCES

TARGETS = ("words", "length", "source", "teacher")
FEATURES = ("e", "m", "both", "text")
INPUTS = ("vectors", "text")
PLACES = ("e", "first")

AT_ONCE = 32
"""Swapped texts in one pass."""


@dataclass(frozen=True)
class RolesGrid:
    """What is measured at a scale.

    Attributes:
        sources: kinds of text.
        texts: how many of each.
        chunks: lengths of the chunks of a text, in tokens, one after another; the first is what is swapped.
        partners: how many other texts' m each e is put together with.
        words: how many tokens the bag of words has at most.
        folds: of the probes' texts.
        shuffles: of the probes' labels.
        recipe: name of a preset.
        max_steps: step budget of a fit.
    """

    sources: tuple[str, ...]
    texts: int
    chunks: tuple[int, ...]
    partners: int
    words: int
    folds: int
    shuffles: int
    recipe: str
    max_steps: int


GRIDS = {
    "smoke": RolesGrid(("random", "old"), 2, (4, 3), 1, 4, 2, 2, "fast", 10),
    "laptop": RolesGrid(PAPER_SOURCES, 4, (16, 12, 20, 16), 3, 20, 4, 20, "fast", 600),
    "paper": RolesGrid(PAPER_SOURCES, 50, (64, 32, 48, 64, 32, 48), 5, 100, 10, 20, "fast", 5000),
}


def lay_out(scale: str) -> list[Batch]:
    """One batch: all that is compared."""
    grid = GRIDS[scale]
    window = sum(grid.chunks)
    whole = [(source, text) for source in grid.sources for text in range(grid.texts)]

    def cell(of: tuple[str, int], **columns: Any) -> Settings:
        return cell_settings(
            scale, of[0], of[1], window, 0, grid.recipe, grid.max_steps, start="vocabulary", **columns
        )  # fmt: skip

    starts = [0, *accumulate(grid.chunks)]
    fits = [
        cell(of, method="fit", chunk_start=start, chunk_tokens=length)
        for length, start in sorted(zip(grid.chunks, starts, strict=False), key=lambda chunk: -chunk[0])
        for of in whole
    ]
    swaps = [
        cell(of, method="swap", chunk_tokens=grid.chunks[0], m_source=other[0], m_text=other[1])
        for step in range(grid.partners + 1)
        for of, other in zip(whole, [*whole[step:], *whole[:step]], strict=True)
    ]
    probes = [
        cell(whole[0], method="probe", target=target, features=features, words=grid.words, folds=grid.folds,
             shuffles=grid.shuffles)
        for target in TARGETS
        for features in FEATURES
    ]  # fmt: skip
    attention = [
        cell(whole[0], method="attention", inputs=inputs, place=place, chunk_tokens=grid.chunks[0])
        for inputs in INPUTS
        for place in PLACES
    ]
    return [
        Batch(
            study="roles",
            label=f"{len(fits)} chunks of {min(grid.chunks)} to {max(grid.chunks)} tokens",
            cells=(*fits, *swaps, *probes, *attention),
            steps=grid.max_steps + grid.partners + 1,
            positions=len(whole) * sum(length + 1 for length in grid.chunks),
            peak_positions=len(whole) * max(grid.chunks.count(n) * (n + 1) for n in grid.chunks),
        )
    ]


@dataclass(frozen=True, eq=False)
class _Chunk:
    """A chunk that was fitted."""

    cell: Settings
    ids: Tensor
    fit: FitResult

    @property
    def text(self) -> tuple[str, int]:
        return self.cell["source"], self.cell["text"]


def run(lm: FrozenLM, cells: list[Settings], target_ids: Tensor) -> list[Measurement]:
    """Fit the chunks of the texts' windows (B, T), and compare what the cells name."""
    by_method = {
        method: [n for n, cell in enumerate(cells) if cell["method"] == method]
        for method in ("fit", "swap", "probe", "attention")
    }
    measurements: dict[int, Measurement] = {}
    chunks = []
    for length in dict.fromkeys(cells[n]["chunk_tokens"] for n in by_method["fit"]):
        numbers = [n for n in by_method["fit"] if cells[n]["chunk_tokens"] == length]
        ids = torch.stack([target_ids[n][cells[n]["chunk_start"] :][:length] for n in numbers])
        fits = fit_batch(lm, ids, recipe(cells[0], start=cells[0]["start"]))
        measurements |= dict(zip(numbers, measured(lm, ids, fits), strict=True))
        chunks += [_Chunk(cells[n], chunk_ids, fit) for n, chunk_ids, fit in zip(numbers, ids, fits, strict=True)]
    first = {chunk.text: chunk for chunk in chunks if chunk.cell["chunk_start"] == 0}
    measurements |= zip(by_method["swap"], _swaps(lm, first, [cells[n] for n in by_method["swap"]]), strict=True)
    teacher = _or_missing(lambda: load_teacher().embed([lm.decode(chunk.ids) for chunk in chunks]))
    measurements |= {n: _probe(lm, chunks, cells[n], teacher) for n in by_method["probe"]}
    exact = [chunk for chunk in first.values() if chunk.fit.exact]
    measurements |= {n: _attention(lm, exact, cells[n]) for n in by_method["attention"]}
    return [measurements[n] for n in range(len(cells))]


def _swaps(lm: FrozenLM, first: dict[tuple[str, int], _Chunk], cells: list[Settings]) -> list[Measurement]:
    """What e of one chunk and m of another decode to, decoded in portions and compared; see `_compared`."""
    pairs = [(first[c["source"], c["text"]], first[c["m_source"], c["m_text"]]) for c in cells]
    tokens = [swapped(of_e.fit.tokens, of_m.fit.tokens) for of_e, of_m in pairs]
    portions = [tokens[n : n + AT_ONCE] for n in range(0, len(tokens), AT_ONCE)]
    decoded = [one.ids for portion in portions for one in decode(lm, portion, scores=False)]
    return [_compared(ids, *pair, list(first.values())) for ids, pair in zip(decoded, pairs, strict=True)]


def _compared(ids: Tensor, of_e: _Chunk, of_m: _Chunk, chunks: Sequence[_Chunk]) -> Measurement:
    """What was decoded (T,), beside the text of e, that of m, and those of neither, of the same kinds.

    Texts of one kind share tokens: beside texts of any kind, e and m would seem to say what their kind alone says.
    """
    texts, kinds = (of_e.text, of_m.text), (of_e.text[0], of_m.text[0])
    controls = [chunk.ids for chunk in chunks if chunk.text not in texts and chunk.text[0] in kinds]
    return Measurement(
        {
            "own": int(of_e.text == of_m.text),
            "both_exact": int(of_e.fit.exact and of_m.fit.exact),
            "e_accuracy": token_accuracy(ids, of_e.ids).item(),
            "m_accuracy": token_accuracy(ids, of_m.ids).item(),
            "other_accuracy": mean(token_accuracy(ids, control).item() for control in controls) if controls else None,
            "e_overlap": bag_overlap(ids, of_e.ids),
            "m_overlap": bag_overlap(ids, of_m.ids),
            "other_overlap": mean(bag_overlap(ids, control) for control in controls) if controls else None,
            "distinct": len(ids.unique()) / len(ids),
        }
    )


def _probe(lm: FrozenLM, chunks: Sequence[_Chunk], cell: Settings, teacher: Tensor | InputError) -> Measurement:
    """A probe's score, or why there is none."""
    try:
        target = _target(chunks, cell, teacher)
        texts = [chunk.text for chunk in chunks]
        numbers = [list(dict.fromkeys(texts)).index(text) for text in texts]
        features = torch.stack([_features(lm, chunk, cell["features"]) for chunk in chunks])
        seen = probe(features, target, numbers, folds=cell["folds"], shuffles=cell["shuffles"])
    except InputError as error:
        return Measurement({"score": None, "missing": str(error), "rows": len(chunks)})
    columns = {name: getattr(seen, name) for name in ("score", "chance", "shuffled", "shuffled_sd", "beaten")}
    exact = sum(chunk.fit.exact for chunk in chunks)
    return Measurement({**columns, "missing": None, "rows": len(chunks), "rows_exact": exact})


def _target(chunks: Sequence[_Chunk], cell: Settings, teacher: Tensor | InputError) -> ProbeTarget:
    ids = [chunk.ids for chunk in chunks]
    if cell["target"] == "words":
        return bag_of_words(ids, cell["words"])
    if cell["target"] == "length":
        return lengths(ids)
    if cell["target"] == "source":
        return classes("source", [chunk.text[0] for chunk in chunks])
    if isinstance(teacher, InputError):
        raise teacher
    return embeddings("teacher", teacher)


def _features(lm: FrozenLM, chunk: _Chunk, name: str) -> Tensor:
    """What a probe reads of a chunk, (F,)."""
    tokens = chunk.fit.tokens
    if name == "text":
        return lm.embed(chunk.ids).mean(0).cpu()
    return torch.cat([*([] if name == "m" else [tokens.e.flatten()]), *([] if name == "e" else [tokens.m])])


def _attention(lm: FrozenLM, chunks: Sequence[_Chunk], cell: Settings) -> Measurement:
    """Attention by attention layer, counted from 0, and head as JSON, [[head, ...], ...], or why there is none."""
    if not chunks:
        return Measurement({"heads": None, "attention": None, "missing": "no text is exact"})
    tokens = [chunk.fit.tokens for chunk in chunks]
    layout = tokens[0].arrangement.layout(tokens[0].length, tokens[0].e.shape[0])
    places = e_positions(layout, tokens[0].e.shape[0]) if cell["place"] == "e" else [0]
    if cell["inputs"] == "vectors":
        length = len(layout.slots)
        heads = _or_missing(lambda: attention_to_vectors(lm, tokens, None if cell["place"] == "e" else 0))
    else:
        inputs_embeds = lm.embed(torch.stack([chunk.ids for chunk in chunks]))
        length = inputs_embeds.shape[1]
        heads = _or_missing(lambda: attention_to(lm, inputs_embeds, places))
    if isinstance(heads, InputError):
        return Measurement({"heads": None, "attention": None, "missing": str(heads)})
    rows = [[round(head, 4) for head in layer.tolist()] for layer in heads]
    top = max((head, place) for place, layer in enumerate(rows) for head in layer)
    return Measurement(
        {
            "heads": json.dumps(rows),
            "attention": mean(head for layer in rows for head in layer),
            "attention_top": top[0],
            "layer_top": top[1],
            "even": even_attention(length, places),
            "texts": len(chunks),
            "missing": None,
        }
    )


def _or_missing(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except InputError as error:
        return error
