"""How well distances tell two kinds of pairs apart: AUC, its interval over clusters, and a control.

These are pure functions of numbers, seeded, without torch. The report uses them on rows.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import InputError

Array = np.ndarray[Any, np.dtype[np.float64]]

DRAWS = 1000
"""Resamples behind an interval, and shuffles behind a control."""


@dataclass(frozen=True)
class Pair:
    """Two solutions and how far they lie apart.

    Attributes:
        distance: between their vectors.
        clusters: the cluster of each of the two, e.g. their contexts; equal where they share one.
        text_distance: between their texts.
    """

    distance: float
    clusters: tuple[Hashable, Hashable]
    text_distance: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        value: the number.
        interval: from, to; None for fewer than two clusters, or where no resample has a value.
    """

    value: float
    interval: tuple[float, float] | None = None


def auc(near: Sequence[float], far: Sequence[float]) -> float:
    """The probability that a distance of one sample is smaller than one of another; ties count half.

    AUC = P(near < far) + P(near = far) / 2. It is 1 if all of `near` lie below all of `far`, and 0.5 if distances do
    not tell the two apart.

    Raises:
        InputError: a sample is empty.

    Reference: The meaning and use of the area under a receiver operating characteristic (ROC) curve (Hanley & McNeil,
    1982), https://doi.org/10.1148/radiology.143.1.7063747.
    """
    _check(near, far)
    return float(_auc(np.array(near), np.array(far), np.ones((1, len(near))), np.ones((1, len(far))))[0])


