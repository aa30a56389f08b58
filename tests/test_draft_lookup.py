"""Laws of drafts from the text itself: what followed the last tokens where they stood before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prototokens.drafting.lookup import LONGEST, Lookup

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
