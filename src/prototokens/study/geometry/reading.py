"""Reading without decoding: ordinary generation from e, m or both, compared with the text and its context.

A stretch of old prose is a context and, after it, the text that is fitted. What the model writes after the vectors,
greedily and sampled, with and without BOS, is compared with the text and with the context. One control compares it
with those of the other stretches of the batch. Another, `first`, has the text's first token in the vectors' place.
Where e is the last vector of the prompt, the first token that is generated is the one that e was fitted to predict:
likeness is measured on what comes after it.

Reference: Exploring the Latent Capacity of LLMs for One-Step Text Generation (Mezentsev & Oseledets, 2025),
https://arxiv.org/abs/2505.21189.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...fitting.fit import FitResult, fit_batch
from ...geometry.distances import PARTS
from ...geometry.generation import generate_from
from ...geometry.separation import auc
from ...geometry.text_distances import check_installed, semantic_distances, tfidf_distances
from ...lm.frozen import FrozenLM
from ...metrics import token_accuracy
from ..cells import Batch, Settings, cell_settings, chunked
from ..fits import fit_columns, recipe
from ..jobs import Measurement

FIRST = "first"
"""The control that reads the text's first token in place of vectors."""


@dataclass(frozen=True)
class ReadingGrid:
    """What is measured at a scale.

    Attributes:
        context_tokens: length of a context.
        text_tokens: length of a text.
        stretches: how many, of old prose.
        recipe: name of a preset.
        start: where fits begin; of random vectors, so that nothing of the text is in them beforehand.
        max_steps: step budget of a fit.
        rows: texts fitted side by side.
    """

    context_tokens: int
    text_tokens: int
    stretches: int
    recipe: str
    start: str
    max_steps: int
    rows: int


GRIDS = {
    "smoke": ReadingGrid(8, 8, 4, "fast", "vocabulary", 8, 4),
    "laptop": ReadingGrid(32, 32, 16, "fast", "vocabulary", 800, 16),
    "paper": ReadingGrid(64, 256, 50, "paper", "normal", 5000, 25),
}


def lay_out(scale: str) -> list[Batch]:
    """One batch per group of stretches; a cell is one way to read the vectors of one text."""
    grid = GRIDS[scale]
    return [
        Batch(
            study="reading",
            label=f"stretches {stretches[0]} to {stretches[-1]}",
            cells=tuple(
                cell_settings(
                    scale, "old", stretch, grid.context_tokens + grid.text_tokens, 0, grid.recipe, grid.max_steps,
                    start=grid.start, text_tokens=grid.text_tokens, part=part, bos=bos, sampled=sampled,
                )
                for part in (*PARTS, FIRST)
                for bos in (0, 1)
                for sampled in (0, 1)
                for stretch in stretches
            ),
            steps=grid.max_steps,
            positions=len(stretches) * (grid.text_tokens + 1),
        )
        for stretches in chunked(range(grid.stretches), grid.rows)
    ]  # fmt: skip


def run(lm: FrozenLM, cells: list[Settings], target_ids: Tensor) -> list[Measurement]:
    """Fit the texts at the ends of the stretches (B, C + T), and read their vectors in every way that is asked for."""
    check_installed()  # before the fits, which are long
    stretches = list(dict.fromkeys(cell["text"] for cell in cells))
    whole = torch.stack([target_ids[[cell["text"] for cell in cells].index(n)] for n in stretches])
    contexts, texts = whole.split([whole.shape[1] - cells[0]["text_tokens"], cells[0]["text_tokens"]], dim=1)
    fits = fit_batch(lm, texts, recipe(cells[0], start=cells[0]["start"]))
    ways = dict.fromkeys((cell["part"], cell["bos"], cell["sampled"]) for cell in cells)
    columns = {way: _columns(lm, fits, contexts, texts, *way) for way in ways}
    return [
        Measurement(
            {**fit_columns(fit), "start": cell["start"]}
            | columns[cell["part"], cell["bos"], cell["sampled"]][stretches.index(cell["text"])]
        )
        for cell in cells
        for fit in [fits[stretches.index(cell["text"])]]
    ]


def _columns(
    lm: FrozenLM, fits: list[FitResult], contexts: Tensor, texts: Tensor, part: str, bos: int, sampled: int
) -> list[dict[str, Any]]:
    """For each text what one way of reading gives, and how like it is to what; nulls for a BOS that there is not."""
    readings = None if bos and lm.bos_id is None else _read(lm, fits, texts, part, bool(bos), sampled)
    rest = [[]] * len(texts) if readings is None else [ids[1:].tolist() for ids in readings]
    rows: list[dict[str, Any]] = [
        {"reading": None, "first_right": None, "reading_accuracy": None}
        if readings is None
        else {
            "reading": lm.decode(readings[i]),
            "first_right": int(readings[i][0] == ids[0]),
            "reading_accuracy": token_accuracy(readings[i], ids).item(),
        }
        for i, ids in enumerate(texts)
    ]
    for name, targets in (("text", texts), ("context", contexts)):
        for row, likeness in zip(rows, _likeness(lm, rest, targets, name), strict=True):
            row |= likeness
    return rows


def _read(lm: FrozenLM, fits: list[FitResult], texts: Tensor, part: str, bos: bool, sampled: int) -> Tensor:
    """Readings (B, T) of the texts, of `first` with the token that it began with."""
    seed = 0 if sampled else None
    if part != FIRST:
        return generate_from(lm, [fit.tokens for fit in fits], part, texts.shape[1], bos=bos, seed=seed)
    prompts = lm.embed(texts[:, :1])  # (B, 1, D)
    if bos:
        prompts = torch.cat([lm.fixed_vector("bos").expand_as(prompts), prompts], dim=1)
    return torch.cat([texts[:, :1], lm.generate(prompts, texts.shape[1] - 1, seed=seed).cpu()], dim=1)


def _likeness(lm: FrozenLM, readings: list[list[int]], targets: Tensor, name: str) -> list[dict[str, Any]]:
    """For each reading its distance to its own target, its mean distance to the others', and how many are farther."""
    columns = [f"{measure}_{what}_{name}" for measure in ("tfidf", "semantic") for what in ("own", "other", "auc")]
    if not all(readings) or len(targets) < 2:
        return [dict.fromkeys(columns) for _ in readings]
    documents = [*readings, *targets.tolist()]
    count, rows = len(readings), []
    tfidf = tfidf_distances(documents)[:count, count:]  # (B, B), from reading to target
    semantic = semantic_distances([lm.decode(torch.tensor(ids)) for ids in documents])[:count, count:]
    for i in range(count):
        values: list[float] = []
        for distances in (tfidf, semantic):
            to_its_target = distances[i, i].item()
            to_others = [x for j, x in enumerate(distances[i].tolist()) if j != i]
            values += [to_its_target, sum(to_others) / len(to_others), auc([to_its_target], to_others)]
        rows.append(dict(zip(columns, values, strict=True)))
    return rows
