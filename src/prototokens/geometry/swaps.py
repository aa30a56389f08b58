"""Roles: what e does and what m does, by exchanging them between texts and by who attends to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..arrangements import Layout
from ..decoding import check_model
from ..errors import InputError
from ..lm.frozen import FrozenLM
from ..lm.identity import same_model
from ..proto_tokens import ProtoTokens

TEXTS_AT_ONCE = 8
"""Texts whose attention weights, of all layers, are in memory together."""


def swapped(of_e: ProtoTokens, of_m: ProtoTokens) -> ProtoTokens:
    """The e-tokens of one text with the m-token of another, read at the first one's length.

    What they were seen to do in the provenance is what the first one did.

    Raises:
        InputError: the two are not of one model and arrangement.
    """
    if not same_model(of_e.provenance.model, of_m.provenance.model) or of_e.arrangement != of_m.arrangement:
        raise InputError(
            f"e of {of_e.provenance.model.name} in {of_e.arrangement.name!r} and m of {of_m.provenance.model.name} in "
            f"{of_m.arrangement.name!r}: a swap needs one model and one arrangement"
        )
    return replace(of_e, m=of_m.m)


def bag_overlap(ids: Tensor, other_ids: Tensor) -> float:
    """Share of tokens that two texts have in common, in whatever order.

    sum over v of min(count of v in one, count of v in the other) / length of the shorter

    Args:
        ids: (T,).
        other_ids: (T',).

    Returns:
        0 to 1; 1 for the same tokens in another order.
    """
    common = Counter(ids.tolist()) & Counter(other_ids.tolist())
    return common.total() / min(len(ids), len(other_ids))


def attention_to_vectors(lm: FrozenLM, tokens: Sequence[ProtoTokens], place: int | None = None) -> list[Tensor]:
    """How much attention e gets from the positions behind it, by attention layer and head; see `attention_to`.

    Args:
        lm: the language model that the vectors belong to.
        tokens: proto-tokens of texts of one length and arrangement.
        place: a position to look at instead of those of e.

    Returns:
        For each attention layer one number per head, 0 to 1, (H,).

    Raises:
        InputError: as `attention_to`, the vectors belong to another model, or the texts have not one layout.
    """
    for one in tokens:
        check_model(lm, one)
    layouts = {one.arrangement.layout(one.length, len(one.e)) for one in tokens}
    if len(layouts) != 1:
        raise InputError(f"{len(tokens)} texts of {len(layouts)} layouts: look at texts of one length and arrangement")
    (layout,) = layouts
    places = e_places(layout, len(tokens[0].e)) if place is None else [place]
    return attention_to(lm, torch.cat([one.inputs_embeds() for one in tokens]), places)


def attention_to(lm: FrozenLM, inputs_embeds: Tensor, places: Sequence[int]) -> list[Tensor]:
    """The weight that later positions give to some places together, mean over them and over the batch.

    Layers are those that have attention weights: in a model that mixes them with others, attention layer i, counted
    from 0, is not the model's layer i.

    Args:
        lm: the language model.
        inputs_embeds: (B, L, D).
        places: positions; a position that stands behind the first of them looks at those before it.

    Returns:
        For each attention layer one number per head, 0 to 1, (H,).

    Raises:
        InputError: the model gives no attention weights, there are no such places, or nothing stands behind them.
    """
    length = inputs_embeds.shape[1]
    if not all(0 <= place < length for place in places):
        raise InputError(f"places are {list(places)}; they must be from 0 to {length - 1}")
    mask = _earlier(places, length)  # (L, L)
    looking = mask.any(-1)
    if not looking.any():
        raise InputError(f"{length} positions: none of them stands behind position {min(places)}")
    totals: list[Tensor] = []  # by layer (H,), over texts
    for portion in inputs_embeds.split(TEXTS_AT_ONCE):
        layers = lm.attentions(portion)
        own = [(layer * mask.to(layer)).sum(-1)[..., looking.to(layer.device)].mean(2).sum(0) for layer in layers]
        totals = [total + one for total, one in zip(totals, own, strict=True)] if totals else own
    return [total.cpu() / len(inputs_embeds) for total in totals]


def even_attention(length: int, places: Sequence[int]) -> float:
    """What `attention_to` is where every position attends evenly to itself and all before it."""
    mask = _earlier(places, length)
    share = mask.float().sum(-1) / torch.arange(1, length + 1)
    return share[mask.any(-1)].mean().item()


def e_places(layout: Layout, e_tokens: int) -> list[int]:
    """The input positions at which an e-token stands."""
    return [position for position, slot in enumerate(layout.slots) if slot < e_tokens]


def _earlier(places: Sequence[int], length: int) -> Tensor:
    """Which of the places each position (L,) has before it, bool, (L, L)."""
    marked = torch.zeros(length, dtype=torch.bool)
    marked[list(places)] = True
    return torch.ones(length, length, dtype=torch.bool).tril(-1) & marked
