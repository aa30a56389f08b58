"""Laws of packing: pack then unpack is the identity on any text, whatever the vectors give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from archives import BLOCKS, NOTHING, ODD, QUICK, TEXT, config, odd, packed, same_archive
from families import FAMILIES, ONE, RECIPE, analytic, build, counted, family, tokenizer
from prototokens import FrozenLM, InputError, pack, read_archive, unpack
from prototokens.archive.archive import write_archive
from prototokens.archive.assembly import Stores
from prototokens.archive.chunk_fits import fit_chunks, shared_m
from prototokens.archive.efforts import Chunk, ChunkFit, Effort
from prototokens.archive.pack import PackConfig, Packer, PackProgress
from prototokens.arrangements import arrangement_named, blocks
from prototokens.files.quantised import STORES, rounded
from prototokens.files.resume import Journal
from prototokens.fitting.descent import FitProgress
from prototokens.fitting.recipes import Stop
from prototokens.fitting.scoreboard import MET, ScoreBoard
from prototokens.fitting.starter import Starter
from prototokens.metrics import logit_margins

ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=60)


@settings(max_examples=50)
@given(ANY_TEXT, st.sampled_from(list(ODD)), st.integers(1, 9), st.sampled_from(["auto", *STORES]))
def test_any_text_comes_back_whatever_the_tokenizer_does(text: str, habit: str, size: int, store: str) -> None:
    lm = odd(habit)
    archive = pack(lm, text, config(NOTHING, chunk_tokens=size, store=store))
    assert unpack(lm, archive) == text
    assert archive.text_bytes == len(text.encode())
    assert archive.n_characters == len(text)
    assert 0 <= archive.share_from_vectors <= 1


@pytest.mark.parametrize("text", ["", " ", "\n", "a", "é", "😀", "\ufeffBOM\r\n", "\ufffd", "a\x00b", "<|im_start|>x"])
def test_small_and_strange_texts_come_back_from_a_file(text: str, tmp_path: Path) -> None:
    lm = family("llama")
    archive = pack(lm, text, config(NOTHING), output=tmp_path / "file")
    again = read_archive(tmp_path / "file")
    assert same_archive(again, archive)
    assert unpack(lm, again) == text
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("effort", [QUICK, BLOCKS])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_packs_and_unpacks(name: str, effort: Effort) -> None:
    archive = packed(effort, name=name)
    assert unpack(family(name), archive) == TEXT
    assert archive.share_from_vectors > 0.4
    assert archive.model == family(name).identity


def test_a_model_that_is_no_transformer_of_hugging_face_s_will_do() -> None:
    lm = analytic()
    assert unpack(lm, pack(lm, "aaaabbbb", config())) == "aaaabbbb"


def test_the_share_is_what_the_vectors_give() -> None:
    lm, archive = family("llama"), packed()
    right = 0
    for chunk in range(len(archive)):
        e, m = archive.chunk_vectors(torch.tensor([chunk]))
        layout = archive.arrangement.layout(int(archive.lengths[chunk]))
        ids = lm.logits(layout.inputs_embeds(e, m, archive.fixed), layout.read_positions())[0].argmax(-1)
        right += int((ids == archive.patched(chunk, ids)).sum())
    every = archive.n_tokens + len(archive.literals)
    assert archive.share_from_vectors == (archive.n_tokens - len(archive.residual_ids)) / every
    # Tokens that lead by too little are kept too, so that more than the share may be right.
    assert right / every >= archive.share_from_vectors
    assert packed(NOTHING).share_from_vectors < archive.share_from_vectors


def test_tokens_that_lead_by_less_than_half_the_margin_are_in_the_residual() -> None:
    lm = family("llama")
    shares = [
        pack(lm, TEXT, config(replace(QUICK, steps=12), margin=margin)).share_from_vectors
        for margin in (0.0, 1.0, 4.0, 1000.0)
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == 0 < shares[0]


@pytest.mark.parametrize("store", STORES)
def test_every_store_is_exact_and_smaller_ones_are_smaller(store: str, tmp_path: Path) -> None:
    archive = packed(store=store)
    assert archive.vectors.counts[store] == len(archive.vectors)
    assert unpack(family("llama"), archive) == TEXT
    sizes = [write_archive(tmp_path / s, packed(store=s)).stat().st_size for s in STORES]
    assert sizes == sorted(sizes)


def test_auto_loses_no_token_of_a_short_chunk_to_rounding() -> None:
    auto, whole = packed(), packed(store="float32")
    assert auto.share_from_vectors == whole.share_from_vectors
    assert auto.vectors.counts["float32"] < len(auto.vectors)


def test_a_dtype_in_which_tokens_are_lost_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = packed(store="float32")
    monkeypatch.setattr("prototokens.archive.assembly.rounded", lambda v, store: rounded(v, store) * (store != "int8"))
    archive = pack(family("llama"), TEXT, config())
    assert archive.share_from_vectors >= whole.share_from_vectors
    assert archive.vectors.counts["int8"] < len(archive.vectors) / 2


@pytest.mark.parametrize(("n_lost", "store"), [(0, "int8"), (15, "int8"), (16, "float16")])
def test_a_twentieth_of_a_chunk_may_be_lost_to_rounding(
    n_lost: int, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few tokens in the residual take less than a chunk's vectors in the next larger dtype."""

    def held(self: Stores, chunks: Sequence[int], stores: Sequence[str]) -> list[Tensor]:
        return [torch.arange(300) >= (n_lost if name == "int8" else 0) for name in stores]

    monkeypatch.setattr(Stores, "held", held)
    fit = ChunkFit(Chunk(0, 300), torch.zeros(1, 2), None)
    nothing = torch.zeros(0)
    stores = Stores(family("llama"), blocks(300), [fit], nothing, nothing, nothing, 0.5, 1)
    assert stores.smallest() == [store]


