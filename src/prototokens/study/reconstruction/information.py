"""Information (figure 3): H_LM of the longest text that one or two vectors hold, in one step and autoregressively.

One step with two vectors has an e and an m of each text's own. With one vector it has an e; its m is fitted to the
beginnings of other texts of the same kind (`shared-m`) and held fixed, and its price is part of each text's budget.
Autoregressive cramming has one or two [mem] vectors. All four search by growth, with the same budget.

Reference: Exploring the Latent Capacity of LLMs for One-Step Text Generation (Mezentsev & Oseledets, 2025), figure 3,
https://arxiv.org/abs/2505.21189.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...lm.frozen import FrozenLM
from ..cells import Batch, Settings, cell_settings, chunked
from ..jobs import Measurement
from ..scales import PAPER_SOURCES
from .held_m import SHARED_M, search, search_steps, searched_prefix

METHODS = ("one-step", "autoregressive")


@dataclass(frozen=True)
class InformationGrid:
    """What is measured at a scale.

    Attributes:
        sources: kinds of text.
        texts: how many of each.
        m_texts: how many further ones of each a held m is fitted to.
        seeds: how many.
        longest: length of the texts that are searched, in tokens.
        recipes: of one step and of cramming.
        max_steps: step budgets of a trial, of one step and of cramming.
        first: length of the first prefix, and of the beginnings that a held m is fitted to.
        work: positions forward and backward that the search of one text may cost.
        rows: texts searched side by side.
    """

    sources: tuple[str, ...]
    texts: int
    m_texts: int
    seeds: int
    longest: int
    recipes: tuple[str, str]
    max_steps: tuple[int, int]
    first: int
    work: int
    rows: int


GRIDS = {
    "smoke": InformationGrid(("random", "old"), 1, 2, 1, 8, ("fast", "cramming"), (10, 10), 2, 200, 2),
    "laptop": InformationGrid(("random", "old"), 2, 2, 1, 192, ("fast", "cramming"), (150, 2000), 8, 100_000, 2),
    "paper": InformationGrid(PAPER_SOURCES, 50, 16, 1, 1448, ("paper", "paper"), (5000, 5000), 16, 20_000_000, 5),
}


def lay_out(scale: str) -> list[Batch]:
    """One batch per method, number of vectors, kind of text and seed, and per some texts."""
    grid = GRIDS[scale]
    return [
        _batch(scale, grid, method, recipe_name, max_steps, vectors, source, seed, texts)
        for method, recipe_name, max_steps in zip(METHODS, grid.recipes, grid.max_steps, strict=True)
        for vectors in (1, 2)
        for source in grid.sources
        for seed in range(grid.seeds)
        for texts in chunked(range(grid.texts), grid.rows)
    ]


def _batch(
    scale: str,
    grid: InformationGrid,
    method: str,
    recipe_name: str,
    max_steps: int,
    vectors: int,
    source: str,
    seed: int,
    texts: Sequence[int],
) -> Batch:
    shared: Settings = {"m_texts": grid.m_texts} if (method, vectors) == ("one-step", 1) else {}

    def cell(text: int, method: str, **settings: int) -> Settings:
        return cell_settings(
            scale, source, text, grid.longest, seed, recipe_name, max_steps,
            method=method, vectors=vectors, first=grid.first, **shared, **settings,
        )  # fmt: skip

    m_cells = [cell(grid.texts + number, SHARED_M, serves=texts[0]) for number in range(shared.get("m_texts", 0))]
    return Batch(
        study="information",
        label=f"{method}, {vectors} vectors, {source} from text {texts[0]}, seed {seed}",
        cells=(*m_cells, *(cell(text, method, work_limit=grid.work) for text in texts)),
        steps=search_steps(len(texts), grid.longest, grid.work),
        positions=searched_prefix(grid.longest) + vectors,
        peak_positions=max(len(texts) * (grid.longest + vectors), len(m_cells) * (grid.first + 1)),
    )


def run(lm: FrozenLM, cells: list[Settings], target_ids: Tensor) -> list[Measurement]:
    """Search the longest prefixes of the texts (B, T) that the batch's vectors hold."""
    return search(lm, cells, target_ids, "h_lm_nats")
