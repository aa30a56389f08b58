"""ScoreBoard: what every attempt of a fit has reached, which of its vectors to keep, and when it is done."""

from __future__ import annotations

import torch
from torch import Tensor

from .recipes import Stop

RUNNING, MET, NONFINITE, PLATEAU = range(4)
_PLATEAU_RATIO = 0.99  # a loss that falls by less than one percent stands still


class ScoreBoard:
    """Best-so-far and stopping, kept on the device: nothing here waits for it but `status`.

    A *row* is one text in one restart; an *attempt* is what must be right together: a row, or, where texts share a
    vector, all rows of a group in one restart. An attempt scores the mean token accuracy of its rows; equal
    accuracies are told apart by the lowest mean loss, and exact ones by the largest margin. The first evaluation that
    meets the stopping rule is kept before all others.

    Args:
        attempt_of: attempt of each row, int64, (R,).
        stop: when an attempt is done.
        earliest: steps before which no attempt is done; the best from there on is kept, where there is one.
    """

    def __init__(self, attempt_of: Tensor, stop: Stop, earliest: int = 0) -> None:
        self.attempt_of = attempt_of
        self.stop, self.earliest = stop, earliest
        device, attempts = attempt_of.device, int(attempt_of.max()) + 1
        self._rows = torch.bincount(attempt_of, minlength=attempts)
        self._state = torch.full((attempts,), RUNNING, device=device)
        self._accuracy = torch.full((attempts,), -1.0, device=device)
        self._tie = torch.full((attempts,), -torch.inf, device=device)
        self._lowest = torch.full((attempts,), torch.inf, device=device)
        self._low = self._lowest  # the loss that the plateau is measured from
        self._low_step = torch.zeros(attempts, dtype=torch.long, device=device)
        self._met_step = torch.full((attempts,), -1, device=device)
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
        right = margin > 0
        row_loss, row_accuracy = loss.mean(-1), right.float().mean(-1)
        self._record(rows, row_loss, row_accuracy)
        row_met = (row_accuracy >= self.stop.accuracy) & (
            torch.where(right, margin, torch.inf).amin(-1) > self.stop.margin
        )
        attempt = self.attempt_of[rows]
        accuracy = self._mean(attempt, row_accuracy)
        mean_loss = self._mean(attempt, row_loss)
        smallest = torch.full_like(mean_loss, torch.inf).scatter_reduce_(0, attempt, margin.amin(-1), "amin")
        met = (self._mean(attempt, row_met.float()) == 1) & (step >= self.earliest)
        evaluated = torch.zeros_like(met).index_fill_(0, attempt, True) & (self._state == RUNNING)

        finite = mean_loss.isfinite()
        tie = torch.where(accuracy == 1, smallest, -mean_loss)
        better = (accuracy > self._accuracy) | ((accuracy == self._accuracy) & (tie > self._tie))
        improved = evaluated & finite & (better | met)
        self._accuracy = torch.where(improved, accuracy, self._accuracy)
        self._tie = torch.where(improved, tie, self._tie)

        self._lowest = torch.where(evaluated & finite, torch.minimum(mean_loss, self._lowest), self._lowest)
        falls = evaluated & (mean_loss < _PLATEAU_RATIO * self._low)
        self._low = torch.where(falls, mean_loss, self._low)
        self._low_step = torch.where(falls, step, self._low_step)
        self._state = torch.where(evaluated & ~finite, NONFINITE, self._state)
        self._state = torch.where(evaluated & met & finite, MET, self._state)
        self._met_step = torch.where(evaluated & met & finite, step, self._met_step)
        if self.stop.patience is not None:
            stuck = (self._state == RUNNING) & (step - self._low_step >= self.stop.patience) & (step >= self.earliest)
            self._state = torch.where(evaluated & stuck, PLATEAU, self._state)
        return improved[attempt]

    def status(self) -> list[int]:
        """State of every attempt. Waits for the device."""
        return self._state.tolist()

    def ranking(self) -> list[tuple[float, float, float]]:
        """What attempts are compared by: done and how early, accuracy, margin or minus loss. Waits for the device."""
        done = torch.where(self._state == MET, 1 / (1.0 + self._met_step), 0.0)
        columns = torch.stack([done, self._accuracy, self._tie]).cpu().T
        return [(a, b, c) for a, b, c in columns.tolist()]

    def means(self) -> tuple[Tensor, Tensor]:
        """Lowest loss and highest accuracy of every attempt so far, each (A,)."""
        return self._lowest, self._accuracy.clamp(min=0)

    def histories(self) -> tuple[Tensor, Tensor]:
        """Loss and accuracy of every row at every evaluation, NaN where it was not evaluated: each (steps, R)."""
        loss, accuracy = torch.stack(self._history).cpu().unbind(1)
        return loss, accuracy

    def _record(self, rows: Tensor, loss: Tensor, accuracy: Tensor) -> None:
        line = torch.full((2, len(self.attempt_of)), torch.nan, device=loss.device)
        line[:, rows] = torch.stack([loss, accuracy])
        self._history.append(line)

    def _mean(self, attempt: Tensor, values: Tensor) -> Tensor:
        total = torch.zeros(len(self._rows), device=values.device, dtype=values.dtype)
        return total.index_add_(0, attempt, values) / self._rows
