"""The built-in model: the main job on real text (marked: `make test-real`)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prototokens import FrozenLM, decode, fit, fit_batch, generate, load, load_lm, pack, preset, save
from prototokens.archive.pack import PackConfig
from prototokens.archive.unpack import Reader, read_range
from prototokens.arrangements import arrangement_named
from prototokens.drafting.drafter import shipped_drafter
from prototokens.drafting.generating import DraftTree
from prototokens.encoder.encoding import shipped_encoder
from prototokens.encoder.evaluate import encoder_vectors, score_vectors
from prototokens.fitting.recipes import Stop
from prototokens.metrics import h_lm_nats, token_accuracy
from prototokens.texts.sampling import sample

pytestmark = pytest.mark.real_model

SENTENCE = "The only way to have a friend is to be one."


@pytest.fixture(scope="module")
def lm() -> FrozenLM:
    torch.set_num_threads(2)
    return load_lm("smollm2-135m")


def test_tokens_round_trip_whatever_the_text(lm: FrozenLM) -> None:
    text = "Hello <|im_start|> wörld\r\n 北京 \x00 é\t\t  x"
    ids = lm.encode(text)
    assert lm.decode(ids) == text
    assert not set(ids.tolist()) & {0, 1, 2}  # special tokens of the text stay text


def test_a_sentence_goes_into_two_vectors_and_comes_back(lm: FrozenLM, tmp_path: Path) -> None:
    ids = lm.encode(SENTENCE)
    before = lm.model.state_dict()["model.layers.0.mlp.up_proj.weight"].clone()
    result = fit(lm, ids, preset(stop=Stop(max_steps=400, margin=0.01)))
    assert result.exact
    assert result.tokens.e.shape == (1, 576)
    tokens = load(save(tmp_path / "sentence", result.tokens))
    decoded = decode(lm, tokens, scores=True)
    assert decoded.text == SENTENCE
    assert decoded.exact
    assert decoded.margins is not None
    assert decoded.margins.min().item() == pytest.approx(result.min_margin, abs=1e-3)
    assert torch.equal(before, lm.model.state_dict()["model.layers.0.mlp.up_proj.weight"])


def test_text_is_likelier_than_random_tokens(lm: FrozenLM) -> None:
    ids = lm.encode(SENTENCE)
    shuffled = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))]
    nats = [h_lm_nats(lm.next_token_logits(x), x).item() for x in (ids, shuffled)]
    assert 20 < nats[0] < 60 < nats[1]


def test_the_learned_start_is_what_fits_begin_from(lm: FrozenLM) -> None:
    ids = torch.stack([lm.encode(SENTENCE)[:8], lm.encode(SENTENCE)[-8:]])
    results = fit_batch(lm, ids, preset(stop=Stop(max_steps=400, margin=0.01)))
    assert all(r.exact and r.tokens.provenance.start.startswith("learned-") for r in results)
    for r, target_ids in zip(results, ids, strict=True):
        assert token_accuracy(decode(lm, r.tokens).ids, target_ids) == 1
    mean = fit_batch(lm, ids, preset("tuned", stop=Stop(max_steps=0)))
    assert all(r.tokens.provenance.start == "text-e" for r in mean)


def test_a_document_is_packed_in_float32_and_unpacked_in_bfloat16(lm: FrozenLM) -> None:
    archive = pack(lm, SENTENCE, PackConfig(effort="fast", chunk_tokens=8))
    assert archive.share_from_vectors > 0.9
    low = load_lm("smollm2-135m", dtype="bfloat16")
    for model, batch_tokens in ((lm, 1), (lm, 1000), (low, 1000)):
        assert Reader(model, archive, batch_tokens=batch_tokens, anew=lambda _: lm).text() == SENTENCE
    assert read_range(lm, archive, 4, 12) == SENTENCE[4:12]


def test_the_shipped_encoder_writes_short_texts_of_others_with_no_fit_step(lm: FrozenLM) -> None:
    encoder = shipped_encoder(lm.identity)
    for length, least in ((1, 0.99), (2, 0.95), (4, 0.8)):
        ids = sample("recent", lm, length, 32, seed=1)  # never trained on
        e, m = encoder_vectors(encoder, lm, ids)
        layout = arrangement_named(encoder.config.arrangement)
        assert score_vectors(lm, layout, e, m, ids).token_accuracy >= least
        if length > 1:
            assert score_vectors(lm, layout, e.roll(1, 0), m.roll(1, 0), ids).token_accuracy < 0.3
    tokens = encoder(lm, "A friend.")
    assert tokens.provenance.token_accuracy == token_accuracy(decode(lm, tokens).ids, lm.encode("A friend.")).item()


def test_the_shipped_drafter_saves_passes_and_changes_no_text(lm: FrozenLM) -> None:
    drafter = shipped_drafter(lm.identity)
    assert drafter is not None
    assert drafter.n_weights < 0.02 * sum(weight.numel() for weight in lm.model.parameters())
    prompt = sample("speeches", lm, 32, 1, seed=1, split="test")[0]
    plain = generate(lm, prompt, max_new_tokens=48)
    for tree in (DraftTree(width=1, lookup=False, position_cost=0.01), DraftTree(position_cost=0.01)):
        drafted = generate(lm, prompt, drafter=drafter, max_new_tokens=48, tree=tree)
        assert drafted.tokens_per_pass > 1.3
        n_same = int((drafted.ids == plain.ids).cumprod(0).sum())
        if n_same < len(plain.ids):  # two tokens were tied up to rounding, which another processor may break otherwise
            logits = lm.next_token_logits(torch.cat([prompt, plain.ids[:n_same]]))[-1]
            gap = (logits[plain.ids[n_same]] - logits[drafted.ids[n_same]]).abs()
            assert gap < 1e-3 * logits.abs().max()


def test_command_line(lm: FrozenLM, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from prototokens.cli.app import main; main()"]
    fitted = subprocess.run(
        [*command, "fit", "To be, or not to be", "-o", "be", "--json"], cwd=tmp_path, capture_output=True, text=True
    )
    assert fitted.returncode == 0, fitted.stderr
    assert json.loads(fitted.stdout)["exact"]
    decoded = subprocess.run([*command, "decode", "be"], cwd=tmp_path, capture_output=True, text=True)
    assert (decoded.returncode, decoded.stdout) == (0, "To be, or not to be")
