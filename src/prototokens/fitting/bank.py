"""Bank: vectors under descent, the optimiser's state of each, and which row of a batch uses which."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .recipes import AdamW


@dataclass(frozen=True, eq=False)
class AxisStatistics:
    """What a training of axes adds up over the steps of a descent, for one bank.

    Attributes:
        moments: second moments of the gradients, each of length 1, float32, (D, D).
        products: along each axis, the sum of change * gradient / |gradient| over vectors and steps, float32, (D,): of
            a step's change and the gradient after it. Above 0, a longer step would have lowered the loss more.
        sizes: the sum of their absolute values, float32, (D,).
    """

    moments: Tensor
    products: Tensor
    sizes: Tensor

    @classmethod
    def of_width(cls, width: int, device: torch.device | None = None) -> AxisStatistics:
        """Statistics of nothing yet."""
        return cls(*(torch.zeros(*shape, device=device) for shape in ((width, width), (width,), (width,))))

    def add(self, gradient: Tensor, along: Tensor, change: Tensor | None) -> None:
        """Add a step's gradients (P, S, D), the same along the axes, and the change before them, if there was one."""
        length = gradient.norm(dim=-1, keepdim=True)
        unit = (gradient / length).nan_to_num(0.0, 0.0, 0.0).flatten(0, 1)  # a vector that is lost counts for nothing
        self.moments.addmm_(unit.T, unit)
        if change is not None:
            products = (change * (along / length)).nan_to_num(0.0, 0.0, 0.0).flatten(0, 1)
            self.products.add_(products.sum(0))
            self.sizes.add_(products.abs().sum(0))

    @property
    def agreement(self) -> Tensor:
        """How far steps and the gradients after them agree along each axis, from -1 to 1, (D,); 0 without any."""
        return (self.products / self.sizes).nan_to_num(0.0)


class Bank:
    """Vectors under descent, each with its optimiser state.

    P sets of S vectors serve R rows; rows that share vectors have the same index.

    Args:
        values: start of the vectors, float32, (P, S, D).
        of: index of each row's vectors, int64, (R,).
        trained: whether the vectors move.
        axes: orthogonal axes along which Adam's means are taken, columns, (D, D); None: the coordinates. A step along
            an axis is as long as the axis, since Adam's change does not depend on the gradient's scale.
        statistics: where what trains axes is added up, or None.
    """

    def __init__(
        self,
        values: Tensor,
        of: Tensor,
        *,
        trained: bool,
        axes: Tensor | None = None,
        statistics: AxisStatistics | None = None,
    ) -> None:
        self.values = values.detach().clone().requires_grad_(trained)
        self.of = of
        self.trained = trained
        self._axes, self._statistics = axes, statistics
        self._change: Tensor | None = None  # of the last step, kept for the statistics alone
        self._best = values.detach().clone()
        self._of_at_first = of
        self._ids = torch.arange(values.shape[0], device=values.device)
        self._mean = torch.zeros_like(values)
        self._square = torch.zeros_like(values)
        self._steps = 0

    def rows(self, part: slice = slice(None)) -> Tensor:
        """The vectors of the rows, or of a part of them, (R, S, D)."""
        return self.values[self.of[part]]

    def best(self, row: int) -> Tensor:
        """The best-scored vectors of a row, (S, D); rows keep the numbers that they had before any were dropped."""
        return self._best[self._of_at_first[row]]

    @torch.no_grad()
    def remember(self, improved: Tensor) -> None:
        """Keep the vectors of rows marked in `improved`, bool (R,), as their best; sharers improve together."""
        if self.trained:
            marked = torch.zeros_like(self._ids).index_add_(0, self.of, improved.long()) > 0  # (P,)
            self._best[self._ids] = torch.where(marked[:, None, None], self.values, self._best[self._ids])

    @torch.no_grad()
    def step(self, gradient: Tensor, adamw: AdamW, rates: Tensor) -> None:
        """One AdamW step (Loshchilov & Hutter, 2019, algorithm 2).

        Args:
            gradient: of the mean loss, (P, S, D).
            adamw: the settings; its `lr` is not read.
            rates: learning rate of each row, (R,), or of each of a row's vectors, (R, S); 0 lets a vector stand still.
                Rows that share a vector move it at their mean rate.
        """
        beta1, beta2 = adamw.betas
        lr = self._mean_rates(rates)
        self._steps += 1
        along = gradient if self._axes is None else gradient @ self._axes
        if self._statistics is not None:
            self._statistics.add(gradient, along, self._change)
        self._mean.lerp_(along, 1 - beta1)
        self._square.mul_(beta2).addcmul_(along, along, value=1 - beta2)
        scale = (self._square / (1 - beta2**self._steps)).sqrt_().add_(adamw.eps)
        change = (self._mean / scale).div_(1 - beta1**self._steps)
        if self._statistics is not None:
            self._change = change
        self.values.mul_(1 - lr * adamw.weight_decay)
        self.values.sub_(lr * (change if self._axes is None else change @ self._axes.T))

    def _mean_rates(self, rates: Tensor) -> Tensor:
        """Learning rate of each vector from its rows' rates (R,) or (R, S): (P, 1, 1) or (P, S, 1)."""
        rates = rates.view(len(rates), -1)  # (R, 1) or (R, S)
        users = torch.zeros_like(self._ids, dtype=rates.dtype).index_add_(0, self.of, torch.ones_like(rates[:, 0]))
        totals = torch.zeros(len(self._ids), rates.shape[1], dtype=rates.dtype, device=rates.device)
        return totals.index_add_(0, self.of, rates).div_(users[:, None]).unsqueeze(-1)

    @torch.no_grad()
    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these, int64, and the vectors that no row uses any more."""
        used, self.of = self.of[rows].unique(return_inverse=True)
        self.values = self.values[used].detach().requires_grad_(self.trained)
        self._ids, self._mean, self._square = self._ids[used], self._mean[used], self._square[used]
        self._change = None if self._change is None else self._change[used]
