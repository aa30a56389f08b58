"""What a compiled model hides: `torch.compile` wraps a model, and the wrapper shows neither signature nor class."""

from __future__ import annotations

import inspect
from typing import Any


def uncompiled(model: Any) -> Any:
    """The model inside the wrapper of `torch.compile`, with the same weights; any other model as it is."""
    return getattr(model, "_orig_mod", model)


def forward_parameters(model: Any) -> frozenset[str]:
    """Names of what a model's `forward` takes, compiled or not."""
    return frozenset(inspect.signature(type(uncompiled(model)).forward).parameters)
