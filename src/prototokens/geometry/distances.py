"""Distances between solutions: cosine and Euclidean, of e, of m, and of both."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

PARTS = ("e", "m", "both")
"""What is compared: the e-tokens one after another, the m-token, or all of them."""

MEASURES = ("cosine", "euclidean")

KINDS = ("same text", "same context", "different")
"""Kinds of pairs of solutions, from those expected closest."""


def vector_distances(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Distances between two pairs of e (K, D) and m (D,).

    cosine(a, b)    = 1 - a.b / (|a| |b|), from 0 (same direction) to 2; 1 if either is zero
    euclidean(a, b) = |a - b|

    `both` is taken of e and m one after another, (K + 1) D numbers. Computed in float64.

    Args:
        first: e and m of one solution.
        second: e and m of another, of the same shapes.

    Returns:
        Names such as `cosine_e` or `euclidean_both`, each measure with each part, -> distance.

    Raises:
        InputError: the shapes differ.
    """
    for name, a, b in zip(("e", "m"), first, second, strict=True):
        if a.shape != b.shape:
            raise InputError(f"{name} is {tuple(a.shape)} here and {tuple(b.shape)} there; distances need equal shapes")
    own = {"e": _products(first[0], second[0]), "m": _products(first[1], second[1])}
    own["both"] = tuple(map(sum, zip(own["e"], own["m"], strict=True)))
    found = {}
    for part, (inner, first_square, second_square, difference) in own.items():
        norms = math.sqrt(first_square) * math.sqrt(second_square)
        found[f"cosine_{part}"] = min(2.0, max(0.0, 1 - inner / norms)) if norms else 1.0
        found[f"euclidean_{part}"] = math.sqrt(difference)
    return found


def _products(a: Tensor, b: Tensor) -> tuple[float, ...]:
    """a.b, a.a, b.b and (a - b).(a - b), as sums over all entries."""
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    return tuple(x.sum().item() for x in (a * b, a * a, b * b, (a - b) ** 2))
