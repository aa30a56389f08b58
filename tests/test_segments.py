"""Laws of segments and pieces: nothing of a text is lost or doubled, whatever the tokenizer does to it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from archives import ODD, TEXT, odd
from families import family
from prototokens import FrozenLM
from prototokens.archive.segments import Piece, Segment, cut_into_pieces, cut_into_segments

ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=80)


def chunk_lengths(count: int, size: int) -> list[int]:
    return [min(size, count - start) for start in range(0, count, size)]


def rebuilt(lm: FrozenLM, segment: Segment, size: int) -> str:
    """The text of a segment as an archive puts it together."""
    lengths = chunk_lengths(len(segment.ids), size)
    text, token = "", 0
    for piece in cut_into_pieces(lm, segment, lengths):
        count = sum(lengths[: piece.chunks])
        lengths = lengths[piece.chunks :]
        part = piece.lead + lm.decode(segment.ids[token : token + count])
        assert len(part) == piece.characters
        text, token = text + part, token + count
    assert not lengths
    return text


@given(ANY_TEXT, st.sampled_from(list(ODD)), st.integers(1, 9))
def test_segments_and_their_pieces_are_the_text(text: str, habit: str, size: int) -> None:
    lm = odd(habit)
    segments = cut_into_segments(lm, text)
    assert "".join(segment.text for segment in segments) == text
    for segment in segments:
        assert segment.text
        if len(segment.ids):
            assert int(segment.ids.max()) < lm.vocabulary
            assert lm.decode(segment.ids) == segment.text
            assert rebuilt(lm, segment, size) == segment.text


@given(ANY_TEXT.filter(lambda text: text and "\ufffd" not in text))
def test_a_text_that_comes_back_is_one_segment(text: str) -> None:
    (segment,) = cut_into_segments(odd("plain"), text)
    assert segment.ids.tolist() == odd("plain").encode(text).tolist()


def test_what_does_not_come_back_is_literal_and_the_rest_is_not() -> None:
    lm = odd("lower-cases")
    low, high = "all of this is low, ", "AND ALL OF THIS!"
    segments = cut_into_segments(lm, low * 8 + high * 4 + low * 8)
    assert [bool(len(segment.ids)) for segment in segments].count(False) == 1
    literal = next(segment.text for segment in segments if not len(segment.ids))
    assert high * 4 in literal
    assert len(literal) < len(high) * 4 + 2 * 32
    assert [s.text for s in cut_into_segments(odd("plain"), "a\ufffd\ufffdb")] == ["a", "\ufffd\ufffd", "b"]


def test_ids_that_the_model_has_no_embedding_for_are_kept_as_text() -> None:
    lm = odd("knows more tokens than the model")
    text = "z" + "all the others are known. " * 4
    assert lm.decode(lm.encode(text)) == text
    literal, *rest = cut_into_segments(lm, text)
    assert (literal.text[0], len(literal.ids)) == ("z", 0)
    assert all(len(segment.ids) for segment in rest)


def test_pieces_are_the_shortest() -> None:
    lm = family("llama")
    text = "ab😀cé"  # 1 + 1 + 4 + 1 + 2 bytes, a token each
    (segment,) = cut_into_segments(lm, text)
    assert cut_into_pieces(lm, segment, [1] * 9) == [
        Piece("", 1, 1), Piece("", 1, 1), Piece("", 4, 1), Piece("", 1, 1), Piece("", 2, 1)
    ]  # fmt: skip
    assert cut_into_pieces(lm, segment, [2, 4, 3]) == [Piece("", 1, 2), Piece("", 1, 1), Piece("", 1, 2)]
    assert cut_into_pieces(lm, segment, [9]) == [Piece("", 1, 5)]


def test_white_space_that_a_tokenizer_strips_is_the_lead_of_a_piece() -> None:
    lm = odd("strips a space at the beginning")
    (segment,) = cut_into_segments(lm, "one two six")
    assert cut_into_pieces(lm, segment, [3, 4, 4]) == [Piece("", 1, 3), Piece(" ", 1, 4), Piece(" ", 1, 4)]


@pytest.mark.parametrize("habit", ["marks what is no character", "leaves out what is no character"])
def test_a_walk_that_goes_wrong_is_mended(habit: str) -> None:
    lm = odd(habit)
    for text in ("<0x>" * 5 + "é" * 40, "é<0x>" * 9, TEXT.replace("\ufffd", "?"), "😀" * 30):
        for segment in cut_into_segments(lm, text):
            for size in range(1, 8):
                assert not len(segment.ids) or rebuilt(lm, segment, size) == segment.text


def test_long_texts_are_walked_quickly() -> None:
    lm = odd("adds a space at the beginning")  # nothing comes back at all
    assert not any(len(segment.ids) for segment in cut_into_segments(lm, "word " * 1000))
    plain = family("llama")
    (segment,) = cut_into_segments(plain, "é" * 2000)
    assert len(cut_into_pieces(plain, segment, [1] * 4000)) == 2000
    assert torch.equal(segment.ids, plain.encode("é" * 2000))
