"""Activation checkpointing of a frozen model: less memory for a second forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import InputError
from ..lm.frozen import FrozenLM


@contextmanager
def checkpointed(lm: FrozenLM) -> Iterator[None]:
    """Keep only the inputs of every layer while the block runs; the backward pass computes the rest anew.

    Hugging Face's own switch works in training mode only, in which dropout would be at work. Here the layers' `forward`
    is wrapped, so that the model stays in evaluation mode, and is put back afterwards.

    Raises:
        InputError: the model has no layers in a `ModuleList`.
    """
    layers = _layers(lm)
    before = [layer.__dict__.get("forward") for layer in layers]  # accelerate's hooks stand there
    for layer in layers:
        layer.forward = partial(_computed_anew, layer.forward)
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def _computed_anew(forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    # A frozen model in evaluation mode draws nothing at random, so that no random state has to be kept.
    return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False, **options)


def _layers(lm: FrozenLM) -> list[nn.Module]:
    """The model's layers: the longest list of modules, of the outermost if several are as long."""
    lists = [module for module in lm.model.modules() if isinstance(module, nn.ModuleList)]
    layers = list(max(lists, key=len, default=[]))
    if not layers:
        raise InputError(f"{lm.identity.name} has no list of layers: it cannot be fitted with checkpointing=True")
    return layers
