"""Segments: a text as token ids where the tokenizer reproduces it, and as literal bytes where it does not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..lm.frozen import FrozenLM

_SHORTEST = 16  # characters; shorter parts that are not reproduced are not bisected
_EVERY_LENGTH_BELOW = 16  # chunks; longer pieces are tried at powers of two only, so that a text is walked once
# Tokenizers write bytes that are no character as U+FFFD. A text without a real one is whole if its ids give none.
_REPLACEMENT = re.compile("(\ufffd+)")


@dataclass(frozen=True, eq=False)
class Segment:
    """A part of a text that is tokenised on its own.

    Attributes:
        text: the part.
        ids: its token ids, int64, (T,), which decode to `text` exactly; empty if no ids do, and then the text itself is
            stored.
    """

    text: str
    ids: Tensor


@dataclass(frozen=True)
class Piece:
    """The fewest consecutive chunks whose ids, decoded together, give the next part of the text.

    Most pieces are one chunk. If a character's bytes are divided between two chunks, the piece is both of them.

    Attributes:
        lead: text before what the ids decode to: the white space that some tokenizers drop at the beginning.
        chunks: number of chunks.
        characters: number of characters, `lead` included.
    """

    lead: str
    chunks: int
    characters: int


def cut_into_segments(lm: FrozenLM, text: str) -> list[Segment]:
    """Cut a text into segments that their ids reproduce, and literal ones for the rest.

    Encodes and decodes the whole. Parts that are not reproduced are cut in half, down to 16 characters.
    """
    segments: list[Segment] = []
    for part in filter(None, _REPLACEMENT.split(text)):
        for segment in _halves(lm, part):
            if segments and not len(segment.ids) and not len(segments[-1].ids):
                segment = Segment(segments.pop().text + segment.text, segment.ids)
            segments.append(segment)
    return segments


def _halves(lm: FrozenLM, text: str) -> Iterator[Segment]:
    ids = torch.empty(0, dtype=torch.long) if _REPLACEMENT.match(text) else _ids_of(lm, text)
    if len(ids) or len(text) <= _SHORTEST:
        yield Segment(text, ids)
        return
    middle = len(text) // 2
    yield from _halves(lm, text[:middle])
    yield from _halves(lm, text[middle:])


def _ids_of(lm: FrozenLM, text: str) -> Tensor:
    """Ids that decode to the text, or none."""
    try:
        ids = lm.encode(text)
    except InputError:  # a tokenizer that drops the whole text
        return torch.empty(0, dtype=torch.long)
    # A tokenizer can know more tokens than the model has embeddings.
    is_reproduced = int(ids.max()) < lm.vocabulary and lm.decode(ids) == text
    return ids if is_reproduced else ids[:0]


def cut_into_pieces(lm: FrozenLM, segment: Segment, lengths: Sequence[int]) -> list[Piece]:
    """Group the chunks of a segment, of these lengths in tokens, into pieces.

    The text is walked once. From the end of the last piece, chunks are added until they decode to the next part of the
    text. If the walk does not end where the text ends, the last pieces are joined until it does. In the worst case the
    segment is one piece, which the segment's ids reproduce by definition.
    """
    offsets = [0, *torch.tensor(lengths, dtype=torch.long).cumsum(0).tolist()]
    assert offsets[-1] == len(segment.ids)

    def piece_of(first: int, end: int, begin: int) -> Piece | None:
        """Chunks first ... end - 1 as a piece, if the text continues with them at character `begin`."""
        decoded = lm.decode(segment.ids[offsets[first] : offsets[end]])
        following = segment.text[begin : begin + len(decoded) + 1]
        if decoded and following.startswith(decoded):
            return Piece("", end - first, len(decoded))
        if decoded and following[:1].isspace() and following[1:] == decoded:
            return Piece(following[0], end - first, len(decoded) + 1)
        return None

    count = len(lengths)
    pieces: list[Piece] = []
    ends, begins = [0], [0]  # after each piece: chunks and characters so far
    for end in range(1, count + 1):
        size = end - ends[-1]
        if size > _EVERY_LENGTH_BELOW and size & (size - 1) and end < count:
            continue
        piece = piece_of(ends[-1], end, begins[-1])
        if piece:
            pieces.append(piece)
            ends.append(end)
            begins.append(begins[-1] + piece.characters)
    while (ends[-1], begins[-1]) != (count, len(segment.text)):
        piece = piece_of(ends[-1], count, begins[-1]) if ends[-1] < count else None
        if piece and begins[-1] + piece.characters == len(segment.text):
            return [*pieces, piece]
        assert pieces, "a segment is reproduced as a whole"
        for walked in (pieces, ends, begins):
            walked.pop()
    return pieces
