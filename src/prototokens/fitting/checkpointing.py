"""Which layers of a model a fit with activation checkpointing computes anew."""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch import nn

from ..errors import InputError
from ..lm.checkpointing import recomputed
from ..lm.frozen import FrozenLM


def checkpointed(lm: FrozenLM) -> AbstractContextManager[None]:
    """Keep only the inputs of every layer while the block runs; the backward pass computes the rest anew.

    Raises:
        InputError: the model has no layers in a `ModuleList`.
    """
    lists = [module for module in lm.model.modules() if isinstance(module, nn.ModuleList)]
    layers = list(max(lists, key=len, default=[]))  # of the outermost if several are as long
    if not layers:
        raise InputError(f"{lm.identity.name} has no list of layers: it cannot be fitted with checkpointing=True")
    return recomputed(layers)
