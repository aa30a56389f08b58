"""Fitted curves: the settings of a fit, its result, and the taus that its steps sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import InputError
from ..fitting.recipes import AdamW
from .paths import Path

CurveKind = Literal["bezier", "chain"]
CURVE_KINDS: tuple[CurveKind, ...] = get_args(CurveKind)


@dataclass(frozen=True)
class ConnectConfig:
    """How a curve is fitted.

    Attributes:
        kind: `"bezier"` or `"chain"`.
        inner: control points between the ends; 1 makes a Bezier curve quadratic, the paper's.
        taus: how many points of each curve a step samples, an even number. [0, 1] is cut into as many parts of equal
            probability, and one tau is drawn from each. They are mirrored about 1/2, so exchanged ends change nothing.
        focus: share of a tau's probability that follows the loss in the last evaluation, from 0 to below 1. With 0 all
            taus are equally likely.
        optimiser: settings of Adam. It runs along the axes that the package has for the model and arrangement, if any.
        max_steps: the step budget.
        check_every: steps between two evaluations of the whole curve.
        check_taus: points of an evaluation, evenly spaced between the ends.
        accuracy: a curve is done when no point of an evaluation has a lower token accuracy.
        seed: of the drawn taus.
    """

    kind: CurveKind = "bezier"
    inner: int = 1
    taus: int = 4
    focus: float = 0.5
    optimiser: AdamW = field(
        default_factory=lambda: AdamW(lr=0.66, betas=(0.9, 0.95), relative=True, anneal_below_nats=4.0)
    )
    max_steps: int = 500
    check_every: int = 10
    check_taus: int = 15
    accuracy: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in CURVE_KINDS:
            raise InputError(f"unknown kind of curve {self.kind!r}; choose one of: {' '.join(CURVE_KINDS)}")
        if self.taus < 2 or self.taus % 2:
            raise InputError(f"taus is {self.taus}; it must be even and at least 2")
        for name, low in (("inner", 1), ("max_steps", 0), ("check_every", 1), ("check_taus", 1)):
            if getattr(self, name) < low:
                raise InputError(f"{name} is {getattr(self, name):g}; it must be at least {low}")
        if not 0 <= self.focus < 1:
            raise InputError(f"focus is {self.focus:g}; it must be at least 0 and below 1")
        if not 0 < self.accuracy <= 1:
            raise InputError(f"accuracy is {self.accuracy:g}; it must be above 0 and at most 1")


@dataclass(frozen=True, eq=False)
class Connection:
    """A fitted curve, and what it cost.

    `lowest_accuracy` and `highest_loss_nats` come from the evaluation in which the curve was best, in the batch of the
    fit. `profile` scores the curve anew, at any taus.

    Attributes:
        path: the curve of the best evaluation.
        lowest_accuracy: lowest token accuracy over the points of that evaluation, all between the ends.
        highest_loss_nats: highest loss over them, in nats per token.
        steps: optimiser steps taken.
        token_positions: input positions passed forward, evaluations included.
        backward_positions: input positions passed backward.
        seconds: wall time until this curve was done. The other curves of the batch share it.
        stop_reason: `"accuracy"` (the stopping rule was met), `"steps"`, `"nonfinite"` or `"interrupted"`.
    """

    path: Path
    lowest_accuracy: float
    highest_loss_nats: float
    steps: int
    token_positions: int
    backward_positions: int
    seconds: float
    stop_reason: str


def drawn_taus(config: ConnectConfig) -> Tensor:
    """The taus of every step if all are equally likely, S = `config.taus` of them, float64, (max_steps, S).

    Tau j is uniform in the j-th of S equal parts of [0, 1]. So a tau chosen at random among them is uniform in [0, 1].
    The upper half mirrors the lower half.
    """
    generator = torch.Generator().manual_seed(config.seed)
    half = config.taus // 2
    uniform = torch.rand(config.max_steps, half, generator=generator, dtype=torch.float64)
    lower = (torch.arange(half) + uniform) / config.taus
    return torch.cat([lower, 1 - lower.flip(1)], dim=1)


def focused(drawn: Tensor, losses: Tensor, focus: float) -> Tensor:
    """Uniform taus, moved to where the loss is high, through the inverse of a cumulative distribution.

    The N points of an evaluation and both ends bound N + 1 equal intervals. An interval's probability is
    (1 - focus) / (N + 1), plus `focus` times its share of the loss. Its loss is the mean of its two bounds', and that
    of an end is 0. The reversed curve gets the mirrored taus.

    Args:
        drawn: uniform taus (S,), in [0, 1].
        losses: of an evaluation at N points, evenly spaced between the ends, (B, N), above 0.
        focus: see `ConnectConfig`.

    Returns:
        The taus of each curve, (B, S).
    """
    count = losses.shape[1] + 1
    edges = torch.nn.functional.pad(losses, (1, 1))  # (B, N+2)
    mass = edges[:, 1:] + edges[:, :-1]  # (B, N+1)
    mass = (1 - focus) / count + focus * mass / mass.sum(1, keepdim=True)
    below = torch.nn.functional.pad(mass.cumsum(1), (1, 0))  # (B, N+2)
    drawn = drawn.expand(len(losses), -1).contiguous()
    interval = (torch.searchsorted(below, drawn, right=True) - 1).clamp(0, count - 1)
    inside = (drawn - below.gather(1, interval)) / mass.gather(1, interval)
    return ((interval + inside) / count).clamp(0, 1)
