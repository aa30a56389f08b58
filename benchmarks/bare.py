"""The bare model: what a descent's passes cost without the descent."""

from __future__ import annotations

from collections.abc import Callable

import torch

from prototokens import FrozenLM
from prototokens.arrangements import Layout


def head_width(lm: FrozenLM) -> int:
    """V, the logits of a position; the head of some models is wider than their vocabulary."""
    return lm.next_token_logits(torch.zeros(1, 1, dtype=torch.long)).shape[-1]


def bare_passes(lm: FrozenLM, layout: Layout, n_texts: int, steps: int) -> Callable[[], None]:
    """The passes of a descent of `steps` steps, forward and backward to the input, and the evaluation after the last.

    Inputs are random vectors of the embeddings' spread, (n_texts, L, D).
    """
    inputs_embeds = torch.randn(n_texts, len(layout.slots), lm.width, device=lm.device) * lm.embedding_statistics.std
    upstream = torch.randn(n_texts, layout.length, head_width(lm), device=lm.device)

    def run() -> None:
        for turn in range(steps + 1):
            x = inputs_embeds.clone().requires_grad_()
            logits = lm.logits(x, layout.read_positions())
            if turn < steps:
                torch.autograd.grad(logits, x, upstream)
            del logits

    return run
