"""Pools of training texts: tokenized once, drawn from by seed, and what validates is never trained on."""

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
class TextPool:
    """Texts to draw from. Both kinds are cut to any length up to the pool's by taking their beginnings.

    Attributes:
        ids: ids of all documents, one after another, int32, (S,).
        begins: where in them windows of the pool's length begin that stay inside their document, int64, (W,).
        own: texts that begin at a sentence and are tokenized on their own, int32, (O, max_tokens).
    """

    ids: Tensor
    begins: Tensor
    own: Tensor

    def draw(self, length: int, count: int, own_share: float, seed: int) -> Tensor:
        """Texts of that length, int64, (count, length): each of its own for the share `own_share`, else a window."""
        generator = torch.Generator().manual_seed(seed)
        is_own = torch.rand(count, generator=generator) < own_share  # (count,)
        windows = self.windows(torch.randint(len(self.begins), (count,), generator=generator), length)
        own = self.own[torch.randint(max(1, len(self.own)), (count,), generator=generator) % max(1, len(self.own))]
        return torch.where(is_own[:, None], own[:, :length], windows).long()

    def windows(self, numbers: Tensor, length: int) -> Tensor:
        """Windows by number, int32, (..., length)."""
        return self.ids[self.begins[numbers, None] + torch.arange(length)]

    def spread(self, length: int, count: int) -> dict[str, Tensor]:
        """Texts of both kinds, evenly spread over the pool, at most `count` of each, int64, (B, length)."""
        windows = self.windows(_evenly(len(self.begins), count), length)
        return {"windows": windows.long(), "own": self.own[_evenly(len(self.own), count), :length].long()}

    def part(self, count: int, own_share: float, seed: int) -> TextPool:
        """A pool of that many texts of this one."""
        generator = torch.Generator().manual_seed(seed)
        own = min(round(own_share * count), len(self.own))
        begins = self.begins[torch.randperm(len(self.begins), generator=generator)[: count - own]]
        return TextPool(self.ids, begins, self.own[torch.randperm(len(self.own), generator=generator)[:own]])


def cached_pools(
    lm: FrozenLM, choice: TextChoice, max_tokens: int, cache: Path | None, *, write: bool = True
) -> tuple[TextPool, TextPool]:
    """`training_pools`, from a file if it holds those of the same texts, tokenizer and choice; it is written otherwise.

    Args:
        lm: supplies the tokenizer.
        choice: which texts.
        max_tokens: their longest length.
        cache: the file; None: tokenize in any case.
        write: whether to write the file.
    """
    digest = hashlib.sha256(f"{lm.identity.tokenizer_hash} {max_tokens} {choice}".encode())
    for document in documents(choice.source, "train"):
        digest.update(hashlib.sha256(document.text.encode()).digest())
    record = {"texts": digest.hexdigest()}
    if cache is not None and cache.exists():
        tensors, found = read_record(cache, _KIND)
        if found == record:
            train, validation = (
                TextPool(tensors[f"{name}.ids"], tensors[f"{name}.begins"].long(), tensors[f"{name}.own"])
                for name in ("train", "validation")
            )
            return train, validation
    pools = training_pools(lm, choice, max_tokens)
    if cache is not None and write:
        tensors = {}
        for name, pool in zip(("train", "validation"), pools, strict=True):
            tensors |= {
                f"{name}.ids": pool.ids.clone(),
                f"{name}.begins": pool.begins.int(),
                f"{name}.own": pool.own.clone(),
            }
        write_record(cache, _KIND, tensors, record, overwrite=True)
    return pools


def training_pools(lm: FrozenLM, choice: TextChoice, max_tokens: int) -> tuple[TextPool, TextPool]:
    """The pool to train on and the one to validate on.

    Every twentieth document validates; where there are fewer, the last twentieth of each. With `choice.texts`, both
    pools are the same texts.

    Raises:
        InputError: the source cannot be read (see `documents`), or has too few texts of `max_tokens` tokens.
    """
    kept, held_out = _hold_out(documents(choice.source, "train"))
    train = _pool(lm, kept, max_tokens)
    _refuse_nothing(train, choice, max_tokens)
    if choice.texts is not None:
        if choice.texts > len(train.begins):
            raise InputError(
                f"source {choice.source!r} has {len(train.begins)} texts of {max_tokens} tokens to train on, "
                f"not {choice.texts}"
            )
        part = train.part(choice.texts, choice.own_share, seed=0)
        return part, part
    validation = _pool(lm, held_out, max_tokens)
    _refuse_nothing(validation, choice, max_tokens)
    return train, validation


def _hold_out(found: list[Document]) -> tuple[list[Document], list[Document]]:
    if len(found) >= _HELD_OUT:
        kept = [d for number, d in enumerate(found, 1) if number % _HELD_OUT]
        return kept, found[_HELD_OUT - 1 :: _HELD_OUT]
    heads, tails = [], []
    for document in found:
        text, wanted = document.text, len(document.text) - max(1, len(document.text) // _HELD_OUT)
        cut = min(sentence_starts(text), key=lambda first: abs(first - wanted)) or wanted
        heads.append(replace(document, text=text[:cut] or text))
        tails.append(replace(document, text=text[cut:]))
    return heads, tails


def _refuse_nothing(pool: TextPool, choice: TextChoice, max_tokens: int) -> None:
    if len(pool.begins) == 0 or (len(pool.own) == 0 and choice.own_share > 0):
        kind = "texts" if len(pool.begins) == 0 else "sentences"
        raise InputError(
            f"source {choice.source!r} has too few {kind} of {max_tokens} tokens to train on and to hold out: give it "
            "more text, or ask for shorter texts (--max-tokens)"
        )


def _pool(lm: FrozenLM, found: Sequence[Document], max_tokens: int) -> TextPool:
    parts, begins, own, total = [], [], [], 0
    for document in found:
        ids = lm.encode(document.text).cpu()
        parts.append(ids.int())
        begins.append(total + torch.arange(max(0, len(ids) - max_tokens + 1)))
        total += len(ids)
        own += _own_texts(lm, document.text, max_tokens)
    none = torch.empty(0, max_tokens, dtype=torch.int32)
    return TextPool(torch.cat(parts), torch.cat(begins), torch.stack(own) if own else none)


def _own_texts(lm: FrozenLM, text: str, max_tokens: int) -> list[Tensor]:
    """The first ids of what begins at each sentence, int32, (max_tokens,) each; too short ones are left out."""
    characters, found = 8 * max_tokens + 64, []
    for first in sentence_starts(text):
        piece = text[first : first + characters]
        if first + characters < len(text):
            piece = (piece.rsplit(None, 1) or [""])[0]  # the last word may be cut
        ids = lm.encode(piece).cpu() if piece else torch.empty(0)
        if len(ids) >= max_tokens:
            found.append(ids[:max_tokens].int())
    return found


def _evenly(total: int, count: int) -> Tensor:
    """At most `count` numbers below `total`, evenly spread, int64."""
    count = min(total, count)
    return torch.arange(count) * total // max(1, count)
