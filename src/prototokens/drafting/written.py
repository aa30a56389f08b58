"""Texts that a model writes, on which a drafter is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..lm.frozen import FrozenLM
from .generating import stop_tokens


@dataclass(frozen=True, eq=False)
class Written:
    """Texts that a model wrote.

    Attributes:
        ids: prompts and what was written behind them, int64, (B, L).
        prompt_length: tokens of each prompt.
        ends: where each text ends: the place of its stop token, or L, int64, (B,).
    """

    ids: Tensor
    prompt_length: int
    ends: Tensor

    def rows(self, rows: range) -> Written:
        """Some of the texts."""
        return replace(self, ids=self.ids[rows.start : rows.stop], ends=self.ends[rows.start : rows.stop])

    def counts(self, vocabulary: int) -> Tensor:
        """How often each of V tokens stands in the texts, prompts included, int64, (V,), on the CPU."""
        is_text = torch.arange(self.ids.shape[1], device=self.ids.device) < self.ends.unsqueeze(1)
        return torch.bincount(self.ids[is_text].cpu(), minlength=vocabulary)


def write_texts(lm: FrozenLM, prompts: Tensor, n_tokens: int) -> Written:
    """Greedy generation behind prompts.

    Args:
        lm: the frozen model.
        prompts: ids, int64, (B, P).
        n_tokens: new tokens, so that L is P + `n_tokens`.
    """
    length = prompts.shape[1]
    written = lm.generate(lm.embed(prompts), n_tokens)
    ids = torch.cat([prompts.to(lm.device), written], 1)
    stops = torch.isin(ids[:, length:], torch.tensor(stop_tokens(lm), dtype=torch.long, device=lm.device))
    at_stop = torch.where(stops.any(1), stops.int().argmax(1), n_tokens)  # the first
    return Written(ids, length, length + at_stop)
