"""Training a learned start: many short fits, and the start follows where they went (Reptile)."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..arrangements import Arrangement, arrangement_named, blocks
from ..errors import InputError
from ..files.trainings import check_same_settings, settings_record
from ..lm.frozen import FrozenLM
from ..lm.identity import library_versions
from .bank import AxisStatistics
from .checks import check_room
from .descent import DescentResult
from .fit import descend
from .recipes import DEFAULT_PRESET, PRESETS, AdamW, FitConfig, Stop
from .starter import Starter, read_starter, save_starter
from .starts import start_vectors

LEARNED = ("start", "axes", "rates")
"""What a training can learn: e and m, the directions of the axes, and how long steps along them are."""


@dataclass(frozen=True)
class StarterConfig:
    """How to train a learned start.

    Attributes:
        arrangement: the arrangement that the start is for.
        lengths: text lengths, in tokens; each step draws one of them.
        block_lengths: lengths b of blocks that have an e-token each; every step draws one of them, and fits in the
            arrangement `m,(e,m*(b-1))`. None given: `arrangement` always.
        batch_tokens: tokens in a step's batch: a step fits batch_tokens // length texts.
        inner_steps: steps of each short fit.
        steps: how many times the start moves.
        rates: share of the mean displacement by which the start moves, and of the agreement by which the axes grow, at
            the first and at the last step; linear in between.
        learn: of `LEARNED`; the rest stays as it was at the beginning.
        optimiser: settings of the short fits along the coordinates.
        axes_optimiser: those along the axes, once there are some; None: along the coordinates always.
        source: where texts come from, see `texts.SOURCES`; only its `train` split is used.
        seed: what texts and lengths are drawn from.
    """

    arrangement: str | Arrangement = "m,e,m*(n-1)"
    lengths: tuple[int, ...] = (8, 16, 16, 32)
    block_lengths: tuple[int, ...] = ()
    batch_tokens: int = 128
    inner_steps: int = 16
    steps: int = 200
    rates: tuple[float, float] = (0.5, 0.05)
    learn: tuple[str, ...] = LEARNED
    optimiser: AdamW = PRESETS[DEFAULT_PRESET].optimiser
    axes_optimiser: AdamW | None = PRESETS[DEFAULT_PRESET].axes_optimiser
    source: str = "speeches"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrangement", arrangement_named(self.arrangement))
        if self.block_lengths:
            object.__setattr__(self, "arrangement", blocks(min(self.block_lengths)))
        if not self.lengths or min(self.lengths) < 1 or max(self.lengths) > self.batch_tokens:
            raise InputError(f"lengths are {self.lengths}; each must be from 1 to batch_tokens, {self.batch_tokens}")
        if not self.learn or not set(self.learn) <= set(LEARNED):
            raise InputError(f"learn is {' '.join(self.learn)!r}; name one or more of: {' '.join(LEARNED)}")
        if self.inner_steps < 1 or self.steps < 1:
            raise InputError(f"inner_steps is {self.inner_steps} and steps {self.steps}; both must be at least 1")


@dataclass(frozen=True, eq=False)
class StarterTraining:
    """A training of a learned start, as far as it has come: what it needs to resume.

    Attributes:
        starter: the start so far.
        moments: sums of the second moments of unit gradients of e and of m, float32, (2, D, D); None: it has ended.
    """

    starter: Starter
    moments: Tensor | None = None

    def __post_init__(self) -> None:
        width = len(self.starter.m)
        if self.moments is not None and (self.moments.shape != (2, width, width) or not self.moments.isfinite().all()):
            raise InputError(
                f"a training's moments must be finite, (2, {width}, {width}); they are {tuple(self.moments.shape)}"
            )

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.starter.training["step"]


def save_training(path: str | os.PathLike[str], training: StarterTraining, *, overwrite: bool = False) -> Path:
    """Write a training to a file that is a learned start's too: `load_starter` reads the start so far."""
    unfinished = {} if training.moments is None else {"moments": training.moments}
    return save_starter(path, training.starter, overwrite=overwrite, unfinished=unfinished)


def load_training(path: str | os.PathLike[str]) -> StarterTraining:
    """Read a training that `save_training` wrote; errors as in `load`."""
    starter, tensors = read_starter(path)
    try:
        return StarterTraining(starter, tensors.get("moments"))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


