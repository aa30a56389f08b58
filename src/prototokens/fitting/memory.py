"""Memory of a fit: an estimate before anything is allocated, and how many rows pass through the model together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ..arrangements import MOST_TOKENS, Layout
from ..errors import InputError
from ..lm.config_values import text_config
from ..lm.frozen import FrozenLM
from ..lm.probe import kept_of
from .control_groups import free_of_group

_KEPT_PER_OUTPUT = 3.0  # bytes that autograd keeps for each byte of a linear layer's output: 1.1 to 2.9 were measured
_KEPT_PER_STATE = 16  # bytes for each entry of a recurrent layer's state, at every position: 13 were measured
_KEPT_PER_WEIGHT = 12  # bytes for each attention weight, where the kernel makes them
_TIMES_HEAD = 3  # what is kept of the steps after the head, and its gradients in the backward pass
_MOVING = 0.5  # of what is kept of a layer: the gradients on their way through it
_PADDED = 4  # positions of which convolutions keep as much for a shorter row
_SHARE = 0.8  # of free memory that an estimate may fill
_COPIES = 8  # of every vector: its value, the best so far, two running means, gradients and their temporaries
_MOST_ROWS = 1 << 16  # whose starts are drawn one by one, which takes seconds


def estimate_bytes(lm: FrozenLM, layout: Layout, rows: int, *, checkpointing: bool = False) -> int:
    """Memory that one forward and backward pass needs beside the weights, in bytes.

    Counted are the logits of the T outputs that are read, their gradient, both in float32, that gradient in the
    model's dtype if it is another, and what autograd keeps of every layer until the backward pass. The last is measured
    when a model is put into a `FrozenLM`, on a few positions, and is else an estimate on the safe side.

    Args:
        lm: the frozen model; its weights are not touched, and may be on the meta device.
        layout: the arrangement for the texts' length.
        rows: rows in the batch.
        checkpointing: whether only the layers' inputs are kept and all else is computed anew.
    """
    size, length = lm.dtype.itemsize, len(layout.slots)
    measured, kept, n_layers = kept_of(lm), _kept_bytes(lm, length), max(1, _setting(lm, "num_hidden_layers", 1))
    per_logit = 2 * 4 + (size if lm.dtype != torch.float32 else 0)
    head = _TIMES_HEAD * measured.head if measured is not None else 0.0
    logits = int(layout.length * (lm.vocabulary * per_logit + head))
    moving = int(_MOVING * kept / n_layers)
    if checkpointing:
        kept = kept // n_layers + n_layers * length * _setting(lm, "hidden_size", 0) * size
    return rows * (logits + kept + moving)


@dataclass(frozen=True)
class Passes:
    """How the rows of a batch pass through the model: time and memory depend on it, a step only by rounding.

    Attributes:
        rows_at_once: rows of a micro-batch, whose gradients are added up; None: as many as memory holds.
        checkpointing: whether the layers' activations are computed anew in the backward pass instead of kept, which
            needs less memory and a second forward pass; None: where a single row would not fit without.
    """

    rows_at_once: int | None = None
    checkpointing: bool | None = None

    def __post_init__(self) -> None:
        if self.rows_at_once is not None and self.rows_at_once < 1:
            raise InputError(f"rows_at_once is {self.rows_at_once}; it must be at least 1")


_assumed_free: ContextVar[int | None] = ContextVar("assumed_free", default=None)


@contextmanager
def passes_planned_for(n_bytes: int) -> Iterator[None]:
    """Plan the passes of all fits in this block as if `n_bytes` were free, whatever is.

    The same fit is then rounded alike on a busy machine and on an idle one.
    """
    token = _assumed_free.set(n_bytes)
    try:
        yield
    finally:
        _assumed_free.reset(token)


def plan_passes(lm: FrozenLM, layout: Layout, rows: int, passes: Passes) -> Passes:
    """Settle what `passes` leaves open, by the estimate and the memory that is free.

    The rows at once are all of them, or else a power of two, so that small differences in free memory seldom change it.

    Raises:
        InputError: by the estimate a single row has no room, and `rows_at_once` does not ask for it all the same.
    """
    has_layers = _setting(lm, "num_hidden_layers", 0) > 0
    undecided = passes.checkpointing is None
    options = [False, True] if undecided and has_layers else [bool(passes.checkpointing)]
    assumed = _assumed_free.get()
    free = free_bytes(lm) if assumed is None else assumed
    if free is None:
        return Passes(passes.rows_at_once, options[0])
    one = 0
    for checkpointing in options:
        one = estimate_bytes(lm, layout, 1, checkpointing=checkpointing)
        wanted = passes.rows_at_once or rows
        if wanted * one <= _SHARE * free:
            return Passes(wanted, checkpointing)
        if passes.rows_at_once is None and one <= _SHARE * free:
            return Passes(1 << int(_SHARE * free / one).bit_length() - 1, checkpointing)
    if passes.rows_at_once is None and one > free and assumed is None:
        raise InputError(
            f"a text of {layout.length} tokens needs about {_gigabytes(one)} for one pass through {lm.identity.name}, "
            f"and {_gigabytes(free)} are free; shorten it, or try all the same with rows_at_once=1"
        )
    return Passes(passes.rows_at_once or 1, options[-1])


def check_vectors(lm: FrozenLM, rows: int, e_tokens: int, length: int, max_steps: int) -> None:
    """Refuse more vectors than memory has room for: those of all rows are kept, whatever passes together.

    Raises:
        InputError: it has none, or there are more e-tokens or rows than any fit takes.
    """
    if e_tokens > MOST_TOKENS:
        raise InputError(f"an input of {e_tokens} e-tokens: it must have 1 to {MOST_TOKENS}")
    one = (e_tokens + 1) * lm.width * 4 * _COPIES + length * 8 + (max_steps + 1) * 2 * 4
    free = free_bytes(lm)
    if free is not None and rows * one > free:
        raise InputError(
            f"{rows} rows (texts times restarts) of {e_tokens} e-tokens, with {max_steps} steps, need about "
            f"{_gigabytes(rows * one)}, and {_gigabytes(free)} are free; use fewer restarts, e-tokens, steps, or texts "
            "at once"
        )
    if rows > _MOST_ROWS:
        raise InputError(
            f"{rows} rows (texts times restarts): at most {_MOST_ROWS} are fitted side by side; use fewer restarts, or "
            "texts at once"
        )


def even_parts(rows: int, at_once: int) -> list[slice]:
    """Cut a batch of rows into as few parts as `at_once` allows, of equal length where that divides."""
    count = -(-rows // at_once)
    edges = [rows * part // count for part in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def free_bytes(lm: FrozenLM) -> int | None:
    """Memory that is free where the model computes, in bytes; None where nobody can say."""
    devices = {torch.device(place) for place in getattr(lm.model, "hf_device_map", {}).values() if place != "disk"}
    places = {device for device in devices if device.type == "cuda"} or {lm.device}
    free = [_free_on(device) for device in places]
    return None if None in free else sum(each for each in free if each is not None)


def _free_on(device: torch.device) -> int | None:
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch keeps it for itself
        return torch.cuda.mem_get_info(device)[0] + unused
    return _free_ram() if device.type == "cpu" else None


def _free_ram() -> int | None:
    """What the system and the process's control group could give it, whichever is less; None where neither says."""
    known = [free for free in (_free_of_system(), free_of_group(Path("/"))) if free is not None]
    return min(known, default=None)


