"""fit: proto-tokens for one text or a batch of them, by descent through the frozen model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arrangements import Layout, arrangement_named
from ..errors import InputError
from ..lm.frozen import FrozenLM
from ..lm.identity import hash_ids, library_versions
from ..proto_tokens import ProtoTokens, Provenance
from .bank import AxisStatistics
from .beginning import banks, fixed_vectors, group_numbers
from .checks import check_arguments, check_shape, check_texts
from .descent import Descent, DescentResult, FitProgress
from .given import Given
from .memory import Passes, check_vectors
from .recipes import FitConfig, preset
from .rescoring import rescore
from .starts import resolve_optimiser, start_name
from .trace import TraceRecorder


@dataclass(frozen=True, eq=False)
class FitResult:
    """The proto-tokens of a text, how well they do, and what they cost.

    `tokens`, `token_accuracy`, `exact`, `min_margin` and `loss` belong together: the vectors were scored once more
    after the fit, alone in their batch. A fit that misses its goal is a result too; `stop_reason` says why it ended.

    Attributes:
        tokens: the proto-tokens of the best evaluation.
        token_accuracy: share of right tokens: those whose target is the argmax of their logits.
        exact: whether all are right.
        min_margin: smallest lead of a target's logit over the next best, in logits.
        loss: mean cross-entropy, in nats per token.
        steps: optimiser steps taken by the longest restart.
        steps_to_exact: steps before the kept restart's first exact evaluation, or None.
        loss_history: loss of the kept restart at each evaluation, in nats per token.
        accuracy_history: its token accuracy at each evaluation.
        token_positions: input positions passed forward, restarts and the last scoring included.
        backward_positions: input positions passed backward, restarts included.
        seconds: wall time until this text was done, whatever else was in the batch.
        stop_reason: `"accuracy"` (the stopping rule was met), `"steps"`, `"nonfinite"`, or `"interrupted"`.
    """

    tokens: ProtoTokens
    token_accuracy: float
    exact: bool
    min_margin: float
    loss: float
    steps: int
    steps_to_exact: int | None
    loss_history: Tensor
    accuracy_history: Tensor
    token_positions: int
    backward_positions: int
    seconds: float
    stop_reason: str


def fit(
    lm: FrozenLM,
    target_ids: Tensor,
    config: FitConfig | None = None,
    given: Given | None = None,
    *,
    progress: Callable[[FitProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    rows_at_once: int | None = None,
    checkpointing: bool | None = None,
    trace: TraceRecorder | None = None,
) -> FitResult:
    """Find the proto-tokens of one text, ids (T,); all else as in `fit_batch`."""
    check_arguments(lm, target_ids, config, given)
    if target_ids.ndim != 1:
        raise InputError(f"target_ids is {tuple(target_ids.shape)}; fit takes one text (T,), fit_batch (B, T)")
    return fit_batch(
        lm,
        target_ids.unsqueeze(0),
        config,
        given,
        progress=progress,
        should_stop=should_stop,
        rows_at_once=rows_at_once,
        checkpointing=checkpointing,
        trace=trace,
    )[0]


def fit_batch(
    lm: FrozenLM,
    target_ids: Tensor,
    config: FitConfig | None = None,
    given: Given | None = None,
    *,
    progress: Callable[[FitProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    rows_at_once: int | None = None,
    checkpointing: bool | None = None,
    trace: TraceRecorder | None = None,
) -> list[FitResult]:
    """Find the proto-tokens of texts of equal length, side by side.

    Minimises over e and m the sum over i of -log P(t_i | input), all T outputs read in one forward pass of the
    frozen model (eq. 1). Every evaluation is scored before a step is taken from it, and the best-scored vectors are
    kept: those that met the stopping rule first, or else those of the highest token accuracy. Equal accuracies are told
    apart by the lowest loss, and by the largest margin once all tokens are right. What is drawn for a text does not
    depend on the rest of the batch. Rounding does, and long descents amplify it.

    Args:
        lm: the frozen model.
        target_ids: int64, (B, T).
        config: the recipe; the default preset if None.
        given: vectors that are held fixed or shared.
        progress: called at every check (`Stop.check_every`).
        should_stop: asked at every step; when it says yes, the best so far is returned as `"interrupted"`.
        rows_at_once: rows (texts times restarts) that pass through the model together, see `Passes`; None: as many as
            memory holds. The gradients of such micro-batches are added up: a step is the same but for rounding.
        checkpointing: whether activations are computed anew in the backward pass, which saves memory; None: where a
            single row would not fit without.
        trace: keeps what is decoded at every evaluation, see `TraceRecorder`.

    Returns:
        One result per text, in order.

    Raises:
        InputError: an argument is of another type, the texts do not fit the model, the given vectors do not fit the
            texts, memory has no room, or the model is not frozen (training mode, autocast).

    Reference: Exploring the Latent Capacity of LLMs for One-Step Text Generation (Mezentsev & Oseledets, 2025),
    section 3, https://arxiv.org/abs/2505.21189.
    """
    check_arguments(lm, target_ids, config, given)
    config = config or preset()
    if target_ids.ndim == 2:
        config = config.at(target_ids.shape[1])
    passes = Passes(rows_at_once, checkpointing)
    reached = descend(
        lm, target_ids, config, given, progress=progress, should_stop=should_stop, passes=passes, trace=trace
    )
    return [_result(lm, reached, ids, config, r) for ids, r in zip(target_ids, reached.results, strict=True)]


@dataclass(frozen=True, eq=False)
class Descended:
    """What a descent reached, before its vectors are scored once more.

    Attributes:
        layout: the arrangement for the texts' length.
        fixed: the arrangement's fixed vectors, (F, D).
        results: one per text.
    """

    layout: Layout
    fixed: Tensor
    results: list[DescentResult]


@torch.inference_mode(False)
@torch.enable_grad()
def descend(
    lm: FrozenLM,
    target_ids: Tensor,
    config: FitConfig,
    given: Given | None = None,
    *,
    progress: Callable[[FitProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    statistics: tuple[AxisStatistics, AxisStatistics] | None = None,
    passes: Passes | None = None,
    trace: TraceRecorder | None = None,
) -> Descended:
    """The descent alone, without the last scoring at batch 1; all else as in `fit_batch`.

    To `statistics`, those of e and of m, if they are given, the descent adds what trains axes.
    """
    check_arguments(lm, target_ids, config, given)
    given = given or Given()
    if given.regulariser is not None and given.regulariser.steps > config.stop.max_steps:
        raise InputError(
            f"the auxiliary loss is to be at work for {given.regulariser.steps} steps, and max_steps is "
            f"{config.stop.max_steps}: no text could be done"
        )
    check_shape(target_ids)
    n_texts, length = target_ids.shape
    config = config.at(length)
    check_memory(lm, config, n_texts, length)
    arrangement = arrangement_named(config.arrangement)
    layout = arrangement.layout(length, arrangement.n_e_tokens(length, config.e_tokens))
    check_texts(lm, target_ids, layout)
    fixed = fixed_vectors(lm, arrangement, given)
    group_of = group_numbers(given, n_texts)
    config, axes = resolve_optimiser(lm, config)
    e, m = banks(lm, target_ids, group_of, config, given, axes, statistics)
    rows = target_ids.repeat_interleave(config.restarts, dim=0)  # (R, T)
    if trace is not None:
        trace.begin(target_ids, config.restarts, arrangement)
    descent = Descent(lm, layout, fixed, rows, e, m, group_of, config, given.regulariser, passes=passes, trace=trace)
    return Descended(layout, fixed, descent.run(progress, should_stop))


def check_memory(lm: FrozenLM, config: FitConfig, n_texts: int, length: int) -> None:
    """Refuse a fit whose vectors have no room in memory, before anything is allocated.

    Raises:
        InputError: they have none, or there are more of them than any fit takes.
    """
    config = config.at(length)
    n_e_tokens = arrangement_named(config.arrangement).n_e_tokens(length, config.e_tokens)
    check_vectors(lm, n_texts * config.restarts, n_e_tokens, length, config.stop.max_steps)


@torch.no_grad()
def _result(
    lm: FrozenLM, descended: Descended, target_ids: Tensor, config: FitConfig, reached: DescentResult
) -> FitResult:
    """Score the kept vectors once more, alone in their batch, and set the result out."""
    layout, fixed = descended.layout, descended.fixed
    scores = rescore(lm, layout, reached, fixed, target_ids)
    provenance = Provenance(
        model=lm.identity,
        target_hash=hash_ids(target_ids),
        token_accuracy=scores.token_accuracy,
        min_margin=scores.min_margin,
        loss=scores.loss_nats,
        dtype=lm.dtype_name,
        preset=config.preset,
        start=start_name(lm, config),
        seed=config.seed,
        versions=library_versions(),
    )
    tokens = ProtoTokens(
        e=reached.e.cpu(),
        m=reached.m.cpu(),
        fixed=fixed.cpu(),
        length=layout.length,
        arrangement=arrangement_named(config.arrangement),
        provenance=provenance,
    )
    exact_evaluations = (reached.accuracy_history == 1).nonzero()
    return FitResult(
        tokens=tokens,
        token_accuracy=scores.token_accuracy,
        exact=bool(scores.right.all()),
        min_margin=scores.min_margin,
        loss=scores.loss_nats,
        steps=reached.steps,
        steps_to_exact=int(exact_evaluations[0]) if len(exact_evaluations) else None,
        loss_history=reached.loss_history,
        accuracy_history=reached.accuracy_history,
        token_positions=reached.token_positions + len(layout.slots),
        backward_positions=reached.backward_positions,
        seconds=reached.seconds,
        stop_reason=reached.stop_reason,
    )
