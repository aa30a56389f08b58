"""Laws of efforts: every token lies in one chunk, and more effort means fewer vectors and more steps."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prototokens import InputError
from prototokens.archive.efforts import EFFORTS, Effort, cut_into_chunks, effort_named


@given(st.lists(st.integers(0, 20), max_size=5), st.integers(1, 9))
def test_every_token_lies_in_one_chunk_and_segments_are_cut_apart(lengths: list[int], chunk_tokens: int) -> None:
    chunks = cut_into_chunks(lengths, chunk_tokens)
    assert [token for chunk in chunks for token in range(chunk.start, chunk.stop)] == list(range(sum(lengths)))
    assert all(1 <= chunk.length <= chunk_tokens for chunk in chunks)
    ends = {chunk.stop for chunk in chunks} | {0}
    assert {sum(lengths[:number]) for number in range(len(lengths) + 1)} <= ends
    assert len(chunks) == sum(-(-length // chunk_tokens) for length in lengths)


def test_efforts_grow() -> None:
    assert list(EFFORTS) == ["instant", "fast", "balanced", "thorough"]
    for name in ("tokens_per_vector", "steps"):
        values = [getattr(effort, name) for effort in EFFORTS.values()]
        assert values == sorted(values)


def test_mistakes_are_named() -> None:
    with pytest.raises(InputError, match="unknown effort 'slow'; choose one of: instant fast balanced thorough"):
        effort_named("slow")
    good: dict[str, Any] = {"tokens_per_vector": 8, "steps": 1}
    for changes, message in (
        ({"tokens_per_vector": 0}, "tokens_per_vector is 0; it must be at least 1"),
        ({"steps": -1}, "steps is -1; it must be at least 0"),
        ({"chunk_tokens": 0}, "chunk_tokens is 0; it must be at least 1"),
        ({"tolerated_share": 1.0}, "tolerated_share is 1; it must be at least 0 and below 1"),
        ({"margin": float("inf")}, "margin is inf; it must be a number of logits, at least 0"),
    ):
        with pytest.raises(InputError, match=message):
            Effort(**{**good, **changes})
