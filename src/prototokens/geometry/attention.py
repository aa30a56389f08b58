"""Attention: how much weight later positions give to the positions of e, or to any others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..arrangements import Layout
from ..decoding import check_model
from ..errors import InputError
from ..lm.frozen import FrozenLM
from ..proto_tokens import ProtoTokens

TEXTS_AT_ONCE = 8
"""Texts whose attention weights, of all layers, are in memory together."""


def attention_to_vectors(lm: FrozenLM, tokens: Sequence[ProtoTokens], position: int | None = None) -> list[Tensor]:
    """How much attention e gets from later positions, by attention layer and head; see `attention_to`.

    Args:
        lm: the language model that the vectors belong to.
        tokens: proto-tokens of texts of one length and arrangement.
        position: attention to this input position is measured instead of that to e.

    Returns:
        For each attention layer one number per head, 0 to 1, (H,).

    Raises:
        InputError: as `attention_to`; or the vectors belong to another model, or the texts have several layouts.
    """
    for text_tokens in tokens:
        check_model(lm, text_tokens)
    layouts = {text.arrangement.layout(text.length, len(text.e)) for text in tokens}
    if len(layouts) != 1:
        raise InputError(f"{len(tokens)} texts of {len(layouts)} layouts: give texts of one length and arrangement")
    (layout,) = layouts
    positions = e_positions(layout, len(tokens[0].e)) if position is None else [position]
    return attention_to(lm, torch.cat([text.inputs_embeds() for text in tokens]), positions)


def attention_to(lm: FrozenLM, inputs_embeds: Tensor, positions: Sequence[int]) -> list[Tensor]:
    """The attention that later positions give to some positions together: a mean over the later ones and the batch.

    A later position is any behind the first of `positions`. Its weights on all of `positions` before it are summed.

    Attention layers are counted from 0 among the layers that have attention weights. In a model that mixes them with
    other layers, attention layer i is not the model's layer i.

    Args:
        lm: the language model.
        inputs_embeds: (B, L, D).
        positions: input positions, from 0.

    Returns:
        For each attention layer one number per head, 0 to 1, (H,).

    Raises:
        InputError: the model gives no attention weights, there are no such positions, or none is behind them.
    """
    length = inputs_embeds.shape[1]
    if not all(0 <= position < length for position in positions):
        raise InputError(f"positions are {list(positions)}; they must be from 0 to {length - 1}")
    mask = _earlier(positions, length)  # (L, L)
    is_later = mask.any(-1)
    if not is_later.any():
        raise InputError(f"{length} positions: none of them is behind position {min(positions)}")
    totals: list[Tensor] = []  # by layer (H,), over texts
    for portion in inputs_embeds.split(TEXTS_AT_ONCE):
        layers = lm.attentions(portion)
        sums = [(layer * mask.to(layer)).sum(-1)[..., is_later.to(layer.device)].mean(2).sum(0) for layer in layers]
        totals = [total + layer for total, layer in zip(totals, sums, strict=True)] if totals else sums
    return [total.cpu() / len(inputs_embeds) for total in totals]


def even_attention(length: int, positions: Sequence[int]) -> float:
    """What `attention_to` would be if every position attended evenly to itself and all before it."""
    mask = _earlier(positions, length)
    share = mask.float().sum(-1) / torch.arange(1, length + 1)
    return share[mask.any(-1)].mean().item()


def e_positions(layout: Layout, n_e_tokens: int) -> list[int]:
    """The input positions at which an e-token stands."""
    return [position for position, slot in enumerate(layout.slots) if slot < n_e_tokens]


def _earlier(positions: Sequence[int], length: int) -> Tensor:
    """Which of some positions each of L positions has before it, bool, (L, L)."""
    marked = torch.zeros(length, dtype=torch.bool)
    marked[list(positions)] = True
    return torch.ones(length, length, dtype=torch.bool).tril(-1) & marked
