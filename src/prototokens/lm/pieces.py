"""Pieces: what each token of a text adds to it, for those who want to see tokens."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError

if TYPE_CHECKING:
    from .frozen import FrozenLM

_UNREADABLE = "\ufffd"
_LONGEST_CHARACTER = 8  # tokens; longer runs of unreadable tokens are text as it is


def token_texts(lm: FrozenLM, ids: Iterable[int]) -> dict[int, str]:
    """What each of these ids adds to a text, spaces included. Bytes that are no character on their own give U+FFFD."""
    after = _After(lm)
    return {token: after.text([token]) for token in sorted(set(ids))}


def pieces(lm: FrozenLM, ids: Tensor) -> list[str]:
    """The text of ids (T,) cut into what each token adds; joined, they are the text that the ids decode to.

    Where several tokens make one character, the last one has it and the others are empty.
    """
    after, tokens = _After(lm), ids.tolist()
    cut: list[str] = []
    begin = 0
    for end in range(1, len(tokens) + 1):
        text = after.text(tokens[begin:end])
        is_whole = not text.endswith(_UNREADABLE) or end - begin >= _LONGEST_CHARACTER or end == len(tokens)
        if is_whole:
            cut += [""] * (end - begin - 1) + [text]
            begin = end
    text = lm.decode(ids)
    if cut and "".join(cut) != text and "".join(cut).lstrip() == text:  # a tokenizer that drops the first space
        first = next((number for number, piece in enumerate(cut) if piece.strip()), 0)
        cut[: first + 1] = [""] * first + [cut[first].lstrip()]
    return cut if "".join(cut) == text else _by_prefixes(lm, ids)


def _by_prefixes(lm: FrozenLM, ids: Tensor) -> list[str]:
    """The same for tokenizers whose tokens change what stands before them: by how far each prefix agrees."""
    text, ends = lm.decode(ids), [0]
    for n_tokens in range(1, len(ids)):
        prefix = lm.decode(ids[:n_tokens])
        agreeing = next((i for i, (a, b) in enumerate(zip(prefix, text, strict=False)) if a != b), len(prefix))
        ends.append(max(ends[-1], min(agreeing, len(text))))
    ends.append(len(text))
    return [text[a:b] for a, b in pairwise(ends)]


class _After:
    """Texts of tokens that follow another one: at the beginning of a text many tokenizers drop a space."""

    def __init__(self, lm: FrozenLM) -> None:
        self.lm = lm
        try:
            self.anchor = lm.encode("a").tolist()
        except InputError:  # a tokenizer that drops it
            self.anchor = []
        self.before = lm.decode(torch.tensor(self.anchor, dtype=torch.long))

    def text(self, ids: list[int]) -> str:
        """What the ids add after the anchor."""
        whole = self.lm.decode(torch.tensor([*self.anchor, *ids]))
        if self.anchor and whole.startswith(self.before):
            return whole[len(self.before) :]
        return self.lm.decode(torch.tensor(ids))
