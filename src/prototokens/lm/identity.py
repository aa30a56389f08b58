"""Identity: which model, which text and which libraries a result belongs to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version

import torch
from torch import Tensor


@dataclass(frozen=True)
class Identity:
    """Which language model vectors belong to.

    Attributes:
        name: Hub id, alias or path that loads it.
        revision: the Hub commit, or None for a model that is not from the Hub.
        fingerprint: SHA-256 over all source weights; does not depend on the dtype they are loaded in.
        tokenizer_hash: SHA-256 over the vocabulary.
    """

    name: str
    revision: str | None
    fingerprint: str
    tokenizer_hash: str


def hash_ids(ids: Tensor) -> str:
    """SHA-256 of token ids (T,), taken as little-endian 64-bit integers."""
    return hashlib.sha256(ids.detach().to("cpu", torch.int64).numpy().astype("<i8").tobytes()).hexdigest()


def library_versions() -> dict[str, str]:
    """Versions of the libraries that shape a result."""
    return {name: _version(name) for name in ("prototokens", "torch", "transformers")}


_version = cache(version)  # looking one up reads files
