"""A language model with known logits whose solutions lie around a hole, so that straight lines lead through it."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from prototokens import FrozenLM, ProtoTokens
from prototokens.arrangements import ARRANGEMENTS
from prototokens.lm.identity import hash_ids
from prototokens.proto_tokens import Provenance


class RingLM(nn.Module):
    """logits_t = 8 (x_2t^2 + x_2t+1^2), but 4 for token 0: token t is right far enough from the middle of its plane.

    The solutions of a token lie around a hole; the straight line between two on opposite sides leads through it.
    """

    def __init__(self) -> None:
        super().__init__()
        rows = torch.zeros(8, 16)
        rows[torch.arange(8), 2 * torch.arange(8)] = 1
        self.embedding = nn.Embedding.from_pretrained(rows)
        self.weight = nn.Parameter(torch.ones(1))

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, inputs_embeds: Tensor, use_cache: bool) -> SimpleNamespace:
        logits = 8 * inputs_embeds.unflatten(-1, (8, 2)).square().sum(-1)
        return SimpleNamespace(logits=torch.cat([torch.full_like(logits[..., :1], 4.0), logits[..., 1:]], -1))


def on_the_ring(lm: FrozenLM, degrees: float) -> ProtoTokens:
    """A solution of the text (3, 5): e in the plane of 3, at an angle, and m in the plane of 5."""
    angle = torch.tensor(degrees).deg2rad()
    e, m = torch.zeros(1, 16), torch.zeros(16)
    e[0, 6], e[0, 7], m[10] = angle.cos(), angle.sin(), 1.0
    return holding(lm, e, m, torch.tensor([3, 5]))


def holding(lm: FrozenLM, e: Tensor, m: Tensor, target_ids: Tensor) -> ProtoTokens:
    """Proto-tokens that claim to hold a text."""
    provenance = Provenance(lm.identity, hash_ids(target_ids), 1.0, 1.0, 0.0, "float32", None, "normal", 0, {})
    return ProtoTokens(e, m, len(target_ids), ARRANGEMENTS["e,m*(n-1)"], provenance)
