"""Basin: how far the vectors of a solution can be moved before their tokens go wrong, and which go first."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..decoding import decode
from ..errors import InputError
from ..files.quantised import rounded
from ..lm.frozen import FrozenLM
from ..proto_tokens import ProtoTokens
from .paths import VECTORS, Vectors
from .profiles import POSITIONS_AT_ONCE

KINDS = {
    "noise": "a random direction is added; amount = length of what is added / length of the vector",
    "scaling": "the vector times 1 + amount",
    "rounding": "amount = bits that are dropped of 32: 16 is float16, 24 int8, 28 int4",
    "projection": "onto the first of given directions; amount = share of the directions that is dropped",
}
"""Kinds of change, each with what its amount means; an amount of 0 changes nothing."""

_STORES = {0: "float32", 16: "float16", 24: "int8", 28: "int4"}
_IDS_AT_ONCE = 8192


@dataclass(frozen=True)
class Change:
    """How vectors are moved.

    Attributes:
        kind: one of `KINDS`.
        amount: how much, in the unit that `KINDS` names.
        vectors: which vectors are moved: `"e"`, `"m"` or `"both"`.
        draw: number of the noise's direction; a text's direction does not depend on the amount.
    """

    kind: str
    amount: float
    vectors: Vectors = "both"
    draw: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"unknown kind of change {self.kind!r}; choose one of: {' '.join(KINDS)}")
        if self.vectors not in VECTORS:
            raise InputError(f"vectors is {self.vectors!r}; it must be one of: {' '.join(VECTORS)}")
        if self.kind == "rounding" and self.amount not in _STORES:
            raise InputError(f"bits dropped is {self.amount:g}; it must be one of: {' '.join(map(str, _STORES))}")
        if self.kind == "noise" and self.amount < 0:
            raise InputError(f"amount of noise is {self.amount:g}; it must be at least 0")
        if self.kind == "projection" and not 0 <= self.amount <= 1:
            raise InputError(f"share of directions is {self.amount:g}; it must be from 0 to 1")


@dataclass(frozen=True, eq=False)
class Directions:
    """Orthogonal directions around a centre, to project on.

    Attributes:
        centre: float32, (D,).
        rows: unit vectors, the first to be kept first, float32, (D, D).
    """

    centre: Tensor
    rows: Tensor

    def project(self, vectors: Tensor, kept: int) -> Tensor:
        """The nearest points to vectors (..., D) in the plane through the centre along the first `kept` directions."""
        rows = self.rows[:kept]
        return self.centre + (vectors - self.centre) @ rows.T @ rows


@torch.no_grad()
def principal_directions(lm: FrozenLM) -> Directions:
    """The principal directions of the model's input embeddings, widest first, around their mean, on the CPU.

    Of the embeddings and not of a batch's solutions: fewer solutions than D lie in the plane of their own directions,
    whatever they are.
    """
    mean = lm.embedding_statistics.mean
    covariance = torch.zeros(lm.width, lm.width, device=lm.device)
    for first in range(0, lm.vocabulary, _IDS_AT_ONCE):
        rows = lm.embed(torch.arange(first, min(first + _IDS_AT_ONCE, lm.vocabulary))) - mean
        covariance += rows.T @ rows
    directions = torch.linalg.eigh(covariance.cpu().double()).eigenvectors.T.flip(0)
    return Directions(mean.cpu(), directions.float())


def random_directions(lm: FrozenLM, draw: int = 0) -> Directions:
    """Random orthogonal directions around the mean embedding: what a projection does by its rank alone, on the CPU."""
    generator = torch.Generator().manual_seed(draw)
    drawn = torch.randn(lm.width, lm.width, generator=generator, dtype=torch.float64)
    return Directions(lm.embedding_statistics.mean.cpu(), torch.linalg.qr(drawn).Q.T.float())


def changed(tokens: ProtoTokens, change: Change, directions: Directions | None = None) -> ProtoTokens:
    """Proto-tokens whose vectors are moved; what they were seen to do in their provenance is of before.

    Raises:
        InputError: a projection has no directions, or the vectors have no finite values any more.
    """
    if change.amount == 0:
        return tokens
    own = torch.cat([tokens.e, tokens.m.unsqueeze(0)])  # (K+1, D)
    moved = _moved(own, tokens, change, directions)
    e = tokens.e if change.vectors == "m" else moved[:-1]
    m = tokens.m if change.vectors == "e" else moved[-1]
    return replace(tokens, e=e, m=m)


def distance_moved(before: ProtoTokens, after: ProtoTokens, vectors: Vectors) -> float:
    """Length of what was added to the vectors, over their own length: |z' - z| / |z|, z the named vectors together."""
    z, moved = (_flat(tokens, vectors) for tokens in (before, after))
    return ((moved - z).norm() / z.norm()).item()


