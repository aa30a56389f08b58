"""Chunks in batches: the one pass that scores or decodes many of them, and how many go into it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..arrangements import Arrangement
from ..lm.frozen import FrozenLM

_MOST_ON_A_CPU = 256  # tokens; arithmetic bounds it from there on
_MOST_ELSEWHERE = 8192
_COPIES = 6  # of the logits in float32, that a step of a fit holds at once
_SHARE = 0.25  # of the free memory


def default_batch_tokens(lm: FrozenLM) -> int:
    """How many tokens to fit or decode side by side, from the memory that is free and the vocabulary."""
    if lm.device.type == "cuda":
        free, most = torch.cuda.mem_get_info(lm.device)[0], _MOST_ELSEWHERE
    else:
        free, most = _free_memory(), _MOST_ON_A_CPU
    return max(1, min(most, int(free * _SHARE) // (4 * lm.vocabulary * _COPIES)))


def _free_memory() -> int:
    """Bytes of memory that can be had, or 4 GiB where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        names = getattr(os, "sysconf_names", {})
        known = "SC_AVPHYS_PAGES" in names
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else 4 << 30


def in_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of the chunks of these lengths, batch by batch: those of one length together, else in order."""
    for length in dict.fromkeys(lengths):
        numbers = [number for number, own in enumerate(lengths) if own == length]
        size = max(1, batch_tokens // length)
        yield from (numbers[first : first + size] for first in range(0, len(numbers), size))


@torch.no_grad()
def chunk_logits(lm: FrozenLM, arrangement: Arrangement, length: int, e: Tensor, m: Tensor, fixed: Tensor) -> Tensor:
    """Logits of B chunks of one length, in one forward pass.

    Args:
        lm: the language model.
        arrangement: how the vectors fill the input.
        length: T, tokens of each chunk.
        e: e-tokens, (B, 1, D).
        m: m-tokens, (B, D).
        fixed: fixed vectors, (F, D).

    Returns:
        (B, T, V), float32.
    """
    layout = arrangement.layout(length)
    return lm.logits(layout.inputs_embeds(e, m, fixed), layout.read_positions())
