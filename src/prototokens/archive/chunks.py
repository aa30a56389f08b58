"""Chunks in batches: the one pass that scores or decodes many of them, and how many share it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..arrangements import Arrangement
from ..fitting.memory import free_bytes
from ..lm.frozen import FrozenLM

_MOST_ON_A_CPU = 256  # tokens; larger batches are no faster
_MOST_ELSEWHERE = 8192
_COPIES = 6  # of the logits in float32, that a step of a fit holds at once
_SHARE = 0.25  # of the free memory
_UNTOLD = 4 << 30  # bytes of free memory, where the system does not tell


def default_batch_tokens(lm: FrozenLM) -> int:
    """How many tokens to fit or decode side by side, from the free memory and the vocabulary."""
    most = _MOST_ELSEWHERE if lm.device.type == "cuda" else _MOST_ON_A_CPU
    return max(1, min(most, int((free_bytes(lm) or _UNTOLD) * _SHARE) // (4 * lm.vocabulary * _COPIES)))


def in_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of the chunks of these lengths, batch by batch: chunks of one length together, else in order."""
    for length in dict.fromkeys(lengths):
        numbers = [number for number, its_length in enumerate(lengths) if its_length == length]
        size = max(1, batch_tokens // length)
        yield from (numbers[first : first + size] for first in range(0, len(numbers), size))


@torch.no_grad()
def chunk_logits(lm: FrozenLM, arrangement: Arrangement, length: int, e: Tensor, m: Tensor, fixed: Tensor) -> Tensor:
    """Logits of B chunks of one length, in one forward pass.

    Args:
        lm: the language model.
        arrangement: how the vectors fill the input.
        length: T, tokens of each chunk.
        e: e-tokens, (B, K, D).
        m: m-tokens, (B, D).
        fixed: fixed vectors, (F, D).

    Returns:
        (B, T, V), float32.
    """
    layout = arrangement.layout(length)
    return lm.logits(layout.inputs_embeds(e, m, fixed), layout.read_positions())
