"""Training a learned start: many short fits, and the start follows where they went (Reptile)."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..arrangements import Arrangement, arrangement_named
from ..errors import InputError
from ..lm.frozen import FrozenLM
from ..lm.identity import library_versions
from .descent import Outcome
from .fit import check_room, descend
from .recipes import DEFAULT_PRESET, PRESETS, AdamW, FitConfig, Stop
from .starter import Starter
from .starts import start_vectors


@dataclass(frozen=True)
class StarterConfig:
    """How to train a learned start.

    Attributes:
        arrangement: the arrangement that the start is for.
        lengths: text lengths, in tokens; each step draws one of them.
        batch_tokens: tokens in a step's batch: a step fits batch_tokens // length texts.
        inner_steps: steps of each short fit.
        steps: how many times the start moves.
        rates: share of the mean displacement by which the start moves, at the first and at the last step; linear
            in between.
        optimiser: settings of the short fits along the coordinates.
        axes_optimiser: those along the axes, once there are some; None: along the coordinates always.
        source: where texts come from, see `texts.SOURCES`; only its `train` split is used.
        seed: what texts and lengths are drawn from.
    """

    arrangement: str | Arrangement = "m,e,m*(n-1)"
    lengths: tuple[int, ...] = (8, 16, 16, 32)
    batch_tokens: int = 128
    inner_steps: int = 16
    steps: int = 200
    rates: tuple[float, float] = (0.5, 0.05)
    optimiser: AdamW = PRESETS[DEFAULT_PRESET].optimiser
    axes_optimiser: AdamW | None = PRESETS[DEFAULT_PRESET].axes_optimiser
    source: str = "speeches"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrangement", arrangement_named(self.arrangement))
        if not self.lengths or min(self.lengths) < 1 or max(self.lengths) > self.batch_tokens:
            raise InputError(f"lengths are {self.lengths}; each must be from 1 to batch_tokens, {self.batch_tokens}")
        if self.inner_steps < 1 or self.steps < 1:
            raise InputError(f"inner_steps is {self.inner_steps} and steps {self.steps}; both must be at least 1")


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
        token_positions: positions passed forward so far, by this training from its beginning.
        backward_positions: positions passed backward.
        seconds: wall time so far, since the beginning or the last resumption.
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
    resume: Starter | None = None,
    begin: Starter | None = None,
    keep: Callable[[Starter, StarterProgress], None] | None = None,
) -> Starter:
    """Train a learned start for a model.

    Each step fits a batch of texts from the present start for a few steps and moves the start by a share of the mean
    displacement: z <- z + rate * mean(z_fit - z_start), Reptile of first order. The fits' gradients are watched: with
    them the axes are found along which later fits descend (`axes_optimiser`). They are renewed whenever the
    number of steps has doubled, and at the end, once as many gradients were met as the model is wide.

    Args:
        lm: the frozen model.
        draw: `draw(length, count, seed)` gives texts as ids, (count, length).
        config: how to train.
        resume: a start that this training has kept; it goes on from there, and ends the same.
        begin: a learned start of another training that this one begins at, instead of at the mean embeddings. One that
            is resumed must have begun there too.
        keep: called after every step with the start so far.

    Returns:
        The trained start.

    Raises:
        InputError: the model has no room for a text of the longest of the lengths; the start to resume is for another
            model or arrangement, or from another training.

    Reference: On First-Order Meta-Learning Algorithms (Nichol, Achiam & Schulman, 2018), algorithm 1,
    https://arxiv.org/abs/1803.02999.
    """
    config = config or StarterConfig()
    longest = arrangement_named(config.arrangement).layout(max(config.lengths), 1)
    check_room(lm, longest, "choose shorter --lengths")
    starter = _beginning(lm, config, begin) if resume is None else _checked(resume, lm, config, begin)
    began = time.perf_counter()
    for step in range(starter.training["step"], config.steps):
        length = random.Random(f"{config.seed} {step}").choice(config.lengths)
        target_ids = draw(length, config.batch_tokens // length, config.seed * 1_000_003 + step)
        inner = FitConfig(
            arrangement=config.arrangement,
            start=starter,
            optimiser=config.optimiser,
            axes_optimiser=config.axes_optimiser,
            stop=Stop(max_steps=config.inner_steps, margin=float("inf")),
        )
        moments = _moments(starter).to(lm.device)
        outcomes = descend(lm, target_ids, inner, moments=moments).outcomes
        starts = [start_vectors(lm, ids, inner, 0) for ids in target_ids]
        moved_e = torch.stack([o.e - e for o, (e, _) in zip(outcomes, starts, strict=True)]).mean(0)[0]
        moved_m = torch.stack([o.m - m for o, (_, m) in zip(outcomes, starts, strict=True)]).mean(0)
        rate = config.rates[0] + (config.rates[1] - config.rates[0]) * step / max(1, config.steps - 1)
        starter = replace(
            starter,
            e=starter.e + rate * moved_e.cpu(),
            m=starter.m + rate * moved_m.cpu(),
            training=_after_step(starter.training, outcomes),
            moments=moments.cpu(),
        )
        ended = step + 1 == config.steps
        enough = moments[0].trace() >= len(starter.m)  # each gradient adds 1; fewer would leave axes to chance
        if enough and (ended or (step + 1) & step == 0):
            starter = replace(starter, axes=_axes(moments))
        if ended:
            starter = replace(starter, moments=None)
        if keep:
            keep(starter, _progress(starter, config, length, outcomes, time.perf_counter() - began))
    return starter


def _beginning(lm: FrozenLM, config: StarterConfig, begin: Starter | None) -> Starter:
    mean = lm.embedding_statistics.mean.cpu()
    arrangement = arrangement_named(config.arrangement)
    training: dict[str, Any] = {"step": 0, "config": _record(config), "versions": library_versions()}
    if begin is not None:
        begin.check(lm.identity, arrangement)
        return replace(begin, training=training | {"begun_at": begin.name, "before": begin.training}, moments=None)
    return Starter(torch.zeros_like(mean), mean, arrangement, lm.identity, training)


def _progress(
    starter: Starter, config: StarterConfig, length: int, outcomes: list[Outcome], seconds: float
) -> StarterProgress:
    return StarterProgress(
        step=starter.training["step"],
        steps=config.steps,
        length=length,
        first_loss=sum(o.loss_history[0].item() for o in outcomes) / len(outcomes),
        last_loss=sum(o.loss_history[-1].item() for o in outcomes) / len(outcomes),
        token_accuracy=sum(o.accuracy_history[-1].item() for o in outcomes) / len(outcomes),
        token_positions=starter.training["token_positions"],
        backward_positions=starter.training["backward_positions"],
        seconds=seconds,
    )


def _after_step(training: dict[str, Any], outcomes: list[Outcome]) -> dict[str, Any]:
    """The record of a training, one step on."""
    new = {
        "step": 1,
        "token_positions": sum(o.token_positions for o in outcomes),
        "backward_positions": sum(o.backward_positions for o in outcomes),
    }
    return training | {name: training.get(name, 0) + count for name, count in new.items()}


def _moments(starter: Starter) -> Tensor:
    if starter.moments is not None:
        return starter.moments.clone()
    width = len(starter.m)
    return torch.zeros(2, width, width)


def _axes(moments: Tensor) -> Tensor:
    """The eigenvectors of second moments (2, D, D), the most varied last, float16."""
    return torch.linalg.eigh(moments)[1].half().cpu()


def _checked(starter: Starter, lm: FrozenLM, config: StarterConfig, begin: Starter | None) -> Starter:
    starter.check(lm.identity, arrangement_named(config.arrangement))
    before, now = starter.training.get("config", {}), _record(config)
    if before != now:
        other = ", ".join(name for name in before | now if before.get(name) != now.get(name))
        raise InputError(
            f"the learned start to resume was trained with other settings ({other}): give the same, or begin anew "
            "(--force)"
        )
    if begin is not None and starter.training.get("begun_at") != begin.name:
        raise InputError(f"the learned start to resume did not begin at {begin.name}: give the same, or begin anew")
    return starter


def _record(config: StarterConfig) -> dict[str, object]:
    """The settings as JSON values, as they come back from a file."""
    record = asdict(config) | {"arrangement": arrangement_named(config.arrangement).name}
    return json.loads(json.dumps(record))
