"""Arrangements (Table 1): which order of e and m holds how long a text.

Every arrangement of the table, and this library's for short and for long texts, fits the same old prose at each length.

Reference: Exploring the Latent Capacity of LLMs for One-Step Text Generation (Mezentsev & Oseledets, 2025), Table 1,
https://arxiv.org/abs/2505.21189.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...fitting.fit import fit_batch
from ...lm.frozen import FrozenLM
from ..cells import Batch, Settings, cell_settings, chunked
from ..fits import measured, recipe
from ..jobs import Measurement

NAMES = ("e*n", "e*n/2,m*n/2", "(e,m)*n/2", "e,m*n", "e,m*(n-1)", "m,e,m*(n-1)", "m,(e,m*7)")


@dataclass(frozen=True)
class ArrangementsGrid:
    """What is measured at a scale.

    Attributes:
        lengths: in tokens.
        texts: how many.
        seeds: how many.
        recipe: `tuned` is the same for all arrangements; `fast` has a learned start for one of them.
        max_steps: step budget of a fit.
        rows: texts fitted side by side.
    """

    lengths: tuple[int, ...]
    texts: int
    seeds: int
    recipe: str
    max_steps: int
    rows: int


GRIDS = {
    "smoke": ArrangementsGrid((1, 4), 2, 1, "tuned", 12, 2),
    "laptop": ArrangementsGrid((1, 2, 4, 16, 64), 4, 1, "tuned", 200, 4),
    "paper": ArrangementsGrid((1, 2, 4, 256), 50, 1, "paper", 5000, 25),
}


def lay_out(scale: str) -> list[Batch]:
    """One batch per length, arrangement, seed and run of texts."""
    grid = GRIDS[scale]
    return [
        Batch(
            study="arrangements",
            label=f"{name} at {length}, seed {seed}, from text {texts[0]}",
            cells=tuple(
                cell_settings(scale, "old", text, length, seed, grid.recipe, grid.max_steps, arrangement=name)
                for text in texts
            ),
            steps=grid.max_steps,
            positions=len(texts) * (length + 1),
        )
        for length in grid.lengths
        for name in NAMES
        for seed in range(grid.seeds)
        for texts in chunked(range(grid.texts), grid.rows)
    ]


def run(lm: FrozenLM, cells: list[Settings], target_ids: Tensor) -> list[Measurement]:
    """Fit the texts (B, T) in the batch's arrangement."""
    return measured(lm, target_ids, fit_batch(lm, target_ids, recipe(cells[0])))
