"""Training texts: tokenized once and drawn by seed; held-out texts are never trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ...errors import InputError
from ...files.record import read_record, write_record
from ...lm.frozen import FrozenLM
from ...texts.corpora import Document, documents
from ...texts.sampling import sentence_starts
from ..recipes import TextChoice

_KIND = "an encoder's training texts"
_HELD_OUT = 20  # one document in so many, or that share of each of fewer documents


@dataclass(frozen=True, eq=False)
class TrainingTexts:
    """Texts of two kinds to draw from: windows of documents, and sentences tokenized by themselves.

    Shorter texts are the first tokens of these.

    Attributes:
        ids: ids of all documents, one after another, int32, (S,).
        window_starts: indices in `ids` where a window of `max_tokens` begins that stays in its document, int64, (W,).
        sentences: texts that begin at a sentence and are tokenized by themselves, int32, (N, max_tokens).
    """

    ids: Tensor
    window_starts: Tensor
    sentences: Tensor

    def draw(self, length: int, count: int, sentence_share: float, seed: int) -> Tensor:
        """Random texts of one length, int64, (count, length): sentences with this probability, else windows."""
        generator = torch.Generator().manual_seed(seed)
        is_sentence = torch.rand(count, generator=generator) < sentence_share  # (count,)
        windows = self.windows(torch.randint(len(self.window_starts), (count,), generator=generator), length)
        if not len(self.sentences):
            return windows.long()
        sentences = self.sentences[torch.randint(len(self.sentences), (count,), generator=generator), :length]
        return torch.where(is_sentence[:, None], sentences, windows).long()

    def windows(self, numbers: Tensor, length: int) -> Tensor:
        """Windows by number, int32, (..., length)."""
        return self.ids[self.window_starts[numbers, None] + torch.arange(length)]

    def evenly_spaced(self, length: int, count: int) -> dict[str, Tensor]:
        """At most `count` texts of each kind, by their names in the curve, int64, (B, length)."""
        windows = self.windows(_evenly_spaced(len(self.window_starts), count), length)
        sentences = self.sentences[_evenly_spaced(len(self.sentences), count), :length]
        return {"windows": windows.long(), "own": sentences.long()}

    def subset(self, count: int, sentence_share: float, seed: int) -> TrainingTexts:
        """`count` of these texts, drawn at random."""
        generator = torch.Generator().manual_seed(seed)
        n_sentences = min(round(sentence_share * count), len(self.sentences))
        window_order = torch.randperm(len(self.window_starts), generator=generator)
        sentence_order = torch.randperm(len(self.sentences), generator=generator)
        return TrainingTexts(
            self.ids,
            self.window_starts[window_order[: count - n_sentences]],
            self.sentences[sentence_order[:n_sentences]],
        )


def cached_training_texts(
    lm: FrozenLM, choice: TextChoice, max_tokens: int, cache: Path | None, *, write: bool = True
) -> tuple[TrainingTexts, TrainingTexts]:
    """`training_texts` from a file if it was made of the same documents, tokenizer and choice, else made and written.

    Args:
        lm: supplies the tokenizer.
        choice: which texts.
        max_tokens: their longest length.
        cache: the file; None: none is read or written.
        write: whether to write the file.
    """
    digest = hashlib.sha256(f"{lm.identity.tokenizer_hash} {max_tokens} {choice}".encode())
    for document in documents(choice.source, "train"):
        digest.update(hashlib.sha256(document.text.encode()).digest())
    record = {"texts": digest.hexdigest()}
    if cache is not None and cache.exists():
        tensors, cached_record = read_record(cache, _KIND)
        if cached_record == record:
            train, validation = (
                TrainingTexts(tensors[f"{name}.ids"], tensors[f"{name}.begins"].long(), tensors[f"{name}.own"])
                for name in ("train", "validation")
            )
            return train, validation
    train, validation = training_texts(lm, choice, max_tokens)
    if cache is not None and write:
        tensors = {}
        for name, texts in (("train", train), ("validation", validation)):
            tensors |= {
                f"{name}.ids": texts.ids.clone(),
                f"{name}.begins": texts.window_starts.int(),
                f"{name}.own": texts.sentences.clone(),
            }
        write_record(cache, _KIND, tensors, record, overwrite=True)
    return train, validation


def training_texts(lm: FrozenLM, choice: TextChoice, max_tokens: int) -> tuple[TrainingTexts, TrainingTexts]:
    """The texts to train on and those to validate on.

    Every twentieth document is held out for validation; of fewer than twenty documents, the last twentieth of each.
    With `choice.texts`, both are the same texts.

    Raises:
        InputError: the source cannot be read (see `documents`), or has too few texts of `max_tokens` tokens.
    """
    training_documents, held_out_documents = _hold_out(documents(choice.source, "train"))
    train = _tokenized(lm, training_documents, max_tokens)
    _check_not_empty(train, choice, max_tokens)
    if choice.texts is not None:
        if choice.texts > len(train.window_starts):
            raise InputError(
                f"source {choice.source!r} has {len(train.window_starts)} texts of {max_tokens} tokens to train on, "
                f"not {choice.texts}"
            )
        subset = train.subset(choice.texts, choice.own_share, seed=0)
        return subset, subset
    validation = _tokenized(lm, held_out_documents, max_tokens)
    _check_not_empty(validation, choice, max_tokens)
    return train, validation


def _hold_out(source_documents: list[Document]) -> tuple[list[Document], list[Document]]:
    """Documents, or parts of them, to train on and to validate on."""
    if len(source_documents) >= _HELD_OUT:
        training = [document for number, document in enumerate(source_documents, 1) if number % _HELD_OUT]
        return training, source_documents[_HELD_OUT - 1 :: _HELD_OUT]
    heads, tails = [], []
    for document in source_documents:
        text, wanted = document.text, len(document.text) - max(1, len(document.text) // _HELD_OUT)
        cut = min(sentence_starts(text), key=lambda start: abs(start - wanted)) or wanted
        heads.append(replace(document, text=text[:cut] or text))
        tails.append(replace(document, text=text[cut:]))
    return heads, tails


def _check_not_empty(texts: TrainingTexts, choice: TextChoice, max_tokens: int) -> None:
    if len(texts.window_starts) == 0 or (len(texts.sentences) == 0 and choice.own_share > 0):
        kind = "texts" if len(texts.window_starts) == 0 else "sentences"
        raise InputError(
            f"source {choice.source!r} has too few {kind} of {max_tokens} tokens to train on and to hold out: give it "
            "more text, or ask for shorter texts (--max-tokens)"
        )


def _tokenized(lm: FrozenLM, source_documents: Sequence[Document], max_tokens: int) -> TrainingTexts:
    ids_by_document, window_starts, sentences, n_ids = [], [], [], 0
    for document in source_documents:
        ids = lm.encode(document.text).cpu()
        ids_by_document.append(ids.int())
        window_starts.append(n_ids + torch.arange(max(0, len(ids) - max_tokens + 1)))
        n_ids += len(ids)
        sentences += _sentences(lm, document.text, max_tokens)
    no_sentences = torch.empty(0, max_tokens, dtype=torch.int32)
    return TrainingTexts(
        torch.cat(ids_by_document), torch.cat(window_starts), torch.stack(sentences) if sentences else no_sentences
    )


def _sentences(lm: FrozenLM, text: str, max_tokens: int) -> list[Tensor]:
    """The first ids of the text from each sentence on, int32, (max_tokens,) each; shorter ones are left out."""
    n_characters, sentences = 8 * max_tokens + 64, []
    for start in sentence_starts(text):
        piece = text[start : start + n_characters]
        if start + n_characters < len(text):
            piece = (piece.rsplit(None, 1) or [""])[0]  # the last word may be cut
        ids = lm.encode(piece).cpu() if piece else torch.empty(0)
        if len(ids) >= max_tokens:
            sentences.append(ids[:max_tokens].int())
    return sentences


def _evenly_spaced(total: int, count: int) -> Tensor:
    """At most `count` numbers below `total`, evenly spaced, int64."""
    count = min(total, count)
    return torch.arange(count) * total // max(1, count)
