"""What a descent begins with: the groups of texts, the fixed vectors, and the banks of e and of m."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ..arrangements import Arrangement, arrangement_named
from ..errors import InputError
from ..lm.frozen import FrozenLM
from .bank import AxisStatistics, Bank
from .given import Given
from .recipes import FitConfig
from .starts import Axes, perturbations, start_vectors


def fixed_vectors(lm: FrozenLM, arrangement: Arrangement, given: Given) -> Tensor:
    """The arrangement's fixed vectors, (F, D): those given, and the model's own.

    Raises:
        InputError: a vector is given that the arrangement does not hold, or of another width.
    """
    chosen = given.fixed or {}
    unknown = sorted(set(chosen) - set(arrangement.fixed))
    if unknown:
        raise InputError(f"arrangement {arrangement.name!r} holds no fixed vector {unknown[0]!r}")
    rows = [
        _checked(f"fixed[{name!r}]", chosen[name], (lm.width,)) if name in chosen else lm.fixed_vector(name).cpu()
        for name in arrangement.fixed
    ]
    return torch.stack(rows).to(lm.device) if rows else torch.empty(0, lm.width, device=lm.device)


def group_numbers(given: Given, n_texts: int) -> Tensor:
    """Group of each text, numbered from 0 without gaps, (B,); a text that shares nothing is a group of its own.

    Raises:
        InputError: there is not one group number per text.
    """
    if given.share is None:
        return torch.arange(n_texts)
    groups = torch.zeros(n_texts, dtype=torch.long) if given.groups is None else given.groups.cpu()
    if groups.shape != (n_texts,):
        raise InputError(f"groups is {tuple(groups.shape)}; it must be ({n_texts},), one number per text")
    return groups.unique(return_inverse=True)[1]


def banks(
    lm: FrozenLM,
    target_ids: Tensor,
    group_of: Tensor,
    config: FitConfig,
    given: Given,
    axes: Axes,
    statistics: tuple[AxisStatistics, AxisStatistics] | None,
) -> tuple[Bank, Bank]:
    """The banks of e and of m for the rows of texts (B, T): text by text, and for each its restarts.

    Raises:
        InputError: a given vector is of another shape, or not finite.
    """
    n_texts, restarts = len(target_ids), config.restarts
    number = torch.arange(n_texts * restarts, device=lm.device)
    text_of = number // restarts
    # One vector for all rows of a group in one restart.
    shared_of = (group_of[:, None] * restarts + torch.arange(restarts)).flatten().to(lm.device)

    @cache
    def starts(is_shared: bool, perturbed_only: bool) -> list[tuple[Tensor, Tensor]]:
        sharing = [target_ids[group_of == g] for g in group_of.unique()] if is_shared else target_ids
        draw = perturbations if perturbed_only else start_vectors
        return [draw(lm, ids, config, r) for ids in sharing for r in range(restarts)]

    def held(name: str, vectors: Tensor, shape: tuple[int, ...]) -> Bank:
        per_text = vectors.ndim > len(shape)
        vectors = _checked(name, vectors, (n_texts, *shape) if per_text else shape).to(lm.device)
        values = vectors.reshape(n_texts if per_text else 1, -1, lm.width)
        return Bank(values, text_of if per_text else torch.zeros_like(text_of), trained=False)

    def trained(which: int, name: str, start: Tensor | None, shape: tuple[int, ...]) -> Bank:
        is_shared = given.share == name
        values = torch.stack([vectors[which] for vectors in starts(is_shared, start is not None)])
        if start is not None:
            count = len(values) // restarts
            start = _checked(f"{name}_start", start, (count, *shape) if start.ndim > len(shape) else shape)
            values += start.to(lm.device).expand(count, *shape).repeat_interleave(restarts, 0)
        values, of = values.reshape(len(values), -1, lm.width), shared_of if is_shared else number
        return Bank(values, of, trained=True, axes=axes[which], statistics=statistics and statistics[which])

    n_e_tokens = arrangement_named(config.arrangement).n_e_tokens(target_ids.shape[-1], config.e_tokens)
    e_shape, m_shape = (n_e_tokens, lm.width), (lm.width,)
    return (
        trained(0, "e", given.e_start, e_shape) if given.e is None else held("e", given.e, e_shape),
        trained(1, "m", given.m_start, m_shape) if given.m is None else held("m", given.m, m_shape),
    )


def _checked(name: str, vectors: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(vectors.shape) != shape:
        raise InputError(f"{name} is {tuple(vectors.shape)}; it must be {shape}")
    if not vectors.isfinite().all():
        raise InputError(f"{name} holds values that are not finite")
    return vectors.detach().float()
