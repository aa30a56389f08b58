"""Capacity (Table 3, figure 1): how long a text two vectors hold, in tokens and in H_LM, by kind of text.

Three methods: `grid` fits every length of the paper's grid, from which both published definitions follow (the longest
length at accuracy 0.99, best over texts and seeds, or on the mean over texts); `growth` and `bisection` search the
longest prefix of each text. The grid is fitted in blocks too, an e-token for each, up to longer texts. Each method is
run with an m of its own for every text, and in two vectors also with a shared m:

    grid       the texts of a group have one m, fitted to all of them together; the grid fixes the groups
    searches   m is fitted to the beginnings of *other* texts of the same kind (`shared-m`), then held fixed

What finding a held m cost is divided among the texts that are searched with it, and is part of their `work`.

Reference: Exploring the Latent Capacity of LLMs for One-Step Text Generation (Mezentsev & Oseledets, 2025), Table 3
and figure 1, https://arxiv.org/abs/2505.21189.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...fitting.fit import fit_batch
from ...fitting.given import Given
from ...lm.frozen import FrozenLM
from ..cells import Batch, Settings, cell_settings, chunked, micro_batches
from ..fits import measured, recipe
from ..jobs import Measurement
from ..published import LENGTHS
from ..scales import PAPER_SOURCES
from .held_m import SHARED_M, search, search_steps, searched_prefix


@dataclass(frozen=True)
class InBlocks:
    """What is measured in blocks at a scale, on the grid's first texts.

    Attributes:
        tokens_per_vector: length of a block.
        lengths: of the texts, in tokens.
        sources: kinds of text.
        texts: how many of each kind.
        max_steps: step budget of a fit.
    """

    tokens_per_vector: int
    lengths: tuple[int, ...]
    sources: tuple[str, ...]
    texts: int
    max_steps: int


@dataclass(frozen=True)
class CapacityGrid:
    """What is measured at a scale.

    Attributes:
        lengths: the grid, in tokens.
        shared_lengths: that with a shared m.
        in_blocks: the grid of texts in blocks.
        texts: how many of each kind on the grid.
        group_size: texts of one kind that share an m on the grid; at least 2, and it divides `texts`.
        search_texts: how many of each kind the searches take.
        m_texts: how many further ones of each kind a held m is fitted to.
        seeds: how many.
        recipe: name of a preset.
        max_steps: step budget of a fit.
        positions: input positions of a pass at most.
        longest: length of the texts that are searched.
        first: length of the first prefix that grows, and of the beginnings that a held m is fitted to.
        work: positions forward and backward that the search of one text may cost.
    """

    lengths: tuple[int, ...]
    shared_lengths: tuple[int, ...]
    in_blocks: InBlocks
    texts: int
    group_size: int
    search_texts: int
    m_texts: int
    seeds: int
    recipe: str
    max_steps: int
    positions: int
    longest: int
    first: int
    work: int

    def __post_init__(self) -> None:
        assert self.group_size > 1, "an m of one text is not shared"
        assert self.texts % self.group_size == 0, "groups are whole"
        assert self.m_texts > 1, "an m of one text is not shared"


GRIDS = {
    "smoke": CapacityGrid(
        lengths=(4, 8),
        shared_lengths=(4, 8),
        in_blocks=InBlocks(4, (8,), ("old",), 1, 10),
        texts=2,
        group_size=2,
        search_texts=1,
        m_texts=2,
        seeds=1,
        recipe="fast",
        max_steps=10,
        positions=512,
        longest=8,
        first=2,
        work=150,
    ),
    "laptop": CapacityGrid(
        lengths=(8, 16, 32, 64, 128),
        shared_lengths=(8, 16, 32),
        in_blocks=InBlocks(8, (64, 128, 256, 512, 1024), ("random", "old"), 1, 50),
        texts=2,
        group_size=2,
        search_texts=1,
        m_texts=2,
        seeds=1,
        recipe="fast",
        max_steps=180,
        positions=512,
        longest=128,
        first=8,
        work=12_000,
    ),
    "paper": CapacityGrid(
        lengths=LENGTHS,
        shared_lengths=LENGTHS,
        in_blocks=InBlocks(8, (128, 256, 512, 1024, 1448), PAPER_SOURCES, 10, 500),
        texts=50,
        group_size=50,
        search_texts=50,
        m_texts=16,
        seeds=3,
        recipe="paper",
        max_steps=5000,
        positions=8192,
        longest=1448,
        first=16,
        work=20_000_000,
    ),
}

Text = tuple[str, int]
"""Kind of a text, and its number."""


def lay_out(scale: str) -> list[Batch]:
    """The grid's batches, then those of the searches."""
    grid = GRIDS[scale]
    on_grid = [
        _grid_batch(scale, grid, m_shared, length, seed, texts)
        for m_shared in (0, 1)
        for length in (grid.shared_lengths if m_shared else grid.lengths)
        for seed in range(grid.seeds)
        for texts in _texts_of_batches(grid, m_shared, length)
    ]
    searches = [
        _search_batch(scale, grid, method, m_shared, seed, texts)
        for method in ("growth", "bisection")
        for m_shared in (0, 1)
        for seed in range(grid.seeds)
        for texts in _searched_together(grid, m_shared)
    ]
    return on_grid + _block_batches(scale, grid) + searches


