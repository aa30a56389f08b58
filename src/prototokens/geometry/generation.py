"""Ordinary generation that begins with the vectors: e, m, or both as the prompt, instead of decoding.

It tells whether the vectors say anything about their text to the model as it is commonly used.

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
    """The vectors that generation begins with, float32, (L, D).

    Each vector is there once, in the order in which the arrangement first has them: m, e for `m,e,m*(n-1)`. Where e
    comes last, the first token generated from `both` is the one that e was fitted to predict.

    Args:
        lm: the language model that the vectors were fitted to.
        tokens: the vectors.
        part: `e`, `m` or `both`.
        bos: put the embedding of the model's BOS token in front.

    Raises:
        InputError: there is no such part, the vectors belong to another model, or the model has no BOS token.
    """
    if part not in PARTS:
        raise InputError(f"unknown part {part!r}; choose one of: {' '.join(PARTS)}")
    check_model(lm, tokens)
    if bos and lm.bos_id is None:
        raise InputError(f"{lm.identity.name} has no BOS token: generate without it")
    n_e = len(tokens.e)
    slots = dict.fromkeys(tokens.arrangement.layout(tokens.length, n_e).slots)
    chosen = {"e": range(n_e), "m": (n_e,), "both": range(n_e + 1)}[part]
    bank = torch.cat([tokens.e, tokens.m.unsqueeze(0)])  # (K + 1, D)
    # An arrangement, or a short text, may lack some of the vectors. They follow those that it has.
    order = [*(slot for slot in slots if slot in chosen), *(slot for slot in chosen if slot not in slots)]
    vectors = bank[order].to(lm.device)
    return torch.cat([lm.fixed_vector("bos").unsqueeze(0), vectors]) if bos else vectors


def generate_from(
    lm: FrozenLM, tokens: Sequence[ProtoTokens], part: str, n_tokens: int, *, bos: bool = False, seed: int | None = None
) -> Tensor:
    """Generate from the vectors of texts, as from any other input.

    Args:
        lm: the language model that the vectors were fitted to.
        tokens: the vectors of B texts, all with equally many e-tokens.
        part: `e`, `m` or `both`.
        n_tokens: number of tokens to generate.
        bos: begin with the model's BOS token.
        seed: greedy if None, else multinomial sampling at temperature 1 from this seed.

    Returns:
        Ids, int64, (B, n_tokens), on the CPU.

    Raises:
        InputError: as `prompt`; or n_tokens is below 1 or more than the model has positions for, or the texts have
            different numbers of e-tokens.
    """
    if n_tokens < 1:
        raise InputError(f"n_tokens is {n_tokens}; it must be at least 1")
    e_counts = sorted({len(text.e) for text in tokens})
    if len(e_counts) > 1:
        raise InputError(f"texts with {' and '.join(map(str, e_counts))} e-tokens: generate from them one by one")
    if not tokens:
        return torch.empty(0, n_tokens, dtype=torch.long)
    prompts = torch.stack([prompt(lm, text, part, bos=bos) for text in tokens])  # (B, L, D)
    if lm.max_positions is not None and (most := lm.max_positions - prompts.shape[1] + 1) < n_tokens:
        raise InputError(
            f"n_tokens is {n_tokens}; after this prompt {lm.identity.name} has positions for {most} tokens"
        )
    return lm.generate(prompts, n_tokens, seed=seed).cpu()
