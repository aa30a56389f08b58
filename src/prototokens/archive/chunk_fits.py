"""Fits of chunks, a batch at a time: the part of a packing that an interruption does not lose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..arrangements import arrangement_named
from ..fitting.descent import FitProgress
from ..fitting.fit import descend
from ..fitting.given import Given
from ..fitting.recipes import FitConfig, Stop
from ..fitting.starts import learned_start
from ..lm.frozen import FrozenLM
from ..metrics import logit_margins
from .chunks import chunk_logits
from .efforts import ChunkFit, FitRound, Task

Beginning = Callable[[Tensor], tuple[Tensor, Tensor]]

_LEAST_LEAD = 0.01  # logits, in float32; 0.0003 was seen
_LEAST_LEAD_ELSEWHERE = 0.5  # in 16 bits, where a lead is known to a few hundredths of its logits' size


def shared_m(lm: FrozenLM, recipe: FitConfig) -> Tensor:
    """The m-token that all chunks of a document share, float32, (D,).

    It is that of the recipe's learned start for this model, or else the mean embedding. It is rounded to float16 before
    chunks are fitted with it, so that two bytes an entry store it without loss.
    """
    starter = learned_start(lm, recipe)
    return in_two_bytes(lm.embedding_statistics.mean if starter is None else starter.m)


def in_two_bytes(m: Tensor) -> Tensor:
    """A vector rounded to float16, on the CPU, float32; as it is where float16 has no room for it."""
    m = m.detach().cpu().float()
    small = m.half().float()
    return small if small.isfinite().all() else m


def fit_chunks(
    lm: FrozenLM,
    ids: Tensor,
    tasks: Sequence[Task],
    fit_round: FitRound,
    m: Tensor,
    recipe: FitConfig,
    margin: float,
    progress: Callable[[FitProgress], None] | None = None,
    begin: Beginning | None = None,
) -> list[ChunkFit]:
    """Fit a batch of chunks of one length, and count what each misses.

    The random draws of a chunk depend on its ids and the number of its round alone.

    Args:
        lm: the frozen model.
        ids: ids of the document, int64, (N,).
        tasks: chunks of one length, all in the same round.
        fit_round: that round.
        m: the m-token that the document's chunks have in common, (D,).
        recipe: arrangement, optimiser, start and seed.
        margin: in logits; the fit continues until every token leads by that much. For missed tokens see `is_held`.
        progress: see `fit_batch`.
        begin: the start of fits, instead of the recipe's: texts (B, T) -> e (B, 1, D) and m (B, D).

    Returns:
        One fit per task, in order.
    """
    targets = torch.stack([ids[task.start : task.stop] for task in tasks])  # (B, T)
    config = replace(recipe, tokens_per_vector=None, stop=Stop(max_steps=fit_round.steps, margin=margin), seed=recipe.seed + tasks[0].round)
    e_start, m_start = (None, None) if begin is None else begin(targets)
    given = Given(e_start=e_start, m_start=m_start) if fit_round.own_m else Given(e_start=e_start, m=m)
    descent = descend(lm, targets, config, given, progress=progress)
    e = torch.stack([outcome.e for outcome in descent.results])  # (B, 1, D)
    all_m = torch.stack([outcome.m for outcome in descent.results])  # (B, D)
    arrangement = arrangement_named(config.arrangement)
    logits = chunk_logits(lm, arrangement, targets.shape[1], e, all_m, descent.fixed)
    missed = (~is_held(logits, targets, margin, lm.dtype)).sum(1).tolist()
    return [
        ChunkFit(task, count, chunk_e[0].cpu(), chunk_m.cpu() if fit_round.own_m else None)
        for task, count, chunk_e, chunk_m in zip(tasks, missed, e, all_m, strict=True)
    ]


def is_held(logits: Tensor, targets: Tensor, margin: float, dtype: torch.dtype) -> Tensor:
    """Which tokens come from the vectors alone: those that lead by at least half the margin.

    However small the margin, the lead must exceed what was seen to change between batches and threads.

    Args:
        logits: (B, T, V).
        targets: ids, (B, T).
        margin: in logits.
        dtype: of the weights.

    Returns:
        bool, (B, T), on the CPU.
    """
    lead = logit_margins(logits, targets.to(logits.device)).cpu()
    least = max(margin / 2, _LEAST_LEAD if dtype == torch.float32 else _LEAST_LEAD_ELSEWHERE)
    return lead >= least  # NaN is not


def to_tensors(fits: Sequence[ChunkFit]) -> dict[str, Tensor]:
    """Fits of one round as tensors; `from_tensors` is the way back."""
    tasks = torch.tensor([[fit.task.start, fit.task.stop, fit.task.round, fit.missed] for fit in fits])
    chunk_m = [fit.m for fit in fits if fit.m is not None]
    return {"tasks": tasks, "e": torch.stack([fit.e for fit in fits])} | (
        {"m": torch.stack(chunk_m)} if chunk_m else {}
    )


def from_tensors(tensors: Mapping[str, Tensor]) -> Iterable[ChunkFit]:
    """The fits that `to_tensors` gave."""
    chunk_m = tensors.get("m")
    for row, (start, stop, number, missed) in enumerate(tensors["tasks"].tolist()):
        m = None if chunk_m is None else chunk_m[row]
        yield ChunkFit(Task(start, stop, number), missed, tensors["e"][row], m)