def _block_batches(scale: str, grid: CapacityGrid) -> list[Batch]:
    """Texts in blocks, as many side by side as a pass holds; a learned start is what they begin at, if there is one."""
    part, recipe_name = grid.in_blocks, "fast"
    texts = [(source, number) for source in part.sources for number in range(part.texts)]
    return [
        Batch(
            study="capacity",
            label=f"grid in blocks of {part.tokens_per_vector}, {length}, seed {seed}, {some[0][0]} {some[0][1]}",
            cells=tuple(
                cell_settings(
                    scale, kind, number, length, seed, recipe_name, part.max_steps, m_shared=0, method="grid",
                    tokens_per_vector=part.tokens_per_vector,
                )
                for kind, number in some
            ),
            steps=part.max_steps,
            positions=len(some) * (length + 1),
        )
        for length in part.lengths
        for seed in range(grid.seeds)
        for some in chunked(texts, max(1, grid.positions // (length + 1)))
    ]  # fmt: skip


def _texts_of_batches(grid: CapacityGrid, m_shared: int, length: int) -> Iterator[Sequence[Text]]:
    """Texts that are fitted side by side; groups stay whole, however much they need."""
    texts = [(kind, number) for kind in PAPER_SOURCES for number in range(grid.texts)]
    unit = grid.group_size if m_shared else 1
    return iter(chunked(texts, unit * max(1, grid.positions // (unit * (length + 1)))))


def _searched_together(grid: CapacityGrid, m_shared: int) -> Iterator[Sequence[Text]]:
    """Texts that are searched side by side; those with one held m are of one kind."""
    at_once = max(1, grid.positions // (grid.longest + 1))
    kinds = [[(kind, number) for number in range(grid.search_texts)] for kind in PAPER_SOURCES]
    for texts in kinds if m_shared else [[text for kind in kinds for text in kind]]:
        yield from chunked(texts, at_once)


def _label(method: str, m_shared: int, length: int, seed: int, first: Text) -> str:
    return f"{method} {'shared m' if m_shared else 'm per text'}, {length}, seed {seed}, {first[0]} {first[1]}"


def _grid_batch(scale: str, grid: CapacityGrid, m_shared: int, length: int, seed: int, texts: Sequence[Text]) -> Batch:
    positions = len(texts) * (length + 1)
    micro = micro_batches(len(texts), length + 1, grid.positions) if m_shared else {}
    return Batch(
        study="capacity",
        label=_label("grid", m_shared, length, seed, texts[0]),
        cells=tuple(
            cell_settings(
                scale, kind, number, length, seed, grid.recipe, grid.max_steps, m_shared=m_shared, method="grid",
                **({"group_size": grid.group_size, "group": number // grid.group_size} if m_shared else {}),
                **micro,
            )
            for kind, number in texts
        ),
        steps=grid.max_steps,
        positions=positions,
        peak_positions=min(positions, grid.positions) if micro else positions,
    )  # fmt: skip


def _search_batch(
    scale: str, grid: CapacityGrid, method: str, m_shared: int, seed: int, texts: Sequence[Text]
) -> Batch:
    def cell(text: Text, method: str, **settings: Any) -> Settings:
        shared = {"m_texts": grid.m_texts} if m_shared else {}
        return cell_settings(
            scale, text[0], text[1], grid.longest, seed, grid.recipe, grid.max_steps, m_shared=m_shared, method=method,
            first=grid.first, **shared, **settings,
        )  # fmt: skip

    m_cells = [
        cell((texts[0][0], grid.search_texts + number), SHARED_M, search=method, serves=texts[0][1])
        for number in range(grid.m_texts if m_shared else 0)
    ]
    return Batch(
        study="capacity",
        label=_label(method, m_shared, grid.longest, seed, texts[0]),
        cells=(*m_cells, *(cell(text, method, work_limit=grid.work) for text in texts)),
        steps=search_steps(len(texts), grid.longest, grid.work),
        positions=searched_prefix(grid.longest) + 1,
        peak_positions=max(len(texts) * (grid.longest + 1), len(m_cells) * (grid.first + 1)),
    )


def run(lm: FrozenLM, cells: list[Settings], target_ids: Tensor) -> list[Measurement]:
    """Fit the texts (B, T) at the batch's length, or search their longest prefixes."""
    settings = cells[-1]
    if settings["method"] == "grid":
        given = Given(share="m", groups=_groups(cells)) if settings["m_shared"] else None
        results = fit_batch(lm, target_ids, recipe(settings), given, rows_at_once=settings.get("rows_at_once"))
        return measured(lm, target_ids, results)
    return search(lm, cells, target_ids, "capacity_h_lm_nats")


def _groups(cells: Sequence[Settings]) -> Tensor:
    """Number of each cell's group, (B,)."""
    names = [(cell["source"], cell["group"]) for cell in cells]
    return torch.tensor([names.index(name) for name in names])