def _free_of_system() -> int | None:
    """Memory that is free, file caches included; of all memory half, where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return None


def _kept_bytes(lm: FrozenLM, length: int) -> int:
    """What autograd keeps of the layers for one row of L positions: as it was measured, or else as their widths say."""
    measured, by_widths, attention = kept_of(lm), _kept_by_widths(lm, length), _attention_bytes(lm, length)
    if measured is None:
        return by_widths + attention
    layers = min(by_widths, int(measured.layers * max(length, _PADDED)))
    return layers + (int(measured.attention * length**2) or attention)


def _kept_by_widths(lm: FrozenLM, length: int) -> int:
    """A bound from the widths of the linear and the recurrent layers, attention weights left out."""
    model: Any = lm.model
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    outputs = sum(
        getattr(module, "out_features", 0) or getattr(module, "nf", 0)  # `nf` is what GPT-2's layers call it
        for module in model.modules()
        if module is not head and module is not lm.embedding
    )
    kept = int(_KEPT_PER_OUTPUT * outputs * lm.dtype.itemsize) * length
    n_layers = _setting(lm, "num_hidden_layers", 1)
    states = _setting(lm, "state_size", 0) * (_setting(lm, "intermediate_size", 0) or _setting(lm, "hidden_size", 0))
    return kept + _KEPT_PER_STATE * n_layers * states * length


def _attention_bytes(lm: FrozenLM, length: int) -> int:
    """What autograd keeps of the attention weights for one row of L positions, where the kernel makes them."""
    is_eager = getattr(getattr(lm.model, "config", None), "_attn_implementation", None) == "eager"
    if not is_eager or _setting(lm, "state_size", 0):
        return 0
    n_layers, n_heads = _setting(lm, "num_hidden_layers", 1), _setting(lm, "num_attention_heads", 0)
    return _KEPT_PER_WEIGHT * n_layers * n_heads * length**2


def _setting(lm: FrozenLM, name: str, default: int) -> int:
    """A number from the model's configuration, by Hugging Face's name."""
    value = getattr(text_config(lm.model), name, default)
    return value if isinstance(value, int) else default


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
