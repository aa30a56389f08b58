"""Fits of chunks: one batch of them is the unit of work of packing."""

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
from .efforts import Attempt, ChunkFit, Task

Beginning = Callable[[Tensor], tuple[Tensor, Tensor]]

_LEAST_LEAD = 0.01  # logits, in float32; 0.0003 was seen
_LEAST_LEAD_ELSEWHERE = 0.5  # in 16 bits, where a lead is known to a few hundredths of its logits' size


def common_m(lm: FrozenLM, recipe: FitConfig) -> Tensor:
    """The m-token that all chunks of a document have in common, float32, (D,).

    That of the learned start that the recipe means for this model, or else the mean embedding. It is rounded to float16
    before anything is fitted to it, so that it is stored in two bytes an entry at no loss.
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
    attempt: Attempt,
    m: Tensor,
    recipe: FitConfig,
    margin: float,
    progress: Callable[[FitProgress], None] | None = None,
    begin: Beginning | None = None,
) -> list[ChunkFit]:
    """Fit a batch of chunks of one length, and count what each misses.

    What is drawn for a chunk depends on its ids and the number of its attempt alone.

    Args:
        lm: the frozen model.
        ids: ids of the document, int64, (N,).
        tasks: chunks of one length, all at the same attempt.
        attempt: that attempt.
        m: the m-token that the document's chunks have in common, (D,).
        recipe: arrangement, optimiser, start and seed.
        margin: in logits; the fit goes on until every token leads by that much. What counts as missed: see `is_held`.
        progress: see `fit_batch`.
        begin: where fits set out from, instead of the recipe's start: texts (B, T) -> e (B, 1, D) and m (B, D).

    Returns:
        One fit per task, in order.
    """
    targets = torch.stack([ids[task.start : task.stop] for task in tasks])  # (B, T)
    config = replace(recipe, stop=Stop(max_steps=attempt.steps, margin=margin), seed=recipe.seed + tasks[0].attempt)
    e_start, m_start = (None, None) if begin is None else begin(targets)
    given = Given(e_start=e_start, m_start=m_start) if attempt.own_m else Given(e_start=e_start, m=m)
    found = descend(lm, targets, config, given, progress=progress)
    e = torch.stack([result.e for result in found.results])  # (B, 1, D)
    all_m = torch.stack([result.m for result in found.results])  # (B, D)
    arrangement = arrangement_named(config.arrangement)
    logits = chunk_logits(lm, arrangement, targets.shape[1], e, all_m, found.fixed)
    missed = (~is_held(logits, targets, margin, lm.dtype)).sum(1).tolist()
    return [
        ChunkFit(task, count, own_e[0].cpu(), own_m.cpu() if attempt.own_m else None)
        for task, count, own_e, own_m in zip(tasks, missed, e, all_m, strict=True)
    ]


def is_held(logits: Tensor, targets: Tensor, margin: float, dtype: torch.dtype) -> Tensor:
    """Which tokens come from the vectors alone: those that lead, and by at least half the margin.

    However small the margin, they lead by more than what was seen to change between batches and threads.

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
    """Fits of one attempt as tensors; `from_tensors` is the way back."""
    tasks = torch.tensor([[fit.task.start, fit.task.stop, fit.task.attempt, fit.missed] for fit in fits])
    own = [fit.m for fit in fits if fit.m is not None]
    return {"tasks": tasks, "e": torch.stack([fit.e for fit in fits])} | ({"m": torch.stack(own)} if own else {})


def from_tensors(tensors: Mapping[str, Tensor]) -> Iterable[ChunkFit]:
    """The fits that `to_tensors` gave."""
    own = tensors.get("m")
    for row, (start, stop, attempt, missed) in enumerate(tensors["tasks"].tolist()):
        yield ChunkFit(Task(start, stop, attempt), missed, tensors["e"][row], None if own is None else own[row])
