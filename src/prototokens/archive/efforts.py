"""Efforts: how densely vectors stand in a document, and how long they are fitted before tokens are stored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True)
class Effort:
    """How every chunk of a document is fitted.

    A fit ends when at most `tolerated_share` of the chunk's tokens lead by less than `margin`, or after `steps` steps.
    Missed tokens are stored in the residual: one of them takes a few bytes and no step.

    Attributes:
        tokens_per_vector: b, tokens of a block; every block has an e-token of its own.
        steps: the step budget of a chunk.
        tolerated_share: share of a chunk's tokens, from 0 to below 1, that may be missed.
        margin: in logits. A token is missed if its vectors, as stored, give it a lead of less than half of that.
        own_m: whether every chunk has an m-token of its own; if not, all share one, which is held fixed.
        chunk_tokens: tokens of a chunk, which one forward pass decodes.
        needs_encoder: whether an encoder writes the vectors. Its blocks apply then, whatever `tokens_per_vector` is.
    """

    tokens_per_vector: int
    steps: int
    tolerated_share: float = 0.0
    margin: float = 0.1
    own_m: bool = True
    chunk_tokens: int = 512
    needs_encoder: bool = False

    def __post_init__(self) -> None:
        for name, least in (("tokens_per_vector", 1), ("steps", 0), ("chunk_tokens", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not 0 <= self.tolerated_share < 1:
            raise InputError(f"tolerated_share is {self.tolerated_share:g}; it must be at least 0 and below 1")
        check_margin(self.margin)

    def to_json(self) -> dict[str, Any]:
        """The effort as JSON values; a field that was added since the first version stands there only if it is set."""
        values = asdict(self)
        if not self.needs_encoder:
            del values["needs_encoder"]
        return values


def check_margin(margin: float) -> None:
    """Refuse a margin that is no number of logits.

    Raises:
        InputError: it is not.
    """
    if not 0 <= margin < math.inf:
        raise InputError(f"margin is {margin:g}; it must be a number of logits, at least 0")


EFFORTS: dict[str, Effort] = {
    "instant": Effort(tokens_per_vector=4, steps=0, needs_encoder=True),
    "fast": Effort(tokens_per_vector=8, steps=30, tolerated_share=0.02),
    "balanced": Effort(tokens_per_vector=16, steps=60, tolerated_share=0.02),
    "thorough": Effort(tokens_per_vector=16, steps=240, tolerated_share=0.005),
}
"""Measured on the built-in model: see "Packing a speech" in docs/results.md."""


def effort_named(name: str | Effort) -> Effort:
    """The effort of that name; an `Effort` is passed through."""
    if isinstance(name, Effort):
        return name
    if name not in EFFORTS:
        raise InputError(f"unknown effort {name!r}; choose one of: {' '.join(EFFORTS)}")
    return EFFORTS[name]


@dataclass(frozen=True, order=True)
class Chunk:
    """Consecutive tokens of a document that are fitted and decoded together, in one row of a forward pass.

    Attributes:
        start: its first token, counted through the document.
        stop: the first token after it.
    """

    start: int
    stop: int

    @property
    def length(self) -> int:
        """Tokens of the chunk."""
        return self.stop - self.start


@dataclass(frozen=True, eq=False)
class ChunkFit:
    """The fit of a chunk.

    Attributes:
        chunk: the chunk.
        e: e-tokens, float32, (K, D).
        m: the chunk's own m-token, float32, (D,), or None.
        token_positions: input positions that its fit passed forward through the model.
        backward_positions: input positions that it passed backward.
    """

    chunk: Chunk
    e: Tensor
    m: Tensor | None
    token_positions: int = 0
    backward_positions: int = 0


def cut_into_chunks(segment_lengths: Iterable[int], chunk_tokens: int) -> list[Chunk]:
    """The chunks of a document: each segment, given by its number of tokens, is cut on its own."""

    def chunks() -> Iterator[Chunk]:
        begin = 0
        for length in segment_lengths:
            end = begin + length
            yield from (Chunk(start, min(start + chunk_tokens, end)) for start in range(begin, end, chunk_tokens))
            begin = end

    return list(chunks())
