"""Packing from an encoder: every chunk begins at what it writes, and the text comes back whatever that is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from archives import QUICK, TEXT, config
from encoders import CONFIG, random_encoder
from families import family
from prototokens import InputError, pack, unpack
from prototokens.archive.efforts import Effort
from prototokens.archive.pack import PackConfig
from prototokens.arrangements import blocks

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


@pytest.mark.parametrize("effort", [QUICK, replace(QUICK, own_m=False)])
@pytest.mark.parametrize("m", ["text", "global"])
def test_the_text_comes_back(effort: Effort, m: Any, tmp_path: Path) -> None:
    lm, encoder = family("llama"), random_encoder(config=replace(CONFIG, m=m))
    archive = pack(lm, TEXT, config(effort, encoder=encoder), output=tmp_path / "archive")
    assert unpack(lm, archive) == TEXT
    assert archive.share_from_vectors > 0.3


def test_the_encoder_s_blocks_are_taken_and_nothing_is_perturbed() -> None:
    encoder = random_encoder()
    packing = PackConfig(encoder=encoder)
    assert packing.recipe.arrangement == blocks(2)
    assert packing.recipe.perturbation == 0
    assert replace(packing, store="int8").recipe == packing.recipe


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
