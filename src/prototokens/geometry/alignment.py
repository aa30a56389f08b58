"""Alignment of vectors with a teacher's sentence embeddings: two auxiliary losses of a fit, and measures of the result.

Both losses are after arXiv 2602.18301. v_i is the e-tokens or the m-token of text i, s_i the teacher's embedding of
that text, and A a fixed random matrix:

    anchor      weight * sum over i of (1 - cos(v_i, A s_i))
    relational  weight * sum over i of mean over j != i of (cos(v_i, v_j) - cos(s_i, s_j))^2

Both are in nats per token and are added to the cross-entropy. The anchor says where a text's vector lies. The relations
say only how the vectors of a batch lie to one another.

Reference: What proto-tokens encode (Bondarenko et al., 2026), https://arxiv.org/abs/2602.18301, of which we know the
abstract: the formulas and weights are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..fitting.given import Regulariser

Vector = Literal["e", "m"]


def projected(teacher: Tensor, width: int, seed: int = 0) -> Tensor:
    """Anchors: a teacher's embeddings (B, S), mapped to the model's width, of length 1, float32, (B, D).

    The map is a fixed random matrix with entries drawn from N(0, 1), so it roughly keeps the angles between texts.
    """
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(teacher.shape[-1], width, generator=generator)
    return F.normalize(teacher.float().cpu() @ matrix, dim=-1)


def anchor(anchors: Tensor, vector: Vector, weight: float, steps: int = 0) -> Regulariser:
    """An auxiliary loss that pulls each text's e-tokens, or its m-token, towards an anchor of that text.

    Args:
        anchors: the directions, (B, D); see `projected`.
        vector: which vector is pulled.
        weight: of the loss, nats per token; 0 leaves the fit as it is.
        steps: see `Regulariser`.

    Raises:
        InputError: the weight is negative, or there is no such vector.
    """
    return _regulariser(lambda vectors, texts: anchor_gap(vectors, anchors.to(vectors)[texts]), vector, weight, steps)


def relational(teacher: Tensor, vector: Vector, weight: float, steps: int = 0) -> Regulariser:
    """An auxiliary loss that pulls the cosines between a batch's texts, by e-tokens or m-tokens, towards the teacher's.

    Args:
        teacher: a teacher's embeddings of the batch's texts, (B, S).
        vector: which vector is pulled.
        weight: of the loss, nats per token; 0 leaves the fit as it is.
        steps: see `Regulariser`.

    Raises:
        InputError: the weight is negative, or there is no such vector.
    """
    return _regulariser(
        lambda vectors, texts: relation_gap(vectors, teacher.to(vectors)[texts], texts), vector, weight, steps
    )


def anchor_gap(vectors: Tensor, anchors: Tensor) -> Tensor:
    """1 - cos(vector, anchor) of R texts' vectors (R, S, D) and anchors (R, D), mean over S: 0 to 2, (R,)."""
    return 1 - F.cosine_similarity(vectors, anchors.unsqueeze(1), dim=-1).mean(-1)


def relation_gap(vectors: Tensor, teacher: Tensor, texts: Tensor | None = None) -> Tensor:
    """Mean square difference between a text's cosines to the others by its vectors and by the teacher's.

    Args:
        vectors: float32, (R, ...); all axes but the first are flattened.
        teacher: embeddings of the same texts, (R, S).
        texts: number of each row's text, int64, (R,). Rows of the same text are no pair. All differ if None.

    Returns:
        0 or more, (R,); 0 for a text alone. A row that is not finite is in no pair.
    """
    texts = torch.arange(len(vectors), device=vectors.device) if texts is None else texts
    finite = vectors.flatten(1).isfinite().all(1)  # (R,)
    vectors = vectors.flatten(1).where(finite[:, None], 0.0)
    pairs = ((texts[:, None] != texts[None, :]) & finite[:, None] & finite).float()  # (R, R)
    square = (cosines(vectors) - cosines(teacher)).square() * pairs
    return square.sum(-1) / pairs.sum(-1).clamp(min=1)


def cosines(vectors: Tensor) -> Tensor:
    """Cosines between all pairs of vectors (R, ...), (R, R)."""
    unit = F.normalize(vectors.flatten(1), dim=-1)
    return unit @ unit.T


def relation_correlation(vectors: Tensor, teacher: Tensor) -> float:
    """Pearson's correlation, over all pairs of texts, of their cosine by vectors (B, ...) and by the teacher's (B, S).

    -1 to 1; not a number for fewer than three texts.
    """
    first, second = torch.triu_indices(len(vectors), len(vectors), 1)
    by_pair = torch.stack([cosines(rows)[first, second].double().cpu() for rows in (vectors, teacher)])  # (2, pairs)
    return torch.corrcoef(by_pair)[0, 1].item() if len(first) > 1 else float("nan")


def shuffled_correlations(vectors: Tensor, teacher: Tensor, shuffles: int = 100, seed: int = 0) -> Tensor:
    """The control: `relation_correlation` for a shuffled teacher, about 0 on average: float64, (shuffles,)."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(teacher), generator=generator).to(teacher.device) for _ in range(shuffles)]
    return torch.tensor([relation_correlation(vectors, teacher[order]) for order in orders], dtype=torch.float64)


def partner_ranks(vectors: Tensor, partners: Tensor) -> Tensor:
    """Rank of each vector's partner among all other vectors, by cosine: 1 for the nearest, int64, (N,).

    Others that are as near as the partner come before it, so vectors that are all the same find nothing.

    Args:
        vectors: (N, ...).
        partners: number of each vector's partner, int64, (N,).
    """
    near = cosines(vectors.double()).fill_diagonal_(-torch.inf)
    to_partner = near.gather(1, partners[:, None].to(near.device))  # (N, 1)
    return (near >= to_partner - 1e-12).sum(1)  # the partner itself is counted too


def _regulariser(gap: Callable[[Tensor, Tensor], Tensor], vector: Vector, weight: float, steps: int) -> Regulariser:
    """The weighted sum of a gap: vectors (R, S, D) and the rows' texts (R,) -> (R,)."""
    _check(vector, weight)

    def loss(e: Tensor, m: Tensor, texts: Tensor) -> Tensor:
        return weight * gap(e if vector == "e" else m.unsqueeze(1), texts).sum()

    return Regulariser(loss, steps)


def _check(vector: str, weight: float) -> None:
    if vector not in ("e", "m"):
        raise InputError(f"vector is {vector!r}; it must be 'e' or 'm'")
    if not weight >= 0:  # not a number is refused too
        raise InputError(f"weight is {weight:g}; it must be at least 0")
