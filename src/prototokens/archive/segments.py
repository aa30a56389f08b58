"""Stretches: a text as token ids wherever the tokenizer gives it back, and as literal bytes where it does not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..lm.frozen import FrozenLM

_SHORTEST = 16  # characters; what does not come back is not bisected below that
_EVERY_LENGTH_BELOW = 16  # chunks; longer runs are tried at powers of two only, so that a text is walked once
# Tokenizers write bytes that are no character as U+FFFD. Without a real one in it, a text that has none is whole.
_REPLACEMENT = re.compile("(\ufffd+)")


@dataclass(frozen=True, eq=False)
class Stretch:
    """A piece of a text that has an end of its own.

    Attributes:
        text: the piece.
        ids: its token ids, int64, (T,), which decode to `text` exactly; empty for a piece that no ids decode to.
    """

    text: str
    ids: Tensor


@dataclass(frozen=True)
class Run:
    """The fewest chunks after one another whose ids decode, on their own, to the next piece of the text.

    A character whose bytes are cut apart makes a run of two chunks.

    Attributes:
        lead: what the piece begins with and the decoded text does not: the white space that some tokenizers drop
            at a beginning.
        chunks: how many chunks the run has.
        characters: how many characters the piece has, `lead` included.
    """

    lead: str
    chunks: int
    characters: int


def stretches(lm: FrozenLM, text: str) -> list[Stretch]:
    """Cut a text into stretches that come back from their ids, and literal ones for all else.

    Encodes and decodes the whole; what does not come back is cut in half, down to pieces of 16 characters.
    """
    found: list[Stretch] = []
    for piece in filter(None, _REPLACEMENT.split(text)):
        for stretch in _halves(lm, piece):
            if found and not len(stretch.ids) and not len(found[-1].ids):
                stretch = Stretch(found.pop().text + stretch.text, stretch.ids)
            found.append(stretch)
    return found


def _halves(lm: FrozenLM, text: str) -> Iterator[Stretch]:
    ids = torch.empty(0, dtype=torch.long) if _REPLACEMENT.match(text) else _ids_of(lm, text)
    if len(ids) or len(text) <= _SHORTEST:
        yield Stretch(text, ids)
        return
    middle = len(text) // 2
    yield from _halves(lm, text[:middle])
    yield from _halves(lm, text[middle:])


def _ids_of(lm: FrozenLM, text: str) -> Tensor:
    """Ids that decode to the text, or none."""
    try:
        ids = lm.encode(text)
    except InputError:  # a tokenizer that drops all there is
        return torch.empty(0, dtype=torch.long)
    # A tokenizer can know more tokens than the model has embeddings.
    comes_back = int(ids.max()) < lm.vocabulary and lm.decode(ids) == text
    return ids if comes_back else ids[:0]


def runs(lm: FrozenLM, stretch: Stretch, lengths: Sequence[int]) -> list[Run]:
    """Group the chunks of a stretch, of these lengths in tokens, into runs.

    The text is walked once: from where the last run ended, chunks are added until what they decode to is what the text
    goes on with. Should the walk not end where the text does, the last runs are joined until it does; at worst the
    stretch is one run, which comes back as the stretch does.
    """
    offsets = [0, *torch.tensor(lengths, dtype=torch.long).cumsum(0).tolist()]
    assert offsets[-1] == len(stretch.ids)

    def grouped(first: int, end: int, begin: int) -> Run | None:
        """Chunks first ... end - 1 as a run, if the text goes on with them at character `begin`."""
        decoded = lm.decode(stretch.ids[offsets[first] : offsets[end]])
        following = stretch.text[begin : begin + len(decoded) + 1]
        if decoded and following.startswith(decoded):
            return Run("", end - first, len(decoded))
        if decoded and following[:1].isspace() and following[1:] == decoded:
            return Run(following[0], end - first, len(decoded) + 1)
        return None

    count, found, ends, begins = len(lengths), [], [0], [0]  # after each run: chunks and characters so far
    for end in range(1, count + 1):
        size = end - ends[-1]
        if size > _EVERY_LENGTH_BELOW and size & (size - 1) and end < count:
            continue
        run = grouped(ends[-1], end, begins[-1])
        if run:
            found.append(run)
            ends.append(end)
            begins.append(begins[-1] + run.characters)
    while (ends[-1], begins[-1]) != (count, len(stretch.text)):
        run = grouped(ends[-1], count, begins[-1]) if ends[-1] < count else None
        if run and begins[-1] + run.characters == len(stretch.text):
            return [*found, run]
        assert found, "a stretch comes back as a whole"
        for walked in (found, ends, begins):
            walked.pop()
    return found
