"""Sharing (Table 2): one e, or one m, for a group of texts that have the other vector to themselves.

Texts of a group are fitted side by side, in micro-batches where there are too many for one pass. A group of one shares
nothing, and is what the others are compared with.

Reference: Exploring the Latent Capacity of LLMs for One-Step Text Generation (Mezentsev & Oseledets, 2025), Table 2,
https://arxiv.org/abs/2505.21189.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...fitting.fit import fit_batch
from ...fitting.given import Given
from ...lm.frozen import FrozenLM
from ..cells import Batch, Settings, cell_settings, chunked, micro_batches
from ..fits import measured, recipe
from ..jobs import Measurement


@dataclass(frozen=True)
class SharingGrid:
    """What is measured at a scale.

    Attributes:
        length: in tokens, of every text.
        group_sizes: texts that share a vector; each divides `texts`.
        texts: how many.
        seeds: how many.
        recipe: name of a preset.
        max_steps: step budget of a fit.
        rows: texts fitted side by side where groups are smaller, and those of a pass where they are larger.
    """

    length: int
    group_sizes: tuple[int, ...]
    texts: int
    seeds: int
    recipe: str
    max_steps: int
    rows: int


GRIDS = {
    "smoke": SharingGrid(4, (1, 2), 2, 1, "fast", 12, 2),
    "laptop": SharingGrid(8, (1, 2, 8), 8, 2, "fast", 80, 8),
    "paper": SharingGrid(256, (1, 16, 256), 256, 10, "paper", 5000, 32),
}


def lay_out(scale: str) -> list[Batch]:
    """Batches of whole groups, for each shared vector, size of group and seed."""
    grid = GRIDS[scale]
    return [
        Batch(
            study="sharing",
            label=f"{shared} shared by {size}, seed {seed}, from text {texts[0]}",
            cells=tuple(
                cell_settings(
                    scale, "old", text, grid.length, seed, grid.recipe, grid.max_steps,
                    shared=shared, group_size=size, group=text // size,
                    **micro_batches(len(texts), grid.length + 1, grid.rows * (grid.length + 1)),
                )
                for text in texts
            ),
            steps=grid.max_steps,
            positions=len(texts) * (grid.length + 1),
            peak_positions=min(len(texts), grid.rows) * (grid.length + 1),
        )
        for size in grid.group_sizes
        for shared in ("e", "m")
        for seed in range(grid.seeds)
        for texts in chunked(range(grid.texts), max(size, grid.rows))
    ]  # fmt: skip


def run(lm: FrozenLM, cells: list[Settings], target_ids: Tensor) -> list[Measurement]:
    """Fit the texts (B, T) of the batch's groups."""
    groups = torch.tensor([cell["group"] for cell in cells])
    given = Given(share=cells[0]["shared"], groups=groups)
    rows_at_once = cells[0].get("rows_at_once")
    return measured(lm, target_ids, fit_batch(lm, target_ids, recipe(cells[0]), given, rows_at_once=rows_at_once))
