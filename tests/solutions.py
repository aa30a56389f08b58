"""Proto-tokens made by hand, for tests that need vectors and no fit."""

from __future__ import annotations

import torch
from torch import Tensor

from prototokens import FrozenLM, ProtoTokens
from prototokens.arrangements import ARRANGEMENTS
from prototokens.lm.identity import hash_ids
from prototokens.proto_tokens import Provenance


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normally distributed numbers from a seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def solution(
    lm: FrozenLM,
    text: str = "abcd",
    arrangement: str = "m,e,m*(n-1)",
    seed: int = 0,
    e_tokens: int = 1,
    **given: Tensor,
) -> ProtoTokens:
    """Vectors that claim to hold a text, random unless given."""
    ids, layout = lm.encode(text), ARRANGEMENTS[arrangement]
    provenance = Provenance(lm.identity, hash_ids(ids), 1.0, 1.0, 0.0, "float32", None, "normal", seed, {})
    vectors = {
        "e": random(e_tokens, lm.width, seed=seed),
        "m": random(lm.width, seed=seed + 1),
        "fixed": lm.fixed_vectors(layout.fixed),
    }
    return ProtoTokens(**vectors | given, length=len(ids), arrangement=layout, provenance=provenance)
