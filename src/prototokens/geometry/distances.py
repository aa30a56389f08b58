"""Distances between solutions: cosine and Euclidean, of e, of m, and of both."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

PARTS = ("e", "m", "both")
"""What is compared: the e-tokens one after another, the m-token, or all vectors."""

MEASURES = ("cosine", "euclidean")

PAIR_KINDS = ("same text", "same context", "different")
"""Kinds of pairs of solutions, those that are expected closest first."""


def vector_distances(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Cosine and Euclidean distance between the vectors of two solutions.

    cosine(a, b)    = 1 - a.b / (|a| |b|), from 0 (same direction) to 2; 1 if either is zero
    euclidean(a, b) = |a - b|

    `both` takes e and m one after another as one vector of (K + 1) D numbers. Computed in float64.

    Args:
        first: e (K, D) and m (D,) of one solution.
        second: e and m of another, of the same shapes.

    Returns:
        For each measure and part, under a name such as `cosine_e` or `euclidean_both`, the distance.

    Raises:
        InputError: the shapes differ.
    """
    for name, a, b in zip(("e", "m"), first, second, strict=True):
        if a.shape != b.shape:
            raise InputError(
                f"{name} is {tuple(a.shape)} in one and {tuple(b.shape)} in the other; distances need equal shapes"
            )
    products = {"e": _products(first[0], second[0]), "m": _products(first[1], second[1])}
    products["both"] = tuple(map(sum, zip(products["e"], products["m"], strict=True)))
    distances = {}
    for part, (inner, first_square, second_square, difference) in products.items():
        norms = math.sqrt(first_square) * math.sqrt(second_square)
        distances[f"cosine_{part}"] = min(2.0, max(0.0, 1 - inner / norms)) if norms else 1.0
        distances[f"euclidean_{part}"] = math.sqrt(difference)
    return distances


def _products(a: Tensor, b: Tensor) -> tuple[float, ...]:
    """a.b, a.a, b.b and (a - b).(a - b), as sums over all entries."""
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    return tuple(x.sum().item() for x in (a * b, a * a, b * b, (a - b) ** 2))
