"""The scores that are reported: the kept vectors of one text are passed through the model once more, alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..arrangements import Layout
from ..lm.frozen import FrozenLM
from ..metrics import logit_margins
from .descent import DescentResult
from .objective import is_argmax


@dataclass(frozen=True, eq=False)
class Rescored:
    """Scores of one text by one pass.

    Attributes:
        right: which tokens are right, bool, (T,).
        min_margin: smallest lead of a target's logit over the next best, in logits.
        loss_nats: mean cross-entropy, in nats per token.
    """

    right: Tensor
    min_margin: float
    loss_nats: float

    @property
    def token_accuracy(self) -> float:
        """Share of right tokens."""
        return self.right.float().mean().item()


@torch.no_grad()
def rescore(lm: FrozenLM, layout: Layout, reached: DescentResult, fixed: Tensor, target_ids: Tensor) -> Rescored:
    """Score what a descent reached for a text (T,), with the fixed vectors (F, D) of its layout."""
    inputs_embeds = layout.inputs_embeds(reached.e.unsqueeze(0), reached.m.unsqueeze(0), fixed)
    logits = lm.logits(inputs_embeds, layout.read_positions())[0]  # (T, V)
    target = target_ids.to(logits.device)
    return Rescored(
        right=is_argmax(logits, target),
        min_margin=logit_margins(logits, target).amin().item(),
        loss_nats=torch.nn.functional.cross_entropy(logits, target).item(),
    )