def separation(near: Sequence[Pair], far: Sequence[Pair], *, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """The AUC of two samples of pairs, with the bootstrap interval over clusters.

    Pairs share solutions, and solutions share texts, so pairs are no independent draws. Clusters are taken as
    independent. Each resample draws as many clusters as there are, with replacement. A pair within a cluster counts as
    often as the cluster was drawn. A pair between two counts as often as the product of both numbers. The interval runs
    from the 2.5th to the 97.5th percentile of the resamples, and always contains the AUC itself.

    Args:
        near: pairs expected to lie closer.
        far: pairs expected to lie farther apart.
        draws: number of resamples.
        seed: of the resamples.

    Raises:
        InputError: a sample is empty.

    Reference: The pigeonhole bootstrap (Owen, 2007), https://doi.org/10.1214/07-AOAS122.
    """
    value = auc([pair.distance for pair in near], [pair.distance for pair in far])
    weights = cluster_weights([*near, *far], draws, seed)
    near_distances, far_distances = (np.array([pair.distance for pair in pairs]) for pairs in (near, far))
    resampled = _auc(near_distances, far_distances, weights[:, : len(near)], weights[:, len(near) :])
    return Estimate(value, _interval(value, resampled) if _n_clusters([*near, *far]) > 1 else None)


def shuffled(near: Sequence[Pair], far: Sequence[Pair], *, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """The control: the AUC of the same pairs with the labels near and far shuffled.

    Labels are shuffled as if pairs were independent. Pairs share solutions, so the interval is too narrow.

    Returns:
        The mean over the shuffles, about 0.5, and the bounds between which 95 % of them lie.

    Raises:
        InputError: a sample is empty.
    """
    _check(near, far)
    distances = np.array([pair.distance for pair in (*near, *far)])
    rng = np.random.default_rng(seed)
    labels = np.zeros((draws, len(distances)))
    labels[:, : len(near)] = 1
    labels = rng.permuted(labels, axis=1)
    aucs = _auc(distances, distances, labels, 1 - labels)
    low, high = np.quantile(aucs, (0.025, 0.975))
    return Estimate(float(aucs.mean()), (float(low), float(high)))


def correlation(pairs: Sequence[Pair], *, draws: int = DRAWS, seed: int = 0) -> Estimate | None:
    """Pearson's correlation of vector and text distances, with the bootstrap interval over clusters.

    Returns:
        The estimate; None where one of the two does not vary.
    """
    x, y = (np.array([getattr(pair, name) for pair in pairs]) for name in ("text_distance", "distance"))
    value = float(_correlation(x, y, np.ones((1, len(pairs))))[0])
    if not np.isfinite(value):
        return None
    resampled = _correlation(x, y, cluster_weights(pairs, draws, seed))
    return Estimate(value, _interval(value, resampled) if _n_clusters(pairs) > 1 else None)


def gap(near: Sequence[Pair], far: Sequence[Pair], *, draws: int = DRAWS, seed: int = 0) -> Estimate | None:
    """By how much the vectors of `near` lie closer than those of `far` at equal text distance.

    It is the coefficient g of the least squares fit  distance = a + b text_distance - g [pair is of `near`],  with the
    bootstrap interval over clusters.

    Returns:
        The estimate; None where a sample is empty, or text distance varies within neither sample.
    """
    pairs = [*near, *far]
    if not near or not far or all(len({pair.text_distance for pair in sample}) < 2 for sample in (near, far)):
        return None
    is_near = np.array([True] * len(near) + [False] * len(far), dtype=float)
    x, y = (np.array([getattr(pair, name) for pair in pairs]) for name in ("text_distance", "distance"))
    design = np.stack([np.ones_like(x), x, -is_near], axis=1)  # (n, 3)
    value = float(_least_squares(design, y, np.ones((1, len(pairs))))[0, 2])
    weights = cluster_weights(pairs, draws, seed)
    has_both = (weights @ is_near > 0) & (weights @ (1 - is_near) > 0)
    resampled = _least_squares(design, y, weights[has_both])[:, 2]
    return Estimate(value, _interval(value, resampled) if _n_clusters(pairs) > 1 else None)


def cluster_weights(pairs: Sequence[Pair], draws: int = DRAWS, seed: int = 0) -> Array:
    """How often each pair counts in each resample of the clusters, (draws, n); see `separation`.

    The resamples depend only on the number of clusters and the seed. Clusters are numbered in the order of their names.
    """
    number = {name: i for i, name in enumerate(sorted({c for pair in pairs for c in pair.clusters}, key=str))}
    counts = _resamples(len(number), draws, seed)
    first, second = (np.array([number[pair.clusters[i]] for pair in pairs], dtype=int) for i in (0, 1))
    return np.where(first == second, counts[:, first], counts[:, first] * counts[:, second])


@lru_cache(maxsize=16)
def _resamples(n_clusters: int, draws: int, seed: int) -> Array:
    """How often each cluster is drawn, (draws, clusters)."""
    drawn = np.random.default_rng(seed).integers(n_clusters, size=(draws, n_clusters))
    return np.stack([(drawn == cluster).sum(1) for cluster in range(n_clusters)], axis=1).astype(float)


def _n_clusters(pairs: Sequence[Pair]) -> int:
    return len({c for pair in pairs for c in pair.clusters})


def _auc(near: Array, far: Array, near_weights: Array, far_weights: Array) -> Array:
    """AUC of weighted samples, one for each row of the weights; NaN where a sample has no weight."""
    order = np.argsort(far, kind="stable")
    below = np.cumsum(far_weights[:, order], axis=1)
    below = np.concatenate([np.zeros((len(below), 1)), below], axis=1)  # weight of the first k of `far`
    smaller, not_larger = (np.searchsorted(far[order], near, side) for side in ("left", "right"))
    farther = below[:, -1:] - (below[:, smaller] + below[:, not_larger]) / 2
    with np.errstate(invalid="ignore"):
        aucs: Array = (near_weights * farther).sum(1) / (near_weights.sum(1) * below[:, -1])
    return aucs


def _correlation(x: Array, y: Array, weights: Array) -> Array:
    """Weighted correlation, one for each row of the weights; NaN where it is not defined."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share = weights / weights.sum(1, keepdims=True)
        x, y = x - (share @ x)[:, None], y - (share @ y)[:, None]
        spread = (share * x * x).sum(1) * (share * y * y).sum(1)
        correlations: Array = (share * x * y).sum(1) / np.sqrt(np.where(spread > 1e-24, spread, np.nan))
    return correlations


def _least_squares(design: Array, y: Array, weights: Array) -> Array:
    """Coefficients of weighted least squares, a row for each row of the weights; the shortest of several solutions."""
    gram = np.einsum("dn,ni,nj->dij", weights, design, design)
    return np.einsum("dij,dj->di", np.linalg.pinv(gram, hermitian=True), (weights * y) @ design)


def _interval(value: float, resampled: Array) -> tuple[float, float] | None:
    """The 95 % percentile interval of the finite values, widened to contain the value; None without finite ones."""
    resampled = resampled[np.isfinite(resampled)]
    if not len(resampled):
        return None
    low, high = np.quantile(resampled, (0.025, 0.975))
    return min(value, float(low)), max(value, float(high))


def _check(near: Sequence[object], far: Sequence[object]) -> None:
    if not near or not far:
        raise InputError(f"{len(near)} near and {len(far)} far distances: an AUC needs at least one of each")
