"""Training texts: tokenized once and drawn by seed; held-out texts are never trained on."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from ...errors import InputError
from ...files.record import read_record, write_record
from ...lm.frozen import FrozenLM
from ...texts.corpora import stream
from ...texts.sampling import sentence_starts
from ..recipes import TextChoice

_KIND = "an encoder's training texts"
_HELD_OUT = 20  # one document in so many, or that share of each of fewer documents
_CHARACTERS_AT_ONCE = 1 << 18  # a tokenizer takes some hundred bytes of memory for each


@dataclass(frozen=True, eq=False)
class TrainingTexts:
    """Texts of two kinds to draw from: windows of documents, and sentences tokenized by themselves.

    Attributes:
        ids: ids of all documents, one after another, int32, (S,).
        ends: where each document ends in `ids`, int64, (D,).
        sentences: texts that begin at a sentence and are tokenized by themselves, int32, (N, longest). Shorter texts
            are the first tokens of these.
    """

    ids: Tensor
    ends: Tensor
    sentences: Tensor

    def n_windows(self, length: int) -> int:
        """How many windows of this length stay in their document."""
        return _total(self._windows_through(length))

    def draw(self, length: int, count: int, sentence_share: float, seed: int) -> Tensor:
        """Random texts of one length, int64, (count, length): sentences with this probability, else windows."""
        generator = torch.Generator().manual_seed(seed)
        is_sentence = torch.rand(count, generator=generator) < sentence_share  # (count,)
        through = self._windows_through(length)
        n_windows, n_sentences = _total(through), len(self.sentences)
        numbers = torch.randint(max(1, n_windows), (count,), generator=generator)
        if not n_sentences:
            return self._windows(numbers, length, through).long()
        sentences = self.sentences[torch.randint(n_sentences, (count,), generator=generator), :length]
        if not n_windows:  # few texts, and all of them sentences
            return sentences.long()
        windows = self._windows(numbers, length, through)
        return torch.where(is_sentence[:, None], sentences, windows).long()

    def windows(self, numbers: Tensor, length: int) -> Tensor:
        """Windows by number, int32, (..., length)."""
        return self._windows(numbers, length, self._windows_through(length))

    def evenly_spaced(self, length: int, count: int) -> dict[str, Tensor]:
        """At most `count` texts of each kind, by their names in the curve, int64, (B, length)."""
        windows = self.windows(_evenly_spaced(self.n_windows(length), count), length)
        sentences = self.sentences[_evenly_spaced(len(self.sentences), count), :length]
        return {"windows": windows.long(), "own": sentences.long()}

    def subset(self, length: int, count: int, sentence_share: float, seed: int) -> TrainingTexts:
        """`count` of these texts of this length, drawn at random, each a document of its own."""
        generator = torch.Generator().manual_seed(seed)
        n_sentences = min(round(sentence_share * count), len(self.sentences))
        window_order = torch.randperm(self.n_windows(length), generator=generator)
        sentence_order = torch.randperm(len(self.sentences), generator=generator)
        windows = self.windows(window_order[: count - n_sentences], length)
        ends = torch.arange(1, len(windows) + 1) * length
        return TrainingTexts(windows.flatten(), ends, self.sentences[sentence_order[:n_sentences]])

    @cached_property
    def _n_tokens(self) -> Tensor:
        """Tokens of each document, int64, (D,)."""
        return self.ends.diff(prepend=self.ends.new_zeros(1))

    def _windows_through(self, length: int) -> Tensor:
        """How many windows of this length lie in the documents up to and with each, int64, (D,)."""
        return (self._n_tokens - (length - 1)).clamp_(min=0).cumsum(0)

    def _windows(self, numbers: Tensor, length: int, through: Tensor) -> Tensor:
        document = torch.searchsorted(through, numbers, right=True)
        starts = self.ends[document] - length - (through[document] - 1 - numbers)  # counted from a document's last
        return self.ids[starts[..., None] + torch.arange(length)]


def cached_training_texts(
    lm: FrozenLM, choice: TextChoice, longest: int, cache: Path | None, *, write: bool = True
) -> tuple[TrainingTexts, TrainingTexts]:
    """`training_texts` from a file if it was made of the same documents, tokenizer and choice, else made and written.

    Args:
        lm: supplies the tokenizer.
        choice: which texts.
        longest: their longest length, in tokens.
        cache: the file; None: none is read or written.
        write: whether to write the file.
    """
    digest = hashlib.sha256(f"{lm.identity.tokenizer_hash} {longest} {choice}".encode())
    for document in stream(choice.source, "train"):
        digest.update(hashlib.sha256(document.text.encode()).digest())
    record = {"texts": digest.hexdigest(), "format": 2}
    if cache is not None and cache.exists():
        tensors, cached_record = read_record(cache, _KIND)
        if cached_record == record:
            train, validation = (
                TrainingTexts(*(tensors[f"{name}.{part}"] for part in ("ids", "ends", "sentences")))
                for name in ("train", "validation")
            )
            return train, validation
    train, validation = training_texts(lm, choice, longest)
    if cache is not None and write:
        tensors = {
            f"{name}.{part}": getattr(texts, part).clone()  # the two may be one
            for name, texts in (("train", train), ("validation", validation))
            for part in ("ids", "ends", "sentences")
        }
        write_record(cache, _KIND, tensors, record, overwrite=True)
    return train, validation


def training_texts(lm: FrozenLM, choice: TextChoice, longest: int) -> tuple[TrainingTexts, TrainingTexts]:
    """The texts to train on and those to validate on.

    Every twentieth document is held out for validation; of fewer than twenty documents, the last twentieth of each.
    With `choice.texts`, both are the same texts. Documents are read one by one, and their ids are kept.

    Raises:
        InputError: the source cannot be read (see `documents`), or has too few texts of `longest` tokens.
    """
    has_few = sum(1 for _ in islice(stream(choice.source, "train"), _HELD_OUT)) < _HELD_OUT
    training, held_out = _Tokenized(lm, longest), _Tokenized(lm, longest)
    for number, document in enumerate(stream(choice.source, "train"), 1):
        if has_few:
            head, tail = _head_and_tail(document.text)
            training.add(head)
            held_out.add(tail)
        else:
            (training if number % _HELD_OUT else held_out).add(document.text)
    train = training.texts()
    _check_not_empty(train, choice, longest)
    if choice.texts is not None:
        if choice.texts > train.n_windows(longest):
            raise InputError(
                f"source {choice.source!r} has {train.n_windows(longest)} texts of {longest} tokens to train on, "
                f"not {choice.texts}"
            )
        subset = train.subset(longest, choice.texts, choice.own_share, seed=0)
        return subset, subset
    validation = held_out.texts()
    _check_not_empty(validation, choice, longest)
    return train, validation


def _head_and_tail(text: str) -> tuple[str, str]:
    """A document's parts to train on and to validate on, cut at a sentence."""
    wanted = len(text) - max(1, len(text) // _HELD_OUT)
    cut = min(sentence_starts(text), key=lambda start: abs(start - wanted)) or wanted
    return text[:cut] or text, text[cut:]


def _check_not_empty(texts: TrainingTexts, choice: TextChoice, longest: int) -> None:
    n_windows = texts.n_windows(longest)
    if n_windows == 0 or (len(texts.sentences) == 0 and choice.own_share > 0):
        kind = "texts" if n_windows == 0 else "sentences"
        raise InputError(
            f"source {choice.source!r} has too few {kind} of {longest} tokens to train on and to hold out: give it "
            "more text, or ask for shorter texts (--lengths)"
        )


class _Tokenized:
    """Ids of documents, as they are added; their text is not kept."""

    def __init__(self, lm: FrozenLM, longest: int) -> None:
        self.lm, self.longest = lm, longest
        self.ids, self.ends, self.sentences = array("i"), array("q"), array("i")

    def add(self, text: str) -> None:
        """Add a document; one that is very long becomes several."""
        for piece in _pieces(text):
            self.ids.extend(self.lm.encode(piece).tolist())
            self.ends.append(len(self.ids))
            self._add_sentences(piece)

    def _add_sentences(self, text: str) -> None:
        """Add the first ids of the text from sentences on that lie apart; what is shorter is left out."""
        n_characters, free_from = 6 * self.longest + 64, 0
        for start in sentence_starts(text):
            if start < free_from:
                continue
            piece = text[start : start + n_characters]
            if start + n_characters < len(text):
                piece = (piece.rsplit(None, 1) or [""])[0]  # the last word may be cut
            ids = self.lm.encode(piece)[: self.longest] if piece else torch.empty(0)
            if len(ids) == self.longest:
                self.sentences.extend(ids.tolist())
                free_from = start + len(self.lm.decode(ids))

    def texts(self) -> TrainingTexts:
        """All that was added."""
        ids, ends = _tensor(self.ids, torch.int32), _tensor(self.ends, torch.int64)
        return TrainingTexts(ids, ends, _tensor(self.sentences, torch.int32).view(-1, self.longest))


def _pieces(text: str) -> Iterator[str]:
    """A text in pieces that are cut before a blank."""
    start = 0
    while start < len(text):
        end = start + _CHARACTERS_AT_ONCE
        if end < len(text):
            blank = text.rfind(" ", start + 1, end)
            end = blank if blank > 0 else end
        yield text[start:end]
        start = end


def _total(through: Tensor) -> int:
    """The last of running totals; 0 where there are none."""
    return int(through[-1]) if len(through) else 0


def _tensor(values: array[int], dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(values, dtype=dtype).clone() if len(values) else torch.empty(0, dtype=dtype)


def _evenly_spaced(total: int, count: int) -> Tensor:
    """At most `count` numbers below `total`, evenly spaced, int64."""
    count = min(total, count)
    return torch.arange(count) * total // max(1, count)
