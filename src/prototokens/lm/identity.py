"""Identity: which model, which text and which libraries a result belongs to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .fingerprints import former_fingerprints


@dataclass(frozen=True)
class Identity:
    """Which language model vectors belong to.

    Attributes:
        name: Hub id, alias or path that loads it.
        revision: the Hub commit, or None for a model that is not from the Hub.
        fingerprint: SHA-256 over all source weights and the configuration's values that change logits; does not depend
            on the dtype they are loaded in.
        tokenizer_hash: SHA-256 over the vocabulary.
    """

    name: str
    revision: str | None
    fingerprint: str
    tokenizer_hash: str

    def __post_init__(self) -> None:
        for name in ("name", "fingerprint", "tokenizer_hash"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"the model's {name} is {getattr(self, name)!r:.80}; it must be text")
        if not isinstance(self.revision, str | None):
            raise InputError(f"the model's revision is {self.revision!r:.80}; it must be text or None")


def same_weights(recorded: str, current: str) -> bool:
    """Whether a recorded fingerprint is that of a model that was loaded here, by today's scheme or a former one."""
    return recorded == current or recorded in former_fingerprints(current)


def same_model(one: Identity, other: Identity) -> bool:
    """Whether two identities have the same weights and the same vocabulary; names and revisions may differ."""
    weights = same_weights(one.fingerprint, other.fingerprint) or same_weights(other.fingerprint, one.fingerprint)
    return weights and one.tokenizer_hash == other.tokenizer_hash


def check_same_model(holder: str, recorded: Identity, current: Identity) -> None:
    """Refuse what belongs to another model than the current one.

    Args:
        holder: what belongs to a model, with its verb, as the message begins: `"these proto-tokens belong"`.
        recorded: the model that it belongs to.
        current: the model that it is to be used with.

    Raises:
        InputError: the weights or the vocabulary differ; the message names both models.
    """
    if same_model(recorded, current):
        return
    if not same_weights(recorded.fingerprint, current.fingerprint):
        revision = f" at revision {recorded.revision}" if recorded.revision else ""
        raise InputError(
            f"{holder} to {recorded.name}{revision} (weights {recorded.fingerprint[:12]}), "
            f"not to {current.name} (weights {current.fingerprint[:12]})"
        )
    raise InputError(f"{holder} to {recorded.name} with another tokenizer vocabulary")


def hash_vocabulary(tokenizer: Any) -> str:
    """SHA-256 over a tokenizer's vocabulary, tokens with their ids."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()


def hash_ids(ids: Tensor) -> str:
    """SHA-256 of token ids (T,), taken as little-endian 64-bit integers."""
    return hashlib.sha256(ids.detach().to("cpu", torch.int64).numpy().astype("<i8").tobytes()).hexdigest()


def hash_weights(weights: Iterable[Tensor]) -> str:
    """SHA-256 of tensors, one after another, as their bytes lie in memory."""
    digest = hashlib.sha256()
    for tensor in weights:
        digest.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def library_versions() -> dict[str, str]:
    """Versions of the libraries that shape a result."""
    return {name: _version(name) for name in ("prototokens", "torch", "transformers")}


_version = cache(version)  # looking one up reads files
