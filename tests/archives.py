"""What tests of archives share: efforts that take a moment, archives of every kind, and tokenizers that are odd."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch

from families import ONE, VOCABULARY, family, tokenizer
from prototokens import FrozenLM, pack
from prototokens.archive.archive import Archive
from prototokens.archive.efforts import Effort
from prototokens.archive.pack import PackConfig

TEXT = "Go home, naïve 😀.\r\nBe \ufffd!"
NOTHING = Effort(tokens_per_vector=2, steps=0, own_m=False, chunk_tokens=4)
"""No steps: every chunk is decoded all the same, and all comes from the residual."""
QUICK = Effort(tokens_per_vector=2, steps=40, chunk_tokens=2)
"""Most tokens come from the vectors; a chunk is one block."""
BLOCKS = Effort(tokens_per_vector=2, steps=40, chunk_tokens=5)
"""Chunks of three blocks, the last of which is short."""
SHARED = replace(BLOCKS, own_m=False)
"""The same with one m for all chunks."""


def config(effort: Effort = QUICK, **changes: Any) -> PackConfig:
    """How tests pack, with the recipe that the tiny models were tuned for."""
    return replace(PackConfig(effort=effort, recipe=ONE, batch_tokens=64, margin=0.2), **changes)


@cache
def packed(effort: Effort = QUICK, name: str = "llama", store: str = "auto", text: str = TEXT) -> Archive:
    """The archive of a text, made once."""
    return pack(family(name), text, config(effort, store=store))


class Odd:
    """The byte tokenizer with a habit: what it does to a text before it encodes, and to one that it has decoded."""

    def __init__(self, before: Any = lambda text: text, after: Any = lambda text: text, shift: int = 0) -> None:
        self.before, self.after, self.shift = before, after, shift

    def get_vocab(self) -> dict[str, int]:
        return tokenizer().get_vocab()

    def encode(self, text: str, **options: Any) -> list[int]:
        z = tokenizer().convert_tokens_to_ids("z")
        return [i + self.shift if i == z else i for i in tokenizer().encode(self.before(text), **options)]

    def decode(self, ids: list[int], **options: Any) -> str:
        return self.after(tokenizer().decode([i - self.shift if i >= VOCABULARY else i for i in ids], **options))


ODD = {
    "plain": Odd(),
    "lower-cases": Odd(before=str.lower),
    "drops white space": Odd(before=lambda text: "".join(text.split())),
    "strips a space at the beginning": Odd(after=lambda text: text.removeprefix(" ")),
    "adds a space at the beginning": Odd(after=lambda text: f" {text}"),
    "marks what is no character": Odd(after=lambda text: text.replace("\ufffd", "<0x>")),
    "leaves out what is no character": Odd(after=lambda text: text.replace("\ufffd", "")),
    "knows more tokens than the model": Odd(shift=1000),
}


def odd(habit: str) -> FrozenLM:
    """A tiny model with an odd tokenizer."""
    return FrozenLM(family("llama").model, ODD[habit], family("llama").identity)


def same_archive(a: Archive, b: Archive) -> bool:
    """Whether two archives hold the same bits."""
    fields_of_a, fields_of_b = vars(a), vars(b)
    plain = ("model", "arrangement", "literals", "text_hash", "text_bytes", "packing")
    tensors = ("m", "fixed", "lengths", "own_m", "checksums", "residual_positions", "residual_ids", "pieces",
               "piece_checksums")  # fmt: skip
    vectors = zip(a.vectors.tensors().values(), b.vectors.tensors().values(), strict=True)
    return (
        all(fields_of_a[name] == fields_of_b[name] for name in plain)
        and all(torch.equal(fields_of_a[name], fields_of_b[name]) for name in tensors)
        and all(torch.equal(x, y) for x, y in vectors)
    )
