"""The descent over curves: how one is fitted, what is found, and the loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import InputError
from ..fitting.bank import Bank
from ..fitting.descent import FitProgress
from ..fitting.objective import cross_entropy, is_right
from ..fitting.recipes import AdamW
from ..lm.frozen import FrozenLM
from .paths import KINDS, Kind, Path, curve_weights
from .profiles import POSITIONS_AT_ONCE, even_taus


@dataclass(frozen=True)
class ConnectConfig:
    """How a curve is fitted.

    Attributes:
        kind: `"bezier"`, `"chain"`, or `"segment"`, which has nothing to fit.
        inner: control points between the ends; 1 makes a Bezier curve quadratic, the paper's.
        taus: places on each curve that a step passes through, an even number: one drawn from each of as many equally
            likely parts of [0, 1], mirrored about 1/2, so that neither end comes first.
        focus: share of the chance of a place that follows the loss of the last look there, from 0, all places being
            equally likely, to below 1.
        optimiser: settings of Adam, along the axes that the package holds for the model and arrangement, if there are
            such.
        max_steps: the step budget.
        check_every: how many steps pass between two looks at a curve's whole way.
        check_taus: places of a look, evenly spaced between the ends, which are held.
        accuracy: a curve is done when no place of a look has a lower token accuracy.
        seed: what the places are drawn from.
    """

    kind: Kind = "bezier"
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
        if self.kind not in KINDS:
            raise InputError(f"unknown kind of path {self.kind!r}; choose one of: {' '.join(KINDS)}")
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

    `lowest_accuracy` and `highest_loss` are those of the look that the curve was kept for, in the batch of the fit;
    `profile` scores it anew, at any places.

    Attributes:
        path: the curve; the best that was looked at.
        lowest_accuracy: lowest token accuracy over the places of a look, all between the ends.
        highest_loss: highest loss over them, in nats per token.
        steps: optimiser steps taken.
        token_positions: input positions passed forward, looks included.
        backward_positions: input positions passed backward.
        seconds: wall time until this curve was done, whatever else was in the batch.
        stop_reason: `"accuracy"` (the stopping rule was met), `"steps"`, `"nonfinite"` or `"interrupted"`.
    """

    path: Path
    lowest_accuracy: float
    highest_loss: float
    steps: int
    token_positions: int
    backward_positions: int
    seconds: float
    stop_reason: str


def drawn_taus(config: ConnectConfig) -> Tensor:
    """The places of every step if all are equally likely, S = `config.taus` of them, float64, (max_steps, S).

    Place j is uniform in the j-th of S equal parts of [0, 1], so that any of them is uniform in [0, 1] if j is; the
    upper half mirrors the lower one.
    """
    generator = torch.Generator().manual_seed(config.seed)
    half = config.taus // 2
    drawn = torch.rand(config.max_steps, half, generator=generator, dtype=torch.float64)
    lower = (torch.arange(half) + drawn) / config.taus
    return torch.cat([lower, 1 - lower.flip(1)], dim=1)


def focused(drawn: Tensor, losses: Tensor, focus: float) -> Tensor:
    """Places drawn with equal chances, moved to where the loss is: by the inverse of the share of chance below a place.

    Between two neighbouring places of a look the chance is that of focus = 0 for the rest and, for `focus` of it, goes
    with the mean of their losses; a held end counts as without loss. What the reversed curve would be given is the
    mirror image.

    Args:
        drawn: places (S,), in [0, 1].
        losses: of a look at N places evenly spaced between the ends, (B, N), above 0.
        focus: see `ConnectConfig`.

    Returns:
        The places of each curve, (B, S).
    """
    count = losses.shape[1] + 1
    edges = torch.nn.functional.pad(losses, (1, 1))  # (B, N+2)
    mass = edges[:, 1:] + edges[:, :-1]  # (B, N+1)
    mass = (1 - focus) / count + focus * mass / mass.sum(1, keepdim=True)
    below = torch.nn.functional.pad(mass.cumsum(1), (1, 0))  # (B, N+2)
    drawn = drawn.expand(len(losses), -1).contiguous()
    part = (torch.searchsorted(below, drawn, right=True) - 1).clamp(0, count - 1)
    inside = (drawn - below.gather(1, part)) / mass.gather(1, part)
    return ((part + inside) / count).clamp(0, 1)


