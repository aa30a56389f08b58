"""Probes: what a linear map reads out of vectors about their text, on texts that it was not fitted on.

Numbers are predicted by ridge regression, classes by logistic regression, both from standardised vectors. Each fold of
the texts is predicted by a probe that was fitted on the other folds. All rows of a text are in one fold. Numbers are
predicted as differences from their mean, which is taken as known. So a probe that knows nothing scores chance.

With far fewer texts than dimensions a score means little alone. The same probe on shuffled labels is its control.

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
_MOST_COMMON_SHARE = 0.9  # of the rows: a token that almost all rows have, or lack, tells nothing
_LEAST_COMMON_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class ProbeTarget:
    """What a probe predicts.

    Attributes:
        name: a word.
        values: for each row Q numbers, (N, Q), or the number of a class, (N,).
        score: (predictions, values) -> how good the predictions are; more is better.
        chance: the score of predictions that know nothing of the row.
    """

    name: str
    values: Array
    score: Callable[[Array, Array], float]
    chance: float

    @property
    def has_classes(self) -> bool:
        """Whether the values are classes, not numbers."""
        return self.values.ndim == 1


@dataclass(frozen=True)
class ProbeResult:
    """How well a probe predicts, and its controls.

    Attributes:
        score: of the predictions, see `ProbeTarget`.
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


def bag_of_words(ids: Sequence[Tensor], n_words: int) -> ProbeTarget:
    """Which of the most frequent tokens a row holds, scored by the mean area under the ROC curve over these tokens.

    Args:
        ids: token ids of each row, (T,), of any length.
        n_words: number of tokens at most. They are the most frequent ones of those that a tenth to nine tenths of the
            rows hold.

    Raises:
        InputError: no token is held by some rows and missing in others.
    """
    bags = [set(row.tolist()) for row in ids]
    counts = Counter(token for bag in bags for token in sorted(bag))
    low, high = max(1, _LEAST_COMMON_SHARE * len(ids)), min(_MOST_COMMON_SHARE * len(ids), len(ids) - 1)
    tokens = [token for token, count in counts.most_common() if low <= count <= high][:n_words]
    if not tokens:
        raise InputError("no token is in some of these texts and not in others: there are no words to probe for")
    return ProbeTarget("words", np.array([[float(token in bag) for token in tokens] for bag in bags]), mean_auc, 0.5)


def lengths(ids: Sequence[Tensor]) -> ProbeTarget:
    """The number of tokens of each row, scored by R^2."""
    return ProbeTarget("length", np.array([[float(len(row))] for row in ids]), r_squared, 0.0)


def classes(name: str, labels: Sequence[str]) -> ProbeTarget:
    """A label of each row, scored by balanced accuracy: the mean over labels of the share of right rows.

    Raises:
        InputError: there are fewer than two labels.
    """
    names = sorted(set(labels))
    if len(names) < 2:
        raise InputError(f"a probe for {name} needs rows of at least two kinds; all are {names}")
    return ProbeTarget(name, np.array([names.index(label) for label in labels]), balanced_accuracy, 1 / len(names))


def embeddings(name: str, vectors: Tensor) -> ProbeTarget:
    """A vector (N, S) of each row, scored by the mean cosine of prediction and vector, the vectors' mean subtracted."""
    return ProbeTarget(name, vectors.double().cpu().numpy(), centred_cosine, 0.0)


def probe(
    features: Tensor, target: ProbeTarget, texts: Sequence[int], *, folds: int = 5, shuffles: int = 10, seed: int = 0
) -> ProbeResult:
    """Score linear predictions of a target from vectors, and the same on shuffled labels.

    Args:
        features: the vectors, (N, F).
        target: what is predicted.
        texts: number of each row's text, N.
        folds: number of folds. Texts are dealt to the folds in turn, class by class.
        shuffles: how often labels are shuffled. Whole texts change labels where all rows of every text have the same
            label; otherwise rows do.
        seed: of the shuffles.

    Raises:
        InputError: scikit-learn is not installed, or there is only one text.
    """
    array = features.double().cpu().numpy()
    rng = np.random.default_rng(seed)
    labellings = [target, *(replace(target, values=_shuffled(target.values, texts, rng)) for _ in range(shuffles))]
    score, *control = (
        labelling.score(_predictions(array, labelling, _folds(labelling, texts, folds)), labelling.values)
        for labelling in labellings
    )
    return ProbeResult(
        score=score,
        chance=target.chance,
        shuffled=float(np.mean(control)) if control else float("nan"),
        shuffled_sd=float(np.std(control, ddof=1)) if len(control) > 1 else float("nan"),
        beaten=float(np.mean([score > control_score for control_score in control])) if control else float("nan"),
    )


