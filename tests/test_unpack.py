"""Laws of unpacking: the same text in any batch, dtype or number of threads, in whole or in part, or an error."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import islice, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from archives import BLOCKS, NOTHING, QUICK, SHARED, TEXT, Odd, config, odd, packed
from families import build, counted, family, tokenizer
from prototokens import FrozenLM, InputError, pack, unpack
from prototokens.archive.archive import Archive
from prototokens.archive.efforts import Effort
from prototokens.archive.unpack import Decoding, Reader, chunk_ids, iter_text, read_range
from prototokens.lm.identity import Identity


def in_dtype(dtype: torch.dtype, name: str = "llama") -> FrozenLM:
    """The same weights in another dtype, under the same identity, as `load_lm` loads them."""
    return FrozenLM(copy.deepcopy(family(name).model).to(dtype), tokenizer(), family(name).identity)


def never(_: str) -> FrozenLM:
    raise AssertionError("the weights are not needed anew")


def nowhere(_: str) -> FrozenLM:
    raise InputError("no such model")


def spoilt(archive: Archive, chunk: int) -> Archive:
    """The archive with the vectors of one chunk set to zero, and none of its tokens in the residual."""
    first = chunk + int(archive.own_m[:chunk].sum())
    vectors = archive.vectors.take(torch.arange(len(archive.vectors)))
    vectors[first] = 0
    start, end = archive.token_starts[chunk : chunk + 2]
    kept = (archive.residual_positions < start) | (archive.residual_positions >= end)
    return replace(
        archive,
        vectors=type(archive.vectors).of(vectors, ["float32"] * len(vectors)),
        residual_positions=archive.residual_positions[kept],
        residual_ids=archive.residual_ids[kept],
    )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch_tokens", [1, 3 * 2, 10_000])
def test_batches_and_threads_change_nothing(batch_tokens: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        reader = Reader(family("llama"), packed(), batch_tokens=batch_tokens, anew=never)
        assert reader.text() == TEXT
    finally:
        torch.set_num_threads(before)
    assert reader.decoding.alone == 0
    assert reader.decoding.chunks == len(packed())
    assert reader.decoding.n_tokens == packed().n_tokens


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_dtype_gives_the_same_text(dtype: torch.dtype) -> None:
    for batch_tokens in (1, 6, 10_000):
        reader = Reader(in_dtype(dtype), packed(), batch_tokens=batch_tokens, anew=lambda _: family("llama"))
        assert reader.text() == TEXT
        assert reader.decoding.anew <= len(packed()) / 4  # margins carry most of them over


@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_what_is_packed_in_another_dtype_comes_back_in_it_and_in_float32(margin: float) -> None:
    """Packed in bfloat16 with next to no margin; a reader in float32 may need the weights as they were packed."""
    low, loaded = in_dtype(torch.bfloat16), []

    def anew(dtype: str) -> FrozenLM:
        loaded.append(dtype)
        return in_dtype(getattr(torch, dtype))

    archive = pack(low, TEXT, config(replace(QUICK, steps=14), margin=margin))
    assert archive.packing["dtype"] == "bfloat16"
    for lm in (low, family("llama")):
        for batch_tokens in (1, 6, 10_000):
            assert Reader(lm, archive, batch_tokens=batch_tokens, anew=anew).text() == TEXT
    assert set(loaded) <= {"float32", "bfloat16"}


def test_chunks_that_fail_are_retried_alone_and_then_anew() -> None:
    archive = packed()
    broken = family("mistral")  # other weights, under the right name
    impostor = FrozenLM(broken.model, tokenizer(), family("llama").identity)
    reader = Reader(impostor, archive, anew=lambda _: family("llama"))
    assert reader.text() == TEXT
    assert reader.decoding.anew > 0
    assert reader.decoding.chunks == len(archive)
    with pytest.raises(InputError, match=r"counted from 0: \d.*alone.*not in float32 anew \(no such model\)"):
        Reader(impostor, archive, anew=nowhere).text()
    with pytest.raises(InputError, match=r"not in float32 anew \(they are others by now\)"):
        Reader(impostor, archive, anew=lambda _: family("gpt2")).text()


def test_a_chunk_that_fails_in_company_is_read_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = family("llama")
    logits = FrozenLM.logits

    def lossy(self: FrozenLM, inputs_embeds: torch.Tensor, read: range) -> torch.Tensor:
        right = logits(self, inputs_embeds, read)
        return right if len(right) == 1 else -right

    monkeypatch.setattr(FrozenLM, "logits", lossy)
    reader = Reader(lm, packed(), anew=never)
    assert reader.text() == TEXT
    assert reader.decoding.alone > 0


def test_a_wrong_chunk_is_named_and_nothing_else_is_lost() -> None:
    lm, archive = family("llama"), spoilt(packed(), 3)
    with pytest.raises(InputError, match=r"1 of \d+ chunks do not decode .* \(counted from 0: 3\)"):
        Reader(lm, archive, anew=lambda _: lm).text()
    with pytest.raises(InputError, match=r"counted from 0: 3"):
        Reader(lm, archive, anew=lambda _: lm).chunk_ids(3)
    assert read_range(lm, archive, 0, 6) == TEXT[:6]
    assert read_range(lm, archive, 9, 15) == TEXT[9:15]
    pieces = Reader(lm, archive, batch_tokens=2, anew=lambda _: lm).texts()
    assert "".join(islice(pieces, 3)) == TEXT[:6]
    with pytest.raises(InputError, match="counted from 0: 3"):
        next(pieces)
    assert Reader(lm, packed(), batch_tokens=2).text() == TEXT


def test_another_text_than_was_packed_is_never_given() -> None:
    lm, archive = family("llama"), packed()
    for changed in (replace(archive, text_hash="0" * 64), replace(archive, text_bytes=archive.text_bytes + 1)):
        with pytest.raises(InputError, match="does not match the hash"):
            unpack(lm, changed)
    other = FrozenLM(lm.model, odd("adds a space at the beginning").tokenizer, lm.identity)
    with pytest.raises(InputError, match="another version of its library"):
        unpack(other, archive)
    # As long as what was packed, and seen in a part, where the hash of the whole is not.
    shouting = FrozenLM(lm.model, Odd(after=str.upper), lm.identity)
    with pytest.raises(InputError, match="characters 0 to 2: the right tokens give another text"):
        read_range(shouting, archive, 0, 2)
    # A literal byte that is changed, in the middle of a character too.
    literals = bytearray(archive.literals)
    literals[0] ^= 0x40
    with pytest.raises(InputError, match="another text than was packed"):
        unpack(lm, replace(archive, literals=bytes(literals)))


@pytest.mark.parametrize("effort", [NOTHING, QUICK, BLOCKS])
def test_every_range_is_that_of_the_text(effort: object) -> None:
    lm, archive = family("llama"), packed(effort)
    for start, stop in product(range(len(TEXT) + 1), repeat=2):
        if start <= stop and (stop - start) % 5 == start % 3:
            assert read_range(lm, archive, start, stop) == TEXT[start:stop]
    for start, stop in ((-1, 2), (3, 2), (0, len(TEXT) + 1)):
        with pytest.raises(InputError, match=f"the range is {start} to {stop}"):
            read_range(lm, archive, start, stop)


@settings(max_examples=12)
@given(st.text(st.characters(codec="utf-8"), max_size=30), st.data())
def test_any_range_of_any_text(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, len(text)))
    lm = odd("strips a space at the beginning")
    archive = pack(lm, text, config(NOTHING, chunk_tokens=3))
    assert read_range(lm, archive, start, stop) == text[start:stop]
    assert "".join(iter_text(lm, archive)) == text


def test_a_part_is_read_without_the_rest() -> None:
    lm, archive = family("llama"), packed()
    with counted(lm) as calls:
        assert read_range(lm, archive, 4, 8) == TEXT[4:8]
    assert calls.positions() <= 3 * 3  # three chunks of two tokens, a position more each
    ids = lm.encode(TEXT[:4])
    with counted(lm) as calls:
        assert torch.equal(chunk_ids(lm, archive, 1), ids[2:4])
    assert calls.positions() == 3
    for chunk in (-1, len(archive)):
        with pytest.raises(InputError, match=f"chunk is {chunk}; the archive has {len(archive)}"):
            chunk_ids(lm, archive, chunk)


def test_text_is_streamed() -> None:
    lm, archive = family("llama"), packed()
    with counted(lm) as calls:
        pieces = Reader(lm, archive, batch_tokens=4).texts()
        assert TEXT.startswith(next(pieces))
        assert sum(rows for rows, _ in calls.forward) <= 2
        rest = list(pieces)
    assert len(rest) == len(archive.pieces) - 1
    assert "".join(iter_text(lm, archive)) == TEXT


def test_only_the_model_that_packed_reads() -> None:
    archive = packed()
    with pytest.raises(InputError, match=r"this archive belongs to LlamaForCausalLM .*, not to GPT2LMHeadModel"):
        unpack(family("gpt2"), archive)
    identity = family("llama").identity
    vocabulary = Identity(identity.name, "v1", identity.fingerprint, "0" * 64)
    with pytest.raises(InputError, match="another tokenizer vocabulary"):
        unpack(FrozenLM(build("llama"), tokenizer(), vocabulary), archive)
    with pytest.raises(InputError, match="at revision v2"):
        unpack(family("gpt2"), replace(archive, model=replace(identity, revision="v2")))
    with pytest.raises(InputError, match="batch_tokens is 0"):
        Reader(family("llama"), archive, batch_tokens=0)


def test_an_empty_text_needs_no_pass() -> None:
    lm = family("llama")
    archive = pack(lm, "", config())
    with counted(lm) as calls:
        reader = Reader(lm, archive)
        assert reader.text() == ""
        assert read_range(lm, archive, 0, 0) == ""
    assert calls.forward == []
    assert reader.decoding == Decoding()


def test_chunks_with_and_without_an_m_of_their_own_share_a_pass() -> None:
    lm = family("llama")
    mixed = half_shared(packed(BLOCKS))
    assert set(mixed.own_m.tolist()) == {True, False}
    same_length = (mixed.lengths == 5).nonzero().squeeze(1)
    e, m = mixed.chunk_vectors(same_length)
    assert e.shape == (len(same_length), 3, lm.width)
    for row, chunk in enumerate(same_length.tolist()):
        alone_e, alone_m = mixed.chunk_vectors(torch.tensor([chunk]))
        assert torch.equal(alone_e[0], e[row])
        assert torch.equal(alone_m[0], m[row])
        assert torch.equal(m[row], mixed.m) != bool(mixed.own_m[chunk])


def half_shared(archive: Archive) -> Archive:
    """The archive, with every other chunk's own m left out."""
    vectors, kept, own_m = archive.vectors.take(torch.arange(len(archive.vectors))), [], archive.own_m.clone()
    first = 0
    for chunk, length in enumerate(archive.lengths.tolist()):
        n_e_tokens = archive.arrangement.n_e_tokens(length)
        own_m[chunk] = chunk % 2 == 1
        kept.append(vectors[first : first + n_e_tokens + int(own_m[chunk])])
        first += n_e_tokens + 1
    rows = torch.cat(kept)
    return replace(archive, own_m=own_m, vectors=type(archive.vectors).of(rows, ["float32"] * len(rows)))


@pytest.mark.parametrize("effort", [BLOCKS, SHARED])
def test_a_chunk_of_many_blocks_is_decoded_in_one_pass(effort: Effort) -> None:
    lm, archive = family("llama"), packed(effort)
    b = effort.tokens_per_vector
    assert len(archive.vectors) == sum(-(-n // b) + effort.own_m for n in archive.lengths.tolist())
    assert int(archive.lengths.max()) == effort.chunk_tokens > b
    for chunk, length in enumerate(archive.lengths.tolist()):
        with counted(lm) as calls:
            ids = chunk_ids(lm, archive, chunk)
        assert (len(ids), calls.forward) == (length, [(1, length + 1)])
    assert unpack(lm, archive) == TEXT
