"""Probes: what is planted is found, where nothing is there nothing is, and no text is seen in both halves."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, r2_score, roc_auc_score
from torch import Tensor

from prototokens import InputError
from prototokens.geometry.probes import (
    ProbeResult,
    ProbeTarget,
    bag_of_words,
    balanced_accuracy,
    centred_cosine,
    classes,
    embeddings,
    lengths,
    mean_auc,
    probe,
    r_squared,
)
from solutions import random

ROWS, WIDTH = 80, 12


FEATURES = random(ROWS, WIDTH)


def target_of(kind: str, hidden: Tensor) -> ProbeTarget:
    """A target of each kind, made from numbers (N, 3)."""
    if kind == "words":
        return bag_of_words([torch.arange(3)[row > 0] if (row > 0).any() else torch.tensor([9]) for row in hidden], 3)
    if kind == "length":
        order = hidden[:, 0].argsort().argsort() // 4 + 1
        return lengths([torch.zeros(int(n)) for n in order])
    if kind == "source":
        return classes("source", ["one" if row[0] > 0 else "other" for row in hidden])
    return embeddings("teacher", hidden)


KINDS = ("words", "length", "source", "teacher")


@pytest.mark.parametrize("kind", KINDS)
def test_a_linear_effect_that_was_planted_is_found(kind):
    target = target_of(kind, FEATURES @ random(WIDTH, 3, seed=1))
    result = probe(FEATURES, target, range(ROWS))
    assert result.score > target.chance + 0.7 * (1 - target.chance)
    assert result.beaten == 1
    assert result.chance == target.chance
    assert result.score > result.shuffled + 4 * result.shuffled_sd


@pytest.mark.parametrize("kind", KINDS)
def test_where_there_is_no_effect_the_score_is_chance_as_is_the_control(kind):
    target = target_of(kind, random(ROWS, 3, seed=2))
    result = probe(FEATURES, target, range(ROWS), shuffles=20)
    for score in (result.score, result.shuffled):
        assert score == pytest.approx(target.chance, abs=0.17)
    assert abs(result.score - result.shuffled) < 3.5 * result.shuffled_sd


@pytest.mark.parametrize("kind", ["words", "length", "teacher"])
def test_vectors_that_are_all_the_same_score_chance_exactly(kind):
    target = target_of(kind, random(ROWS, 3, seed=2))
    result = probe(torch.ones(ROWS, WIDTH), target, range(ROWS), shuffles=3)
    assert (result.score, result.shuffled) == pytest.approx((target.chance, target.chance), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_control_shows_nothing_of_an_effect_either(kind):
    result = probe(FEATURES, target_of(kind, FEATURES[:, :3]), range(ROWS), shuffles=20)
    assert result.shuffled == pytest.approx(result.chance, abs=0.12)


def test_a_text_that_is_known_by_its_vector_does_not_help():
    """Each text has a vector and a label of its own, four times over: seen on other rows, all labels would be known."""
    texts = [n for n in range(20) for _ in range(4)]
    features, labels = torch.eye(20)[texts], ["ab"[n * n % 5 % 2] for n in range(20)]
    target = classes("label", [labels[n] for n in texts])
    apart = probe(features, target, texts)
    assert apart.score <= 0.6
    assert probe(features, target, range(80)).score == 1  # the rows taken for texts of their own


def test_labels_of_whole_texts_are_shuffled_between_texts():
    """Else the control would have more labels to go by than the probe, and the probe would beat it by that alone."""
    texts = [n for n in range(16) for _ in range(5)]
    features = random(16, WIDTH)[texts] + 0.01 * random(80, WIDTH, seed=3)
    target = classes("label", ["ab"[n % 2] for n in texts])
    result = probe(features, target, texts, folds=4, shuffles=40)
    assert result.shuffled == pytest.approx(0.5, abs=0.1)
    assert result.shuffled_sd > 0.1  # of 16 labels and not of 80


@pytest.mark.parametrize("shared", [False, True])
def test_few_texts_of_many_classes_score_chance_where_nothing_is_and_so_do_their_shuffles(shared):
    """Noise of each row or of each text: a fold that held more of a class than the others would push both below."""
    texts = [n for n in range(16) for _ in range(4)]
    target = classes("source", ["abcd"[n // 4] for n in texts])
    features = [random(16, 64, seed=n)[texts] if shared else random(64, 64, seed=n) for n in range(8)]
    result = [probe(vectors, target, texts, folds=4, shuffles=6, seed=n) for n, vectors in enumerate(features)]
    assert np.mean([one.score for one in result]) == pytest.approx(0.25, abs=0.07)
    assert np.mean([one.shuffled for one in result]) == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize("kind", KINDS)
def test_a_probe_is_the_same_again_and_does_not_mind_units(kind):
    target = target_of(kind, FEATURES[:, :3] + random(ROWS, 3, seed=4))
    first = probe(FEATURES, target, range(ROWS), shuffles=3, seed=1)
    assert first == probe(FEATURES, target, range(ROWS), shuffles=3, seed=1)
    moved = probe(FEATURES * torch.linspace(1, 50, WIDTH) - 7, target, range(ROWS), shuffles=3, seed=1)
    assert moved.score == pytest.approx(first.score, abs=1e-3)
    assert moved.shuffled == pytest.approx(first.shuffled, abs=1e-3)


def test_no_shuffles_give_no_control():
    result = probe(FEATURES, target_of("length", FEATURES[:, :3]), range(ROWS), shuffles=0)
    assert isinstance(result, ProbeResult)
    assert all(np.isnan([result.shuffled, result.shuffled_sd, result.beaten]))


def test_scores_are_those_of_scikit_learn():
    predictions, values = random(30, 4).numpy(), random(30, 4, seed=1).numpy()
    held = (values > 0).astype(float)
    rounded = predictions.round()  # with ties
    assert mean_auc(rounded, held) == pytest.approx(roc_auc_score(held, rounded, average="macro"))
    assert r_squared(predictions, values) == pytest.approx(
        r2_score(values, predictions, multioutput="variance_weighted")
    )
    labels, guesses = (x[:, 0].round().clip(-1, 1).astype(int) for x in (values, predictions))
    assert balanced_accuracy(guesses, labels) == pytest.approx(balanced_accuracy_score(labels, guesses))


def test_scores_of_perfect_predictions_and_of_those_that_know_nothing():
    values = random(30, 4).numpy()
    held, labels = (values > 0).astype(float), np.arange(30) % 3
    mean = np.broadcast_to(values.mean(0), values.shape)
    assert mean_auc(held, held) == 1
    assert mean_auc(np.zeros_like(held), held) == 0.5
    assert mean_auc(-held, held) == 0
    assert r_squared(values, values) == 1
    assert r_squared(mean, values) == pytest.approx(0)
    assert np.isnan(r_squared(values, np.ones_like(values)))
    assert balanced_accuracy(labels, labels) == 1
    assert balanced_accuracy(np.zeros_like(labels), labels) == pytest.approx(1 / 3)
    assert centred_cosine(values, values) == pytest.approx(1)
    assert centred_cosine(mean, values) == pytest.approx(0)
    assert centred_cosine(2 * mean - values, values) == pytest.approx(-1)


def test_words_are_the_most_common_that_some_rows_lack():
    ids = [torch.tensor(row) for row in ([1, 2, 2, 3], [1, 2], [1, 2, 4], [1, 3, 7, 7])]
    target = bag_of_words(ids, n_words=2)
    assert target.values.tolist() == [[1, 1], [1, 0], [1, 0], [0, 1]]  # 2, then 3; all rows hold 1
    assert (target.name, target.chance, target.has_classes) == ("words", 0.5, False)
    assert bag_of_words(ids, n_words=9).values.shape == (4, 4)


def test_classes_and_lengths():
    target = classes("source", ["b", "a", "b", "c"])
    assert target.values.tolist() == [1, 0, 1, 2]
    assert target.chance == pytest.approx(1 / 3)
    assert target.has_classes
    assert lengths([torch.zeros(3), torch.zeros(5)]).values.tolist() == [[3], [5]]


def test_a_label_that_only_one_fold_has_is_a_miss_and_no_failure():
    target = classes("label", ["rare", *["usual"] * 7])
    assert probe(FEATURES[:8], target, range(8), folds=8, shuffles=1).score == 0.5


def test_what_cannot_be_probed_is_refused(monkeypatch):
    target = target_of("length", FEATURES[:, :3])
    with pytest.raises(InputError, match=r"^1 texts in 5 folds: a probe needs at least 2 of each$"):
        probe(FEATURES, target, [0] * ROWS)
    with pytest.raises(InputError, match=r"^80 texts in 1 folds: a probe needs at least 2 of each$"):
        probe(FEATURES, target, range(ROWS), folds=1)
    with pytest.raises(InputError, match=r"^a probe for source needs rows of at least two kinds; all are \['one'\]$"):
        classes("source", ["one", "one"])
    for ids in ([torch.tensor([1, 2])] * 3, [torch.tensor([n]) for n in range(30)]):
        with pytest.raises(InputError, match="no token is in some of these texts and not in others"):
            bag_of_words(ids, 5)
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(InputError, match=r"probes need scikit-learn: pip install 'prototokens\[geometry\]'"):
        probe(FEATURES, target, range(ROWS))
