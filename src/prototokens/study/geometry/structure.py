"""Structure: what it costs to make vectors follow a teacher's sentence embeddings, and what that gives.

Each text is a window of a drawn text, cut into two neighbouring chunks. Chunks are fitted from text-independent starts
for the same least number of steps: with no auxiliary loss, with an anchor, and with relational distillation, of e or of
m, with several weights. A row has what a chunk's fit costs, how far the teacher is followed, and how near its neighbour
is among all other chunks of the batch, by the vectors and, for comparison, by the mean embedding and by the teacher.
The control is the teacher's embeddings in drawn orders.

Reference: What proto-tokens encode (Bondarenko et al., 2026), https://arxiv.org/abs/2602.18301.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...fitting.fit import FitResult, fit_batch
from ...fitting.given import Given, Regulariser
from ...geometry.alignment import (
    anchor,
    anchor_gap,
    partner_ranks,
    projected,
    relation_correlation,
    relation_gap,
    relational,
    shuffled_correlations,
)
from ...geometry.teacher import load_teacher
from ...lm.frozen import FrozenLM
from ..cells import Batch, Settings, cell_settings
from ..fits import measured, recipe
from ..jobs import Measurement

PLAIN = "none"
LOSSES = ("anchor", "relational")
TAUGHT_VECTORS = ("e", "m")


@dataclass(frozen=True)
class StructureGrid:
    """What is measured at a scale.

    Attributes:
        length: in tokens, of each of a text's two chunks.
        texts: how many.
        weights: of the auxiliary losses, in nats per token.
        hold: steps before which no fit is done.
        recipe: name of a preset.
        max_steps: step budget of a fit.
    """

    length: int
    texts: int
    weights: tuple[float, ...]
    hold: int
    recipe: str
    max_steps: int


GRIDS = {
    "smoke": StructureGrid(3, 2, (1.0,), 3, "fast", 6),
    "laptop": StructureGrid(16, 10, (1.0, 10.0), 100, "fast", 250),
    "paper": StructureGrid(64, 50, (0.01, 0.1, 1.0, 10.0, 100.0), 1000, "fast", 3000),
}


def lay_out(scale: str) -> list[Batch]:
    """One batch per auxiliary loss, vector and weight: relations are those of the whole batch."""
    grid = GRIDS[scale]
    ways = [(PLAIN, PLAIN, 0.0)]
    ways += [(loss, vector, weight) for loss in LOSSES for vector in TAUGHT_VECTORS for weight in grid.weights]
    return [
        Batch(
            study="structure",
            label=f"{loss} of {vector}, weight {weight:g}" if weight else "no auxiliary loss",
            cells=tuple(
                cell_settings(
                    scale, "old", text, 2 * grid.length, 0, grid.recipe, grid.max_steps,
                    start="vocabulary", loss=loss, vector=vector, weight=weight, hold=grid.hold,
                    chunk=chunk, chunk_tokens=grid.length,
                )
                for chunk in range(2)
                for text in range(grid.texts)
            ),
            steps=grid.max_steps,
            positions=2 * grid.texts * (grid.length + 1),
        )
        for loss, vector, weight in ways
    ]  # fmt: skip


def run(lm: FrozenLM, cells: list[Settings], target_ids: Tensor) -> list[Measurement]:
    """Fit the chunks of the texts' windows (B, T), each text once for each of its two chunks."""
    settings, half = cells[0], len(cells) // 2
    chunk_ids = torch.stack(
        [window[cell["chunk"] * cell["chunk_tokens"] :][: cell["chunk_tokens"]]
         for cell, window in zip(cells, target_ids, strict=True)]
    )  # fmt: skip
    teacher = load_teacher().embed([lm.decode(ids) for ids in chunk_ids])
    places = projected(teacher, lm.width)
    given = Given(regulariser=_regulariser(settings, teacher.to(lm.device), places.to(lm.device)))
    fits = fit_batch(lm, chunk_ids, recipe(settings, start=settings["start"]), given)
    partners = torch.arange(len(cells)).roll(half)
    assert all(cells[n]["text"] == cells[partner]["text"] for n, partner in enumerate(partners.tolist()))
    followed = _followed(fits, teacher, places)
    ranks = _ranks(lm, fits, chunk_ids, teacher, partners)
    return [
        Measurement(
            one.columns
            | {name: column[n].item() for name, column in followed.items()}
            | {name: column[n].item() for name, column in ranks.items()}
            | {"candidates": len(cells) - 1},
            one.vectors,
        )
        for n, one in enumerate(measured(lm, chunk_ids, fits))
    ]


def _regulariser(settings: Settings, teacher: Tensor, places: Tensor) -> Regulariser:
    """The auxiliary loss of a batch; with none, an anchor of weight 0, which holds the fit as long as the others."""
    vector, weight, hold = settings["vector"], settings["weight"], settings["hold"]
    if settings["loss"] == "relational":
        return relational(teacher, vector, weight, hold)
    return anchor(places, "e" if settings["loss"] == PLAIN else vector, weight, hold)


def _followed(fits: Sequence[FitResult], teacher: Tensor, places: Tensor) -> dict[str, Tensor]:
    """How far e and m follow the teacher, columns (B,); correlations are of the whole batch."""
    columns: dict[str, Tensor] = {}
    for name in TAUGHT_VECTORS:
        vectors = _vectors(fits, name)
        columns[f"anchor_cosine_{name}"] = 1 - anchor_gap(vectors, places)
        columns[f"relation_error_{name}"] = relation_gap(vectors, teacher).sqrt()
        control = shuffled_correlations(vectors, teacher)
        for measure, correlation in (
            ("relation_correlation", relation_correlation(vectors, teacher)),
            ("relation_correlation_shuffled", control.mean().item()),
            ("relation_correlation_shuffled_sd", control.std().item()),
        ):
            columns[f"{measure}_{name}"] = torch.full((len(fits),), correlation, dtype=torch.float64)
    return columns


def _ranks(
    lm: FrozenLM, fits: Sequence[FitResult], chunk_ids: Tensor, teacher: Tensor, partners: Tensor
) -> dict[str, Tensor]:
    """How near each chunk's neighbour is among all other chunks, by what is compared, columns (B,)."""
    e, m = (F.normalize(_vectors(fits, name).flatten(1), dim=-1) for name in TAUGHT_VECTORS)
    compared: dict[str, Any] = {
        "e": e,
        "m": m,
        "both": torch.cat([e, m], dim=1),
        "text": lm.embed(chunk_ids).mean(1).cpu(),
        "teacher": teacher,
    }
    return {f"rank_{name}": partner_ranks(vectors, partners) for name, vectors in compared.items()}


def _vectors(fits: Sequence[FitResult], name: str) -> Tensor:
    """e-tokens (B, K, D), or m-tokens (B, 1, D)."""
    return torch.stack([fit.tokens.e if name == "e" else fit.tokens.m.unsqueeze(0) for fit in fits])