def test_chunks_share_the_m_that_is_stored_at_no_loss() -> None:
    lm = family("llama")
    m = shared_m(lm, config().recipe)
    assert torch.equal(m.half().float(), m)
    assert torch.allclose(m, lm.embedding_statistics.mean, rtol=1e-3, atol=1e-6)
    archive = packed(NOTHING)
    assert torch.equal(archive.m, m)
    assert not archive.own_m.any()
    assert len(archive.vectors) == sum(-(-length // 2) for length in archive.lengths.tolist())


def test_chunks_and_blocks_are_as_long_as_is_asked_for() -> None:
    lm, text = family("llama"), "abcd" * 5
    for changes, lengths, n_vectors in (
        ({}, [5, 5, 5, 5], 4 * 3),
        ({"chunk_tokens": 16}, [16, 4], 8 + 2),
        ({"tokens_per_vector": 5}, [5, 5, 5, 5], 4),
        ({"tokens_per_vector": 100, "chunk_tokens": 20}, [20], 1),
        ({"recipe": replace(ONE, tokens_per_vector=4)}, [5, 5, 5, 5], 4 * 2),
        ({"recipe": replace(ONE, arrangement=blocks(4))}, [5, 5, 5, 5], 4 * 2),
    ):
        archive = pack(lm, text, config(replace(BLOCKS, steps=0, own_m=False), **changes))
        assert archive.lengths.tolist() == lengths
        assert len(archive.vectors) == n_vectors
        assert archive.packing["chunk_tokens"] == changes.get("chunk_tokens", 5)
        assert archive.packing["tokens_per_vector"] == archive.arrangement.block_length
        assert unpack(lm, archive) == text


def test_a_learned_start_decides_between_two_vectors_and_blocks() -> None:
    lm = family("llama")
    for arrangement, longest in ((arrangement_named("m,e,m*(n-1)"), 2), (blocks(3), 5)):
        start = Starter(torch.zeros(lm.width), torch.zeros(lm.width), arrangement, lm.identity, {})
        archive = pack(lm, "abcdefgh", config(replace(BLOCKS, steps=0), recipe=replace(ONE, start=start)))
        assert archive.arrangement == (arrangement if longest == 2 else blocks(2))
        assert int(archive.lengths.max()) == longest
        assert archive.packing["start"] == start.name


@pytest.mark.parametrize(
    "leads", [(5.0, 5.0, 5.0, 0.1), (5.0, 5.0, 5.0, -1.0), (5.0, 5.0, 0.3, 0.1), (9.0, 9.0, 9.0, 9.0)]
)
def test_a_token_that_leads_by_too_little_counts_as_missed(leads: tuple[float, ...]) -> None:
    board = ScoreBoard(torch.tensor([0]), Stop(accuracy=0.75, margin=0.5))
    board.update(torch.tensor([0]), torch.ones(1, 4), torch.tensor([leads]), 0)
    assert (board.status() == [MET]) == (sum(lead > 0.5 for lead in leads) >= 3)


def test_a_fit_ends_when_all_but_the_tolerated_share_lead_by_the_margin() -> None:
    lm, ids = family("llama"), family("llama").encode("home")
    chunk, m = Chunk(0, 4), shared_m(lm, ONE)
    steps = []
    for share, margin in ((0.0, 0.5), (0.25, 0.5), (0.25, 4.0)):
        seen: list[FitProgress] = []
        effort = Effort(tokens_per_vector=2, steps=400, tolerated_share=share, margin=margin)
        (fit,) = fit_chunks(lm, ids, [chunk], effort, m, replace(ONE, arrangement=blocks(2)), seen.append)
        layout = blocks(2).layout(4)
        assert fit.m is not None
        logits = lm.logits(layout.inputs_embeds(fit.e[None], fit.m[None], torch.empty(0, lm.width)), range(1, 5))
        lead = logit_margins(logits, ids[None])
        assert int((lead > margin).sum()) >= (1 - share) * 4
        steps.append(seen[-1].step)
    assert steps[1] <= steps[0] < 400  # one token of four may be missed
    assert steps[1] <= steps[2] < 400


def test_chunks_are_fitted_and_decoded_in_batches() -> None:
    lm = family("llama")
    effort = Effort(tokens_per_vector=2, steps=3, chunk_tokens=4)
    with counted(lm) as calls:
        archive = pack(lm, "abcd" * 16, config(effort, store="float32", batch_tokens=32))
    rows = {rows for rows, _ in calls.forward if rows > 1}
    assert rows == {8}
    with counted(lm) as calls:
        assert unpack(lm, archive) == "abcd" * 16
    assert len(calls.forward) == 1


def test_a_chunk_s_fit_does_not_depend_on_the_company() -> None:
    lm = family("llama")
    effort = replace(QUICK, steps=5)
    alone = pack(lm, "home", config(effort, store="float32"))
    beside = pack(lm, "home, sweet home", config(effort, store="float32"))
    first = torch.tensor([0, 1, 2, 3])  # e and m of the first two chunks
    assert torch.allclose(alone.vectors.take(first), beside.vectors.take(first), atol=1e-3)


def test_the_same_call_makes_the_same_archive() -> None:
    lm = family("llama")
    assert same_archive(pack(lm, TEXT, config()), packed())
    few = replace(BLOCKS, steps=3)
    assert unpack(lm, pack(lm, TEXT, config(few, recipe=replace(RECIPE, restarts=2)))) == TEXT


def test_other_arrangements_have_chunks_as_long_as_a_block_and_keep_their_fixed_vectors() -> None:
    lm = family("llama")
    recipe = replace(RECIPE, arrangement="bos,e,m*(n-1)", restarts=1)
    archive = pack(lm, TEXT, config(NOTHING, recipe=recipe))
    assert int(archive.lengths.max()) == NOTHING.tokens_per_vector < NOTHING.chunk_tokens
    assert torch.equal(archive.fixed, lm.fixed_vector("bos").unsqueeze(0))
    assert unpack(lm, archive) == TEXT


def test_positions_are_those_that_passed_through_the_model(tmp_path: Path) -> None:
    lm, settings = family("llama"), config(replace(BLOCKS, tolerated_share=0.3))
    with Journal(tmp_path / "file", {}) as journal:
        packer = Packer(lm, TEXT, settings, journal)
        with counted(lm) as calls:
            packer.archive()
        with counted(lm) as assembly:
            packer.archive()
        forward, backward = packer.positions()
        assert backward == calls.backward_positions()
        assert forward == calls.positions() - assembly.positions()
        assert Packer(lm, TEXT, settings, journal).positions() == (forward, backward)


def test_progress_rises_to_the_end() -> None:
    seen: list[PackProgress] = []
    archive = pack(family("llama"), TEXT[:12], config(BLOCKS), progress=seen.append)
    done = [p.tokens_done for p in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1].n_tokens == archive.n_tokens
    assert seen[-1].chunks_done == seen[-1].chunks == len(archive)
    assert seen[-1].seconds_left == 0
    assert any(p.fit and p.fit.step for p in seen)


def test_mistakes_are_named(tmp_path: Path) -> None:
    lm = family("llama")
    for changes, message in (
        ({"effort": "slow"}, "unknown effort 'slow'"),
        ({"store": "int4"}, "unknown store 'int4'; choose one of: auto int8 float16 float32"),
        ({"chunk_tokens": 0}, "chunk_tokens is 0; it must be at least 1"),
        ({"batch_tokens": 0}, "batch_tokens is 0; it must be at least 1"),
        ({"margin": float("nan")}, "margin is nan"),
        ({"tokens_per_vector": 0}, "tokens_per_vector is 0; it must be at least 1"),
        ({"recipe": replace(RECIPE, e_tokens=2)}, "e_tokens is 2; give tokens_per_vector"),
    ):
        with pytest.raises(InputError, match=message):
            PackConfig(**changes)
    with pytest.raises(InputError, match="character 1 is half of a surrogate pair"):
        pack(lm, "a\ud800", config())
    with pytest.raises(InputError, match=r"a chunk of 64 tokens .* 64 of .*; make it at most 63"):
        pack(lm, TEXT, config(chunk_tokens=64))
    with pytest.raises(InputError, match="there is no folder"):
        pack(lm, TEXT, config(NOTHING), output=tmp_path / "nowhere" / "file")


def test_what_was_meant_is_said(tmp_path: Path) -> None:
    lm, archive = family("llama"), packed(NOTHING)
    for arguments, message in (
        ((lm, b"x"), r"text is bytes; pack takes str: decode it first, as in pack\(lm, text.decode\(\)\)"),
        ((lm, tmp_path), "text is the path .*; read the file first"),
        ((lm, None), "text is NoneType; it must be str"),
        (("x", lm), "pack takes a FrozenLM first, not str"),
        ((lm, "x", "fast"), r"for an effort, give PackConfig\(effort='fast'\)"),
        ((lm, "x", RECIPE), r"it must be a PackConfig; give PackConfig\(recipe=\.\.\.\)"),
        ((lm, "x", 3), "config is int; it must be a PackConfig"),
    ):
        with pytest.raises(InputError, match=message):
            pack(*arguments)  # type: ignore[arg-type]
    for arguments, message in (
        ((archive, lm), r"the archive comes second: unpack\(lm, archive\)"),
        ((lm, "x.proto"), r"read it first: unpack\(lm, read_archive\('x\.proto'\)\)"),
        ((lm, b"x"), "archive is bytes; it must be an Archive"),
        ((None, archive), "lm is NoneType; it must be a FrozenLM"),
    ):
        with pytest.raises(InputError, match=message):
            unpack(*arguments)  # type: ignore[arg-type]


def test_chunks_fit_a_model_with_few_positions() -> None:
    model = build("llama")
    model.config.max_position_embeddings = 5
    lm = FrozenLM(model, tokenizer())
    archive = pack(lm, "abcd" * 3, config(replace(NOTHING, chunk_tokens=16)))
    assert archive.lengths.tolist() == [4, 4, 4]
    assert unpack(lm, archive) == "abcd" * 3
