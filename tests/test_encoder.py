"""Encoders: they begin at the learned start, a batch is a loop, and they serve their own model alone."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from encoders import CONFIG, TRUNK_CONFIGS, random_encoder, same
from families import analytic, batch, build, counted, family, tokenizer
from prototokens import FitConfig, FrozenLM, Given, InputError, decode, fit
from prototokens.encoder.config import EncoderConfig
from prototokens.encoder.encoding import Encoder, encode, refinement
from prototokens.encoder.trunks import TRUNKS
from prototokens.fitting.starter import Starter
from prototokens.fitting.starts import start_vectors

BLOCKS = CONFIG.arrangement


def starter(lm: FrozenLM) -> Starter:
    generator = torch.Generator().manual_seed(5)
    e, m = torch.randn(2, lm.width, generator=generator)
    return Starter(e, m, BLOCKS, lm.identity, {})


@pytest.mark.parametrize("config", TRUNK_CONFIGS, ids=["perceptron", "transformer", "hidden"])
@pytest.mark.parametrize("learned", [True, False])
def test_an_untrained_encoder_is_the_learned_start(lm: FrozenLM, config: EncoderConfig, learned: bool) -> None:
    start = starter(lm) if learned else None
    encoder = Encoder.untrained(lm, config, start)
    recipe = FitConfig(arrangement=config.arrangement, start=start or "text-e")
    for ids in (batch(lm, "abcd", "efgh"), batch(lm, "a", "b"), batch(lm, "xyzuvwx")):
        e, m = encoder.vectors(lm, ids)
        assert e.shape == (len(ids), -(-ids.shape[1] // 2), lm.width)
        for row, text in enumerate(ids):
            e_start, m_start = start_vectors(lm, text, recipe, 0)
            assert torch.allclose(e[row], e_start, atol=1e-6)
            assert torch.equal(m[row], m_start)


@pytest.mark.parametrize("config", TRUNK_CONFIGS, ids=["perceptron", "transformer", "hidden"])
def test_a_batch_is_a_loop_and_every_token_counts(lm: FrozenLM, config: EncoderConfig) -> None:
    encoder = random_encoder(lm, config)
    ids = batch(lm, "abcde", "abcdx", "xbcde", "bacde")
    e, m = encoder.vectors(lm, ids)
    for row in range(4):
        one_e, one_m = encoder.vectors(lm, ids[row : row + 1])
        assert torch.allclose(one_e[0], e[row], atol=1e-4)
        assert torch.allclose(one_m[0], m[row], atol=1e-4)
    for other, block in ((1, 2), (2, 0), (3, 0)):  # another last token, another first, and two in the other order
        assert not torch.allclose(e[0, block], e[other, block], atol=1e-3)


@pytest.mark.parametrize("config", [replace(c, neighbours=n) for c in TRUNK_CONFIGS[:2] for n in (0, 1, 3)])
def test_a_block_reads_its_neighbours_and_no_further(llama: FrozenLM, config: EncoderConfig) -> None:
    encoder, n = random_encoder(llama, config), config.neighbours
    ids = batch(llama, "abcdefghi")
    e, _ = encoder.vectors(llama, ids)
    for token in range(9):
        changed = ids.clone()
        changed[0, token] = ord("x")
        differs = (encoder.vectors(llama, changed)[0] - e).abs().amax(-1)[0] > 1e-3  # (K,)
        assert differs.tolist() == [2 * k - n <= token < 2 * k + 2 + n for k in range(5)]


@pytest.mark.parametrize("config", TRUNK_CONFIGS[:2], ids=["perceptron", "transformer"])
def test_what_a_block_reads_decides_what_is_written_wherever_it_stands(llama: FrozenLM, config: EncoderConfig) -> None:
    encoder = random_encoder(llama, config)
    e, _ = encoder.vectors(llama, batch(llama, "abababababab"))
    assert torch.allclose(e[0, 2], e[0, 3], atol=1e-5)
    longer, _ = encoder.vectors(llama, batch(llama, "xyabcdefghijklmnop"))
    shorter, _ = encoder.vectors(llama, batch(llama, "xyabcdefghijk"))
    assert torch.allclose(longer[0, :5], shorter[0, :5], atol=1e-5)  # n tokens on, nothing is known of the end
    assert not torch.allclose(longer[0, 6], shorter[0, 6], atol=1e-3)


@pytest.mark.parametrize("config", TRUNK_CONFIGS[:2], ids=["perceptron", "transformer"])
def test_what_lies_outside_the_text_counts_for_nothing(llama: FrozenLM, config: EncoderConfig) -> None:
    alone = random_encoder(llama, replace(config, block_length=4, neighbours=0))
    wide = Encoder.untrained(llama, replace(config, block_length=4, neighbours=3))
    places = slice(3, 7)  # of the block in the window
    weights = dict(alone.network.state_dict())
    for name in ("trunk.slots", "trunk.positions"):
        if name in weights:
            all_places = wide.network.state_dict()[name].unflatten(0, (10, -1)).clone()
            all_places[places] = weights[name].unflatten(0, (4, -1))
            weights[name] = all_places.flatten(0, 1)
    wide.network.load_state_dict(weights)
    for text in ("a", "abc", "abcd"):  # one block: all neighbours are outside
        for one, other in zip(
            alone.vectors(llama, batch(llama, text)), wide.vectors(llama, batch(llama, text)), strict=True
        ):
            assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("config", TRUNK_CONFIGS[:2], ids=["perceptron", "transformer"])
def test_a_short_block_knows_its_length(llama: FrozenLM, config: EncoderConfig) -> None:
    encoder, ids = random_encoder(llama, config), batch(llama, "abcde")
    before, _ = encoder.vectors(llama, ids)
    with torch.no_grad():
        encoder.network.trunk.by_length[0] += torch.linspace(-1, 1, 32)  # of blocks of one token
    after, _ = encoder.vectors(llama, ids)
    assert ((after - before).abs().amax(-1)[0] > 1e-3).tolist() == [False, False, True]


def test_the_m_of_a_text_is_a_mean_over_its_blocks(llama: FrozenLM) -> None:
    encoder = random_encoder(llama, replace(CONFIG, neighbours=0))
    (_, one), (_, other), (_, joined) = (encoder.vectors(llama, batch(llama, t)) for t in ("ab", "cd", "abcdab"))
    assert torch.allclose(joined, (2 * one + other) / 3, atol=1e-5)


def test_one_m_for_all_texts_if_it_is_global(llama: FrozenLM) -> None:
    _, m = random_encoder(llama, TRUNK_CONFIGS[2]).vectors(llama, batch(llama, "ab", "xy"))
    assert torch.equal(m[0], m[1])
    _, m = random_encoder(llama).vectors(llama, batch(llama, "ab", "xy"))
    assert not torch.equal(m[0], m[1])


def test_outputs_scale_with_the_models_embeddings() -> None:
    small, large = build("llama"), build("llama")
    with torch.no_grad():
        large.get_input_embeddings().weight.mul_(8)
    moved = []
    for model in (small, large):
        lm = FrozenLM(model, tokenizer())
        encoder = random_encoder(lm)
        begun = Encoder.untrained(lm, CONFIG)
        ids = batch(lm, "abc")
        moved.append(encoder.vectors(lm, ids)[0] - begun.vectors(lm, ids)[0])
    assert torch.allclose(moved[1], 8 * moved[0], rtol=1e-3, atol=1e-4)


def test_gradients_reach_all_weights_of_the_encoder_and_none_of_the_model(lm: FrozenLM) -> None:
    for config in TRUNK_CONFIGS:
        encoder = random_encoder(lm, config)
        e, m = encoder.vectors(lm, batch(lm, "abcd", "efgh"))
        (e.square().sum() + m.square().sum()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.network.parameters())
        assert encoder.network.start_m.grad.abs().sum() > 0
        assert all(p.grad is None and not p.requires_grad for p in lm.model.parameters())


def test_a_call_scores_what_it_wrote(lm: FrozenLM) -> None:
    encoder = random_encoder(lm)
    tokens = encoder(lm, "abc")
    ids = lm.encode("abc")
    e, m = encoder.vectors(lm, ids.unsqueeze(0))
    assert torch.equal(tokens.e, e[0].detach())
    assert torch.equal(tokens.m, m[0].detach())
    decoded = decode(lm, tokens)
    assert tokens.provenance.token_accuracy == pytest.approx((decoded.ids == ids).float().mean().item())
    assert tokens.provenance.start == encoder.name
    assert tokens.provenance.model == lm.identity
    assert torch.equal(encoder(lm, ids).e, tokens.e)


def test_a_list_is_encoded_in_batches_of_one_length_and_keeps_its_order(lm: FrozenLM) -> None:
    encoder, texts = random_encoder(lm), ["abc", "z", lm.encode("xyz"), "abcdefg", "q", "dog"]
    with counted(lm) as together:
        tokens = encoder(lm, texts)
    with counted(lm) as alone:
        singly = [encoder(lm, text) for text in texts]
    assert [t.length for t in tokens] == [3, 1, 3, 7, 1, 3]
    for one, other in zip(tokens, singly, strict=True):
        assert torch.allclose(one.e, other.e, atol=1e-4)
        assert torch.allclose(one.m, other.m, atol=1e-4)
        assert one.provenance.token_accuracy == other.provenance.token_accuracy
    assert len(together.forward) == 3 + 6  # a batch for each length, and each text's score by itself
    assert {(3, 4), (2, 2), (1, 8)} <= set(together.forward)
    assert len(alone.forward) == 6 + 6
    assert encoder(lm, tuple(texts[:2]))[1].length == 1
    assert encoder(lm, []) == []


def test_what_the_analytic_model_needs_comes_back_exactly() -> None:
    # A token's embedding is read as its letter, wherever it stands.
    lm = analytic()
    encoder = Encoder.untrained(lm, EncoderConfig(block_length=1, neighbours=0, width=8, layers=1, token_width=4))
    results = encode(lm, encoder, batch(lm, "abc", "zzz"))
    assert [r.exact for r in results] == [True, True]
    assert [r.stop_reason for r in results] == ["accuracy", "accuracy"]
    assert not encode(lm, Encoder.untrained(lm, CONFIG), batch(lm, "abc"))[0].exact


def test_no_refinement_takes_no_step_and_refinement_goes_on_from_the_encoder(llama: FrozenLM) -> None:
    encoder, ids = random_encoder(llama), batch(llama, "abc", "dog")
    with counted(llama) as calls:
        plain = encode(llama, encoder, ids)
    assert calls.backward == []
    assert [r.steps for r in plain] == [0, 0]
    refined = encode(llama, encoder, ids, refine=1)
    e, m = (z.detach() for z in encoder.vectors(llama, ids))
    fitted = fit(llama, ids[0], refinement(encoder, 1), Given(e_start=e[0], m_start=m[0]))
    assert refined[0].loss_history[0] == pytest.approx(plain[0].loss, rel=1e-4)
    assert refined[0].steps == fitted.steps == 1
    assert torch.allclose(refined[0].loss_history, fitted.loss_history, rtol=1e-3)
    assert refined[0].loss <= plain[0].loss
    assert refined[0].tokens.provenance.start == encoder.name


def test_the_encoder_s_own_time_counts(llama: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = Encoder.vectors

    def slow(*arguments: object) -> object:
        time.sleep(0.05)
        return vectors(*arguments)

    monkeypatch.setattr(Encoder, "vectors", slow)
    assert encode(llama, random_encoder(llama), batch(llama, "ab"))[0].seconds > 0.05


def test_it_works_under_inference_mode(llama: FrozenLM) -> None:
    encoder, ids = random_encoder(llama), batch(llama, "abc")
    plain = encode(llama, encoder, ids, refine=2)[0]
    with torch.inference_mode():
        assert torch.equal(encode(llama, encoder, ids, refine=2)[0].tokens.e, plain.tokens.e)


def test_hidden_states_that_are_read_count_as_positions(llama: FrozenLM) -> None:
    ids = batch(llama, "abc")
    for config in (CONFIG, TRUNK_CONFIGS[2]):
        encoder = random_encoder(llama, config)
        with counted(llama) as calls:
            result = encode(llama, encoder, ids)[0]
        passed = 2 * len(config.arrangement.layout(3).slots)
        assert result.token_positions == calls.positions() == passed + (0 if config.hidden_layer is None else 3)


def test_what_was_meant_is_said(llama: FrozenLM) -> None:
    encoder, ids = random_encoder(llama), batch(llama, "ab")
    calls: tuple[tuple[Any, str], ...] = (
        (lambda: encode(llama, None, ids), "encoder is of type NoneType; it must be an Encoder: "),
        (lambda: encode(llama, encoder, "ab"), "target_ids is of type str; it must be a tensor: "),
        (lambda: encode(llama, encoder, ids, refine=1, recipe="fast"), "config is 'fast'; it must be a FitConfig"),
        (lambda: encoder(llama, b"x"), "text is of type bytes; it must be a string, or its ids: "),
        (lambda: encoder(llama, ["x", 3]), "text is of type int; it must be a string, or its ids: "),
        (lambda: encoder(llama.model, "x"), "lm is of type LlamaForCausalLM; it must be a FrozenLM: "),
    )
    for call, message in calls:
        with pytest.raises(InputError) as error:
            call()
        assert str(error.value).startswith(message)


def test_another_model_is_refused_and_named(llama: FrozenLM) -> None:
    other, encoder = family("gpt2"), random_encoder(llama)
    with pytest.raises(InputError, match=f"belongs to {llama.identity.name} .*, not to {other.identity.name}"):
        encoder(other, "ab")
    renamed = replace(llama.identity, tokenizer_hash="0")
    with pytest.raises(InputError, match="another tokenizer vocabulary"):
        encoder(FrozenLM(llama.model, llama.tokenizer, renamed), "ab")
    with pytest.raises(InputError, match="this learned start belongs to"):
        Encoder.untrained(other, CONFIG, starter(llama))


def test_texts_have_bounds(llama: FrozenLM) -> None:
    encoder = random_encoder(llama)
    with pytest.raises(
        InputError, match=r"a text of 99 tokens needs 100 positions, .* has 64; shorten it to 63 tokens"
    ):
        encoder(llama, "a" * 99)
    with pytest.raises(InputError, match="the text is empty"):
        encoder(llama, "")
    with pytest.raises(InputError, match=r"must be \(B, T\) with at least one token"):
        encode(llama, encoder, llama.encode("ab"))
    with pytest.raises(InputError, match="refine is -1; it must be at least 0"):
        encode(llama, encoder, batch(llama, "ab"), refine=-1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trunk": "lstm"}, "unknown trunk 'lstm'; choose one of: perceptron transformer"),
        ({"hidden_layer": 9}, "hidden layer 9 is not there: .* has 0 to 2"),
        ({"hidden_layer": -4}, "hidden layer -4 is not there"),
    ],
)
def test_what_cannot_be_built_is_refused(llama: FrozenLM, change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Encoder.untrained(llama, replace(CONFIG, **change))


@pytest.mark.parametrize("name", ["block_length", "width", "layers", "token_width"])
def test_a_config_has_bounds(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is 0; it must be at least 1"):
        EncoderConfig(**{name: 0})


def test_a_config_survives_json_and_m_has_two_values() -> None:
    with pytest.raises(InputError, match="m is 'none'; it must be 'text' or 'global'"):
        EncoderConfig(m="none")
    for config in (EncoderConfig(), *TRUNK_CONFIGS):
        assert config.trunk in TRUNKS
        assert EncoderConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


class MeanTrunk(nn.Module):
    def __init__(self, config: EncoderConfig, feature_width: int) -> None:
        super().__init__()
        self.out_width = feature_width
        self.token = nn.Identity()

    def forward(self, windows: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        return windows.sum(1) / present.sum(1, keepdim=True)


def test_another_trunk_plugs_in(llama: FrozenLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(TRUNKS, "mean", MeanTrunk)
    encoder = random_encoder(llama, replace(CONFIG, trunk="mean"))
    assert same(Encoder.from_pretrained(encoder.save_pretrained(tmp_path / "mine")), encoder)
    assert torch.isfinite(encoder(llama, "abc").e).all()
