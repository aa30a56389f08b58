"""Changes of fitted vectors: noise, scaling, rounding and projection, and how far each moves them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import InputError
from ..files.quantised import rounded
from ..lm.frozen import FrozenLM
from ..proto_tokens import ProtoTokens
from .paths import VECTORS, Vectors

CHANGE_KINDS = {
    "noise": "a random vector is added; amount = its length / the vector's length",
    "scaling": "the vector is multiplied by 1 + amount",
    "rounding": "amount = bits that are dropped of 32: 16 is float16, 24 int8, 28 int4",
    "projection": "onto the first of given directions; amount = share of the directions that is dropped",
}
"""Kinds of change, each with the meaning of its amount. An amount of 0 changes nothing."""

_FORMATS = {0: "float32", 16: "float16", 24: "int8", 28: "int4"}
"""Number format by the bits dropped of 32."""

_IDS_AT_ONCE = 8192


@dataclass(frozen=True)
class Change:
    """How vectors are moved.

    Attributes:
        kind: one of `CHANGE_KINDS`.
        amount: how much, in the unit that `CHANGE_KINDS` names.
        vectors: which vectors are moved: `"e"`, `"m"` or `"both"`.
        draw: number of the noise's direction. The direction depends on this number and the text, not on the amount.
    """

    kind: str
    amount: float
    vectors: Vectors = "both"
    draw: int = 0

    def __post_init__(self) -> None:
        if self.kind not in CHANGE_KINDS:
            raise InputError(f"unknown kind of change {self.kind!r}; choose one of: {' '.join(CHANGE_KINDS)}")
        if self.vectors not in VECTORS:
            raise InputError(f"vectors is {self.vectors!r}; it must be one of: {' '.join(VECTORS)}")
        if self.kind == "rounding" and self.amount not in _FORMATS:
            raise InputError(f"bits dropped is {self.amount:g}; it must be one of: {' '.join(map(str, _FORMATS))}")
        if self.kind == "noise" and self.amount < 0:
            raise InputError(f"amount of noise is {self.amount:g}; it must be at least 0")
        if self.kind == "projection" and not 0 <= self.amount <= 1:
            raise InputError(f"share of directions is {self.amount:g}; it must be from 0 to 1")


@dataclass(frozen=True, eq=False)
class Directions:
    """Orthogonal directions through a centre, to project onto.

    Attributes:
        centre: float32, (D,).
        rows: unit vectors, float32, (D, D). A projection keeps the first ones.
    """

    centre: Tensor
    rows: Tensor

    def project(self, vectors: Tensor, n_kept: int) -> Tensor:
        """Project vectors (..., D) onto the plane through the centre that the first `n_kept` directions span."""
        rows = self.rows[:n_kept]
        return self.centre + (vectors - self.centre) @ rows.T @ rows


@torch.no_grad()
def principal_directions(lm: FrozenLM) -> Directions:
    """The principal directions of the model's input embeddings around their mean, largest variance first, on the CPU.

    They are those of the embeddings, not of a batch's solutions. Fewer solutions than D always lie in the plane of
    their own principal directions.
    """
    mean = lm.embedding_statistics.mean
    covariance = torch.zeros(lm.width, lm.width, device=lm.device)
    for first in range(0, lm.vocabulary, _IDS_AT_ONCE):
        rows = lm.embed(torch.arange(first, min(first + _IDS_AT_ONCE, lm.vocabulary))) - mean
        covariance += rows.T @ rows
    directions = torch.linalg.eigh(covariance.cpu().double()).eigenvectors.T.flip(0)
    return Directions(mean.cpu(), directions.float())


def random_directions(lm: FrozenLM, draw: int = 0) -> Directions:
    """Random orthogonal directions around the mean embedding, on the CPU: the control of a projection of equal rank."""
    generator = torch.Generator().manual_seed(draw)
    gaussian = torch.randn(lm.width, lm.width, generator=generator, dtype=torch.float64)
    return Directions(lm.embedding_statistics.mean.cpu(), torch.linalg.qr(gaussian).Q.T.float())


def changed(tokens: ProtoTokens, change: Change, directions: Directions | None = None) -> ProtoTokens:
    """Proto-tokens with changed vectors. The scores in their provenance stay those of the unchanged vectors.

    Raises:
        InputError: a projection has no directions, or the changed vectors are not finite.
    """
    if change.amount == 0:
        return tokens
    moved = _moved(torch.cat([tokens.e, tokens.m.unsqueeze(0)]), tokens, change, directions)  # (K+1, D)
    e = tokens.e if change.vectors == "m" else moved[:-1]
    m = tokens.m if change.vectors == "e" else moved[-1]
    return replace(tokens, e=e, m=m)


def distance_moved(before: ProtoTokens, after: ProtoTokens, vectors: Vectors) -> float:
    """How far a change moved the vectors, in their own length: |z' - z| / |z|, with z the named vectors together."""
    z, moved = (_flat(tokens, vectors) for tokens in (before, after))
    return ((moved - z).norm() / z.norm()).item()


def _moved(vectors: Tensor, tokens: ProtoTokens, change: Change, directions: Directions | None) -> Tensor:
    """All vectors (K+1, D) after a change."""
    if change.kind == "noise":
        noise = torch.randn(vectors.shape, generator=_noise_generator(tokens, change.draw))
        return vectors + change.amount * vectors.norm(dim=-1, keepdim=True) * noise / noise.norm(dim=-1, keepdim=True)
    if change.kind == "scaling":
        return vectors * (1 + change.amount)
    if change.kind == "rounding":
        return rounded(vectors, _FORMATS[int(change.amount)])
    if directions is None:
        raise InputError("a projection needs directions: give those of principal_directions or random_directions")
    return directions.project(vectors, round((1 - change.amount) * vectors.shape[-1]))


def _noise_generator(tokens: ProtoTokens, draw: int) -> torch.Generator:
    key = hashlib.sha256(f"noise {draw} {tokens.provenance.target_hash}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)


def _flat(tokens: ProtoTokens, vectors: Vectors) -> Tensor:
    parts = {"e": [tokens.e.flatten()], "m": [tokens.m], "both": [tokens.e.flatten(), tokens.m]}
    return torch.cat(parts[vectors])
