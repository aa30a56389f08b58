"""Cramming, the autoregressive baseline: trained [mem] vectors before the text, greedy generation to read it back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..arrangements import E_TOKEN, Layout, arrangement_named
from ..errors import InputError
from ..fitting.bank import Bank
from ..fitting.checks import check_arguments, check_shape, check_texts
from ..fitting.descent import Descent, DescentResult, FitProgress
from ..fitting.memory import check_vectors
from ..fitting.recipes import FitConfig, Stop, preset
from ..fitting.rescoring import rescore
from ..fitting.starter import Starter
from ..fitting.starts import start_vectors
from ..lm.frozen import FrozenLM
from ..metrics import correct_prefix

CRAMMING = FitConfig(
    arrangement="bos,e,m*(n-1)",
    start="text-e",
    perturbation=0.1,
    optimiser=preset().optimiser,
    stop=Stop(max_steps=5000, margin=0.01),
    preset="cramming",
)
"""The default recipe. Position 0 is an attention sink, so that a fixed BOS row stands there and no trained vector. The
learning rate is tuned on texts of the train split (`benchmarks/bench_ablation.py --table cramming`).
`preset("paper")` is the published recipe (section 3: no row before [mem], N(0, 1), AdamW 0.01, 5,000 steps)."""


@dataclass(frozen=True, eq=False)
class CrammingResult:
    """The [mem] vectors of one text, their scores and their cost.

    The scores of `memory` were measured once more after the fit, with the text alone in its batch.

    Attributes:
        memory: the [mem] vectors of the best evaluation, float32, (K, D), on the CPU.
        prompt: input of the generation: the recipe's F fixed vectors, then `memory`, float32, (F + K, D).
        teacher_forced_accuracy: share of tokens that are the argmax after the true tokens before them.
        greedy_accuracy: share of tokens that greedy generation from `prompt` gets right, position by position; the
            first token counts like every other.
        greedy_prefix: right tokens of the generation before its first wrong one.
        greedy_ids: the generated ids, int64, (T,).
        exact: whether the generation is the text.
        min_margin: smallest lead of a target's logit over the next best under teacher forcing, in logits.
        loss: mean cross-entropy under teacher forcing, in nats per token.
        steps: optimiser steps taken by the longest restart.
        loss_history: loss of the kept restart at each evaluation, in nats per token.
        accuracy_history: its teacher-forced accuracy at each evaluation.
        token_positions: input positions passed forward, with restarts and the last teacher-forced scoring, without
            the generation.
        backward_positions: input positions passed backward, restarts included.
        seconds: wall time until this text was done, without the generation.
        stop_reason: as in `FitResult`; `"accuracy"` means that under teacher forcing.
    """

    memory: Tensor
    prompt: Tensor
    teacher_forced_accuracy: float
    greedy_accuracy: float
    greedy_prefix: int
    greedy_ids: Tensor
    exact: bool
    min_margin: float
    loss: float
    steps: int
    loss_history: Tensor
    accuracy_history: Tensor
    token_positions: int
    backward_positions: int
    seconds: float
    stop_reason: str


def cram(
    lm: FrozenLM,
    target_ids: Tensor,
    config: FitConfig | None = None,
    memory_start: Tensor | None = None,
    *,
    progress: Callable[[FitProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> CrammingResult:
    """Find the [mem] vectors of one text, ids (T,); all else as in `cram_batch`."""
    check_arguments(lm, target_ids, config, None)
    if target_ids.ndim != 1:
        raise InputError(f"target_ids is {tuple(target_ids.shape)}; cram takes one text (T,), cram_batch (B, T)")
    return cram_batch(lm, target_ids.unsqueeze(0), config, memory_start, progress=progress, should_stop=should_stop)[0]


@torch.inference_mode(False)
@torch.enable_grad()
def cram_batch(
    lm: FrozenLM,
    target_ids: Tensor,
    config: FitConfig | None = None,
    memory_start: Tensor | None = None,
    *,
    progress: Callable[[FitProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[CrammingResult]:
    """Find [mem] vectors from which the frozen model generates texts of equal length.

    Minimises over mem the sum over i of -log P(t_i | mem_1 ... mem_K, t_1 ... t_(i-1)); t_1 is predicted at the last
    [mem] vector and counts. Fixed vectors before e in the recipe's arrangement, such as BOS, stand before [mem]; the
    rest of the arrangement is ignored. Loop, restarts, best-so-far and stopping rule are those of `fit_batch`.

    Args:
        lm: the frozen model.
        target_ids: int64, (B, T).
        config: the recipe, `CRAMMING` if None; `e_tokens` is K. Of the starts, `"auto"` means `"text-e"`.
        memory_start: start of the descent instead of the recipe's, (B, K, D); it is not perturbed.
        progress: called at every check of the stopping rule (`Stop.check_every`).
        should_stop: asked at every step; if it returns True, the best so far is returned as `"interrupted"`.

    Returns:
        One result per text, in order.

    Raises:
        InputError: an argument is of another type, the texts do not fit the model or memory, or the recipe names a
            learned start.

    Reference: Cramming 1568 Tokens into a Single Vector and Back Again (Kuratov et al., 2025), section 3,
    https://arxiv.org/abs/2502.13063.
    """
    check_arguments(lm, target_ids, config, None)
    if memory_start is not None and not isinstance(memory_start, Tensor):
        raise InputError(f"memory_start is of type {type(memory_start).__name__}; it must be a tensor (B, K, D)")
    check_shape(target_ids)
    config = config or CRAMMING
    if isinstance(config.start, Starter):
        raise InputError("a learned start is for proto-tokens, not for cramming; choose text-e or normal")
    if config.start == "auto":
        config = replace(config, start="text-e")
    n_texts, length = target_ids.shape
    check_vectors(lm, n_texts * config.restarts, config.e_tokens, length, config.stop.max_steps)
    before = _before(lm, config)  # (F, D)
    layout = _layout(length, config.e_tokens, len(before))
    check_texts(lm, target_ids, layout)
    rows = target_ids.repeat_interleave(config.restarts, dim=0)  # (R, T)
    row_of = torch.arange(len(rows), device=lm.device)
    memory = Bank(_starts(lm, target_ids, config, memory_start), row_of, trained=True)
    unused = Bank(torch.zeros(1, 1, lm.width, device=lm.device), torch.zeros_like(row_of), trained=False)
    descent = Descent(lm, layout, _fixed(lm, before, rows), rows, memory, unused, torch.arange(n_texts), config)
    results = descent.run(progress, should_stop)
    return [_result(lm, layout, before, ids, reached) for ids, reached in zip(target_ids, results, strict=True)]


def reconstruct(lm: FrozenLM, prompts: Tensor, length: int) -> Tensor:
    """Greedy generation with a KV cache from prompts (B, F + K, D): `length` ids each, int64, (B, T), on the CPU."""
    return lm.generate(prompts, length).cpu()


def _before(lm: FrozenLM, config: FitConfig) -> Tensor:
    """Fixed vectors before [mem], (F, D): those that the arrangement has in front of e."""
    arrangement = arrangement_named(config.arrangement)
    head = arrangement.head[: arrangement.head.index(E_TOKEN)] if E_TOKEN in arrangement.head else ()
    return lm.fixed_vectors([symbol for symbol in head if symbol in arrangement.fixed])


def _fixed(lm: FrozenLM, before: Tensor, target_ids: Tensor) -> Tensor:
    """The inputs that are not trained: the vectors before [mem] and the embeddings of texts (R, T) without the last."""
    return torch.cat([before.expand(len(target_ids), -1, -1), lm.embed(target_ids[:, :-1])], dim=1)  # (R, F+T-1, D)


def _starts(lm: FrozenLM, target_ids: Tensor, config: FitConfig, given: Tensor | None) -> Tensor:
    """Start of every row's [mem] vectors, (R, K, D)."""
    if given is None:
        rows = [(ids, r) for ids in target_ids for r in range(config.restarts)]
        return torch.stack([start_vectors(lm, ids, config, r)[0] for ids, r in rows])
    shape = (len(target_ids), config.e_tokens, lm.width)
    if tuple(given.shape) != shape:
        raise InputError(f"memory_start is {tuple(given.shape)}; it must be {shape}")
    return given.to(lm.device, torch.float32).repeat_interleave(config.restarts, 0)