@dataclass(frozen=True, eq=False)
class Held:
    """What a text's vectors hold after a change.

    Attributes:
        right: which tokens are the target's, bool, (T,).
        moved: see `distance_moved`.
    """

    right: Tensor
    moved: float

    @property
    def token_accuracy(self) -> float:
        """Share of right tokens."""
        return self.right.float().mean().item()


def hold(
    lm: FrozenLM,
    tokens: Sequence[ProtoTokens],
    target_ids: Tensor,
    changes: Sequence[Change],
    directions: Sequence[Directions | None] | None = None,
) -> list[Held]:
    """What each of N texts' vectors hold after the change of the same number.

    Args:
        lm: the frozen model.
        tokens: N proto-tokens; a text may come many times.
        target_ids: their texts, int64, (N, T).
        changes: N changes.
        directions: N sets of directions, for projections.

    Raises:
        InputError: the vectors belong to another model, or a projection has no directions.
    """
    ways = directions or [None] * len(changes)
    found: list[Held] = []
    count = max(1, POSITIONS_AT_ONCE // (target_ids.shape[1] + 1))
    for first in range(0, len(tokens), count):
        part = slice(first, first + count)
        after = [changed(*one) for one in zip(tokens[part], changes[part], ways[part], strict=True)]
        for before, own, change, seen, ids in zip(
            tokens[part], after, changes[part], decode(lm, after), target_ids[part].cpu(), strict=True
        ):
            found.append(Held(seen.ids == ids, distance_moved(before, own, change.vectors)))
    return found


def lost_margin_rank(margins: Tensor, right: Tensor) -> float | None:
    """Where the tokens that a change loses stood among all, by their margin before it.

    The mean rank of the lost tokens' margins, counted from 0, over T - 1: 0 where the smallest margin alone is lost, 1
    where the largest alone is, 0.5 in the mean if margins do not matter; None where none or all are lost.

    Args:
        margins: lead of each token of a text that was right, in logits, (T,).
        right: which are right after the change, bool, (T,).
    """
    lost = ~right
    if not lost.any() or lost.all():
        return None
    ranks = margins.argsort().argsort().float() / (len(margins) - 1)
    return ranks[lost].mean().item()


def _moved(own: Tensor, tokens: ProtoTokens, change: Change, directions: Directions | None) -> Tensor:
    """All vectors (K+1, D) after a change."""
    if change.kind == "noise":
        noise = torch.randn(own.shape, generator=_generator(tokens, change.draw))
        return own + change.amount * own.norm(dim=-1, keepdim=True) * noise / noise.norm(dim=-1, keepdim=True)
    if change.kind == "scaling":
        return own * (1 + change.amount)
    if change.kind == "rounding":
        return rounded(own, _STORES[int(change.amount)])
    if directions is None:
        raise InputError("a projection needs directions: give those of principal_directions or random_directions")
    return directions.project(own, round((1 - change.amount) * own.shape[-1]))


def _generator(tokens: ProtoTokens, draw: int) -> torch.Generator:
    key = hashlib.sha256(f"noise {draw} {tokens.provenance.target_hash}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)


def _flat(tokens: ProtoTokens, vectors: Vectors) -> Tensor:
    e = [] if vectors == "m" else [tokens.e.flatten()]
    return torch.cat([*e, *([] if vectors == "e" else [tokens.m])])
