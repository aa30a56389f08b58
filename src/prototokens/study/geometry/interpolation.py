"""Interpolation: what decodes on the straight line through the vectors of two texts, between them and beyond.

Texts are fitted from text-independent starts, to a margin. From the vectors of one, FIRST, those of another, LAST, are
approached: both vectors, e alone or m alone, the other staying FIRST's,

    z(tau) = z_first + tau (z_last - z_first)

and what is decoded at each place tau is compared, token by token, with FIRST, with LAST and, as a control, with all
other texts of the grid: what texts share by chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...fitting.fit import FitResult, fit_batch
from ...geometry.paths import VECTORS, Vectors, segment
from ...geometry.profiles import POSITIONS_AT_ONCE, even_taus, profile
from ...lm.frozen import FrozenLM
from ...metrics import token_accuracy
from ..cells import STEP_OVER_FORWARD, Batch, Settings, cell_settings, json_list
from ..fits import measured, recipe
from ..jobs import Measurement


@dataclass(frozen=True)
class InterpolationGrid:
    """What is measured at a scale.

    Attributes:
        length: in tokens, of every text.
        texts: how many.
        taus: places, evenly spaced.
        margin: in logits; a fit ends when every token leads by more.
        max_steps: step budget of a fit.
        texts_at_once: texts fitted side by side, which a GPU's memory bounds.
        start: where fits begin; text-independent, so that only the fit brings the vectors of two texts anywhere.
        recipe: name of a preset.
        partners: how many others each text is joined with: those after it, the first ones after the last.
        vectors: which are moved.
        tau_from: the first place; below 0 is before FIRST.
        tau_to: the last place; above 1 is beyond LAST.
    """

    length: int
    texts: int
    taus: int
    margin: float
    max_steps: int
    texts_at_once: int
    start: str = "vocabulary"
    recipe: str = "fast"
    partners: int = 2
    vectors: tuple[Vectors, ...] = VECTORS
    tau_from: float = -0.5
    tau_to: float = 1.5


GRIDS = {
    "smoke": InterpolationGrid(length=2, texts=3, taus=5, margin=0.01, max_steps=60, texts_at_once=3),
    "laptop": InterpolationGrid(length=8, texts=8, taus=33, margin=2.0, max_steps=300, texts_at_once=8),
    "paper": InterpolationGrid(length=256, texts=50, taus=33, margin=2.0, max_steps=5000, texts_at_once=25),
}
"""0, 1/2 and 1 are among the places."""


def lay_out(scale: str) -> list[Batch]:
    """One batch: a cell for each fit, then one for each pair of texts and what is moved."""
    grid = GRIDS[scale]

    def cell(text: int, method: str, **columns: Any) -> Settings:
        return cell_settings(
            scale, "old", text, grid.length, 0, grid.recipe, grid.max_steps,
            method=method, start=grid.start, margin=grid.margin, **columns,
        )  # fmt: skip

    fits = [cell(text, "fit") for text in range(grid.texts)]
    places = {"taus": grid.taus, "tau_from": grid.tau_from, "tau_to": grid.tau_to}
    lines = [
        cell(text, "segment", other_text=(text + step) % grid.texts, vectors=vectors, **places)
        for vectors in grid.vectors
        for step in range(1, grid.partners + 1)
        for text in range(grid.texts)
    ]
    width = grid.length + 1
    fit_positions, evaluated_positions = grid.texts_at_once * width, len(lines) * grid.taus * width
    rounds = math.ceil(grid.texts / grid.texts_at_once)
    return [
        Batch(
            study="interpolation",
            label=f"{grid.texts} texts, each with {grid.partners} others",
            cells=(*fits, *lines),
            steps=rounds * grid.max_steps + math.ceil(evaluated_positions / STEP_OVER_FORWARD / fit_positions),
            positions=fit_positions,
            peak_positions=max(fit_positions, min(POSITIONS_AT_ONCE, grid.taus * width)),
        )
    ]


def run(lm: FrozenLM, cells: list[Settings], target_ids: Tensor) -> list[Measurement]:
    """Fit the texts (B, T) of the first cells, and decode along the lines through the pairs that the others name."""
    texts = sum(cell["method"] == "fit" for cell in cells)
    assert all((cell["method"] == "fit") == (n < texts) for n, cell in enumerate(cells))
    config, at_once = recipe(cells[0], start=cells[0]["start"]), GRIDS[cells[0]["scale"]].texts_at_once
    fits = [fit for ids in target_ids[:texts].split(at_once) for fit in fit_batch(lm, ids, config)]
    numbers = [cell["text"] for cell in cells[:texts]]
    fit_of = dict(zip(numbers, fits, strict=True))
    ids_of = dict(zip(numbers, target_ids[:texts].cpu(), strict=True))
    return measured(lm, target_ids[:texts], fits) + [
        Measurement(_along(lm, cell, fit_of, ids_of)) for cell in cells[texts:]
    ]


def _along(lm: FrozenLM, cell: Settings, fit_of: dict[int, FitResult], ids_of: dict[int, Tensor]) -> dict[str, Any]:
    """Token accuracies at the places of one line, as JSON lists, and where either text is wholly right."""
    first, last = cell["text"], cell["other_text"]
    line = segment(fit_of[first].tokens, fit_of[last].tokens, cell["vectors"])
    taus = even_taus(cell["taus"], cell["tau_from"], cell["tau_to"])
    decoded = profile(lm, line, taus, ids_of[first]).ids  # (N, T)
    of_first, of_last = _accuracies(decoded, ids_of[first]), _accuracies(decoded, ids_of[last])
    of_others = [_accuracies(decoded, ids) for text, ids in ids_of.items() if text not in (first, last)]
    columns: dict[str, Any] = {
        "both_exact": int(fit_of[first].exact and fit_of[last].exact),
        "first_accuracies": json_list(of_first.tolist()),
        "last_accuracies": json_list(of_last.tolist()),
        "other_accuracies": json_list(torch.stack(of_others).mean(0).tolist()) if of_others else None,
    }
    for name, accuracies, end in (("first", of_first, 0.0), ("last", of_last, 1.0)):
        columns[f"{name}_from"], columns[f"{name}_to"] = exact_stretch(taus.tolist(), accuracies.tolist(), end)
    return columns


def exact_stretch(
    taus: Sequence[float], accuracies: Sequence[float], end: float
) -> tuple[float, float] | tuple[None, None]:
    """From where to where, of the places around an end, every token is right without a gap.

    Args:
        taus: places, rising.
        accuracies: token accuracy at each.
        end: tau of the end: 0 or 1.

    Returns:
        The lowest and the highest such place, both None where the end is no place or not wholly right.
    """
    right = [accuracy == 1 for accuracy in accuracies]
    at = next((n for n, tau in enumerate(taus) if math.isclose(tau, end, abs_tol=1e-9)), None)
    if at is None or not right[at]:
        return None, None
    low = next((n + 1 for n in range(at, -1, -1) if not right[n]), 0)
    high = next((n - 1 for n in range(at, len(right)) if not right[n]), len(right) - 1)
    return taus[low], taus[high]


def _accuracies(decoded: Tensor, ids: Tensor) -> Tensor:
    """Share of tokens (N, T) that are those of a text (T,), at each place, (N,)."""
    return token_accuracy(decoded, ids.expand_as(decoded))
