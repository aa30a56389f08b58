"""Robustness: which tokens are still right after a change of the vectors, and which are lost first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..decoding import decode
from ..lm.frozen import FrozenLM
from ..proto_tokens import ProtoTokens
from .changes import Change, Directions, changed, distance_moved
from .profiles import POSITIONS_AT_ONCE


@dataclass(frozen=True, eq=False)
class AfterChange:
    """What a text's changed vectors decode to, compared with the text.

    Attributes:
        right: which tokens are the target's, bool, (T,).
        moved: how far the change moved the vectors, see `distance_moved`.
    """

    right: Tensor
    moved: float

    @property
    def token_accuracy(self) -> float:
        """Share of right tokens."""
        return self.right.float().mean().item()


def decode_changed(
    lm: FrozenLM,
    tokens: Sequence[ProtoTokens],
    target_ids: Tensor,
    changes: Sequence[Change],
    directions: Sequence[Directions | None] | None = None,
) -> list[AfterChange]:
    """Change the vectors of N texts, each in its own way, and decode them.

    Args:
        lm: the frozen model.
        tokens: N proto-tokens; a text may be there several times.
        target_ids: their texts, int64, (N, T).
        changes: N changes.
        directions: N sets of directions, for projections.

    Raises:
        InputError: the vectors belong to another model, or a projection has no directions.
    """
    all_directions = directions or [None] * len(changes)
    results: list[AfterChange] = []
    texts_at_once = max(1, POSITIONS_AT_ONCE // (target_ids.shape[1] + 1))
    for first in range(0, len(tokens), texts_at_once):
        part = slice(first, first + texts_at_once)
        moved = list(map(changed, tokens[part], changes[part], all_directions[part]))
        for before, after, change, decoded, ids in zip(
            tokens[part], moved, changes[part], decode(lm, moved, scores=False), target_ids[part].cpu(), strict=True
        ):
            results.append(AfterChange(decoded.ids == ids, distance_moved(before, after, change.vectors)))
    return results


def lost_margin_rank(margins: Tensor, right: Tensor) -> float | None:
    """Mean rank, by margin before the change, of the tokens that the change loses.

    Ranks are counted from 0 and divided by T - 1. The result is 0 where only the token of the smallest margin is lost,
    and 1 where only that of the largest is. It is 0.5 on average if tokens are lost at random.

    Args:
        margins: margin of each token before the change, in logits, (T,).
        right: which tokens are right after the change, bool, (T,).

    Returns:
        0 to 1; None where no token is lost, or all are.
    """
    lost = ~right
    if not lost.any() or lost.all():
        return None
    ranks = margins.argsort().argsort().float() / (len(margins) - 1)
    return ranks[lost].mean().item()
