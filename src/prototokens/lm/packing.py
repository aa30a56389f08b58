"""transformers' search for packed sequences, which every forward pass of a GPU would wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_NAME = "find_packed_sequence_indices"
_lock = threading.Lock()
_running = 0
_original: Callable[..., Any] | None = None


@contextmanager
def without_packing() -> Iterator[None]:
    """No input is searched for several texts packed into one row while the block runs: there are none here.

    transformers looks for them in the positions of every pass without a mask or cache. The answer is read back from the
    device, so that the queue of a GPU runs empty; a compiled model gets a mask instead of a causal kernel.
    """
    from transformers import masking_utils

    global _running, _original
    with _lock:
        if _running == 0 and hasattr(masking_utils, _NAME):  # it is not part of transformers' promised interface
            _original = getattr(masking_utils, _NAME)
            setattr(masking_utils, _NAME, _nothing_packed)
        _running += 1
    try:
        yield
    finally:
        with _lock:
            _running -= 1
            if _running == 0 and _original is not None:
                setattr(masking_utils, _NAME, _original)
                _original = None


def _nothing_packed(position_ids: Any) -> None:
    """Every row is one text."""
