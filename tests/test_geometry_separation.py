"""How well distances tell two kinds of pairs apart: AUC, correlation and gap, with intervals and controls."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from prototokens import InputError
from prototokens.geometry.separation import Pair, auc, cluster_weights, correlation, gap, separation, shuffled

samples = st.lists(st.integers(0, 8), min_size=1, max_size=12)  # few values, so that many are tied
quick = settings(max_examples=50, deadline=None)


def pairs(distances: list[float] | np.ndarray, clusters: int = 6, texts: list[float] | None = None) -> list[Pair]:
    """Pairs whose clusters go round, each within one cluster."""
    text_distances = texts or [0.0] * len(distances)
    return [
        Pair(float(d), (i % clusters, i % clusters), float(t))
        for i, (d, t) in enumerate(zip(distances, text_distances, strict=True))
    ]


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@quick
@given(samples, samples)
def test_auc_is_that_of_scikit_learn_bounded_and_turned_round_by_an_exchange(near, far):
    value = auc(near, far)
    assert 0 <= value <= 1
    assert value + auc(far, near) == pytest.approx(1)
    assert value == pytest.approx(roc_auc_score([0] * len(near) + [1] * len(far), near + far))


@quick
@given(samples, samples)
def test_auc_counts_order_alone_and_each_sample_s_share(near, far):
    value = auc(near, far)
    assert auc([3 * x**3 - 5 for x in near], [3 * x**3 - 5 for x in far]) == pytest.approx(value)
    assert auc(near[::-1] * 3, far * 2) == pytest.approx(value)
    assert auc(near, near) == pytest.approx(0.5)


def test_auc_of_samples_that_are_apart():
    assert auc([1, 2], [3, 4, 5]) == 1
    assert auc([3, 4], [1, 2]) == 0
    assert auc([1], [1]) == 0.5


@pytest.mark.parametrize("seed", range(4))
def test_intervals_contain_the_value_and_depend_on_the_seed_alone(seed):
    near, far = pairs(random(20, seed=seed)), pairs(random(30, seed=seed + 9) + 0.4)
    estimate = separation(near, far, draws=200, seed=seed)
    assert estimate.value == auc([p.distance for p in near], [p.distance for p in far])
    assert estimate == separation(near, far, draws=200, seed=seed)
    assert estimate.interval is not None
    assert 0 <= estimate.interval[0] <= estimate.value <= estimate.interval[1] <= 1
    again = separation(near[::-1], far[::-1], draws=200, seed=seed)
    assert again.interval == pytest.approx(estimate.interval)


def test_no_effect_is_mostly_within_the_interval_and_a_large_one_never_is():
    """Nominally 95 of 100; a bootstrap over 12 clusters is somewhat too narrow."""
    inside = 0
    for seed in range(60):
        near, far = (pairs(random(24, seed=2 * seed + side), clusters=12) for side in (0, 1))
        low, high = separation(near, far, draws=200, seed=seed).interval or (1.0, 0.0)
        inside += low <= 0.5 <= high
        apart = separation(near, pairs([p.distance + 3 for p in far], clusters=12), draws=200, seed=seed)
        assert apart.interval is not None
        assert apart.interval[0] > 0.5
    assert inside >= 50


def test_one_cluster_has_no_interval():
    near, far = pairs([1, 2, 3], clusters=1), pairs([2, 3, 4], clusters=1)
    assert separation(near, far).interval is None
    assert correlation(pairs([1, 2, 3], 1, [1, 2, 4])).interval is None
    assert gap(pairs([1, 2, 3], 1, [1, 2, 4]), far).interval is None


def test_a_resample_draws_as_many_clusters_as_there_are():
    within = pairs([0.0] * 5, clusters=5)
    between = [Pair(0.0, (a, b)) for a in range(5) for b in range(a)]
    weights = cluster_weights([*within, *between], draws=400, seed=1)
    counts = weights[:, :5]
    assert (counts.sum(1) == 5).all()
    for column, pair in zip(weights[:, 5:].T, between, strict=True):
        assert (column == counts[:, pair.clusters[0]] * counts[:, pair.clusters[1]]).all()
    assert counts.mean(0) == pytest.approx(np.ones(5), abs=0.2)


def test_a_resample_s_auc_is_that_of_pairs_that_stand_there_as_often():
    near, far = pairs(list(random(7))), pairs(list(random(9, seed=1)))
    weights = cluster_weights([*near, *far], draws=30, seed=0).astype(int)
    estimate = []
    for row in weights:
        repeated = [p.distance for p, n in zip([*near, *far], row, strict=True) for _ in range(n)]
        n_near = row[:7].sum()
        estimate.append(auc(repeated[:n_near], repeated[n_near:]))
    low, high = np.quantile(estimate, (0.025, 0.975))
    value = auc([p.distance for p in near], [p.distance for p in far])
    expected = min(low, value), max(high, value)
    assert separation(near, far, draws=30, seed=0).interval == pytest.approx(expected)


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_shuffled_labels_show_nothing_whatever_the_effect(shift):
    near, far = pairs(random(15)), pairs(random(25, seed=1) + shift)
    control = shuffled(near, far)
    assert control.value == pytest.approx(0.5, abs=0.02)
    low, high = control.interval
    assert low < control.value < high
    assert (low <= separation(near, far).value <= high) == (shift == 0)


def test_the_interval_of_shuffled_labels_has_95_percent_of_them():
    """With one near and 39 far distances and no ties, the AUC of a shuffle is uniform on 0, 1/39, ..., 1."""
    low, high = shuffled(pairs([0.5]), pairs(np.arange(39) + 1.0), draws=4000).interval
    assert (low, high) == pytest.approx((0.025, 0.975), abs=0.026)


def test_correlation_is_pearson_s():
    x, noise = random(40), random(40, seed=1)
    for y in (x + noise, -2 * x, noise):
        estimate = correlation(pairs(y, texts=list(x)))
        assert estimate.value == pytest.approx(np.corrcoef(x, y)[0, 1])
        assert estimate.interval[0] <= estimate.value <= estimate.interval[1]
        moved = correlation(pairs(7 * y + 3, texts=list(x / 5)))
        assert moved.value == pytest.approx(estimate.value)
    assert correlation(pairs([1.0, 2.0], texts=[3.0, 3.0])) is None
    assert correlation(pairs([1.0, 1.0], texts=[3.0, 4.0])) is None
    assert correlation([]) is None


@pytest.mark.parametrize("effect", [0.0, 0.7, -2.0])
def test_a_gap_that_was_planted_is_found(effect):
    x, y = np.abs(random(30)), np.abs(random(40, seed=1)) + 1  # the texts of `near` lie closer
    near, far = pairs(1 + 2 * x - effect, texts=list(x)), pairs(1 + 2 * y, texts=list(y))
    estimate = gap(near, far)
    assert estimate.value == pytest.approx(effect, abs=1e-9)
    assert estimate.interval == pytest.approx((effect, effect), abs=1e-6)
    noisy = gap(pairs(1 + 2 * x - effect + random(30, seed=5) / 5, texts=list(x)), far)
    assert noisy.interval[0] <= effect <= noisy.interval[1]
    assert noisy.value == pytest.approx(effect, abs=0.2)


def test_gaps_that_cannot_be_told():
    near, far = pairs([1, 2], texts=[1, 2]), pairs([1, 2], texts=[3, 4])
    assert gap([], far) is None
    assert gap(near, []) is None
    assert gap(pairs([1, 2], texts=[1, 1]), pairs([3, 4], texts=[2, 2])) is None


@pytest.mark.parametrize("call", [auc, separation, shuffled])
def test_an_empty_sample_is_refused(call):
    with pytest.raises(InputError, match=r"^0 near and 1 far distances: an AUC needs at least one of each$"):
        call([], pairs([1.0]))
