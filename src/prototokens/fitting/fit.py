"""fit: proto-tokens for one text or a batch of them, by descent through the frozen model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from ..arrangements import Arrangement, Layout, arrangement_named
from ..errors import InputError
from ..lm.frozen import FrozenLM
from ..lm.identity import hash_ids, library_versions
from ..metrics import logit_margins
from ..proto_tokens import ProtoTokens, Provenance
from .descent import Bank, Descent, FitProgress, Outcome, Regulariser
from .memory import check_vectors
from .recipes import FitConfig, preset
from .starts import Axes, in_force, perturbations, start_name, start_vectors


@dataclass(frozen=True, eq=False)
class FitResult:
    """What a fit found, and what it cost.

    `tokens`, `token_accuracy`, `exact`, `min_margin` and `loss` belong together: the vectors were scored once more
    after the fit, alone in their batch. A text that was not reached is a result too; `stop_reason` says why it ended.

    Attributes:
        tokens: the proto-tokens of the best evaluation.
        token_accuracy: share of tokens whose argmax is the target.
        exact: whether all are.
        min_margin: smallest lead of a target's logit over the next best, in logits.
        loss: mean cross-entropy, in nats per token.
        steps: optimiser steps taken by the longest restart.
        steps_to_exact: steps before the kept restart's first exact evaluation, or None.
        loss_history: loss of the kept restart at each evaluation, in nats per token.
        accuracy_history: its token accuracy at each evaluation.
        token_positions: input positions passed forward, restarts and the last scoring included.
        backward_positions: input positions passed backward, restarts included.
        seconds: wall time until this text was done, whatever else was in the batch.
        stop_reason: `"accuracy"` (the stopping rule was met), `"steps"`, `"plateau"`, `"nonfinite"`, or
            `"interrupted"`.
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


@dataclass(frozen=True, eq=False)
class Given:
    """Vectors and groupings that a fit takes over instead of finding them.

    Attributes:
        e: e-tokens held fixed, (K, D) for all texts or (B, K, D).
        m: m-token held fixed, (D,) for all texts or (B, D).
        e_start: where the descent of e begins instead of at the recipe's start, (K, D) for all texts or (B, K, D); for
            an e that groups share, (K, D) or one per group. The recipe's perturbation is added.
        m_start: the same for m, (D,), (B, D), or one per group.
        share: `"e"` or `"m"`: texts of one group have that vector in common.
        groups: group number of each text, int64, (B,); one group if None.
        fixed: values of the arrangement's fixed vectors by name, each (D,), where the model's own are not meant.
        regulariser: a further loss on the vectors of the batch.
    """

    e: Tensor | None = None
    m: Tensor | None = None
    e_start: Tensor | None = None
    m_start: Tensor | None = None
    share: Literal["e", "m"] | None = None
    groups: Tensor | None = None
    fixed: Mapping[str, Tensor] | None = None
    regulariser: Regulariser | None = None

    def __post_init__(self) -> None:
        if self.share not in (None, "e", "m"):
            raise InputError(f"share is {self.share!r}; it must be 'e', 'm' or None")
        if self.e is not None and self.m is not None:
            raise InputError("both e and m are given: there is nothing to fit")
        if self.share is not None and getattr(self, self.share) is not None:
            raise InputError(f"{self.share} is given and held fixed: it cannot be shared and trained too")
        for name in ("e", "m"):
            if getattr(self, name) is not None and getattr(self, f"{name}_start") is not None:
                raise InputError(f"{name} is given and held fixed: it has no start")
        if self.groups is not None and self.share is None:
            raise InputError("groups say which texts share a vector: name it with share='e' or share='m'")