class CurveDescent:
    """The loop that moves inner control points: look along the curves, keep the best, step.

    Args:
        lm: the frozen model.
        paths: where the curves begin, with their texts; of one kind, layout and number of control points.
        config: how they are fitted.
        axes: axes of the descent of e and of m, each (D, D), or None for the coordinates.
    """

    def __init__(
        self,
        lm: FrozenLM,
        paths: Sequence[Path],
        config: ConnectConfig,
        axes: tuple[Tensor, Tensor] | tuple[None, None] = (None, None),
    ) -> None:
        self.lm, self.paths, self.config, self.layout = lm, paths, config, paths[0].layout
        self.max_steps = 0 if config.kind == "segment" else config.max_steps
        of = torch.arange(len(paths), device=lm.device)
        e = torch.stack([p.e for p in paths]).to(lm.device)  # control points (B, P, K, D)
        m = torch.stack([p.m.unsqueeze(1) for p in paths]).to(lm.device)  # (B, P, 1, D)
        self.points = e.shape[1]
        self.ends = [vectors[:, [0, -1]] for vectors in (e, m)]
        self.banks = [
            Bank(vectors[:, 1:-1].flatten(1, 2), of, trained=True, axes=own)
            for vectors, own in zip((e, m), axes, strict=True)
        ]
        self.fixed = torch.stack([p.fixed for p in paths]).to(lm.device)  # (B, F, D)
        self.target_ids = torch.stack([p.target_ids for p in paths if p.target_ids is not None]).to(lm.device)
        self.active = list(range(len(paths)))
        self._lowest = torch.full((len(paths),), -1.0, device=lm.device)
        self._highest = torch.full((len(paths),), torch.inf, device=lm.device)
        self._losses = torch.ones(len(paths), 1, device=lm.device)  # of the last look, (B, N); even before the first
        self._began = time.perf_counter()
        self._steps = [0] * len(paths)
        self._looks = [0] * len(paths)
        self._ended: list[tuple[str, float] | None] = [None] * len(paths)

    def run(
        self, progress: Callable[[FitProgress], None] | None = None, should_stop: Callable[[], bool] | None = None
    ) -> list[Connection]:
        """Descend until every curve is done, the budget is spent, or `should_stop` says so."""
        places = even_taus(self.config.check_taus + 2)[1:-1]
        way = curve_weights(self.config.kind, self.points, places).float().to(self.lm.device)  # (N, P)
        # All at once, since a copy to a GPU in every step would stop its queue.
        drawn = drawn_taus(self.config).float().to(self.lm.device)
        unfinished = "steps"
        for step in range(self.max_steps + 1):
            last = step == self.max_steps
            if last or step % self.config.check_every == 0:
                staying = self._look(way)
                if progress:
                    progress(self._progress(step))
                if last or not staying:
                    break
                if should_stop and should_stop():
                    unfinished = "interrupted"
                    break
                self._drop_to(staying)
            taus = focused(drawn[step], self._losses, self.config.focus)
            self._step(curve_weights(self.config.kind, self.points, taus))
        return [self._connection(number, unfinished) for number in range(len(self.paths))]

    def _logits(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B N, T, V) of every curve at the places of weights (B, N, P), and targets (B N, T)."""
        vectors = []
        for bank, ends in zip(self.banks, self.ends, strict=True):
            inner = bank.values.unflatten(1, (self.points - 2, ends.shape[2]))
            controls = torch.cat([ends[:, :1], inner, ends[:, 1:]], dim=1)  # (B, P, K or 1, D)
            vectors.append(torch.einsum("bnp,bpkd->bnkd", weights, controls).flatten(0, 1))  # (B N, K or 1, D)
        e, m = vectors
        fixed, target = (x.repeat_interleave(weights.shape[1], 0) for x in (self.fixed, self.target_ids))
        inputs_embeds = self.layout.inputs_embeds(e, m.squeeze(1), fixed)  # (B N, L, D)
        return self.lm.logits(inputs_embeds, self.layout.read_positions()), target

    @torch.no_grad()
    def _look(self, way: Tensor) -> list[int]:
        """Look along the curves, remember the best, and say which of the active ones, by place, go on. Waits."""
        losses, margins, curves = [], [], len(self.active)
        for weights in way.split(max(1, POSITIONS_AT_ONCE // (curves * len(self.layout.slots)))):
            scores = cross_entropy(*self._logits(weights.expand(curves, -1, -1)))
            losses.append(scores.loss.view(curves, len(weights), -1))
            margins.append(scores.margin.view(curves, len(weights), -1))
        loss, margin = torch.cat(losses, dim=1).mean(-1), torch.cat(margins, dim=1)  # (B, N), (B, N, T)
        lowest, highest = is_right(margin).float().mean(-1).amin(1), loss.amax(1)  # (B,)
        self._losses = loss
        finite = loss.isfinite().all(1)
        met = finite & (lowest >= self.config.accuracy)
        numbers = torch.tensor(self.active, device=loss.device)
        best_lowest, best_highest = self._lowest[numbers], self._highest[numbers]
        better = finite & ((lowest > best_lowest) | ((lowest == best_lowest) & (highest < best_highest))) | met
        for bank in self.banks:
            bank.remember(better)
        self._lowest[numbers] = torch.where(better, lowest, best_lowest)
        self._highest[numbers] = torch.where(better, highest, best_highest)
        states = torch.stack([met, finite]).tolist()
        staying, seconds = [], time.perf_counter() - self._began
        for place, (number, is_met, is_finite) in enumerate(zip(self.active, *states, strict=True)):
            self._looks[number] += 1
            if is_met or not is_finite:
                self._ended[number] = ("accuracy" if is_met else "nonfinite", seconds)
            else:
                staying.append(place)
        return staying

    def _step(self, weights: Tensor) -> None:
        logits, target = self._logits(weights)  # (B S, T, V)
        scores = cross_entropy(logits.detach(), target)
        gradients = torch.autograd.grad(logits, [bank.values for bank in self.banks], scores.logit_gradient)
        loss = scores.loss.view(len(self.active), -1).mean(1)
        lr = self.config.optimiser.rates(loss, self.lm.embedding_statistics.std)
        for bank, gradient in zip(self.banks, gradients, strict=True):
            bank.step(gradient / (weights.shape[1] * self.layout.length), self.config.optimiser, lr)
        for number in self.active:
            self._steps[number] += 1

    def _drop_to(self, staying: list[int]) -> None:
        if len(staying) == len(self.active):
            return
        kept = torch.tensor(staying, device=self.lm.device)
        for bank in self.banks:
            bank.keep(kept)
        self.ends = [ends[kept] for ends in self.ends]
        self.fixed, self.target_ids, self._losses = self.fixed[kept], self.target_ids[kept], self._losses[kept]
        self.active = [self.active[place] for place in staying]

    def _positions(self, number: int) -> tuple[int, int]:
        """Input positions that a curve has passed forward and backward."""
        backward = self._steps[number] * self.config.taus * len(self.layout.slots)
        return backward + self._looks[number] * self.config.check_taus * len(self.layout.slots), backward

    def _progress(self, step: int) -> FitProgress:
        return FitProgress(
            step=step,
            max_steps=self.max_steps,
            texts_done=sum(ended is not None for ended in self._ended),
            texts=len(self.paths),
            loss=self._highest.mean().item(),
            token_accuracy=self._lowest.clamp(min=0).mean().item(),
            token_positions=sum(self._positions(number)[0] for number in range(len(self.paths))),
            seconds=time.perf_counter() - self._began,
        )

    def _connection(self, number: int, unfinished: str) -> Connection:
        path = self.paths[number]
        e, m = (
            bank.best(number).unflatten(0, (self.points - 2, ends.shape[2])).cpu()  # (P-2, K or 1, D)
            for bank, ends in zip(self.banks, self.ends, strict=True)
        )
        reason, seconds = self._ended[number] or (unfinished, time.perf_counter() - self._began)
        forward, backward = self._positions(number)
        return Connection(
            path=replace(
                path,
                e=torch.cat([path.e[:1], e, path.e[-1:]]),
                m=torch.cat([path.m[:1], m.squeeze(1), path.m[-1:]]),
            ),
            lowest_accuracy=max(self._lowest[number].item(), 0.0),
            highest_loss=self._highest[number].item(),
            steps=self._steps[number],
            token_positions=forward,
            backward_positions=backward,
            seconds=seconds,
            stop_reason=reason,
        )
