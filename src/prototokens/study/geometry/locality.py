"""Locality (figures 5 and 6): how far apart solutions lie, for one text, for one context, for different contexts.

Texts are the model's own, several for each context that they continue. All are fitted from one seed, the last one of
each context from further seeds too. A batch has whole contexts, fits them, and compares the pairs that the grid names:

    same text      two solutions of the last text of a context, from two seeds
    same context   two continuations of one context, both from seed 0
    different      continuations of two contexts, both from seed 0

Starts that are random vectors can show whether the descent brings solutions of one text together. A learned start, or
one that is made from the text, does so by itself, which the distances between the *starts* of every pair show.

Reference: Exploring the Latent Capacity of LLMs for One-Step Text Generation (Mezentsev & Oseledets, 2025), figures 5
and 6, https://arxiv.org/abs/2505.21189.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from ...fitting.fit import fit_batch
from ...fitting.starts import start_vectors
from ...geometry.distances import PAIR_KINDS, vector_distances
from ...geometry.text_distances import semantic_distances, tfidf_distances
from ...lm.frozen import FrozenLM
from ..cells import Batch, Settings, cell_settings, chunked
from ..fits import measured, recipe
from ..jobs import Measurement
from ..scales import CONTINUED

Solution = tuple[int, int]
"""Number of the text, seed of the fit."""


@dataclass(frozen=True)
class LocalityGrid:
    """What is measured at a scale.

    Attributes:
        starts: where fits begin.
        length: in tokens, of every text.
        contexts: how many.
        continuations: texts of each context.
        seeds: fits of the last text of each context.
        recipe: name of a preset.
        max_steps: step budget of a fit.
        contexts_at_once: contexts of a batch.
    """

    starts: tuple[str, ...]
    length: int
    contexts: int
    continuations: int
    seeds: int
    recipe: str
    max_steps: int
    contexts_at_once: int


GRIDS = {
    "smoke": LocalityGrid(("vocabulary", "text-e"), 4, 2, 2, 2, "fast", 8, 2),
    "laptop": LocalityGrid(("vocabulary", "auto", "text-e"), 16, 6, 3, 4, "fast", 300, 6),
    "paper": LocalityGrid(("normal", "vocabulary", "text-e"), 256, 50, 10, 10, "paper", 5000, 3),
}


def lay_out(scale: str) -> list[Batch]:
    """One batch per start and group of contexts: a cell for each fit, then one for each pair of fits."""
    grid = GRIDS[scale]
    return [
        _batch(scale, grid, start, contexts)
        for start in grid.starts
        for contexts in chunked(range(grid.contexts), grid.contexts_at_once)
    ]


def _batch(scale: str, grid: LocalityGrid, start: str, contexts: Sequence[int]) -> Batch:
    def cell(first: Solution, method: str, **columns: Any) -> Settings:
        text, seed = first
        context = text // grid.continuations
        return cell_settings(
            scale, CONTINUED, text, grid.length, 0, grid.recipe, grid.max_steps,
            method=method, start=start, context=context, fit_seed=seed, **columns,
        )  # fmt: skip

    fits = [cell(solution, "fit") for solution in _solutions(contexts, grid)]
    pairs = [
        cell(first, "pair", kind=kind, other_context=text // grid.continuations, other_text=text, other_seed=seed)
        for kind, first, (text, seed) in _pairs(contexts, grid)
    ]
    # Seed 0 is one fit of all texts, every other seed one of a text per context.
    texts = len(fits) / grid.seeds
    return Batch(
        study="locality",
        label=f"from {start}, contexts {contexts[0]} to {contexts[-1]}",
        cells=(*fits, *pairs),
        steps=grid.seeds * grid.max_steps,
        positions=round(texts * (grid.length + 1)),
        peak_positions=len(contexts) * grid.continuations * (grid.length + 1),
    )


def _solutions(contexts: Sequence[int], grid: LocalityGrid) -> Iterator[Solution]:
    """What a batch fits: every text from seed 0, the last of each context from the others."""
    for context in contexts:
        yield from ((text, 0) for text in _texts(context, grid))
        yield from ((_texts(context, grid)[-1], seed) for seed in range(1, grid.seeds))


def _pairs(contexts: Sequence[int], grid: LocalityGrid) -> Iterator[tuple[str, Solution, Solution]]:
    """What a batch compares: kind of pair, one solution, the other."""
    for context in contexts:
        texts = _texts(context, grid)
        for first, second in combinations(range(grid.seeds), 2):
            yield PAIR_KINDS[0], (texts[-1], first), (texts[-1], second)
        for one, other in combinations(texts, 2):
            yield PAIR_KINDS[1], (one, 0), (other, 0)
    for first, second in combinations(contexts, 2):
        for one, other in zip(_texts(first, grid), _texts(second, grid), strict=True):
            yield PAIR_KINDS[2], (one, 0), (other, 0)


def _texts(context: int, grid: LocalityGrid) -> range:
    return range(context * grid.continuations, (context + 1) * grid.continuations)


def run(lm: FrozenLM, cells: list[Settings], target_ids: Tensor) -> list[Measurement]:
    """Fit the texts of the cells (B, T), and compare solutions and texts pair by pair."""
    ids_of = {cell["text"]: ids for cell, ids in zip(cells, target_ids, strict=True)}
    likeness = _text_distances(lm, ids_of)  # before the fits: they are long, and a package may be missing
    fits = _fits(lm, [cell for cell in cells if cell["method"] == "fit"], ids_of)
    starts = {
        (text, seed): start_vectors(lm, ids_of[text], recipe(cells[0] | {"seed": seed}, start=cells[0]["start"]), 0)
        for text, seed in fits
    }
    return [
        fits[cell["text"], cell["fit_seed"]]
        if cell["method"] == "fit"
        else Measurement(_pair_columns(cell, fits, starts) | likeness[cell["text"], cell["other_text"]])
        for cell in cells
    ]


def _fits(lm: FrozenLM, cells: list[Settings], ids_of: dict[int, Tensor]) -> dict[Solution, Measurement]:
    """Fits of all cells, those of one seed side by side."""
    measurements: dict[Solution, Measurement] = {}
    for seed in sorted({cell["fit_seed"] for cell in cells}):
        of_seed = [cell for cell in cells if cell["fit_seed"] == seed]
        ids = torch.stack([ids_of[cell["text"]] for cell in of_seed])
        results = fit_batch(lm, ids, recipe(of_seed[0] | {"seed": seed}, start=of_seed[0]["start"]))
        for cell, measurement in zip(of_seed, measured(lm, ids, results), strict=True):
            columns = measurement.columns | {"start": cell["start"]}  # as it was asked for, as in the pairs
            measurements[cell["text"], seed] = Measurement(columns, measurement.vectors)
    return measurements


def _pair_columns(
    cell: Settings, fits: dict[Solution, Measurement], starts: dict[Solution, tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    """Distances of two solutions and of their starts, and whether both are exact."""
    solutions: list[Solution] = [(cell["text"], cell["fit_seed"]), (cell["other_text"], cell["other_seed"])]
    vectors = [fits[solution].vectors for solution in solutions]
    ends = [(tokens.e, tokens.m) for tokens in vectors]  # type: ignore[union-attr]
    began = vector_distances(*(starts[solution] for solution in solutions))
    return {
        "both_exact": min(fits[solution].columns["exact"] for solution in solutions),
        **vector_distances(ends[0], ends[1]),
        **{f"start_{name}": distance for name, distance in began.items()},
    }


def _text_distances(lm: FrozenLM, ids_of: dict[int, Tensor]) -> dict[tuple[int, int], dict[str, float]]:
    """Both distances of every pair of texts, the weights of TF-IDF taken from the batch."""
    numbers = sorted(ids_of)
    tfidf = tfidf_distances([ids_of[n].tolist() for n in numbers]).tolist()
    semantic = semantic_distances([lm.decode(ids_of[n]) for n in numbers]).tolist()
    return {
        (one, other): {"tfidf_distance": tfidf[i][j], "semantic_distance": semantic[i][j]}
        for i, one in enumerate(numbers)
        for j, other in enumerate(numbers)
    }
