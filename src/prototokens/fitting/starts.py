"""Where a descent begins: the start vectors, drawn from a seed and the text, whatever else is in the batch."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch
from torch import Tensor

from ..arrangements import arrangement_named
from ..lm.frozen import FrozenLM
from ..lm.identity import hash_ids
from .recipes import DRAWN_STARTS, FitConfig
from .starter import Starter, shipped_starter


def start_vectors(lm: FrozenLM, target_ids: Tensor, config: FitConfig, restart: int) -> tuple[Tensor, Tensor]:
    """Start of e and m for one text, or for the texts that share a vector.

    Args:
        lm: the language model.
        target_ids: ids of the text, (T,), or of all texts that share the vector, (G, T).
        config: `arrangement`, `e_tokens`, `start`, `perturbation` and `seed` are used.
        restart: number of the restart; each draws its own perturbation.

    Returns:
        e (K, D) and m (D,), float32, on the model's device.
    """
    statistics = lm.embedding_statistics
    if config.start in DRAWN_STARTS:
        drawn = _noise(lm, target_ids, config, restart)
        if config.start == "vocabulary":
            drawn = statistics.mean + statistics.std * drawn
        return drawn[:-1], drawn[-1]
    b = arrangement_named(config.arrangement).block_length or target_ids.shape[-1]
    text_means = _block_means(lm.embed(target_ids), b)  # (K, D), or (1, D) without blocks
    starter = learned_start(lm, config)
    if starter is not None:
        e, m = text_means + starter.e.to(lm.device), starter.m.to(lm.device)
    elif config.start == "text-m":
        e, m = statistics.mean, text_means.mean(0)
    else:
        e, m = text_means, statistics.mean
    e_noise, m_noise = perturbations(lm, target_ids, config, restart)
    return e + e_noise, m + m_noise


def perturbations(lm: FrozenLM, target_ids: Tensor, config: FitConfig, restart: int) -> tuple[Tensor, Tensor]:
    """What a recipe adds to a start of e, (K, D), and of m, (D,), float32; arguments as in `start_vectors`."""
    noise = _noise(lm, target_ids, config, restart) * (config.perturbation * lm.embedding_statistics.std)
    return noise[:-1], noise[-1]


def learned_start(lm: FrozenLM, config: FitConfig) -> Starter | None:
    """The learned start that a recipe means for this model, or None.

    Raises:
        InputError: the recipe names a learned start of another model or arrangement.
    """
    arrangement = arrangement_named(config.arrangement)
    if isinstance(config.start, Starter):
        config.start.check(lm.identity, arrangement)
        return config.start
    return shipped_starter(lm.identity, arrangement) if config.start == "auto" else None


Axes = tuple[Tensor, Tensor] | tuple[None, None]
"""Axes of e and of m, each (D, D), float32, columns; None: the coordinates."""


def learned_axes(lm: FrozenLM, starter: Starter | None) -> Axes:
    """The axes that came with a learned start, on the model's device, if there are any."""
    if starter is None or starter.axes is None:
        return None, None
    e, m = starter.axes.to(lm.device, torch.float32)
    return e, m


def resolve_optimiser(lm: FrozenLM, config: FitConfig) -> tuple[FitConfig, Axes]:
    """Settle which optimiser a recipe uses on this model, and along which axes.

    Returns:
        The recipe, its `optimiser` being the one that is used: `axes_optimiser` where the start has learned axes. The
        `axes_optimiser` that is not used becomes None. And the axes of e and of m.
    """
    if config.axes_optimiser is not None:
        axes = learned_axes(lm, learned_start(lm, config))
        if axes[0] is not None:
            return replace(config, optimiser=config.axes_optimiser), axes
    return replace(config, axes_optimiser=None), (None, None)


def start_name(lm: FrozenLM, config: FitConfig) -> str:
    """Name of the start that a recipe means for this model, for the record."""
    starter = learned_start(lm, config)
    if starter is not None:
        return starter.name
    return "text-e" if config.start == "auto" else str(config.start)


def _block_means(embedded: Tensor, b: int) -> Tensor:
    """Means of embeddings (T, D) or (G, T, D) over blocks of b tokens, the last of which may be shorter: (K, D)."""
    n_whole = embedded.shape[-2] // b * b
    if embedded.ndim > 2 or n_whole <= b:
        return torch.stack([block.flatten(0, -2).mean(0) for block in embedded.split(b, dim=-2)])
    means = embedded[:n_whole].unflatten(0, (-1, b)).mean(1)  # at once: a GPU would wait for hundreds of small calls
    rest = embedded[n_whole:]
    return torch.cat([means, rest.mean(0, keepdim=True)]) if len(rest) else means


def _noise(lm: FrozenLM, target_ids: Tensor, config: FitConfig, restart: int) -> Tensor:
    """Draws from N(0, 1) for the K e-tokens and m, (K+1, D)."""
    generator = _generator(config.seed, restart, target_ids)
    n_e_tokens = arrangement_named(config.arrangement).n_e_tokens(target_ids.shape[-1], config.e_tokens)
    return torch.randn(n_e_tokens + 1, lm.width, generator=generator).to(lm.device)


def _generator(seed: int, restart: int, target_ids: Tensor) -> torch.Generator:
    key = hashlib.sha256(f"{seed} {restart} {hash_ids(target_ids)}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
