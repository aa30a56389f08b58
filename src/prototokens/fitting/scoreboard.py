"""ScoreBoard: how well every candidate of a fit does, which of its vectors to keep, and when it is done."""

from __future__ import annotations

import torch
from torch import Tensor

from .objective import is_right
from .recipes import Stop

RUNNING, MET, NONFINITE = range(3)
STOP_REASONS = {MET: "accuracy", NONFINITE: "nonfinite"}


class ScoreBoard:
    """Best-so-far and stopping, kept on the device: nothing here synchronises but `status`, `ranking` and `histories`.

    A *row* is one text in one restart. A *candidate* is what competes to be kept: a row, or, where texts share a
    vector, all rows of a group in one restart. A candidate scores the mean token accuracy of its rows. Equal accuracies
    are told apart by the lowest mean loss, and exact ones by the largest margin. The first evaluation that meets the
    stopping rule is kept before all others.

    Args:
        candidate_of: candidate of each row, int64, (R,).
        stop: when a candidate is done.
        earliest: steps before which no candidate is done; the best from there on is kept.
    """

    def __init__(self, candidate_of: Tensor, stop: Stop, earliest: int = 0) -> None:
        self.candidate_of = candidate_of
        self.stop, self.earliest = stop, earliest
        device, candidates = candidate_of.device, int(candidate_of.max()) + 1
        self._rows = torch.bincount(candidate_of, minlength=candidates)
        self._state = torch.full((candidates,), RUNNING, device=device)
        self._accuracy = torch.full((candidates,), -1.0, device=device)
        self._tie = torch.full((candidates,), -torch.inf, device=device)
        self._lowest = torch.full((candidates,), torch.inf, device=device)
        self._met_step = torch.full((candidates,), -1, device=device)
        self._history: list[Tensor] = []

    @torch.no_grad()
    def update(self, rows: Tensor, loss: Tensor, margin: Tensor, step: int) -> Tensor:
        """Enter one evaluation and say which rows hold the best vectors so far.

        Args:
            rows: which rows were evaluated, int64, (R,).
            loss: cross-entropy of each token, nats, (R, T).
            margin: lead of each target's logit, (R, T).
            step: optimiser steps taken so far.

        Returns:
            Whether each evaluated row's vectors are to be kept, bool, (R,).
        """
        if 0 < step == self.earliest:
            self._accuracy = torch.full_like(self._accuracy, -1.0)
            self._tie = torch.full_like(self._tie, -torch.inf)
        right = is_right(margin)
        row_loss, row_accuracy = loss.mean(-1), right.float().mean(-1)
        self._record(rows, row_loss, row_accuracy)
        row_met = (right & (margin > self.stop.margin)).float().mean(-1) >= self.stop.accuracy
        candidate = self.candidate_of[rows]
        accuracy = self._mean(candidate, row_accuracy)
        mean_loss = self._mean(candidate, row_loss)
        smallest = torch.full_like(mean_loss, torch.inf).scatter_reduce_(0, candidate, margin.amin(-1), "amin")
        met = (self._mean(candidate, row_met.float()) == 1) & (step >= self.earliest)
        evaluated = torch.zeros_like(met).index_fill_(0, candidate, True) & (self._state == RUNNING)

        finite = mean_loss.isfinite()
        tie = torch.where(accuracy == 1, smallest, -mean_loss)
        better = (accuracy > self._accuracy) | ((accuracy == self._accuracy) & (tie > self._tie))
        improved = evaluated & finite & (better | met)
        self._accuracy = torch.where(improved, accuracy, self._accuracy)
        self._tie = torch.where(improved, tie, self._tie)

        self._lowest = torch.where(evaluated & finite, torch.minimum(mean_loss, self._lowest), self._lowest)
        is_met = evaluated & met & finite
        self._state = self._state.masked_fill(evaluated & ~finite, NONFINITE).masked_fill(is_met, MET)
        self._met_step = self._met_step.masked_fill(is_met, step)
        return improved[candidate]

    def status(self) -> list[int]:
        """State of every candidate. Synchronises."""
        return self._state.tolist()

    def ranking(self) -> list[tuple[float, float, float]]:
        """What candidates are compared by: done and how early, accuracy, margin or minus loss. Synchronises."""
        done = torch.where(self._state == MET, 1 / (1.0 + self._met_step), 0.0)
        columns = torch.stack([done, self._accuracy, self._tie]).cpu().T
        return [(a, b, c) for a, b, c in columns.tolist()]

    def means(self) -> tuple[Tensor, Tensor]:
        """Lowest loss and highest accuracy of every candidate so far, each (A,)."""
        return self._lowest, self._accuracy.clamp(min=0)

    def histories(self) -> tuple[Tensor, Tensor]:
        """Loss and accuracy of every row at every evaluation, NaN where it was not evaluated: each (steps, R)."""
        loss, accuracy = torch.stack(self._history).cpu().unbind(1)
        return loss, accuracy

    def _record(self, rows: Tensor, loss: Tensor, accuracy: Tensor) -> None:
        line = torch.full((2, len(self.candidate_of)), torch.nan, device=loss.device)
        line[:, rows] = torch.stack([loss, accuracy])
        self._history.append(line)

    def _mean(self, candidate: Tensor, values: Tensor) -> Tensor:
        total = torch.zeros(len(self._rows), device=values.device, dtype=values.dtype)
        return total.index_add_(0, candidate, values) / self._rows
