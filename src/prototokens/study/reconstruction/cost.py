"""Cost (Table 4): steps and seconds of one text's fit, by length and recipe.

Every text is fitted alone, so that its seconds are its own. They hold for the device and threads of their rows.

Reference: Exploring the Latent Capacity of LLMs for One-Step Text Generation (Mezentsev & Oseledets, 2025), Table 4,
https://arxiv.org/abs/2505.21189.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ...fitting.fit import fit_batch
from ...lm.frozen import FrozenLM
from ..cells import Batch, Settings, cell_settings
from ..fits import measured, recipe
from ..jobs import Measurement


@dataclass(frozen=True)
class Part:
    """One recipe's part of the grid.

    Attributes:
        recipe: name of a preset.
        lengths: in tokens.
        texts: how many.
        seeds: how many.
        max_steps: step budget of a fit.
        tokens_per_vector: length of a text's blocks, each with an e-token of its own; None: two vectors.
    """

    recipe: str
    lengths: tuple[int, ...]
    texts: int
    seeds: int
    max_steps: int
    tokens_per_vector: int | None = None


GRIDS = {
    "smoke": (Part("fast", (4, 8), 1, 1, 15), Part("paper", (4,), 1, 1, 15), Part("fast", (8,), 1, 1, 15, 4)),
    "laptop": (
        Part("fast", (8, 16, 32, 64), 3, 1, 400),
        Part("paper", (4, 8), 2, 1, 250),
        Part("fast", (64, 128, 256), 3, 1, 100, 8),
        Part("fast", (64, 128, 256), 3, 1, 200, 16),
    ),
    "paper": (
        Part("fast", (32, 64, 128, 256, 512), 10, 1, 5000),
        Part("paper", (32, 64, 128, 256, 512), 10, 1, 5000),
        Part("fast", (64, 128, 256, 512, 1024), 10, 1, 1000, 8),
        Part("fast", (64, 128, 256, 512, 1024), 10, 1, 1000, 16),
    ),
}


def lay_out(scale: str) -> list[Batch]:
    """A batch for each text."""
    return [
        Batch(
            study="cost",
            label=f"{part.recipe}{_in_blocks(part)} at {length}, text {text}, seed {seed}",
            cells=(
                cell_settings(
                    scale, "old", text, length, seed, part.recipe, part.max_steps,
                    **({"tokens_per_vector": part.tokens_per_vector} if part.tokens_per_vector else {}),
                ),
            ),
            steps=part.max_steps,
            positions=length + 1,
        )
        for part in GRIDS[scale]
        for length in part.lengths
        for text in range(part.texts)
        for seed in range(part.seeds)
    ]  # fmt: skip


def _in_blocks(part: Part) -> str:
    return f" in blocks of {part.tokens_per_vector}" if part.tokens_per_vector else ""


def run(lm: FrozenLM, cells: list[Settings], target_ids: Tensor) -> list[Measurement]:
    """Fit the one text (1, T)."""
    return [
        replace(m, columns={**m.columns, "work": m.columns["token_positions"] + m.columns["backward_positions"]})
        for m in measured(lm, target_ids, fit_batch(lm, target_ids, recipe(cells[0])))
    ]