@dataclass(frozen=True)
class StarterProgress:
    """One step of training a start.

    Attributes:
        step: steps taken.
        steps: steps in all.
        length: tokens of the texts of this step.
        first_loss: mean loss at the start, in nats per token.
        last_loss: mean loss after the short fits.
        token_accuracy: mean token accuracy after them.
        token_positions: positions passed forward so far, since the training began.
        backward_positions: positions passed backward since then.
        seconds: wall time since the training began or last resumed.
    """

    step: int
    steps: int
    length: int
    first_loss: float
    last_loss: float
    token_accuracy: float
    token_positions: int
    backward_positions: int
    seconds: float


def train_starter(
    lm: FrozenLM,
    draw: Callable[[int, int, int], Tensor],
    config: StarterConfig | None = None,
    resume: StarterTraining | None = None,
    begin: Starter | None = None,
    keep: Callable[[StarterTraining, StarterProgress], None] | None = None,
) -> Starter:
    """Train a learned start for a model.

    Each step fits a batch of texts from the present start for a few steps and moves the start by a share of the mean
    displacement: z <- z + rate * mean(z_fit - z_start), which is first-order Reptile. The gradients of the fits also
    give the axes along which later fits descend (`axes_optimiser`). Axes are renewed whenever the number of steps has
    doubled, and at the end, once there were at least as many gradients as the model is wide. The length of an axis,
    which is how long steps along it are, follows the gradient of the loss after one step: an axis grows where the
    steps along it and the gradients after them agree, and shrinks where they are opposed (Meta-SGD, first order).

    Args:
        lm: the frozen model.
        draw: `draw(length, count, seed)` gives texts as ids, (count, length).
        config: how to train.
        resume: a training that `keep` was given. It resumes and ends the same as without the interruption.
        begin: a learned start of another training that this one begins at, instead of at the mean embeddings. A
            training that is resumed must have begun there too.
        keep: called after every step with the training so far.

    Returns:
        The trained start.

    Raises:
        InputError: the model has no room for a text of the longest of the lengths; the training to resume is for
            another model or arrangement, or has other settings.

    References: On First-Order Meta-Learning Algorithms (Nichol, Achiam & Schulman, 2018), algorithm 1,
    https://arxiv.org/abs/1803.02999; Meta-SGD (Li, Zhou, Chen & Li, 2017), https://arxiv.org/abs/1707.09835.
    """
    config = config or StarterConfig()
    longest = arrangement_named(config.arrangement).layout(max(config.lengths))
    check_room(lm, longest, "choose shorter --lengths")
    training = StarterTraining(_beginning(lm, config, begin)) if resume is None else resume
    if resume is not None:
        _check_same(resume.starter, lm, config, begin)
    began = time.perf_counter()
    for step in range(training.step, config.steps):
        length = random.Random(f"{config.seed} {step}").choice(config.lengths)
        target_ids = draw(length, config.batch_tokens // length, config.seed * 1_000_003 + step)
        training, results = _step(lm, target_ids, training, config)
        if keep:
            keep(training, _progress(training.starter, config, length, results, time.perf_counter() - began))
    return training.starter


def _step(
    lm: FrozenLM, target_ids: Tensor, training: StarterTraining, config: StarterConfig
) -> tuple[StarterTraining, list[DescentResult]]:
    """Fit texts (B, T) from the start for a few steps, and move the start towards where they went."""
    starter, step = training.starter, training.step
    b = random.Random(f"{config.seed} {step} block").choice(config.block_lengths) if config.block_lengths else None
    inner = FitConfig(
        arrangement=config.arrangement if b is None else blocks(b),
        start=starter,
        optimiser=config.optimiser,
        axes_optimiser=config.axes_optimiser,
        stop=Stop(max_steps=config.inner_steps, margin=float("inf")),
    )
    statistics = (
        AxisStatistics.of_width(len(starter.m), lm.device),
        AxisStatistics.of_width(len(starter.m), lm.device),
    )
    results = descend(lm, target_ids, inner, statistics=statistics).results
    rate = config.rates[0] + (config.rates[1] - config.rates[0]) * step / max(1, config.steps - 1)
    moments = torch.stack([s.moments for s in statistics]).cpu()
    if training.moments is not None:
        moments += training.moments
    ended = step + 1 == config.steps
    if "start" in config.learn:
        starter = _moved(lm, target_ids, starter, inner, results, rate)
    if "rates" in config.learn and starter.axes is not None and config.axes_optimiser is not None:
        agreement = torch.stack([s.agreement for s in statistics]).cpu()  # (2, D)
        starter = replace(starter, axes=_grown(starter.axes, rate * agreement))
    # Each gradient adds 1; fewer would leave axes to chance. With blocks, m meets fewer of them than e.
    enough = min(moment.trace() for moment in moments) >= len(starter.m)
    if "axes" in config.learn and enough and (ended or (step + 1) & step == 0):
        starter = replace(starter, axes=_axes(moments, starter.axes))
    starter = replace(starter, training=_after_step(starter.training, results))
    return StarterTraining(starter, None if ended else moments), results


def _moved(
    lm: FrozenLM, target_ids: Tensor, starter: Starter, inner: FitConfig, results: list[DescentResult], rate: float
) -> Starter:
    """The start, moved by a share of the mean displacement of the fits of texts (B, T)."""
    starts = [start_vectors(lm, ids, inner, 0) for ids in target_ids]
    moved_e = torch.stack([r.e - e for r, (e, _) in zip(results, starts, strict=True)]).mean((0, 1))
    moved_m = torch.stack([r.m - m for r, (_, m) in zip(results, starts, strict=True)]).mean(0)
    return replace(starter, e=starter.e + rate * moved_e.cpu(), m=starter.m + rate * moved_m.cpu())


def _beginning(lm: FrozenLM, config: StarterConfig, begin: Starter | None) -> Starter:
    mean = lm.embedding_statistics.mean.cpu()
    arrangement = arrangement_named(config.arrangement)
    training: dict[str, Any] = {"step": 0, "config": _record(config), "versions": library_versions()}
    if (begin is None or begin.axes is None) and "rates" in config.learn and "axes" not in config.learn:
        raise InputError("rates are learned along axes, and there are none: --begin at a learned start that has axes")
    if begin is not None:
        begin.check(lm.identity, arrangement)
        training |= {"begun_at": begin.name, "before": begin.training}
        return replace(begin, arrangement=arrangement, training=training)
    return Starter(torch.zeros_like(mean), mean, arrangement, lm.identity, training)


def _progress(
    starter: Starter, config: StarterConfig, length: int, results: list[DescentResult], seconds: float
) -> StarterProgress:
    return StarterProgress(
        step=starter.training["step"],
        steps=config.steps,
        length=length,
        first_loss=sum(r.loss_history[0].item() for r in results) / len(results),
        last_loss=sum(r.loss_history[-1].item() for r in results) / len(results),
        token_accuracy=sum(r.accuracy_history[-1].item() for r in results) / len(results),
        token_positions=starter.training["token_positions"],
        backward_positions=starter.training["backward_positions"],
        seconds=seconds,
    )


def _after_step(training: dict[str, Any], results: list[DescentResult]) -> dict[str, Any]:
    """The record of a training, one step on."""
    new = {
        "step": 1,
        "token_positions": sum(r.token_positions for r in results),
        "backward_positions": sum(r.backward_positions for r in results),
    }
    return training | {name: training.get(name, 0) + count for name, count in new.items()}


_LONGEST = 16.0
"""Lengths of axes stay between this and one over it, so that no axis is lost in float16."""


def _grown(axes: Tensor, log_growth: Tensor) -> Tensor:
    """Axes (2, D, D), columns, whose lengths have grown by the exponential of log_growth (2, D), float16."""
    lengths = axes.float().norm(dim=1)
    grown = (lengths * log_growth.exp()).clamp(1 / _LONGEST, _LONGEST)
    return (axes.float() * (grown / lengths).unsqueeze(1)).half()


def _axes(moments: Tensor, before: Tensor | None) -> Tensor:
    """The eigenvectors of second moments (2, D, D), the most varied last, float16.

    Each is as long as the axis of the same rank was before.
    """
    axes = torch.linalg.eigh(moments)[1]
    if before is not None:
        axes *= before.float().norm(dim=1, keepdim=True)
    return axes.half()


def _check_same(starter: Starter, lm: FrozenLM, config: StarterConfig, begin: Starter | None) -> None:
    starter.check(lm.identity, arrangement_named(config.arrangement))
    check_same_settings("the learned start", starter.training.get("config", {}), _record(config))
    if begin is not None and starter.training.get("begun_at") != begin.name:
        raise InputError(f"the learned start to resume did not begin at {begin.name}: give the same, or begin anew")


def _record(config: StarterConfig) -> dict[str, object]:
    """The settings as JSON values, as they come back from a file."""
    return settings_record(config) | {"arrangement": arrangement_named(config.arrangement).name}
