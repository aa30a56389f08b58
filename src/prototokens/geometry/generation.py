"""Reading proto-tokens without decoding: ordinary generation that begins at e, at m, or at both.

What comes out tells whether the vectors say anything about their text to the model as it is commonly used.

Reference: Exploring the Latent Capacity of LLMs for One-Step Text Generation (Mezentsev & Oseledets, 2025),
https://arxiv.org/abs/2505.21189.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..decoding import check_model
from ..errors import InputError
from ..lm.frozen import FrozenLM
from ..proto_tokens import ProtoTokens
from .distances import PARTS


def prompt(lm: FrozenLM, tokens: ProtoTokens, part: str, *, bos: bool = False) -> Tensor:
    """What generation begins with, float32, (L, D).

    Each of the vectors once, in the order in which the arrangement first has them: m, e for `m,e,m*(n-1)`. Where e
    comes last, the first token that is generated from `both` is the one that e was fitted to predict.

    Args:
        lm: the language model that the vectors were fitted to.
        tokens: the vectors.
        part: `e`, `m` or `both`.
        bos: the embedding of the model's BOS token before them.

    Raises:
        InputError: there is no such part, the vectors belong to another model, or the model has no BOS token.
    """
    if part not in PARTS:
        raise InputError(f"unknown part {part!r}; choose one of: {' '.join(PARTS)}")
    check_model(lm, tokens)
    if bos and lm.bos_id is None:
        raise InputError(f"{lm.identity.name} has no BOS token: read without it")
    count = len(tokens.e)
    slots = dict.fromkeys(tokens.arrangement.layout(tokens.length, count).slots)
    chosen = {"e": range(count), "m": (count,), "both": range(count + 1)}[part]
    bank = torch.cat([tokens.e, tokens.m.unsqueeze(0)])  # (K + 1, D)
    # An arrangement, or a short text, may not hold all of them; they are read all the same.
    order = [*(slot for slot in slots if slot in chosen), *(slot for slot in chosen if slot not in slots)]
    vectors = bank[order].to(lm.device)
    return torch.cat([lm.fixed_vector("bos").unsqueeze(0), vectors]) if bos else vectors


def read(
    lm: FrozenLM, tokens: Sequence[ProtoTokens], part: str, count: int, *, bos: bool = False, seed: int | None = None
) -> Tensor:
    """Generate from the vectors of texts, as from any other input.

    Args:
        lm: the language model that the vectors were fitted to.
        tokens: the vectors of B texts, all with equally many e-tokens.
        part: `e`, `m` or `both`.
        count: number of tokens to generate.
        bos: begin with the model's BOS token.
        seed: greedy if None, else multinomial sampling at temperature 1 from this seed.

    Returns:
        Ids, int64, (B, count), on the CPU.

    Raises:
        InputError: as `prompt`, the count is below 1 or more than the model has positions for, or the texts have
            different numbers of e-tokens.
    """
    if count < 1:
        raise InputError(f"count is {count}; it must be at least 1")
    numbers = sorted({len(one.e) for one in tokens})
    if len(numbers) > 1:
        raise InputError(f"texts with {' and '.join(map(str, numbers))} e-tokens: read them one by one")
    if not tokens:
        return torch.empty(0, count, dtype=torch.long)
    prompts = torch.stack([prompt(lm, one, part, bos=bos) for one in tokens])  # (B, L, D)
    if lm.max_positions is not None and (most := lm.max_positions - prompts.shape[1] + 1) < count:
        raise InputError(f"count is {count}; after this prompt {lm.identity.name} has positions for {most} tokens")
    return lm.generate(prompts, count, seed=seed).cpu()
