"""Distances between texts: token by token (TF-IDF), and in meaning (the teacher's sentence embeddings).

Reference: Term-weighting approaches in automatic text retrieval (Salton & Buckley, 1988),
https://doi.org/10.1016/0306-4573(88)90021-0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .extras import scikit_learn
from .teacher import Teacher, default_teacher_folder, load_teacher


def tfidf_distances(documents: Sequence[Sequence[int]] | Tensor) -> Tensor:
    """Cosine distances between the TF-IDF vectors of token ids.

    weight(t, d) = count of t in d * (1 + ln((1 + n) / (1 + documents with t)));  distance = 1 - cosine

    The document frequencies are counted in the n documents given.

    Args:
        documents: ids of each document, at least one each; or (B, T).

    Returns:
        (B, B), float32, from 0 to 1: 1 for documents without a common token.

    Raises:
        InputError: scikit-learn is not installed.
    """
    rows = documents.tolist() if isinstance(documents, Tensor) else [list(ids) for ids in documents]
    # The vectoriser expects strings to split; `analyzer=list` takes the ids as its tokens.
    vectoriser = scikit_learn("feature_extraction.text", "TF-IDF distances").TfidfVectorizer(analyzer=list)
    weights = vectoriser.fit_transform(rows)
    return _distances(torch.from_numpy(weights.toarray()))


def semantic_distances(texts: Sequence[str], teacher: Teacher | None = None) -> Tensor:
    """Cosine distances between the teacher's embeddings of texts, (B, B), float32, from 0 to 2.

    Args:
        texts: one or more.
        teacher: what embeds them; `load_teacher()` if None.

    Raises:
        InputError: the teacher is not installed.
    """
    return _distances((teacher or load_teacher()).embed(texts))


def check_installed() -> None:
    """Check, before long work begins, that both text distances can be computed.

    Raises:
        InputError: scikit-learn is not installed, or the teacher is neither installed nor to be had from the Hub.
    """
    scikit_learn("feature_extraction.text", "TF-IDF distances")
    default_teacher_folder()


def _distances(vectors: Tensor) -> Tensor:
    """1 - cosine of all pairs of rows of length 1, (B, B); the diagonal is 0."""
    vectors = vectors.double()
    distances = (1 - vectors @ vectors.T).clamp(0, 2)
    return distances.fill_diagonal_(0).float()
