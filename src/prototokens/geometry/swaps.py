"""Swaps: the e-tokens of one text with the m-token of another, and how many tokens two texts have in common."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from torch import Tensor

from ..errors import InputError
from ..lm.identity import same_model
from ..proto_tokens import ProtoTokens


def swapped(of_e: ProtoTokens, of_m: ProtoTokens) -> ProtoTokens:
    """The e-tokens of one text with the m-token of another, decoded at the first one's length.

    The scores in their provenance are those of the first text's own vectors.

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
