"""Attention kernels that return their weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Attention that returns its weights while the block runs; afterwards the model has its former kernels."""
    configs = {id(c): c for c in (getattr(part, "config", None) for part in model.modules()) if c is not None}
    former = [
        (c, c._attn_implementation_internal) for c in configs.values() if hasattr(c, "_attn_implementation_internal")
    ]
    try:
        if former:
            model.set_attn_implementation("eager")
        yield
    finally:
        for config, name in former:
            config._attn_implementation_internal = name