def _layout(length: int, n_memory: int, n_before: int) -> Layout:
    """F fixed vectors, K [mem] vectors, then the true tokens without the last; slot K, that of m, is not used."""
    fixed = range(n_memory + 1, n_memory + n_before + length)
    slots = (*fixed[:n_before], *range(n_memory), *fixed[n_before:])
    return Layout(slots, n_before + n_memory - 1, length)


@torch.no_grad()
def _result(lm: FrozenLM, layout: Layout, before: Tensor, target_ids: Tensor, reached: DescentResult) -> CrammingResult:
    """Score the kept vectors once more, alone in their batch, and generate from them."""
    scores = rescore(lm, layout, reached, _fixed(lm, before, target_ids.unsqueeze(0)), target_ids)
    prompt = torch.cat([before.to(reached.e), reached.e])  # (F + K, D)
    greedy_ids = reconstruct(lm, prompt.unsqueeze(0), layout.length)[0]
    right = greedy_ids == target_ids.cpu()
    return CrammingResult(
        memory=reached.e.cpu(),
        prompt=prompt.cpu(),
        teacher_forced_accuracy=scores.token_accuracy,
        greedy_accuracy=right.float().mean().item(),
        greedy_prefix=int(correct_prefix(greedy_ids, target_ids.cpu())),
        greedy_ids=greedy_ids,
        exact=bool(right.all()),
        min_margin=scores.min_margin,
        loss=scores.loss_nats,
        steps=reached.steps,
        loss_history=reached.loss_history,
        accuracy_history=reached.accuracy_history,
        token_positions=reached.token_positions + len(layout.slots),
        backward_positions=reached.backward_positions,
        seconds=reached.seconds,
        stop_reason=reached.stop_reason,
    )
