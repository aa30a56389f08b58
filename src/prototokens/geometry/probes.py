"""Probes: what a linear map reads out of vectors about their text, on texts that it was not fitted on.

Ridge regression for numbers, logistic regression for classes, both of standardised vectors. Predictions are made for
each fold of the texts by a probe that was fitted on the others; all rows of a text are in one fold. What is predicted
of numbers is their difference from the mean, which is taken as known, so that knowing nothing scores chance. With far
fewer texts than dimensions a score means little alone: it stands beside that of the same probe on shuffled labels.

References: Understanding intermediate layers using linear classifier probes (Alain & Bengio, 2017),
https://arxiv.org/abs/1610.01644; Designing and Interpreting Probes with Control Tasks (Hewitt & Liang, 2019),
https://arxiv.org/abs/1909.03368.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import InputError
from .extras import scikit_learn

Array = np.ndarray[Any, Any]

_ALPHAS = tuple(10.0**k for k in range(-1, 6))
_INVERSE_PENALTY = 0.1
_MOST_COMMON_SHARE = 0.9  # of the rows: what almost all rows have, or lack, cannot be told apart
_LEAST_COMMON_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Target:
    """What a probe predicts.

    Attributes:
        name: a word.
        values: of each row: numbers (N, Q), or classes (N,), integers.
        score: (predictions, values) -> how good they are; more is better.
        chance: the score of predictions that know nothing of the row.
    """

    name: str
    values: Array
    score: Callable[[Array, Array], float]
    chance: float

    @property
    def has_classes(self) -> bool:
        """Whether classes are predicted, and not numbers."""
        return self.values.ndim == 1


@dataclass(frozen=True)
class Probed:
    """What a probe found.

    Attributes:
        score: of the predictions, see `Target`.
        chance: the score of predictions that know nothing of the row.
        shuffled: mean score of the same probe on shuffled labels.
        shuffled_sd: standard deviation over the shuffles.
        beaten: share of the shuffles whose score is below the probe's.
    """

    score: float
    chance: float
    shuffled: float
    shuffled_sd: float
    beaten: float


def bag_of_words(ids: Sequence[Tensor], most: int) -> Target:
    """Which of the most frequent tokens a row holds, scored by the mean area under the ROC curve over these tokens.

    Args:
        ids: token ids of each row, (T,), of any length.
        most: how many tokens: those that most rows hold, of those that a tenth to nine tenths of the rows do.

    Raises:
        InputError: no token is held by some rows and missing in others.
    """
    held = [set(own.tolist()) for own in ids]
    counts = Counter(token for own in held for token in sorted(own))
    low, high = _LEAST_COMMON_SHARE * len(ids), _MOST_COMMON_SHARE * len(ids)
    tokens = [token for token, count in counts.most_common() if max(low, 1) <= count <= min(high, len(ids) - 1)][:most]
    if not tokens:
        raise InputError("no token is in some of these texts and not in others: there are no words to probe for")
    return Target("words", np.array([[float(t in own) for t in tokens] for own in held]), mean_auc, 0.5)


def lengths(ids: Sequence[Tensor]) -> Target:
    """The number of tokens of each row, scored by R^2."""
    return Target("length", np.array([[float(len(own))] for own in ids]), r_squared, 0.0)


def classes(name: str, labels: Sequence[str]) -> Target:
    """A label of each row, scored by balanced accuracy: the mean over labels of the share of its rows that is right.

    Raises:
        InputError: there are fewer than two labels.
    """
    known = sorted(set(labels))
    if len(known) < 2:
        raise InputError(f"a probe for {name} needs rows of two kinds at least; all are {known}")
    return Target(name, np.array([known.index(label) for label in labels]), balanced_accuracy, 1 / len(known))


def embeddings(name: str, vectors: Tensor) -> Target:
    """A vector (N, S) of each row, scored by the mean cosine between prediction and vector, both less their mean."""
    return Target(name, vectors.double().cpu().numpy(), centred_cosine, 0.0)


def probe(
    features: Tensor, target: Target, texts: Sequence[int], *, folds: int = 5, shuffles: int = 10, seed: int = 0
) -> Probed:
    """Score linear predictions of a target from vectors, and the same on shuffled labels.

    Args:
        features: what is read from, (N, F).
        target: what is predicted.
        texts: number of the text that each row belongs to, N.
        folds: at most as many as there are texts, which go to them in turn, class by class.
        shuffles: how often labels are shuffled: between texts where all rows of every text have the same label, else
            between rows.
        seed: of the shuffles.

    Raises:
        InputError: scikit-learn is not installed, or there is only one text.
    """
    own = features.double().cpu().numpy()
    rng = np.random.default_rng(seed)
    labellings = [target, *(replace(target, values=_shuffled(target.values, texts, rng)) for _ in range(shuffles))]
    score, *control = (one.score(_predictions(own, one, _folds(one, texts, folds)), one.values) for one in labellings)
    return Probed(
        score=score,
        chance=target.chance,
        shuffled=float(np.mean(control)) if control else float("nan"),
        shuffled_sd=float(np.std(control, ddof=1)) if len(control) > 1 else float("nan"),
        beaten=float(np.mean([score > other for other in control])) if control else float("nan"),
    )


def mean_auc(predictions: Array, values: Array) -> float:
    """Mean over the columns (N, Q) of the chance that a row with a 1 is predicted higher than one with a 0.

    Equal predictions count half (Mann & Whitney, 1947).
    """
    found = []
    for predicted, held in zip(predictions.T, values.T > 0.5, strict=True):
        differences = predicted[held][:, None] - predicted[~held][None, :]
        found.append(np.mean((differences > 0) + 0.5 * (differences == 0)))
    return float(np.mean(found))


def r_squared(predictions: Array, values: Array) -> float:
    """1 - squared error / squared distance from the mean: 1 is perfect, 0 or less is no better than the mean."""
    spread = np.square(values - values.mean(0)).sum()
    return float(1 - np.square(predictions - values).sum() / spread) if spread else float("nan")


def balanced_accuracy(predictions: Array, values: Array) -> float:
    """Mean over the classes of the share of their rows that is right, 0 to 1."""
    return float(np.mean([np.mean(predictions[values == label] == label) for label in np.unique(values)]))


def centred_cosine(predictions: Array, values: Array) -> float:
    """Mean cosine between predictions and vectors (N, S), both less the mean of the vectors, -1 to 1."""
    first, second = predictions - values.mean(0), values - values.mean(0)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(np.mean((first * second).sum(1) / np.where(norms > 0, norms, 1)))


def _predictions(features: Array, target: Target, fold_of: Array) -> Array:
    found = np.zeros(target.values.shape, dtype=target.values.dtype)
    for fold in np.unique(fold_of):
        inside = fold_of == fold
        known, labels = features[~inside], target.values[~inside]
        if target.has_classes and len(np.unique(labels)) == 1:  # nothing to tell apart
            found[inside] = labels[0]
            continue
        predicted = _model(target).fit(known, labels).predict(features[inside]).reshape(found[inside].shape)
        # The other folds' mean is low where this fold's is high: it alone would score below chance.
        found[inside] = predicted if target.has_classes else predicted - labels.mean(0) + target.values.mean(0)
    return found


def _model(target: Target) -> Any:
    linear = scikit_learn("linear_model", "probes")
    scaler = scikit_learn("preprocessing", "probes").StandardScaler()
    own = (
        linear.LogisticRegression(C=_INVERSE_PENALTY, max_iter=2000)
        if target.has_classes
        else linear.RidgeCV(alphas=_ALPHAS)
    )
    return scikit_learn("pipeline", "probes").make_pipeline(scaler, own)


def _folds(target: Target, texts: Sequence[int], folds: int) -> Array:
    """The fold of each row, (N,): texts go to the folds in turn, those of one class one after another.

    A text's class is that of its first row. So every fold has as much of every class as can be. A class that a fold
    has more of, the others have less of: a probe that knows nothing would guess what is not there, and score below
    chance.
    """
    known = list(dict.fromkeys(texts))
    if len(known) < 2 or folds < 2:
        raise InputError(f"{len(known)} texts in {folds} folds: a probe needs at least 2 of each")
    if target.has_classes:
        known.sort(key=lambda text: target.values[texts.index(text)])
    number = {text: place for place, text in enumerate(known)}
    return np.array([number[text] % folds for text in texts])


def _shuffled(values: Array, texts: Sequence[int], rng: np.random.Generator) -> Array:
    known = list(dict.fromkeys(texts))
    number = np.array([known.index(text) for text in texts])
    first = np.array([texts.index(text) for text in known])
    if len(known) < len(texts) and np.array_equal(values, values[first][number]):
        return values[first][rng.permutation(len(known))][number]
    return values[rng.permutation(len(values))]