def fit(
    lm: FrozenLM,
    target_ids: Tensor,
    config: FitConfig | None = None,
    given: Given | None = None,
    *,
    progress: Callable[[FitProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    rows_at_once: int | None = None,
) -> FitResult:
    """Find the proto-tokens of one text, ids (T,); all else as in `fit_batch`."""
    _check_tensor(target_ids)
    if target_ids.ndim != 1:
        raise InputError(f"target_ids is {tuple(target_ids.shape)}; fit takes one text (T,), fit_batch (B, T)")
    options = {"progress": progress, "should_stop": should_stop, "rows_at_once": rows_at_once}
    return fit_batch(lm, target_ids.unsqueeze(0), config, given, **options)[0]  # type: ignore[arg-type]


def fit_batch(
    lm: FrozenLM,
    target_ids: Tensor,
    config: FitConfig | None = None,
    given: Given | None = None,
    *,
    progress: Callable[[FitProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    rows_at_once: int | None = None,
) -> list[FitResult]:
    """Find the proto-tokens of texts of equal length, side by side.

    Minimises over e and m the sum over i of -log P(t_i | input), all T outputs read in one forward pass of the
    frozen model (eq. 1). Every evaluation is scored before it is stepped from, and the best-scored vectors are kept:
    those that met the stopping rule first, or else those of the highest token accuracy, then of the lowest loss (of
    the largest margin once all tokens are right). What is drawn for a text does not depend on the rest of the batch;
    rounding does, so long runs part ways.

    Args:
        lm: the frozen model.
        target_ids: int64, (B, T).
        config: the recipe; the default preset if None.
        given: vectors that are held fixed or shared.
        progress: called whenever rows are looked at (`Stop.check_every`).
        should_stop: asked at every step; when it says yes, the best so far is returned as `"interrupted"`.
        rows_at_once: rows (texts times restarts) that pass through the model together; None: as many as memory holds.
            A step adds the gradients of these micro-batches up, so that it is the same but for rounding.

    Returns:
        One result per text, in order.

    Raises:
        InputError: the texts do not fit the model, or the given vectors do not fit the texts.

    Reference: Exploring the Latent Capacity of LLMs for One-Step Text Generation (Mezentsev & Oseledets, 2025),
    section 3, https://arxiv.org/abs/2505.21189.
    """
    config = config or preset()
    found = descend(
        lm, target_ids, config, given, progress=progress, should_stop=should_stop, rows_at_once=rows_at_once
    )
    return [_result(lm, found, ids, config, o) for ids, o in zip(target_ids, found.outcomes, strict=True)]


@dataclass(frozen=True, eq=False)
class Descended:
    """What a descent found, before its vectors are scored once more.

    Attributes:
        layout: the arrangement for the texts' length.
        fixed: the arrangement's fixed vectors, (F, D).
        outcomes: one per text.
    """

    layout: Layout
    fixed: Tensor
    outcomes: list[Outcome]


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
    moments: Tensor | None = None,
    rows_at_once: int | None = None,
) -> Descended:
    """The descent alone, without the last scoring at batch 1; all else as in `fit_batch`.

    To `moments`, (2, D, D), if they are given, the second moments of the unit gradients of e and of m are added.
    """
    given = given or Given()
    if given.regulariser is not None and given.regulariser.steps > config.stop.max_steps:
        raise InputError(
            f"the further loss is to be at work for {given.regulariser.steps} steps, and max_steps is "
            f"{config.stop.max_steps}: no text could be done"
        )
    arrangement = arrangement_named(config.arrangement)
    _check_tensor(target_ids)
    if rows_at_once is not None and rows_at_once < 1:
        raise InputError(f"rows_at_once is {rows_at_once}; it must be at least 1")
    n_rows = len(target_ids) * config.restarts if target_ids.ndim else 0
    check_vectors(lm, n_rows, config.e_tokens, target_ids.shape[-1] if target_ids.ndim else 0, config.stop.max_steps)
    layout = arrangement.layout(target_ids.shape[-1], config.e_tokens)
    check_texts(lm, target_ids, layout)
    fixed = _fixed_vectors(lm, arrangement, given)
    group_of = _groups(given, len(target_ids))
    config, axes = in_force(lm, config)
    e, m = _banks(lm, target_ids, group_of, config, given, axes, moments)
    rows = target_ids.repeat_interleave(config.restarts, dim=0)  # (R, T)
    descent = Descent(lm, layout, fixed, rows, e, m, group_of, config, given.regulariser, rows_at_once=rows_at_once)
    return Descended(layout, fixed, descent.run(progress, should_stop))


def check_texts(lm: FrozenLM, target_ids: Tensor, layout: Layout) -> None:
    """Refuse texts that the model or a layout has no room for.

    Raises:
        InputError: `target_ids` is not int64 ids of the model's vocabulary, (B, T), or needs too many positions.
    """
    if target_ids.ndim != 2 or target_ids.numel() == 0:
        raise InputError(f"target_ids is {tuple(target_ids.shape)}; it must be (B, T) with at least one token")
    if target_ids.dtype != torch.int64:
        raise InputError(f"target_ids is {target_ids.dtype}; it must be torch.int64")
    if target_ids.min() < 0 or target_ids.max() >= lm.vocabulary:
        raise InputError(
            f"token ids go from {target_ids.min()} to {target_ids.max()}, and those of {lm.identity.name} from 0 to "
            f"{lm.vocabulary - 1}; is the tokenizer another model's?"
        )
    check_room(lm, layout)


def check_room(lm: FrozenLM, layout: Layout, remedy: str | None = None) -> None:
    """Refuse a layout that needs more positions than the model has, and say what helps.

    Raises:
        InputError: it does.
    """
    needed, bound = len(layout.slots), lm.max_positions
    if bound is not None and needed > bound:
        most = bound - needed + layout.length
        remedy = remedy or (f"shorten it to {most} tokens" if most > 0 else "use fewer e-tokens")
        raise InputError(
            f"a text of {layout.length} tokens needs {needed} positions, and {lm.identity.name} has {bound}; {remedy}"
        )


def _check_tensor(target_ids: object) -> None:
    if not isinstance(target_ids, Tensor):
        raise InputError(f"target_ids is of type {type(target_ids).__name__}; it must be a tensor: lm.encode(text)")


def _fixed_vectors(lm: FrozenLM, arrangement: Arrangement, given: Given) -> Tensor:
    own = given.fixed or {}
    unknown = sorted(set(own) - set(arrangement.fixed))
    if unknown:
        raise InputError(f"arrangement {arrangement.name!r} holds no fixed vector {unknown[0]!r}")
    rows = [
        _checked(f"fixed[{name!r}]", own[name], (lm.width,)) if name in own else lm.fixed_vector(name).cpu()
        for name in arrangement.fixed
    ]
    return torch.stack(rows).to(lm.device) if rows else torch.empty(0, lm.width, device=lm.device)


def _groups(given: Given, texts: int) -> Tensor:
    """Group of each text, numbered from 0 without gaps, (B,)."""
    if given.share is None:
        return torch.arange(texts)
    groups = torch.zeros(texts, dtype=torch.long) if given.groups is None else given.groups.cpu()
    if groups.shape != (texts,):
        raise InputError(f"groups is {tuple(groups.shape)}; it must be ({texts},), one number per text")
    return groups.unique(return_inverse=True)[1]


def _banks(
    lm: FrozenLM,
    target_ids: Tensor,
    group_of: Tensor,
    config: FitConfig,
    given: Given,
    axes: Axes,
    moments: Tensor | None,
) -> tuple[Bank, Bank]:
    texts, restarts = len(target_ids), config.restarts
    row_of = torch.arange(texts * restarts, device=lm.device)
    attempt_of = (group_of[:, None] * restarts + torch.arange(restarts)).flatten().to(lm.device)
    text_of = torch.arange(texts, device=lm.device).repeat_interleave(restarts)

    sums = (None, None) if moments is None else moments

    @cache
    def starts(is_shared: bool, perturbed_only: bool) -> list[tuple[Tensor, Tensor]]:
        sharing = [target_ids[group_of == g] for g in group_of.unique()] if is_shared else target_ids
        draw = perturbations if perturbed_only else start_vectors
        return [draw(lm, ids, config, r) for ids in sharing for r in range(restarts)]

    def bank(which: int, name: str, held: Tensor | None, begin: Tensor | None, shape: tuple[int, ...]) -> Bank:
        if held is not None:
            many = held.ndim > len(shape)
            held = _checked(name, held, (texts, *shape) if many else shape).to(lm.device)
            values = held.reshape(texts if many else 1, -1, lm.width)
            return Bank(values, text_of if many else torch.zeros_like(text_of), trained=False)
        is_shared = given.share == name
        values = torch.stack([start[which] for start in starts(is_shared, begin is not None)])
        if begin is not None:
            count = len(values) // restarts
            begin = _checked(f"{name}_start", begin, (count, *shape) if begin.ndim > len(shape) else shape)
            values += begin.to(lm.device).expand(count, *shape).repeat_interleave(restarts, 0)
        values, of = values.reshape(len(values), -1, lm.width), attempt_of if is_shared else row_of
        return Bank(values, of, trained=True, axes=axes[which], moments=sums[which])

    e_shape, m_shape = (config.e_tokens, lm.width), (lm.width,)
    return bank(0, "e", given.e, given.e_start, e_shape), bank(1, "m", given.m, given.m_start, m_shape)


def _checked(name: str, vectors: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(vectors.shape) != shape:
        raise InputError(f"{name} is {tuple(vectors.shape)}; it must be {shape}")
    if not vectors.isfinite().all():
        raise InputError(f"{name} holds values that are not finite")
    return vectors.detach().float()


@torch.no_grad()
def _result(lm: FrozenLM, found: Descended, target_ids: Tensor, config: FitConfig, outcome: Outcome) -> FitResult:
    """Score the kept vectors once more, alone in their batch, and set the result out."""
    layout, fixed = found.layout, found.fixed
    inputs_embeds = layout.inputs_embeds(outcome.e.unsqueeze(0), outcome.m.unsqueeze(0), fixed)
    logits = lm.logits(inputs_embeds, layout.read_positions())[0]  # (T, V)
    target = target_ids.to(logits.device)
    margins = logit_margins(logits, target)
    right = (logits.argmax(-1) == target) & ~margins.isnan()
    accuracy = right.float().mean().item()
    margin = margins.amin().item()
    loss = torch.nn.functional.cross_entropy(logits, target).item()
    provenance = Provenance(
        model=lm.identity,
        target_hash=hash_ids(target_ids),
        token_accuracy=accuracy,
        min_margin=margin,
        loss=loss,
        dtype=str(lm.dtype).removeprefix("torch."),
        preset=config.preset,
        start=start_name(lm, config),
        seed=config.seed,
        versions=library_versions(),
    )
    tokens = ProtoTokens(
        e=outcome.e.cpu(),
        m=outcome.m.cpu(),
        fixed=fixed.cpu(),
        length=layout.length,
        arrangement=arrangement_named(config.arrangement),
        provenance=provenance,
    )
    reached = (outcome.accuracy_history == 1).nonzero()
    return FitResult(
        tokens=tokens,
        token_accuracy=accuracy,
        exact=bool(right.all()),
        min_margin=margin,
        loss=loss,
        steps=outcome.steps,
        steps_to_exact=int(reached[0]) if len(reached) else None,
        loss_history=outcome.loss_history,
        accuracy_history=outcome.accuracy_history,
        token_positions=outcome.token_positions + len(layout.slots),
        backward_positions=outcome.backward_positions,
        seconds=outcome.seconds,
        stop_reason=outcome.stop_reason,
    )
