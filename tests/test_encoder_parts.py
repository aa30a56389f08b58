"""The parts of an encoder's training: objective, lengths, schedule, scores, curve, settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from encoders import CONFIG, TRUNK_CONFIGS, prose_file, random_encoder, short_training
from families import analytic, batch, family
from prototokens import FrozenLM, InputError, decode
from prototokens.arrangements import blocks
from prototokens.encoder.config import EncoderConfig
from prototokens.encoder.encoding import Encoder, encode
from prototokens.encoder.evaluate import CONTROLS, control_vectors, encoder_vectors, evaluate, score_vectors
from prototokens.encoder.objective import _noise, logits_of, objective_gradient
from prototokens.encoder.recipes import (
    EncoderTraining,
    Objective,
    Schedule,
    TextChoice,
    read_setting,
    with_setting,
)
from prototokens.encoder.training.curve import Curve, read_curve
from prototokens.encoder.training.loop import train_encoder
from prototokens.fitting.starter import Starter

BLOCKS = CONFIG.arrangement


@pytest.fixture
def source(tmp_path: Path) -> str:
    return prose_file(tmp_path)


# The objective


def drawn(lm: FrozenLM, texts: int = 2, e_tokens: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    vectors = torch.randn(texts, e_tokens + 1, lm.width, generator=torch.Generator().manual_seed(3))
    return vectors[:, :-1], vectors[:, -1]


def test_the_pull_is_the_gradient_of_the_mean_cross_entropy_over_every_position(lm: FrozenLM) -> None:
    e, m = drawn(lm)
    ids = batch(lm, "abc", "xyz")
    pull = objective_gradient(lm, BLOCKS, e, m, ids, Objective(), 0)
    e_in, m_in = e.clone().requires_grad_(), m.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(logits_of(lm, BLOCKS, e_in, m_in, 3).flatten(0, 1), ids.flatten())
    expected = torch.autograd.grad(loss, [e_in, m_in])
    assert pull.loss_nats.item() == pytest.approx(loss.item(), rel=1e-5)
    for gradient, expected_gradient in zip((pull.e, pull.m), expected, strict=True):
        assert torch.allclose(gradient, expected_gradient, atol=1e-5, rtol=1e-3)


def test_terms_of_the_objective_add_up(llama: FrozenLM) -> None:
    e, m = drawn(llama)
    ids = batch(llama, "abc", "xyz")

    def at(**settings: float) -> torch.Tensor:
        return objective_gradient(llama, BLOCKS, e, m, ids, Objective(**settings), 0).e

    plain = at()
    unrolled, distilled = at(refine_steps=3, unroll=1.0) - plain, at(refine_steps=3, distil=1.0) - plain
    summed = at(refine_steps=3, unroll=2.0, distil=0.5)
    assert torch.allclose(summed, plain + 2 * unrolled + 0.5 * distilled, atol=1e-5)
    assert unrolled.abs().max() > 0
    assert distilled.abs().max() > 0


def test_refinement_is_judged_where_fit_steps_lead(llama: FrozenLM) -> None:
    e, m = drawn(llama)
    ids = batch(llama, "abc", "xyz")
    plain = objective_gradient(llama, BLOCKS, e, m, ids, Objective(), 0)
    distilled = objective_gradient(llama, BLOCKS, e, m, ids, Objective(refine_steps=4, distil=1.0), 0)
    assert distilled.refined_loss_nats < distilled.loss_nats == plain.loss_nats
    share = llama.embedding_statistics.std**2 * (e.numel() + m.numel())
    fitted_e, fitted_m = e - (distilled.e - plain.e) * share, m - (distilled.m - plain.m) * share
    refined = objective_gradient(llama, BLOCKS, fitted_e, fitted_m, ids, Objective(), 0)
    assert refined.loss_nats.item() == pytest.approx(distilled.refined_loss_nats.item(), rel=1e-3)
    unrolled = objective_gradient(llama, BLOCKS, e, m, ids, Objective(refine_steps=4, unroll=2.0), 0)
    assert torch.allclose(unrolled.e - plain.e, 2 * refined.e, atol=1e-4)
    assert torch.allclose(unrolled.m - plain.m, 2 * refined.m, atol=1e-4)


def test_noise_comes_from_its_seed_and_has_its_scale(llama: FrozenLM) -> None:
    e, m = drawn(llama)
    ids = batch(llama, "abc", "xyz")
    one, same, other = (objective_gradient(llama, BLOCKS, e, m, ids, Objective(noise=0.5), seed) for seed in (1, 1, 2))
    assert torch.equal(one.e, same.e)
    assert not torch.equal(one.e, other.e)
    drawn_e, drawn_m = _noise(torch.zeros(50, 2, 48), torch.zeros(50, 48), 0.5, seed=1)
    assert (drawn_e.shape, drawn_m.shape) == ((50, 2, 48), (50, 48))
    assert drawn_e.std().item() == pytest.approx(0.5, rel=0.05)
    assert drawn_m.std().item() == pytest.approx(0.5, rel=0.05)
    small = objective_gradient(llama, BLOCKS, e, m, ids, Objective(noise=1e-6), 1)
    plain = objective_gradient(llama, BLOCKS, e, m, ids, Objective(), 1)
    assert small.loss_nats.item() == pytest.approx(plain.loss_nats.item(), rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise": -1}, "noise is -1; it must be at least 0"),
        ({"refine_steps": 2}, "need a weight, and a weight needs fit steps"),
        ({"unroll": 0.5}, "need a weight, and a weight needs fit steps"),
    ],
)
def test_objectives_have_bounds(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Objective(**settings)


# Lengths and schedule


def test_lengths_are_drawn_alike_and_some_texts_end_in_a_short_block() -> None:
    training = EncoderTraining(lengths=(1, 3, 8), short_share=0.5)
    lengths = [training.draw_length(4, f"0 {step} 0") for step in range(3000)]
    assert lengths == [training.draw_length(4, f"0 {step} 0") for step in range(3000)]
    for whole, shorter in ((8, {5, 6, 7}), (3, {1, 2})):
        assert lengths.count(whole) == pytest.approx(500, abs=80)
        assert shorter < set(lengths)
    assert set(lengths) == {1, 2, 3, 5, 6, 7, 8}
    assert sum(n > 4 for n in lengths) == pytest.approx(1000, abs=100)
    always, never = replace(training, short_share=1.0), replace(training, short_share=0.0)
    assert {always.draw_length(4, str(step)) for step in range(200)} == {1, 2, 5, 6, 7}
    assert {never.draw_length(4, str(step)) for step in range(200)} == {1, 3, 8}
    assert {always.draw_length(1, str(step)) for step in range(200)} == {1, 3, 8}  # no block can be short


def test_the_learning_rate_rises_is_constant_and_falls() -> None:
    schedule = Schedule(lr=0.5, warmup_steps=10)
    rates = [schedule.rate(step, 200) for step in range(200)]
    assert all(0 < rate <= 0.5 for rate in rates)
    assert rates[:10] == sorted(rates[:10])
    assert rates[160:] == sorted(rates[160:], reverse=True)
    assert rates[-1] < 0.02
    assert set(rates[10:160]) == {0.5}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule(lr=0), "both must be above 0"),
        (lambda: Schedule(lr=float("nan")), "lr is nan and clip 1; both must be above 0"),
        (lambda: Schedule(optimiser="sgd"), "unknown optimiser 'sgd'; choose one of: adamw muon"),
        (lambda: Schedule(betas=(0.9, 1.0)), r"betas are \[0\.9, 1\.0\]; give two numbers from 0 to below 1"),
        (lambda: Schedule(betas=(0.9,)), "give two numbers from 0 to below 1"),  # type: ignore[arg-type]
        (lambda: Schedule(betas=("a", "b")), "give two numbers from 0 to below 1"),  # type: ignore[arg-type]
        (lambda: Schedule(momentum=2), "momentum is 2; it must be at least 0 and at most 1"),
        (lambda: EncoderTraining(lengths=()), r"lengths are \[\]; give numbers of tokens from 1 to"),
        (lambda: EncoderTraining(lengths=(4, 0)), r"lengths are \[4, 0\]; give numbers of tokens"),
        (lambda: EncoderTraining(lengths=("4",)), r"lengths are \['4'\]; give numbers"),
        (lambda: EncoderTraining(short_share=2), "short_share is 2; it must be at least 0 and at most 1"),
        (lambda: EncoderTraining(steps=0), "steps is 0; it must be at least 1"),
        (lambda: TextChoice("random"), "source 'random' has no documents to train on"),
        (lambda: TextChoice(own_share=1.5), "own_share is 1.5; it must be at least 0 and at most 1"),
    ],
)
def test_settings_have_bounds(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_settings_are_changed_by_name() -> None:
    training = with_setting(EncoderTraining(), *read_setting("lengths=[4, 16]"))
    assert training == replace(EncoderTraining(), lengths=(4, 16))
    assert with_setting(EncoderTraining(), *read_setting("schedule.optimiser=muon")).schedule.optimiser == "muon"
    training = with_setting(EncoderTraining(), *read_setting("schedule.betas=[0.8, 0.9]"))
    assert training.schedule.betas == (0.8, 0.9)
    assert with_setting(EncoderTraining(), "texts.source", "old").texts.source == "old"
    assert with_setting(EncoderConfig(), *read_setting("block_length=8")).arrangement == blocks(8)
    assert with_setting(EncoderConfig(), *read_setting("hidden_layer=-1")).hidden_layer == -1
    assert with_setting(TextChoice(), *read_setting("texts=null")).texts is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps", "must be NAME=VALUE"),
        ("=3", "must be NAME=VALUE"),
        ("pace=3", r"unknown setting 'pace'; choose one of: steps .* schedule\.…"),
        ("schedule=3", "unknown setting 'schedule'"),
        ("schedule.pace=3", "unknown setting 'pace'; choose one of: optimiser lr"),
        ("steps.first=3", "unknown setting 'steps.first'"),
        ("steps=many", "setting steps is 'many'; it must be int"),
        ("steps=1.5", "setting steps is 1.5; it must be int"),
        ("steps=true", "setting steps is True; it must be int"),
        ("schedule.lr=null", "setting lr is None; it must be float"),
        ("lengths=4", r"setting lengths is 4; it must be tuple\[int"),
        ("texts.source=3", "setting source is 3; it must be str"),
    ],
)
def test_settings_that_do_not_exist_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        with_setting(EncoderTraining(), *read_setting(text))


# Scores and controls


def test_scores_agree_with_decoding_one_by_one(lm: FrozenLM) -> None:
    encoder, ids = random_encoder(lm), batch(lm, "abc", "dog", "xyz")
    score = score_vectors(lm, BLOCKS, *encoder_vectors(encoder, lm, ids), ids)
    results = encode(lm, encoder, ids)
    accuracy = torch.tensor(
        [(decode(lm, r.tokens).ids == row).float().mean() for r, row in zip(results, ids, strict=True)]
    )
    assert score.token_accuracy == pytest.approx(accuracy.mean().item())
    assert score.token_accuracy_se == pytest.approx(accuracy.std().item() / 3**0.5)
    assert score.exact_match == pytest.approx(sum(r.exact for r in results) / 3)
    assert score.loss == pytest.approx(sum(r.loss for r in results) / 3, rel=1e-4)
    assert (score.length, score.texts) == (3, 3)
    assert score_vectors(lm, BLOCKS, *encoder_vectors(encoder, lm, ids[:1]), ids[:1]).token_accuracy_se == 0


def test_portions_change_nothing(llama: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, ids = random_encoder(llama), torch.randint(97, 123, (9, 3), generator=torch.Generator().manual_seed(0))
    one = score_vectors(llama, BLOCKS, *encoder_vectors(encoder, llama, ids), ids)
    monkeypatch.setattr("prototokens.encoder.evaluate._POSITIONS_PER_BATCH", 8)
    assert score_vectors(llama, BLOCKS, *encoder_vectors(encoder, llama, ids), ids).loss == pytest.approx(
        one.loss, rel=1e-4
    )


def test_controls_are_what_they_say() -> None:
    lm = analytic()  # a token's embedding is read as its letter
    config = EncoderConfig(block_length=1, neighbours=0, width=8, layers=1, token_width=4)
    encoder, ids = Encoder.untrained(lm, config), batch(lm, "abc", "bcd", "cde")
    score_of = {kind: score_vectors(lm, blocks(1), *control_vectors(kind, encoder, lm, ids), ids) for kind in CONTROLS}
    assert score_of["encoder"].token_accuracy == score_of["start"].token_accuracy == 1
    assert score_of["shuffled"].token_accuracy == 0
    assert score_of["constant"].token_accuracy < 0.34
    e, m = control_vectors("constant", encoder, lm, ids)
    assert torch.equal(e[0], e[2])
    assert torch.equal(m[0], m[2])
    with pytest.raises(InputError, match="unknown control 'noise'"):
        control_vectors("noise", encoder, lm, ids)
    with pytest.raises(InputError, match="one text cannot be shuffled"):
        control_vectors("shuffled", encoder, lm, ids[:1])


def learned_start(lm: FrozenLM, seed: int, axes: torch.Tensor | None = None) -> Starter:
    e, m = torch.randn(2, lm.width, generator=torch.Generator().manual_seed(seed))
    return Starter(e, m, BLOCKS, lm.identity, {"step": seed}, axes)


@pytest.mark.parametrize("config", TRUNK_CONFIGS, ids=["perceptron", "transformer", "hidden"])
@pytest.mark.parametrize("learned", [True, False])
def test_the_control_start_is_the_start_that_the_encoder_was_trained_from(
    llama: FrozenLM, config: EncoderConfig, learned: bool, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = learned_start(llama, 1, torch.eye(llama.width, dtype=torch.float16).expand(2, -1, -1)) if learned else None
    initial = Encoder.untrained(llama, config, start)
    ids = batch(llama, "abc", "xyz")
    expected = initial.vectors(llama, ids)
    trained = train_encoder(llama, tmp_path, initial, short_training(source, steps=2))
    assert not torch.allclose(trained.vectors(llama, ids)[1], expected[1])
    # Whatever start the package comes to hold later:
    monkeypatch.setattr("prototokens.encoder.encoding.shipped_starter", lambda *_: learned_start(llama, 2))
    again = Encoder.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path / "again")
    for encoder in (trained, again, Encoder.from_pretrained(tmp_path / "again")):
        for vectors, other in zip(control_vectors("start", encoder, llama, ids), expected, strict=True):
            assert torch.allclose(vectors, other, atol=1e-6)
    assert (tmp_path / "start.safetensors").exists() == learned


def test_a_start_that_is_not_kept_is_no_control(llama: FrozenLM, tmp_path: Path) -> None:
    start, ids = learned_start(llama, 1), batch(llama, "abc")
    folder = Encoder.untrained(llama, CONFIG, start).save_pretrained(tmp_path / "mine")
    (folder / "start.safetensors").unlink()
    encoder = Encoder.from_pretrained(folder)
    with pytest.raises(InputError, match=rf"learned start {start.name}, .* \(--controls encoder,shuffled,constant\)"):
        control_vectors("start", encoder, llama, ids)
    other = Encoder.untrained(llama, CONFIG, learned_start(llama, 2)).save_pretrained(tmp_path / "other")
    (other / "start.safetensors").rename(folder / "start.safetensors")  # of another training
    with pytest.raises(InputError, match=f"learned start {start.name}"):
        control_vectors("start", Encoder.from_pretrained(folder), llama, ids)
    random_encoder(llama).save_pretrained(folder)
    assert not (folder / "start.safetensors").exists()


def test_an_evaluation_has_a_row_for_every_cell(llama: FrozenLM, source: str) -> None:
    rows = list(evaluate(llama, random_encoder(llama), (2, 3), (source,), texts=4))
    cells = [(row["source"], row["start"], row["length"], row["control"]) for row in rows]
    assert cells == [
        (source, start, length, kind) for start in ("anywhere", "sentence") for length in (2, 3) for kind in CONTROLS
    ]
    assert all(row["texts"] == 4 for row in rows)
    assert all(row["block_length"] == 2 for row in rows)
    with pytest.raises(InputError, match=r"a text of 64 tokens needs 65 positions, .* ask for shorter texts"):
        list(evaluate(llama, random_encoder(llama), (2, 64), (source,), texts=4))
    with pytest.raises(InputError, match="this encoder belongs to"):
        list(evaluate(family("gpt2"), random_encoder(llama), (2,), (source,), texts=4))


def test_a_curve_drops_what_lies_after_its_step(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    one = Curve(path, 0)
    for step in (0, 1, 2, 3):
        one.add({"step": step, "windows": {"2": {"loss": 0.5}}})
    assert [row["step"] for row in read_curve(path)] == [0, 1, 2, 3]
    Curve(path, 2).add({"step": 3, "again": True})
    assert read_curve(path)[2:] == [{"step": 2, "windows": {"2": {"loss": 0.5}}}, {"step": 3, "again": True}]
    Curve(path, 0)
    assert read_curve(path) == []


@pytest.mark.parametrize(
    "line", ["{", "[1]", "7", '{"step": "3"}', "{}", "\xff", "[" * 100_000], ids=lambda line: line[:9]
)
def test_a_damaged_curve_is_said(tmp_path: Path, line: str) -> None:
    path = tmp_path / "curve.jsonl"
    path.write_bytes(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n'.encode("latin-1"))
    with pytest.raises(InputError, match=r"curve\.jsonl: line 2 is damaged; move the file away, or begin anew"):
        Curve(path, 2)
    Curve(path, 0)
    assert read_curve(path) == []
