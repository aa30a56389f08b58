"""Fits of chunks, a batch at a time: the part of a packing that an interruption does not lose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..fitting.descent import FitProgress
from ..fitting.fit import descend
from ..fitting.given import Given
from ..fitting.recipes import FitConfig, Stop
from ..fitting.starts import learned_start
from ..lm.frozen import FrozenLM
from ..metrics import logit_margins
from .efforts import Chunk, ChunkFit, Effort

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
    chunks: Sequence[Chunk],
    effort: Effort,
    m: Tensor,
    recipe: FitConfig,
    progress: Callable[[FitProgress], None] | None = None,
    begin: Beginning | None = None,
) -> list[ChunkFit]:
    """Fit a batch of chunks of one length, or take what an encoder writes where there are no steps.

    The random draws of a chunk depend on its ids alone.

    Args:
        lm: the frozen model.
        ids: ids of the document, int64, (N,).
        chunks: chunks of one length.
        effort: how long they are fitted, and what they are to reach.
        m: the m-token that the document's chunks share, if they have none of their own, (D,).
        recipe: arrangement, optimiser, start and seed.
        progress: see `fit_batch`.
        begin: the start of fits, instead of the recipe's: texts (B, T) -> e (B, K, D) and m (B, D).

    Returns:
        One fit per chunk, in order.
    """
    targets = torch.stack([ids[chunk.start : chunk.stop] for chunk in chunks])  # (B, T)
    e_start, m_start = (None, None) if begin is None else begin(targets)
    if effort.steps == 0 and e_start is not None and m_start is not None:
        written = zip(chunks, e_start.cpu(), m_start.cpu(), strict=True)  # scored when the archive is assembled
        return [ChunkFit(chunk, e, own_m if effort.own_m else None) for chunk, e, own_m in written]
    stop = Stop(max_steps=effort.steps, accuracy=1 - effort.tolerated_share, margin=effort.margin)
    given = Given(e_start=e_start, m_start=m_start) if effort.own_m else Given(e_start=e_start, m=m)
    descent = descend(lm, targets, replace(recipe, stop=stop), given, progress=progress)
    return [
        ChunkFit(
            chunk,
            result.e.cpu(),
            result.m.cpu() if effort.own_m else None,
            result.token_positions,
            result.backward_positions,
        )
        for chunk, result in zip(chunks, descent.results, strict=True)
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
    """Fits of one batch as tensors; `from_tensors` is the way back."""
    # The third number is always 0: journals of earlier versions counted missed tokens there.
    rows = [[fit.chunk.start, fit.chunk.stop, 0, fit.token_positions, fit.backward_positions] for fit in fits]
    own_m = [fit.m for fit in fits if fit.m is not None]
    tensors = {"chunks": torch.tensor(rows), "e": torch.stack([fit.e for fit in fits])}
    return tensors | ({"m": torch.stack(own_m)} if own_m else {})


def from_tensors(tensors: Mapping[str, Tensor]) -> Iterable[ChunkFit]:
    """The fits that `to_tensors` gave."""
    own_m = tensors.get("m")
    for row, (start, stop, _, forward, backward) in enumerate(tensors["chunks"].tolist()):
        m = None if own_m is None else own_m[row]
        yield ChunkFit(Chunk(start, stop), tensors["e"][row], m, forward, backward)
