"""Where a descent begins: the start vectors, drawn from a seed that knows the text but not the batch."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from .lm import FrozenLM
from .recipes import FitConfig
from .tokens import hash_ids


def start_vectors(lm: FrozenLM, target_ids: Tensor, config: FitConfig, restart: int) -> tuple[Tensor, Tensor]:
    """Start of e and m for one text, or for the texts that share a vector.

    Args:
        lm: the language model.
        target_ids: ids of the text, (T,), or of all texts that share the vector, (G, T).
        config: `start`, `perturbation`, `e_tokens` and `seed` are used.
        restart: number of the restart; each draws its own perturbation.

    Returns:
        e (K, D) and m (D,), float32, on the model's device.
    """
    shape = (config.e_tokens + 1, lm.width)
    noise = torch.randn(shape, generator=_generator(config.seed, restart, target_ids)).to(lm.device)  # (K+1, D)
    if config.start == "normal":
        return noise[:-1], noise[-1]
    statistics = lm.embedding_statistics
    text_mean = lm.embed(target_ids).flatten(0, -2).mean(0)  # (D,)
    e, m = (text_mean, statistics.mean) if config.start == "text-e" else (statistics.mean, text_mean)
    noise = noise * (config.perturbation * statistics.std)
    return e + noise[:-1], m + noise[-1]


def _generator(seed: int, restart: int, target_ids: Tensor) -> torch.Generator:
    key = hashlib.sha256(f"{seed} {restart} {hash_ids(target_ids)}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
