"""Packing from an encoder: every chunk begins at what it writes, and the text comes back whatever that is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from archives import QUICK, TEXT, config
from encoders import CONFIG, random_encoder
from families import counted, family
from prototokens import FitConfig, FrozenLM, Given, InputError, pack, read_archive, unpack
from prototokens.archive import chunk_fits
from prototokens.archive import pack as packing
from prototokens.archive.chunks import chunk_logits
from prototokens.archive.efforts import EFFORTS, Effort
from prototokens.archive.pack import PackConfig, Packer
from prototokens.arrangements import blocks
from prototokens.fitting import fit
from prototokens.metrics import logit_margins

AS_WRITTEN = Effort(tokens_per_vector=4, steps=0, own_m=False)
"""No steps: what is stored is what fits set out from."""


@pytest.mark.parametrize("m", ["text", "global"])
def test_every_chunk_begins_at_what_the_encoder_writes(m: Any) -> None:
    lm = family("llama")
    encoder = random_encoder(config=replace(CONFIG, m=m))
    archive = pack(lm, "Go home, then rest.", config(AS_WRITTEN, encoder=encoder, store="float32"))
    ids, begin = lm.encode("Go home, then rest."), 0
    for chunk, length in enumerate(archive.lengths.tolist()):
        own_e, own_m = encoder.vectors(lm, ids[None, begin : begin + length])
        e, kept_m = archive.chunk_vectors(torch.tensor([chunk]))
        assert torch.allclose(e, own_e, atol=1e-6)
        assert torch.allclose(kept_m, own_m, atol=1e-3 if m == "global" else 1e-6)  # one m for all takes two bytes
        begin += length
    assert archive.own_m.any() == (m == "text")
    assert archive.packing["start"] == encoder.name


def test_fits_begin_at_what_the_encoder_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, encoder = family("llama"), random_encoder()
    begun: list[tuple[torch.Tensor, torch.Tensor]] = []

    def descend(lm: FrozenLM, targets: torch.Tensor, config: FitConfig, given: Given, **options: Any) -> Any:
        begun.append((targets, given.e_start))
        return fit.descend(lm, targets, config, given, **options)

    monkeypatch.setattr(chunk_fits, "descend", descend)
    pack(lm, "Go home.", config(replace(QUICK, steps=1), encoder=encoder))
    assert begun
    for targets, e_start in begun:
        assert torch.allclose(e_start, encoder.vectors(lm, targets)[0], atol=1e-6)


def test_the_instant_effort_fits_nothing_and_the_text_comes_back(tmp_path: Path) -> None:
    lm, encoder = family("llama"), random_encoder()
    instant = replace(EFFORTS["instant"], chunk_tokens=4)
    with counted(lm) as calls:
        archive = pack(lm, TEXT, config(instant, encoder=encoder), output=tmp_path / "archive")
    assert calls.backward == []
    packer = Packer(lm, TEXT, config(instant, encoder=encoder))
    packer.archive()
    with counted(lm) as assembly:
        packer.archive()
    assert calls.positions() == assembly.positions()  # nothing but what scores the vectors as they are stored
    assert (archive.own_m.all(), archive.arrangement) == (True, encoder.config.arrangement)
    assert archive.packing["effort"]["needs_encoder"]
    assert unpack(lm, read_archive(tmp_path / "archive")) == TEXT  # it needs no encoder


def test_one_m_for_all_texts_is_stored_once_unless_it_is_fitted(tmp_path: Path) -> None:
    lm, encoder = family("llama"), random_encoder(config=replace(CONFIG, m="global"))
    instant = replace(EFFORTS["instant"], chunk_tokens=4)
    archive = pack(lm, TEXT, config(instant, encoder=encoder), output=tmp_path / "archive")
    assert len(archive) > 1
    assert not archive.own_m.any()
    assert torch.allclose(archive.m, encoder.network.start_m.float(), atol=1e-3)
    assert unpack(lm, read_archive(tmp_path / "archive")) == TEXT
    assert pack(lm, TEXT, config(replace(QUICK, steps=1), encoder=encoder)).own_m.all()


def test_what_the_encoder_gets_right_is_not_in_the_residual() -> None:
    lm, encoder = family("llama"), random_encoder()
    ids = lm.encode("Go home, then rest.")
    archive = pack(lm, "Go home, then rest.", config(EFFORTS["instant"], encoder=encoder, store="float32", margin=0.2))
    e, m = encoder.vectors(lm, ids[None])
    logits = chunk_logits(lm, encoder.config.arrangement, len(ids), e, m, archive.fixed)
    wrong = (logit_margins(logits[0], ids) < 0.1).nonzero().flatten()  # half of the margin
    assert archive.residual_positions.tolist() == wrong.tolist()


def test_the_instant_effort_takes_the_encoder_of_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lm, encoder = family("llama"), random_encoder()
    packing._encoder_of_the_package.cache_clear()
    with pytest.raises(InputError, match=r"no encoder for LlamaForCausalLM comes with the package: name one"):
        pack(lm, TEXT, PackConfig("instant"), output=tmp_path / "archive")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(packing, "shipped_encoder", lambda _: encoder)
    archive = pack(lm, TEXT, PackConfig("instant", chunk_tokens=4), output=tmp_path / "archive")
    packing._encoder_of_the_package.cache_clear()
    assert archive.packing["start"] == encoder.name
    assert unpack(lm, archive) == TEXT


def test_efforts_without_an_encoder_are_recorded_as_before() -> None:
    assert "needs_encoder" not in EFFORTS["fast"].to_json()
    assert EFFORTS["instant"].to_json()["needs_encoder"]


@pytest.mark.parametrize("effort", [QUICK, replace(QUICK, own_m=False)])
@pytest.mark.parametrize("m", ["text", "global"])
def test_the_text_comes_back(effort: Effort, m: Any, tmp_path: Path) -> None:
    lm, encoder = family("llama"), random_encoder(config=replace(CONFIG, m=m))
    archive = pack(lm, TEXT, config(effort, encoder=encoder), output=tmp_path / "archive")
    assert unpack(lm, archive) == TEXT
    assert archive.share_from_vectors > 0.3


def test_the_encoder_s_blocks_are_taken_and_nothing_is_perturbed() -> None:
    encoder = random_encoder()
    how = PackConfig(encoder=encoder)
    assert how.recipe.arrangement == blocks(2)
    assert how.recipe.perturbation == 0
    assert replace(how, store="int8").recipe == how.recipe


def test_chunks_are_as_long_as_is_asked_for() -> None:
    lm, encoder = family("llama"), random_encoder()
    wide = replace(QUICK, tokens_per_vector=8, chunk_tokens=12)
    assert int(pack(lm, TEXT, config(wide, encoder=encoder)).lengths.max()) == 12
    assert int(pack(lm, TEXT, config(encoder=encoder, chunk_tokens=5)).lengths.max()) == 5


def test_an_encoder_of_another_model_is_refused_before_work() -> None:
    with pytest.raises(InputError, match="this encoder belongs to"):
        pack(family("gpt2"), TEXT, config(encoder=random_encoder()))
    with pytest.raises(InputError, match="writes an e-token for every 2 tokens: leave out tokens_per_vector"):
        PackConfig(encoder=random_encoder(), tokens_per_vector=8)
