"""Profiles: what a path's vectors decode to on the way from one end to the other."""

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
"""Input positions of a forward pass at most, where nothing is kept for a way back."""


@dataclass(frozen=True, eq=False)
class Profile:
    """Scores along a path, on the CPU.

    Attributes:
        taus: the places, float64, (N,).
        ids: what is decoded there, int64, (N, T).
        token_accuracy: share of tokens that are the target's, (N,).
        loss: mean cross-entropy, in nats per token, (N,).
        token_positions: input positions passed forward.
    """

    taus: Tensor
    ids: Tensor
    token_accuracy: Tensor
    loss: Tensor
    token_positions: int

    @property
    def lowest_accuracy(self) -> float:
        """The lowest token accuracy along the way."""
        return self.token_accuracy.min().item()

    @property
    def barrier(self) -> float:
        """How high the loss rises between the ends, in nats per token: max loss - (loss at 0 + loss at 1) / 2.

        0 or more. It is half the difference of the ends where nothing between them is worse than the worse one.

        Raises:
            InputError: the places do not run from 0 to 1.

        Reference: Linear Mode Connectivity and the Lottery Ticket Hypothesis (Frankle et al., 2020), section 2,
        https://arxiv.org/abs/1912.05671.
        """
        if self.taus[0] != 0 or self.taus[-1] != 1:
            raise InputError(
                f"a barrier needs places from 0 to 1; these run from {self.taus[0]:g} to {self.taus[-1]:g}"
            )
        return (self.loss.max() - (self.loss[0] + self.loss[-1]) / 2).item()


def even_taus(count: int, first: float = 0.0, last: float = 1.0) -> Tensor:
    """`count` places from `first` to `last`, evenly spaced, both included, float64."""
    return torch.linspace(first, last, count, dtype=torch.float64)


@torch.no_grad()
def profile(lm: FrozenLM, path: Path, taus: Tensor | None = None, target_ids: Tensor | None = None) -> Profile:
    """Decode and score the vectors along a path.

    Args:
        lm: the frozen model.
        path: the path.
        taus: places, (N,); 21 from 0 to 1 if None.
        target_ids: the text to score against, int64, (T,) or shorter, and then against as many first outputs; the one
            that both ends hold if None.

    Raises:
        InputError: the path is another model's, or no target is given and the path knows of none.
    """
    check_same_model("these proto-tokens belong", path.model, lm.identity)
    target = path.target_ids if target_ids is None else target_ids
    if target is None:
        raise InputError("no text is known that both ends of this path hold: give the target_ids to score against")
    if target.ndim != 1 or not 1 <= len(target) <= path.layout.length:
        raise InputError(f"target_ids is {tuple(target.shape)}; it must be (T,) with T from 1 to {path.layout.length}")
    taus = even_taus(21) if taus is None else taus.double()
    target, width = target.to(lm.device), len(path.layout.slots)
    found = []
    for places in taus.split(max(1, POSITIONS_AT_ONCE // width)):
        logits = lm.logits(path.inputs_embeds(places), path.layout.read_positions())  # (n, T, V)
        ids, scored = logits.argmax(-1), logits[:, : len(target)]
        losses = F.cross_entropy(scored.flatten(0, 1), target.repeat(len(places)), reduction="none")
        accuracy = (ids[:, : len(target)] == target).float().mean(-1)
        found.append((ids, accuracy, losses.view(len(places), -1).mean(-1)))
    ids, accuracy, loss = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    return Profile(taus, ids, accuracy, loss, len(taus) * width)
