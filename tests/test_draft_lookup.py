"""Laws of drafts from the text itself: what followed the last tokens where they stood before."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drafters import random_drafter
from prototokens import FrozenLM, generate
from prototokens.drafting import generating
from prototokens.drafting.generating import DraftTree
from prototokens.drafting.lookup import LONGEST, Lookup
from prototokens.drafting.network import DrafterConfig
from prototokens.drafting.tree import Place

TEXTS = st.lists(st.integers(0, 2), min_size=1, max_size=25)


def continuation(tokens: list[int]) -> list[int]:
    """What followed the longest ending of a text where it stood before, the last time, by search."""
    for n in range(LONGEST, 0, -1):
        for begin in range(len(tokens) - n - 1, -1, -1):
            if len(tokens) >= n and tokens[begin : begin + n] == tokens[-n:]:
                return tokens[begin + n :][:8]
    return []


@given(TEXTS)
def test_drafts_are_what_followed_the_longest_ending_where_it_stood_last(tokens: list[int]) -> None:
    lookup = Lookup(tokens)
    expected = continuation(tokens)
    assert lookup.n_drafts == len(expected)
    for depth, token in enumerate(expected):
        draft = lookup.draft(expected[:depth])
        assert draft is not None
        assert draft[0] == token
        assert 0 < draft[1] < 1
        assert lookup.draft([*expected[:depth], 9]) is None
    assert lookup.draft(expected) is None


@given(TEXTS, st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), max_size=6))
def test_a_text_that_comes_in_parts_is_the_same_text(tokens: list[int], parts: list[list[int]]) -> None:
    lookup = Lookup(tokens)
    for part in parts:
        lookup.add(part)
        tokens = tokens + part
    expected = continuation(tokens)
    drafts = [lookup.draft(expected[:depth]) for depth in range(len(expected))]
    assert [draft[0] for draft in drafts if draft] == expected


def test_what_was_right_is_trusted_more_and_what_was_wrong_less() -> None:
    right, wrong, untried = Lookup([1, 2, 3, 1]), Lookup([1, 2, 3, 1]), Lookup([1, 2, 3, 1])
    right.add([2, 3, 1])
    wrong.add([4, 1])
    assert untried.draft([]) == (2, 0.25)  # one token matched: 1 right and 3 wrong before any was verified
    assert wrong.draft([]) == (4, 1 / 5)
    longer = right.draft([])
    assert longer is not None
    assert longer[0] == 2
    right.add([7, 1])  # one token matches again, after three that were right
    shorter = right.draft([])
    assert shorter is not None
    assert shorter == (7, 4 / 7)


def test_drafts_of_the_text_stand_among_the_drafter_s_each_with_its_better_chance() -> None:
    def propose(paths: list[tuple[int, ...]]) -> list[Place]:
        return [[(2, 0.6), (3, 0.1)] for _ in paths]

    lookup = Lookup([1, 2, 3, 1])  # 2 and then 3 followed, each with a chance of a quarter
    propose_both = generating._with_lookup(propose, lookup)
    assert propose_both([(1,)]) == [[(2, 0.6), (3, 0.1)]]
    assert propose_both([(1, 2), (1, 3)]) == [[(2, 0.6), (3, 0.25)], [(2, 0.6), (3, 0.1)]]
    assert propose_both([(1, 2, 3)]) == [[(2, 0.6), (1, 0.25), (3, 0.1)]]


def test_the_text_drafts_further_ahead_than_the_drafter(llama: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """With drafts of the text that are always right, each pass gives all of them and one token more."""
    ids = llama.encode("To be")
    plain = generate(llama, ids, max_new_tokens=23).ids
    text = [*ids.tolist(), *plain.tolist()]

    class Knowing(Lookup):
        """A lookup that knows how the text goes on, from what it was told of it."""

        def draft(self, path: Sequence[int]) -> tuple[int, float] | None:
            rest = text[len(self._tokens) : len(self._tokens) + 6]
            ahead = len(path)
            return (rest[ahead], 0.9) if rest[:ahead] == list(path) and ahead < len(rest) else None

        @property
        def n_drafts(self) -> int:
            return 6

    monkeypatch.setattr(generating, "Lookup", Knowing)
    drafter = random_drafter(llama, DrafterConfig(0, 1, 0, 8))
    tree = DraftTree(width=1, max_nodes=99, position_cost=0)
    generation = generate(llama, ids, drafter=drafter, max_new_tokens=23, tree=tree)
    assert generation.ids.equal(plain)
    assert generation.passes == 1 + ceil((len(plain) - 1) / 7)
