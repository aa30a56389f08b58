"""Secants: what the last steps tell of the curvature, and the direction that L-BFGS makes of it.

Reference: Updating Quasi-Newton Matrices with Limited Storage (Nocedal, 1980), https://doi.org/10.2307/2006193.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST_COSINE = 1e-3
"""Between a move and the turn of the gradient along it; below, the loss is not curved upwards there."""


class Secants:
    """The last moves of vectors, each with how the gradient turned along it; every vector (S, D) has its own.

    Args:
        memory: how many moves are remembered.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self._last: tuple[Tensor, Tensor] | None = None
        self._pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # move, turn (P, S, D), 1 / their product (P, 1, 1) or 0

    def learn(self, values: Tensor, gradient: Tensor) -> None:
        """Remember where the vectors are and the gradient there, both (P, S, D)."""
        if self._last is not None:
            move, turn = values - self._last[0], gradient - self._last[1]
            rise = _dot(move, turn)
            curved = rise > _LEAST_COSINE * (_dot(move, move) * _dot(turn, turn)).sqrt()
            self._pairs = [*self._pairs, (move, turn, torch.where(curved, 1 / rise, 0.0))][-self.memory :]
        self._last = values.clone(), gradient

    def solve(self, gradient: Tensor, metric: Tensor) -> Tensor:
        """The gradient (P, S, D) times an inverse Hessian: a diagonal one, (P, S, D), corrected by the pairs.

        `metric` is that diagonal but for a factor, which the last pair sets. Zero for vectors without a pair.
        """
        found, shares, factor = gradient, [], torch.zeros_like(gradient[:, :1, :1])
        for move, turn, inverse in reversed(self._pairs):
            share = inverse * _dot(move, found)
            found = found - share * turn
            shares.append(share)
        for _, turn, inverse in self._pairs:
            factor = torch.where(inverse > 0, 1 / (inverse * _dot(turn, metric * turn)), factor)
        found = factor * metric * found
        for (move, turn, inverse), share in zip(self._pairs, reversed(shares), strict=True):
            found = found + (share - inverse * _dot(turn, found)) * move
        return found

    def keep(self, used: Tensor) -> None:
        """Drop all vectors but these, int64."""
        if self._last is not None:
            self._last = self._last[0][used], self._last[1][used]
        self._pairs = [(move[used], turn[used], inverse[used]) for move, turn, inverse in self._pairs]


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """(P, S, D) -> (P, 1, 1)."""
    return (first * second).sum((1, 2), keepdim=True)
