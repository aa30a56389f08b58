"""Capacity (Table 3, figure 1): how long a text two vectors hold, in tokens and in H_LM, by kind of text.

Three methods: `grid` fits every length of the paper's grid, from which both published definitions follow (the longest
length at accuracy 0.99, best over texts and seeds, or on the mean over texts); `growth` and `bisection` search the
longest prefix of each text. Each with an m of its own for every text, and with one m for all texts of the batch's kind:
fitted together on the grid; for the searches found on the texts' beginnings, and held fixed.

Reference: Exploring the Latent Capacity of LLMs for One-Step Text Generation (Mezentsev & Oseledets, 2025), Table 3
and figure 1, https://arxiv.org/abs/2505.21189.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...fitting.fit import Given, fit_batch
from ...fitting.recipes import FitConfig
from ...lm.frozen import FrozenLM
from ..cells import Batch, Settings, cell_settings, chunked
from ..fits import measured, recipe
from ..jobs import Measurement
from ..prefix_search import bisect, grow, one_step, prefix_h_lm_nats
from ..published import LENGTHS
from ..scales import SOURCES

ACCURACY = 0.99
"""Token accuracy at which a text counts as reconstructed."""


@dataclass(frozen=True)
class Grid:
    """What is measured at a scale.

    Attributes:
        lengths: the grid, in tokens.
        texts: how many of each kind on the grid.
        search_texts: how many of each kind the searches take.
        seeds: how many.
        recipe: name of a preset.
        max_steps: step budget of a fit.
        positions: input positions of a batch at most.
        longest: length of the texts that are searched.
        first: length of the first prefix that grows, and of the beginnings that a shared m is found on.
        work: positions forward and backward that the search of one text may cost.
    """

    lengths: tuple[int, ...]
    texts: int
    search_texts: int
    seeds: int
    recipe: str
    max_steps: int
    positions: int
    longest: int
    first: int
    work: int


GRIDS = {
    "smoke": Grid((4, 8), 1, 1, 1, "fast", 10, 512, 8, 2, 120),
    "laptop": Grid((4, 8, 16, 22), 2, 1, 1, "fast", 120, 512, 48, 4, 3_000),
    "paper": Grid(LENGTHS, 50, 50, 3, "paper", 5000, 8192, 1448, 16, 20_000_000),
}


def lay_out(scale: str) -> list[Batch]:
    """The grid's batches, then those of the searches."""
    grid = GRIDS[scale]
    return [
        _batch(scale, grid, method, m_shared, tokens, seed, list(texts))
        for method in ("grid", "growth", "bisection")
        for m_shared in (0, 1)
        for tokens in (grid.lengths if method == "grid" else (grid.longest,))
        for seed in range(grid.seeds)
        for texts in chunked(
            [(kind, n) for kind in SOURCES for n in range(grid.texts if method == "grid" else grid.search_texts)],
            max(1, grid.positions // (tokens + 1)),
        )
    ]


def _batch(
    scale: str, grid: Grid, method: str, m_shared: int, tokens: int, seed: int, texts: list[tuple[str, int]]
) -> Batch:
    searched = method != "grid"
    # At worst texts are searched one by one, at about a quarter of the longest; a step costs a position there and back.
    middling = max(1, tokens // 4)
    return Batch(
        study="capacity",
        label=f"{method} {'shared' if m_shared else 'own'} m, {tokens}, seed {seed}, {texts[0][0]} {texts[0][1]}",
        cells=tuple(
            cell_settings(
                scale, source, text, tokens, seed, grid.recipe, grid.max_steps, m_shared=m_shared, method=method,
                **({"work_limit": grid.work, "first": grid.first} if searched else {}),
            )
            for source, text in texts
        ),
        steps=len(texts) * grid.work // (2 * middling) if searched else grid.max_steps,
        positions=middling + 1 if searched else len(texts) * (tokens + 1),
        peak_positions=len(texts) * (tokens + 1),
    )  # fmt: skip


def run(lm: FrozenLM, cells: list[Settings], target_ids: Tensor) -> list[Measurement]:
    """Fit the texts (B, T) at the batch's length, or search their longest prefixes."""
    settings = cells[0]
    kinds = torch.tensor([SOURCES.index(cell["source"]) for cell in cells])
    config = recipe(settings)
    if settings["method"] == "grid":
        given = Given(share="m", groups=kinds) if settings["m_shared"] else None
        return measured(lm, target_ids, fit_batch(lm, target_ids, config, given))
    config = replace(config, stop=replace(config.stop, accuracy=ACCURACY))
    if not settings["m_shared"]:
        return _search(lm, settings, target_ids, config, Given())
    found: list[Measurement | None] = [None] * len(cells)
    for kind in kinds.unique().tolist():
        rows = (kinds == kind).nonzero().flatten()
        given = Given(m=common_m(lm, target_ids[rows], config, settings["first"]))
        for row, measurement in zip(rows.tolist(), _search(lm, settings, target_ids[rows], config, given), strict=True):
            found[row] = measurement
    return [measurement for measurement in found if measurement is not None]


def common_m(lm: FrozenLM, target_ids: Tensor, config: FitConfig, tokens: int) -> Tensor:
    """One m (D,) for texts (B, T): fitted to the beginnings of all of them together."""
    results = fit_batch(lm, target_ids[:, :tokens], config, Given(share="m"))
    return results[0].tokens.m


def _search(lm: FrozenLM, settings: Settings, target_ids: Tensor, config: FitConfig, given: Given) -> list[Measurement]:
    began = time.perf_counter()
    attempt, steps, work = one_step(lm, config, given), settings["max_steps"], settings["work_limit"]
    if settings["method"] == "growth":
        results = grow(attempt, target_ids, steps, first=settings["first"], work=work)
    else:
        results = bisect(attempt, target_ids, steps, work=work)
    seconds = (time.perf_counter() - began) / len(results)
    return [
        Measurement(
            {
                "capacity_tokens": result.tokens,
                "capacity_h_lm_nats": prefix_h_lm_nats(lm, ids, result.tokens),
                "bound_tokens": result.bound,
                "trials": len(result.trials),
                "steps": sum(trial.steps for trial in result.trials),
                "work": result.work,
                "stop_reason": result.stop_reason,
                "seconds": seconds,
            }
        )
        for result, ids in zip(results, target_ids, strict=True)
    ]
