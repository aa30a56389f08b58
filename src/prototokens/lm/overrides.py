"""What transformers decides in every pass, and decides badly for a frozen model on a GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

_lock = threading.Lock()
_running = 0
_originals: dict[tuple[str, str], Callable[..., Any]] = {}


@contextmanager
def overrides() -> Iterator[None]:
    """Replace these decisions while the block runs; what a model computes stays the same, but for rounding.

    - transformers looks for several texts packed into one row, in the positions of every pass without mask or cache.
      There are none here. The answer would be read back from the device, so that the queue of a GPU runs empty, and a
      compiled model would get a mask in place of a causal kernel.
    - It lets attention share keys and values among heads. On CUDA only the kernels for 16 bits can do that; others
      fall back to one that writes all attention weights to memory. In float32 the keys and values are repeated instead.
    """
    global _running
    with _lock:
        if _running == 0:
            for (module_name, name), replacement in _REPLACEMENTS.items():
                module = import_module(f"transformers.{module_name}")
                if hasattr(module, name):  # they are not part of transformers' promised interface
                    _originals[module_name, name] = getattr(module, name)
                    setattr(module, name, replacement)
        _running += 1
    try:
        yield
    finally:
        with _lock:
            _running -= 1
            if _running == 0:
                for (module_name, name), original in _originals.items():
                    setattr(import_module(f"transformers.{module_name}"), name, original)


def in_overrides(forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """Call a layer that is computed anew in the backward pass, when the pass that it belongs to is over."""
    if torch.compiler.is_compiling():  # in one graph with that pass
        return forward(*inputs, **options)
    with overrides():
        return forward(*inputs, **options)


def _nothing_packed(position_ids: Tensor) -> None:
    """Every row is one text."""


def _shares_keys(attention_mask: Tensor | None, key: Tensor, *arguments: Any) -> Any:
    """Whether attention may share keys among heads."""
    if key.is_cuda and key.dtype not in (torch.float16, torch.bfloat16):
        return False
    return _originals["integrations.sdpa_attention", "use_gqa_in_sdpa"](attention_mask, key, *arguments)


_REPLACEMENTS: dict[tuple[str, str], Callable[..., Any]] = {
    ("masking_utils", "find_packed_sequence_indices"): _nothing_packed,
    ("integrations.sdpa_attention", "use_gqa_in_sdpa"): _shares_keys,
}
