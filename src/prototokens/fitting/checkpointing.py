"""Activation checkpointing of a frozen model: less memory for a second forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..errors import InputError
from ..lm.checkpointing import recomputed
from ..lm.frozen import FrozenLM


@contextmanager
def checkpointed(lm: FrozenLM) -> Iterator[None]:
    """Keep only the inputs of every layer while the block runs; the backward pass computes the rest anew.

    Hugging Face's own switch works in training mode only, in which dropout would be at work. Here the layers' `forward`
    is wrapped, so that the model stays in evaluation mode, and is put back afterwards.

    Raises:
        InputError: the model has no layers in a `ModuleList`.
    """
    with recomputed(_layers(lm)):
        yield


def _layers(lm: FrozenLM) -> list[nn.Module]:
    """The model's layers: the longest list of modules, of the outermost if several are as long."""
    lists = [module for module in lm.model.modules() if isinstance(module, nn.ModuleList)]
    layers = list(max(lists, key=len, default=[]))
    if not layers:
        raise InputError(f"{lm.identity.name} has no list of layers: it cannot be fitted with checkpointing=True")
    return layers
