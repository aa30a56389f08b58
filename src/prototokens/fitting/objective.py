"""The objective of a fit: the cross-entropy of every token, which tokens are right, and the gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Scores:
    """One evaluation of the objective.

    Attributes:
        loss: cross-entropy of each token, in nats, (R, T).
        margin: each target's logit minus the best other logit, (R, T); see `is_right`.
        logit_gradient: derivative of the summed loss with respect to the logits, (R, T, V).
        rival_ids: the id of the best other logit, int64, (R, T), if it was asked for.
    """

    loss: Tensor
    margin: Tensor
    logit_gradient: Tensor
    rival_ids: Tensor | None = None


@torch.no_grad()
def cross_entropy(logits: Tensor, target_ids: Tensor, *, rivals: bool = False) -> Scores:
    """Score logits (R, T, V), float32, against target ids (R, T): eq. 1 of the paper, token by token.

    With `rivals` the scores also name the best other token of each position.

    loss = -log softmax(logits)[target]; its gradient is softmax(logits) - onehot(target). All is done in one tensor of
    the logits' size, since passes over the vocabulary are what a step costs beside the network.
    """
    target = target_ids.unsqueeze(-1)
    log_p = logits.log_softmax(-1)
    target_log_p = log_p.gather(-1, target)  # (R, T, 1)
    log_p.scatter_(-1, target, float("-inf"))
    best_other, rival_ids = log_p.max(-1) if rivals else (log_p.amax(-1), None)
    p = log_p.scatter_(-1, target, target_log_p).exp_()
    gradient = p.scatter_add_(-1, target, torch.full_like(target_log_p, -1.0))
    target_log_p = target_log_p.squeeze(-1)
    return Scores(-target_log_p, target_log_p - best_other, gradient, rival_ids)


def is_right(margin: Tensor) -> Tensor:
    """Which tokens a descent takes for right, bool: those whose target leads every other logit.

    A tie or NaN is not right: another kernel's rounding may decide it either way. Reported scores use `is_argmax`.
    """
    return margin > 0


def is_argmax(logits: Tensor, target_ids: Tensor) -> Tensor:
    """Which tokens are right in a score that is reported, bool, (..., T): those that decoding logits (..., T, V) gives.

    Of a tie the argmax decides, as when decoding. A logit that is NaN makes no token right.
    """
    target_logits = logits.gather(-1, target_ids.unsqueeze(-1)).squeeze(-1)
    return (logits.argmax(-1) == target_ids) & ~target_logits.isnan()


class GradientSum:
    """The gradients of a summed loss at some vectors, added up over micro-batches that pass one after another.

    At most one graph is held at a time.

    Args:
        vectors: tensors that require gradients.
    """

    def __init__(self, vectors: Sequence[Tensor]) -> None:
        self._vectors = vectors
        self._sums: list[Tensor] = []
        self._waiting: tuple[Tensor, Tensor] | None = None

    def wait(self, logits: Tensor, logit_gradient: Tensor) -> None:
        """Hold a micro-batch's logits (R, T, V) and the loss's derivative with respect to them until `settle`."""
        self._waiting = (logits, logit_gradient)

    def forget(self) -> None:
        """Free the graph of the micro-batch that is held, without a backward pass."""
        self._waiting = None

    def settle(self) -> Sequence[Tensor]:
        """Pass the held micro-batch backward, free its graph, and return the sums so far, one per tensor of vectors."""
        if self._waiting is not None:
            logits, logit_gradient = self._waiting
            self._waiting = None
            gradients = torch.autograd.grad(logits, self._vectors, logit_gradient)
            if self._sums:
                for total, gradient in zip(self._sums, gradients, strict=True):
                    total.add_(gradient)
            else:
                self._sums = list(gradients)
        return self._sums
