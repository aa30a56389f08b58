"""Training an encoder: it resumes bit for bit, learns, and leaves the model alone."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path

import pytest
import torch

from encoders import CONFIG, TRUNK_CONFIGS, Slice, curve, prose_file, random_encoder, same, short_training, train
from families import build, counted, family, tokenizer
from prototokens import FrozenLM, InputError
from prototokens.encoder.encoding import Encoder
from prototokens.encoder.recipes import EncoderTraining, Objective, Schedule, TextChoice
from prototokens.encoder.training.checkpoint import FILE
from prototokens.encoder.training.loop import CURVE, train_encoder
from prototokens.encoder.training.optimisers import optimisers_of
from prototokens.encoder.training.trainer import Trainer
from prototokens.files.record import read_record, write_record
from prototokens.lm.fingerprints import former_fingerprints


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return prose_file(tmp_path_factory.mktemp("prose"))


@pytest.fixture(scope="module")
def whole(source: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Encoder, Path]:
    """A short training with everything in it, in one go."""
    folder = tmp_path_factory.mktemp("whole")
    return train(family("llama"), folder, everything(source)), folder


def everything(source: str, optimiser: str = "adamw") -> EncoderTraining:
    return short_training(
        source,
        steps=7,
        accumulate=2,
        objective=Objective(noise=0.1, refine_steps=2, unroll=0.5, distil=0.1),
        lengths=(2, 4, 5),
        schedule=Schedule(optimiser=optimiser, lr=3e-3, warmup_steps=2),
    )


def state(encoder: Encoder) -> dict:
    return {k: v for k, v in encoder.training.items() if k != "seconds"}


@pytest.mark.parametrize("stops", [(1,), (2,), (3, 5), (1, 2, 3, 4, 5, 6)])
def test_training_stopped_at_any_step_ends_with_the_same_bits(whole, source: str, stops, tmp_path: Path) -> None:
    for stop in stops:
        numbers = count(1 if stop == stops[0] else stops[stops.index(stop) - 1] + 1)
        part = train(family("llama"), tmp_path, everything(source), should_stop=lambda n=numbers, s=stop: next(n) == s)
        assert part.training["step"] == stop
        assert same(Encoder.from_pretrained(tmp_path), part)
    ended = train(family("llama"), tmp_path, everything(source))
    assert same(ended, whole[0])
    assert state(ended) == state(whole[0])
    assert curve(tmp_path) == curve(whole[1])
    tensors, record = read_record(tmp_path / FILE, "an encoder's training")
    expected, other = read_record(whole[1] / FILE, "an encoder's training")
    assert all(torch.equal(tensors[k], expected[k]) for k in tensors.keys() | expected.keys())
    assert record["settings"] == other["settings"]


def test_a_killed_run_loses_what_came_after_its_checkpoint_and_no_more(whole, source: str, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(report) -> None:
        if report.step == 5:
            raise Killed

    with pytest.raises(Killed):
        train(family("llama"), tmp_path, everything(source), save_every=3, report=kill)
    assert Encoder.from_pretrained(tmp_path).training["step"] == 3
    with (tmp_path / CURVE).open("a") as file:
        file.write('{"kind": "val')  # a line that was not written to its end
    assert same(train(family("llama"), tmp_path, everything(source)), whole[0])
    assert curve(tmp_path) == curve(whole[1])


def test_a_finished_training_is_left_as_it_is(whole, source: str) -> None:
    before = {p.name: p.read_bytes() for p in whole[1].iterdir()}
    with counted(family("llama")) as calls:
        assert same(train(family("llama"), whole[1], everything(source)), whole[0])
    assert calls.forward == []
    assert before == {p.name: p.read_bytes() for p in whole[1].iterdir()}


def test_other_settings_are_refused_and_beginning_anew_is_not(whole, source: str, tmp_path: Path) -> None:
    lm, short = family("llama"), short_training(source, steps=1)
    train(lm, tmp_path, short)
    for training, config, what in (
        (replace(short, batch_positions=30), CONFIG, "batch_positions"),
        (short, replace(CONFIG, width=16), "encoder, beginning"),
        (replace(short, seed=1), CONFIG, "beginning, seed"),
    ):
        with pytest.raises(InputError, match=rf"had other settings \({what}\); give the same settings, another folder"):
            train(lm, tmp_path, training, config)
    changed = replace(short, schedule=replace(short.schedule, lr=1.0), texts=replace(short.texts, own_share=1.0))
    with pytest.raises(InputError, match=r"had other settings \(schedule\.lr, texts\.own_share\)"):
        train(lm, tmp_path, changed)
    assert train(lm, tmp_path, replace(short, seed=1), anew=True).training["step"] == 1


def test_a_training_of_muon_resumes_and_leaves_the_rest_to_adamw(source: str, tmp_path: Path) -> None:
    training = everything(source, "muon")
    straight = train(family("llama"), tmp_path / "straight", training)
    assert not same(straight, train(family("llama"), tmp_path / "adamw", everything(source)))
    train(family("llama"), tmp_path / "parts", training, should_stop=iter([False, False, True]).__next__)
    assert same(train(family("llama"), tmp_path / "parts", training), straight)
    for config in TRUNK_CONFIGS:
        network = Encoder.untrained(family("llama"), config).network
        muon, adamw = optimisers_of(network, training.schedule)
        held = [p for optimiser in (muon, adamw) for group in optimiser.param_groups for p in group["params"]]
        assert sorted(map(id, held)) == sorted(map(id, network.parameters()))
        matrices = {id(p) for group in muon.param_groups for p in group["params"]}
        names = {name for name, p in network.named_parameters() if id(p) in matrices}
        assert all(name.startswith("trunk.") for name in names)
        assert "trunk.token.weight" in names
        assert not {"trunk.by_length", "trunk.positions", "trunk.readouts"} & names


def test_a_checkpoint_of_a_former_version_is_refused_and_says_what_to_do(source: str, tmp_path: Path) -> None:
    train(family("llama"), tmp_path, short_training(source), should_stop=lambda: True)
    tensors, record = read_record(tmp_path / FILE, "an encoder's training")
    record["progress"]["frontier"] = 2
    write_record(tmp_path / FILE, "an encoder's training", tensors, record, overwrite=True)
    with pytest.raises(InputError, match=r"of a former version, .* begin anew \(--force\), or from its encoder"):
        train(family("llama"), tmp_path, short_training(source))
    assert train(family("llama"), tmp_path, short_training(source, steps=1), anew=True).training["step"] == 1


def test_a_setting_that_a_checkpoint_does_not_name_means_its_default(source: str, tmp_path: Path) -> None:
    training = short_training(source)
    straight = train(family("llama"), tmp_path / "straight", training)
    train(family("llama"), tmp_path / "parts", training, should_stop=lambda: True)
    tensors, record = read_record(tmp_path / "parts" / FILE, "an encoder's training")
    del record["settings"]["training"]["schedule"]["momentum"]
    write_record(tmp_path / "parts" / FILE, "an encoder's training", tensors, record, overwrite=True)
    changed = replace(training, schedule=replace(training.schedule, momentum=0.5))
    with pytest.raises(InputError, match=r"had other settings \(schedule\.momentum\)"):
        train(family("llama"), tmp_path / "parts", changed)
    assert same(train(family("llama"), tmp_path / "parts", training), straight)


def test_a_checkpoint_with_the_models_former_fingerprint_is_resumed(source: str, tmp_path: Path) -> None:
    lm, training = FrozenLM(build("llama"), tokenizer()), short_training(source)
    straight = train(lm, tmp_path / "straight", training)
    for former in sorted(former_fingerprints(lm.identity.fingerprint)):
        folder = tmp_path / former[:8]
        train(lm, folder, training, should_stop=lambda: True)
        tensors, record = read_record(folder / FILE, "an encoder's training")
        record["settings"]["model"] = former
        write_record(folder / FILE, "an encoder's training", tensors, record, overwrite=True)
        assert same(train(lm, folder, training), straight)


def test_beginning_anew_leaves_nothing_of_the_former_training(whole, source: str, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(report) -> None:
        raise Killed

    train(family("llama"), tmp_path, replace(everything(source), seed=3), should_stop=lambda: True)
    with pytest.raises(Killed):
        train(family("llama"), tmp_path, everything(source), anew=True, report=kill)
    assert not (tmp_path / FILE).exists()  # or the next run would resume it
    assert same(train(family("llama"), tmp_path, everything(source)), whole[0])
    assert curve(tmp_path) == curve(whole[1])


def test_two_trainings_do_not_share_a_folder(llama: FrozenLM, source: str, tmp_path: Path) -> None:
    def second(report) -> None:
        before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
        for anew in (False, True):
            with pytest.raises(InputError, match="another process trains an encoder here; wait for it, or choose"):
                train(llama, tmp_path, short_training(source, steps=1), anew=anew)
        train(llama, tmp_path / "other", short_training(source, steps=1))
        assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}

    assert train(llama, tmp_path, short_training(source, steps=1), report=second).training["step"] == 1
    assert train(llama, tmp_path, short_training(source, steps=1), processes=Slice(1, 2)) is not None  # 0 has the lock


def test_more_steps_can_be_asked_for_until_the_learning_rate_falls(source: str, tmp_path: Path) -> None:
    lm = family("llama")
    training = short_training(source, schedule=Schedule(warmup_steps=1, decay_share=0.5))
    straight = train(lm, tmp_path / "straight", replace(training, steps=8))
    train(lm, tmp_path / "two", training, should_stop=iter([False, True]).__next__)
    assert same(train(lm, tmp_path / "two", replace(training, steps=8)), straight)
    with pytest.raises(InputError, match="its learning rate already falls towards step 8"):
        train(lm, tmp_path / "two", replace(training, steps=20))


@pytest.mark.parametrize("config", TRUNK_CONFIGS, ids=["perceptron", "transformer", "hidden"])
def test_every_family_trains_a_step_and_is_left_as_it_was(lm: FrozenLM, config, source: str, tmp_path: Path) -> None:
    before = {k: v.clone() for k, v in lm.model.state_dict().items()}
    begun = Encoder.untrained(lm, config)
    encoder = train(lm, tmp_path, short_training(source, steps=2), config)
    assert encoder.model == lm.identity
    changed = [k for k, v in encoder.network.state_dict().items() if not torch.equal(v, begun.network.state_dict()[k])]
    assert {"head.weight", "head.bias", "start_e", "start_m", "log_scale"} <= set(changed)
    assert any(k.startswith("trunk") for k in changed)
    assert not {"embedding_mean", "embedding_std"} & set(changed)
    for key, value in lm.model.state_dict().items():
        assert torch.equal(value, before[key])
    assert not lm.model.training
    assert all(p.grad is None and not p.requires_grad for p in lm.model.parameters())


def test_the_beginning_is_left_as_it_is_and_can_be_an_encoder(llama: FrozenLM, source: str, tmp_path: Path) -> None:
    begun = random_encoder(llama)
    name = begun.name
    begun.training["step"] = 9
    encoder = train_encoder(llama, tmp_path, begun, short_training(source, steps=1))
    assert begun.name == name != encoder.name
    assert encoder.training["begun_at"] == begun.training
    assert encoder.training["step"] == 1
    with pytest.raises(InputError, match="this encoder belongs to"):
        train_encoder(family("gpt2"), tmp_path, begun)


def test_a_few_texts_are_learned_by_heart(llama: FrozenLM, source: str, tmp_path: Path) -> None:
    training = short_training(
        source,
        steps=150,
        batch_positions=24,
        schedule=Schedule(lr=1e-2, warmup_steps=10),
        texts=TextChoice(source, texts=6),
        lengths=(4,),
        validate_every=150,
    )
    train(llama, tmp_path, training, replace(CONFIG, width=64))
    first, *_, last = (row for row in curve(tmp_path) if row["kind"] == "validation")
    for kind in ("windows", "own"):
        assert first[kind]["4"]["token_accuracy"] < 0.5
        assert last[kind]["4"]["token_accuracy"] >= 0.99
        assert last[kind]["4"]["exact_match"] >= 0.99


def test_the_curve_tells_lengths_and_tokens(whole, source: str) -> None:
    rows = [row for row in curve(whole[1]) if row["kind"] == "validation"]
    assert [row["step"] for row in rows] == [0, 2, 4, 6, 7]
    for before, after in pairwise(rows):
        assert before["tokens"] < after["tokens"]
    for row in rows:
        for kind in ("windows", "own"):
            assert set(row[kind]) == {"2", "4", "5"}
            for seen in row[kind].values():
                assert 0 <= seen["exact_match"] <= seen["token_accuracy"] <= 1
    record = json.loads((whole[1] / "config.json").read_text())["training"]
    assert record["validation"] == rows[-1]
    assert record["settings"]["training"]["texts"]["source"] == source


def test_positions_are_counted(llama: FrozenLM, source: str, tmp_path: Path) -> None:
    for number, objective in enumerate((Objective(), Objective(refine_steps=2, unroll=1.0))):
        trainer = Trainer(
            llama, Encoder.untrained(llama, CONFIG), short_training(source, objective=objective), Slice(0, 1)
        )
        trainer.prepare()
        with counted(llama) as calls:
            for _ in range(3):
                trainer.step()
        assert trainer.progress.positions == calls.positions()
        assert number or trainer.progress.positions == calls.backward_positions()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_processes_share_a_batch(llama: FrozenLM, source: str, accumulate: int) -> None:
    training = short_training(source, batch_positions=30 * accumulate, accumulate=accumulate)
    gradients = []
    for process in (Slice(0, 1), Slice(0, 2), Slice(1, 2)):
        trainer = Trainer(llama, random_encoder(llama), training, process)
        trainer.prepare()
        for part in range(accumulate):
            trainer._add_gradient(2, part)
        gradients.append([p.grad for p in trainer.network.parameters()])
    for alone, first, second in zip(*gradients, strict=True):
        assert torch.allclose(alone, (first + second) / 2, atol=1e-5)


def test_accumulated_batches_are_averaged(llama: FrozenLM, source: str) -> None:
    gradients = []
    for parts in (1, 2):  # the first of them is the same batch
        training = short_training(source, batch_positions=30 * parts, accumulate=parts)
        trainer = Trainer(llama, random_encoder(llama), training, Slice(0, 1))
        trainer.prepare()
        trainer._add_gradient(2, 0)
        gradients.append(torch.cat([trainer.network.start_e.grad, trainer.network.start_m.grad]))
    assert torch.allclose(gradients[0], 2 * gradients[1], atol=1e-6)


def test_a_batch_that_is_not_finite_changes_nothing_but_time(llama: FrozenLM, source: str) -> None:
    trainer = Trainer(llama, random_encoder(llama), short_training(source), Slice(0, 1))
    trainer.prepare()
    add = trainer._add_gradient

    def spoil(length: int, part: int):
        gradient = add(length, part)
        trainer.network.start_e.grad[0] = float("nan")
        return gradient

    trainer._add_gradient = spoil  # type: ignore[method-assign]
    before = {k: v.clone() for k, v in trainer.network.state_dict().items() if k.startswith("start")}
    trainer.step()
    assert all(p.isfinite().all() for p in trainer.network.parameters())
    assert all(torch.equal(trainer.network.state_dict()[k], v) for k, v in before.items())


@pytest.mark.cuda
@pytest.mark.parametrize("config", TRUNK_CONFIGS, ids=["perceptron", "transformer", "hidden"])
@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_step_never_waits_for_the_gpu(source: str, config, optimiser: str) -> None:
    lm = FrozenLM(build("llama").cuda(), tokenizer())
    schedule = Schedule(optimiser=optimiser)
    training = short_training(source, schedule=schedule, lengths=(4,), short_share=0.0, objective=Objective(noise=0.1))
    trainer = Trainer(lm, Encoder.untrained(lm, config), training, Slice(0, 1))
    trainer.prepare()
    trainer.step()  # the first one keeps what the others need
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_reports_keep_their_distance_and_the_last_step_is_told(llama: FrozenLM, source: str, tmp_path: Path) -> None:
    for seconds, expected in ((0.0, [1, 2, 3, 4, 5, 6]), (1e6, [1, 6])):
        told: list[int] = []
        train(
            llama, tmp_path / str(seconds), short_training(source),
            report=lambda r, told=told: told.append(r.step), seconds_between_reports=seconds,
        )  # fmt: skip
        assert told == expected


def test_a_model_in_bfloat16_trains_an_encoder_in_float32(source: str, tmp_path: Path) -> None:
    lm = FrozenLM(build("llama").to(torch.bfloat16), tokenizer())
    encoder = train(lm, tmp_path, short_training(source, steps=2))
    assert {p.dtype for p in encoder.network.parameters()} == {torch.float32}
    assert encoder(lm, "abc").e.dtype == torch.float32
    assert encoder.training["settings"]["dtype"] == "bfloat16"


def test_settings_of_a_run_are_refused_in_words(llama: FrozenLM, source: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="save_every is 0; it must be at least 1"):
        train(llama, tmp_path, short_training(source), save_every=0)
