"""Drafts from the text itself: what followed the last tokens where they stood before."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 3
_DRAFTS = 8
_PRIOR = {1: (1.0, 3.0), 2: (2.0, 2.0), 3: (4.0, 1.0)}
"""For each length of an n-gram, drafts that count as right and as wrong before any was verified."""


class Lookup:
    """N-grams of one text, and how often their continuations were right.

    Of the n-grams that end the text, up to 3 tokens long, the longest that stood before is taken, where it stood last.

    Reference: Prompt Lookup Decoding (Saxena, 2023), https://github.com/apoorvumang/prompt-lookup-decoding.

    Args:
        tokens: the text.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}  # where the continuation of an n-gram begins
        self._right = {n: list(counts) for n, counts in _PRIOR.items()}
        self._continuation: tuple[int, ...] = ()
        self._matched = 0
        self.add(tokens)

    def add(self, tokens: Sequence[int]) -> None:
        """Tokens that the text goes on with: drafts are judged by them, and new drafts are looked up."""
        if self._matched:
            for draft, token in zip(self._continuation, tokens, strict=False):
                self._right[self._matched][draft != token] += 1
                if draft != token:
                    break
        continuations = {}
        for token in tokens:
            self._tokens.append(token)
            for n in range(1, LONGEST + 1):
                ending = tuple(self._tokens[-n:])
                if len(ending) == n:
                    continuations[n] = self._ends.get(ending)
                    self._ends[ending] = len(self._tokens)
        self._matched = max((n for n, begin in continuations.items() if begin is not None), default=0)
        begin = continuations.get(self._matched)
        self._continuation = () if begin is None else tuple(self._tokens[begin : begin + _DRAFTS])

    def draft(self, path: Sequence[int]) -> tuple[int, float] | None:
        """The draft behind some tokens that follow the text, and its chance; None if there is none."""
        depth = len(path)
        if depth >= len(self._continuation) or self._continuation[:depth] != tuple(path):
            return None
        right, wrong = self._right[self._matched]
        return self._continuation[depth], right / (right + wrong)

    @property
    def n_drafts(self) -> int:
        """Tokens that are drafted behind the text."""
        return len(self._continuation)