def mean_auc(predictions: Array, values: Array) -> float:
    """Mean over the columns (N, Q) of the probability that a row with a 1 is predicted higher than a row with a 0.

    Equal predictions count half (Mann & Whitney, 1947).
    """
    aucs = []
    for predicted, is_one in zip(predictions.T, values.T > 0.5, strict=True):
        differences = predicted[is_one][:, None] - predicted[~is_one][None, :]
        aucs.append(np.mean((differences > 0) + 0.5 * (differences == 0)))
    return float(np.mean(aucs))


def r_squared(predictions: Array, values: Array) -> float:
    """1 - squared error / squared distance from the mean: 1 is perfect; 0 or less is no better than the mean."""
    spread = np.square(values - values.mean(0)).sum()
    return float(1 - np.square(predictions - values).sum() / spread) if spread else float("nan")


def balanced_accuracy(predictions: Array, values: Array) -> float:
    """Mean over the classes of the share of right rows, 0 to 1."""
    return float(np.mean([np.mean(predictions[values == label] == label) for label in np.unique(values)]))


def centred_cosine(predictions: Array, values: Array) -> float:
    """Mean cosine of predictions and vectors (N, S), the vectors' mean subtracted from both, -1 to 1."""
    first, second = predictions - values.mean(0), values - values.mean(0)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(np.mean((first * second).sum(1) / np.where(norms > 0, norms, 1)))


def _predictions(features: Array, target: ProbeTarget, fold_of: Array) -> Array:
    """Predictions of all rows, each fold's by a probe that was fitted on the other folds."""
    predictions = np.zeros(target.values.shape, dtype=target.values.dtype)
    for fold in np.unique(fold_of):
        inside = fold_of == fold
        labels = target.values[~inside]
        if target.has_classes and len(np.unique(labels)) == 1:  # nothing to tell apart
            predictions[inside] = labels[0]
            continue
        predicted = _model(target).fit(features[~inside], labels).predict(features[inside])
        predicted = predicted.reshape(predictions[inside].shape)
        # The other folds' mean is low where this fold's is high. Left in, it would score below chance.
        predictions[inside] = predicted if target.has_classes else predicted - labels.mean(0) + target.values.mean(0)
    return predictions


def _model(target: ProbeTarget) -> Any:
    linear = scikit_learn("linear_model", "probes")
    scaler = scikit_learn("preprocessing", "probes").StandardScaler()
    regression = (
        linear.LogisticRegression(C=_INVERSE_PENALTY, max_iter=2000)
        if target.has_classes
        else linear.RidgeCV(alphas=_ALPHAS)
    )
    return scikit_learn("pipeline", "probes").make_pipeline(scaler, regression)


def _folds(target: ProbeTarget, texts: Sequence[int], folds: int) -> Array:
    """The fold of each row, (N,): texts are dealt to the folds in turn, those of one class one after another.

    A text's class is that of its first row. So the folds have equal shares of every class, as far as possible.
    Otherwise the other folds would have less of a class that one fold has more of. A probe that knows nothing would
    then guess the wrong class, and score below chance.
    """
    distinct = list(dict.fromkeys(texts))
    if len(distinct) < 2 or folds < 2:
        raise InputError(f"{len(distinct)} texts in {folds} folds: a probe needs at least 2 of each")
    if target.has_classes:
        distinct.sort(key=lambda text: target.values[texts.index(text)])
    turn = {text: i for i, text in enumerate(distinct)}
    return np.array([turn[text] % folds for text in texts])


def _shuffled(values: Array, texts: Sequence[int], rng: np.random.Generator) -> Array:
    """Values in a random order: of whole texts where all rows of every text have the same value, else of rows."""
    distinct = list(dict.fromkeys(texts))
    text_of_row = np.array([distinct.index(text) for text in texts])
    first_row = np.array([texts.index(text) for text in distinct])
    if len(distinct) < len(texts) and np.array_equal(values, values[first_row][text_of_row]):
        return values[first_row][rng.permutation(len(distinct))][text_of_row]
    return values[rng.permutation(len(values))]
