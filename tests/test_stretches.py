"""Laws of stretches and runs: nothing of a text is lost or doubled, whatever the tokenizer does to it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from archives import ODD, TEXT, odd
from families import family
from prototokens import FrozenLM
from prototokens.archive.segments import Run, Stretch, runs, stretches

ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=80)


def chunk_lengths(count: int, size: int) -> list[int]:
    return [min(size, count - start) for start in range(0, count, size)]


def rebuilt(lm: FrozenLM, stretch: Stretch, size: int) -> str:
    """The text of a stretch as an archive puts it together."""
    lengths = chunk_lengths(len(stretch.ids), size)
    text, token = "", 0
    for run in runs(lm, stretch, lengths):
        count = sum(lengths[: run.chunks])
        lengths = lengths[run.chunks :]
        piece = run.lead + lm.decode(stretch.ids[token : token + count])
        assert len(piece) == run.characters
        text, token = text + piece, token + count
    assert not lengths
    return text


@given(ANY_TEXT, st.sampled_from(list(ODD)), st.integers(1, 9))
def test_stretches_and_their_runs_are_the_text(text: str, habit: str, size: int) -> None:
    lm = odd(habit)
    found = stretches(lm, text)
    assert "".join(stretch.text for stretch in found) == text
    for stretch in found:
        assert stretch.text
        if len(stretch.ids):
            assert int(stretch.ids.max()) < lm.vocabulary
            assert lm.decode(stretch.ids) == stretch.text
            assert rebuilt(lm, stretch, size) == stretch.text


@given(ANY_TEXT.filter(lambda text: text and "\ufffd" not in text))
def test_a_text_that_comes_back_is_one_stretch(text: str) -> None:
    (stretch,) = stretches(odd("plain"), text)
    assert stretch.ids.tolist() == odd("plain").encode(text).tolist()


def test_what_does_not_come_back_is_literal_and_the_rest_is_not() -> None:
    lm = odd("lower-cases")
    low, high = "all of this is low, ", "AND ALL OF THIS!"
    found = stretches(lm, low * 8 + high * 4 + low * 8)
    assert [bool(len(stretch.ids)) for stretch in found].count(False) == 1
    literal = next(stretch.text for stretch in found if not len(stretch.ids))
    assert high * 4 in literal
    assert len(literal) < len(high) * 4 + 2 * 32
    assert [s.text for s in stretches(odd("plain"), "a\ufffd\ufffdb")] == ["a", "\ufffd\ufffd", "b"]


def test_ids_that_the_model_has_no_embedding_for_are_kept_as_text() -> None:
    lm = odd("knows more tokens than the model")
    text = "z" + "all the others are known. " * 4
    assert lm.decode(lm.encode(text)) == text
    literal, *rest = stretches(lm, text)
    assert (literal.text[0], len(literal.ids)) == ("z", 0)
    assert all(len(stretch.ids) for stretch in rest)


def test_runs_are_the_shortest() -> None:
    lm = family("llama")
    text = "ab😀cé"  # 1 + 1 + 4 + 1 + 2 bytes, a token each
    (stretch,) = stretches(lm, text)
    assert runs(lm, stretch, [1] * 9) == [
        Run("", 1, 1), Run("", 1, 1), Run("", 4, 1), Run("", 1, 1), Run("", 2, 1)
    ]  # fmt: skip
    assert runs(lm, stretch, [2, 4, 3]) == [Run("", 1, 2), Run("", 1, 1), Run("", 1, 2)]
    assert runs(lm, stretch, [9]) == [Run("", 1, 5)]


def test_white_space_that_a_tokenizer_strips_is_the_lead_of_a_run() -> None:
    lm = odd("strips a space at the beginning")
    (stretch,) = stretches(lm, "one two six")
    assert runs(lm, stretch, [3, 4, 4]) == [Run("", 1, 3), Run(" ", 1, 4), Run(" ", 1, 4)]


@pytest.mark.parametrize("habit", ["marks what is no character", "leaves out what is no character"])
def test_a_walk_that_goes_wrong_is_mended(habit: str) -> None:
    lm = odd(habit)
    for text in ("<0x>" * 5 + "é" * 40, "é<0x>" * 9, TEXT.replace("\ufffd", "?"), "😀" * 30):
        for stretch in stretches(lm, text):
            for size in range(1, 8):
                assert not len(stretch.ids) or rebuilt(lm, stretch, size) == stretch.text


def test_long_texts_are_walked_quickly() -> None:
    lm = odd("adds a space at the beginning")  # nothing comes back at all
    assert not any(len(stretch.ids) for stretch in stretches(lm, "word " * 1000))
    plain = family("llama")
    (stretch,) = stretches(plain, "é" * 2000)
    assert len(runs(plain, stretch, [1] * 4000)) == 2000
    assert torch.equal(stretch.ids, plain.encode("é" * 2000))
