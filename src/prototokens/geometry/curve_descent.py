"""The descent of curves: the loop that moves inner control points to where the loss along the curve is low."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..fitting.bank import Bank
from ..fitting.descent import FitProgress
from ..fitting.objective import cross_entropy, is_right
from ..lm.frozen import FrozenLM
from .curves import ConnectConfig, Connection, drawn_taus, focused
from .paths import Path, curve_weights
from .profiles import POSITIONS_AT_ONCE, even_taus


class CurveDescent:
    """The loop: evaluate the curves, keep the best, step.

    Args:
        lm: the frozen model.
        paths: the curves to begin with, with their texts. All have one kind, layout and number of control points.
        config: how they are fitted.
        axes: the axes that Adam runs along for e and for m, each (D, D); the coordinates if None.
    """

    def __init__(
        self,
        lm: FrozenLM,
        paths: Sequence[Path],
        config: ConnectConfig,
        axes: tuple[Tensor, Tensor] | tuple[None, None] = (None, None),
    ) -> None:
        self.lm, self.paths, self.config, self.layout = lm, paths, config, paths[0].layout
        numbers = torch.arange(len(paths), device=lm.device)
        e = torch.stack([path.e for path in paths]).to(lm.device)  # control points (B, P, K, D)
        m = torch.stack([path.m.unsqueeze(1) for path in paths]).to(lm.device)  # (B, P, 1, D)
        self.points = e.shape[1]
        self.ends = [vectors[:, [0, -1]] for vectors in (e, m)]
        self.banks = [
            Bank(vectors[:, 1:-1].flatten(1, 2), numbers, trained=True, axes=vector_axes)
            for vectors, vector_axes in zip((e, m), axes, strict=True)
        ]
        self.fixed = torch.stack([path.fixed for path in paths]).to(lm.device)  # (B, F, D)
        targets = [path.target_ids for path in paths if path.target_ids is not None]
        self.target_ids = torch.stack(targets).to(lm.device)  # (B, T)
        self.active = list(range(len(paths)))
        self._lowest = torch.full((len(paths),), -1.0, device=lm.device)
        self._highest = torch.full((len(paths),), torch.inf, device=lm.device)
        self._losses = torch.ones(len(paths), 1, device=lm.device)  # of the last evaluation, (B, N)
        self._began = time.perf_counter()
        self._steps = [0] * len(paths)
        self._evaluations = [0] * len(paths)
        self._ended: list[tuple[str, float] | None] = [None] * len(paths)

    def run(
        self, progress: Callable[[FitProgress], None] | None = None, should_stop: Callable[[], bool] | None = None
    ) -> list[Connection]:
        """Descend until every curve is done, the budget is spent, or `should_stop` says so."""
        taus = even_taus(self.config.check_taus + 2)[1:-1]
        check_weights = curve_weights(self.config.kind, self.points, taus).float().to(self.lm.device)  # (N, P)
        # All at once: a copy to a GPU in every step would synchronise it.
        drawn = drawn_taus(self.config).float().to(self.lm.device)
        unfinished = "steps"
        for step in range(self.config.max_steps + 1):
            last = step == self.config.max_steps
            if last or step % self.config.check_every == 0:
                active = self._evaluate(check_weights)
                if progress:
                    progress(self._progress(step))
                if last or not active:
                    break
                if should_stop and should_stop():
                    unfinished = "interrupted"
                    break
                self._keep(active)
            taus = focused(drawn[step], self._losses, self.config.focus)
            self._step(curve_weights(self.config.kind, self.points, taus))
        return [self._connection(number, unfinished) for number in range(len(self.paths))]

    def _logits(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B N, T, V) of every curve at the points that weights (B, N, P) give, and targets (B N, T)."""
        vectors = []
        for bank, ends in zip(self.banks, self.ends, strict=True):
            inner = bank.values.unflatten(1, (self.points - 2, ends.shape[2]))
            controls = torch.cat([ends[:, :1], inner, ends[:, 1:]], dim=1)  # (B, P, K or 1, D)
            vectors.append(torch.einsum("bnp,bpkd->bnkd", weights, controls).flatten(0, 1))  # (B N, K or 1, D)
        e, m = vectors
        fixed, target = (rows.repeat_interleave(weights.shape[1], 0) for rows in (self.fixed, self.target_ids))
        inputs_embeds = self.layout.inputs_embeds(e, m.squeeze(1), fixed)  # (B N, L, D)
        return self.lm.logits(inputs_embeds, self.layout.read_positions()), target

    @torch.no_grad()
    def _evaluate(self, check_weights: Tensor) -> list[int]:
        """Score the curves at the points of an evaluation and keep the best. Synchronises with the device.

        Returns:
            Which of the active curves are not done, as indices into `active`.
        """
        losses, margins, curves = [], [], len(self.active)
        for weights in check_weights.split(max(1, POSITIONS_AT_ONCE // (curves * len(self.layout.slots)))):
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
        not_done, seconds = [], time.perf_counter() - self._began
        for index, (number, is_met, is_finite) in enumerate(zip(self.active, *states, strict=True)):
            self._evaluations[number] += 1
            if is_met or not is_finite:
                self._ended[number] = ("accuracy" if is_met else "nonfinite", seconds)
            else:
                not_done.append(index)
        return not_done

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

    def _keep(self, indices: list[int]) -> None:
        """Drop all active curves but those at some indices."""
        if len(indices) == len(self.active):
            return
        kept = torch.tensor(indices, device=self.lm.device)
        for bank in self.banks:
            bank.keep(kept)
        self.ends = [ends[kept] for ends in self.ends]
        self.fixed, self.target_ids, self._losses = self.fixed[kept], self.target_ids[kept], self._losses[kept]
        self.active = [self.active[index] for index in indices]

    def _positions(self, number: int) -> tuple[int, int]:
        """Input positions that a curve has passed forward and backward."""
        backward = self._steps[number] * self.config.taus * len(self.layout.slots)
        return backward + self._evaluations[number] * self.config.check_taus * len(self.layout.slots), backward

    def _progress(self, step: int) -> FitProgress:
        return FitProgress(
            step=step,
            max_steps=self.config.max_steps,
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
            highest_loss_nats=self._highest[number].item(),
            steps=self._steps[number],
            token_positions=forward,
            backward_positions=backward,
            seconds=seconds,
            stop_reason=reason,
        )
