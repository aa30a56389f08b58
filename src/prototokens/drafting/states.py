"""States: what a model's head reads its logits from, whatever the model does before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..lm.frozen import FrozenLM


def head(lm: FrozenLM) -> nn.Module:
    """The module that makes logits of states.

    Raises:
        InputError: the model names none.
    """
    get: Any = getattr(lm.model, "get_output_embeddings", None)
    module = get() if get is not None else None
    if not isinstance(module, nn.Module):
        raise InputError(f"{lm.identity.name} names no output head, from which drafts are read")
    return module


def logits_of(lm: FrozenLM, states: Tensor) -> Tensor:
    """What the head makes of states (..., H): logits (..., V), float32, before the model scales or caps them."""
    return head(lm)(states.to(lm.dtype)).to(lm.device).float()


def head_of_some(lm: FrozenLM, ids: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The head for some tokens alone: states (..., H) to logits (..., S), float32.

    Args:
        lm: the frozen model.
        ids: the tokens, int64, (S,); None: all. A head that is no plain matrix in the model's dtype makes the logits of
            all tokens, and those of the others are dropped.
    """
    if ids is None:
        return lambda states: logits_of(lm, states)
    module = head(lm)
    if type(module) is not nn.Linear or module.weight.is_meta or module.weight.dtype != lm.dtype:
        columns = ids.to(lm.device)
        return lambda states: logits_of(lm, states)[..., columns]
    rows = ids.to(module.weight.device)
    weight, bias = module.weight[rows], None if module.bias is None else module.bias[rows]
    return lambda states: nn.functional.linear(states.to(weight), weight, bias).to(lm.device).float()


@contextmanager
def states_kept(lm: FrozenLM, read: slice = slice(None)) -> Iterator[list[Tensor]]:
    """Keep what comes to the head while the block runs: one tensor (B, T, H) for each pass.

    Args:
        lm: the frozen model.
        read: the positions that the head makes logits of.
    """
    states: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        states.append(inputs[0])
        return (inputs[0][:, read],)

    handle = head(lm).register_forward_pre_hook(keep)
    try:
        yield states
    finally:
        handle.remove()


@torch.no_grad()
def state_width(lm: FrozenLM) -> int:
    """H, the width of what the head reads."""
    with states_kept(lm) as states:
        lm.next_token_logits(torch.zeros(1, dtype=torch.long))
    return states[0].shape[-1]
