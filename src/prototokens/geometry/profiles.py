"""Profiles: what the vectors along a path decode to, and how well."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..lm.frozen import FrozenLM
from ..lm.identity import check_same_model
from .paths import Path

POSITIONS_AT_ONCE = 2048
"""Input positions of a forward pass at most, where no backward pass follows."""


@dataclass(frozen=True, eq=False)
class Profile:
    """Scores along a path, on the CPU.

    Attributes:
        taus: the points on the path, float64, (N,).
        ids: what is decoded at each, int64, (N, T).
        token_accuracy: share of tokens that are the target's, (N,).
        loss_nats: mean cross-entropy, in nats per token, (N,).
        token_positions: input positions passed forward.
    """

    taus: Tensor
    ids: Tensor
    token_accuracy: Tensor
    loss_nats: Tensor
    token_positions: int

    @property
    def lowest_accuracy(self) -> float:
        """The lowest token accuracy along the path."""
        return self.token_accuracy.min().item()

    @property
    def barrier(self) -> float:
        """How high the loss rises between the ends, in nats per token: max loss - (loss at 0 + loss at 1) / 2.

        It is 0 or more. Where no loss exceeds that of the worse end, it is half the difference of the ends.

        Raises:
            InputError: the taus do not run from 0 to 1.

        Reference: Linear Mode Connectivity and the Lottery Ticket Hypothesis (Frankle et al., 2020), section 2,
        https://arxiv.org/abs/1912.05671.
        """
        if self.taus[0] != 0 or self.taus[-1] != 1:
            raise InputError(f"a barrier needs taus from 0 to 1; these run from {self.taus[0]:g} to {self.taus[-1]:g}")
        return (self.loss_nats.max() - (self.loss_nats[0] + self.loss_nats[-1]) / 2).item()


def even_taus(count: int, first: float = 0.0, last: float = 1.0) -> Tensor:
    """`count` evenly spaced taus from `first` to `last`, both included, float64."""
    return torch.linspace(first, last, count, dtype=torch.float64)


@torch.no_grad()
def profile(lm: FrozenLM, path: Path, taus: Tensor | None = None, target_ids: Tensor | None = None) -> Profile:
    """Decode and score the vectors along a path.

    Args:
        lm: the frozen model.
        path: the path.
        taus: the points to score, (N,); 21 from 0 to 1 if None.
        target_ids: the text to score against, int64, (T,); the path's own if None. A shorter text is scored against as
            many first outputs.

    Raises:
        InputError: the path belongs to another model, or neither the caller nor the path gives a target.
    """
    check_same_model("these proto-tokens belong", path.model, lm.identity)
    target = path.target_ids if target_ids is None else target_ids
    if target is None:
        raise InputError("this path has no target_ids of its own: give the target_ids to score against")
    if target.ndim != 1 or not 1 <= len(target) <= path.layout.length:
        raise InputError(f"target_ids is {tuple(target.shape)}; it must be (T,) with T from 1 to {path.layout.length}")
    taus = even_taus(21) if taus is None else taus.double()
    target, width = target.to(lm.device), len(path.layout.slots)
    portions = []
    for some_taus in taus.split(max(1, POSITIONS_AT_ONCE // width)):
        logits = lm.logits(path.inputs_embeds(some_taus), path.layout.read_positions())  # (n, T, V)
        ids, scored = logits.argmax(-1), logits[:, : len(target)]
        losses = F.cross_entropy(scored.flatten(0, 1), target.repeat(len(some_taus)), reduction="none")
        accuracy = (ids[:, : len(target)] == target).float().mean(-1)
        portions.append((ids, accuracy, losses.view(len(some_taus), -1).mean(-1)))
    ids, accuracy, loss_nats = (torch.cat(parts).cpu() for parts in zip(*portions, strict=True))
    return Profile(taus, ids, accuracy, loss_nats, len(taus) * width)
