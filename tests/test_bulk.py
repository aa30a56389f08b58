"""Many texts and documents: each leaves a file of its own, and what is there is neither made again nor lost."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from archives import odd
from encoders import random_encoder
from families import ONE, family, save_model, tokenizer
from prototokens import FrozenLM, InputError, Stop, decode, load, preset, read_archive, save, unpack
from prototokens.archive.efforts import Effort, effort_named
from prototokens.archive.pack import PackConfig
from prototokens.arrangements import blocks
from prototokens.fitting import recipes as recipes_module
from prototokens.fitting import starts
from prototokens.fitting.starter import Starter
from prototokens.runners.bulk import Outcome, fit_texts, pack_folder
from prototokens.runners.in_process import InProcess
from prototokens.runners.work import one
from prototokens.texts.tables import Row

QUICK = PackConfig(effort=Effort(tokens_per_vector=3, steps=12, margin=0.0, own_m=False))
RECIPE = replace(ONE, stop=Stop(max_steps=60, margin=0.01))
DOCUMENTS = {"a.txt": b"first", "deep/b.md": "two \u00e9\r\n".encode(), "empty.txt": b""}
TEXTS = ["ab", "cde", "fg", "hij"]


@pytest.fixture
def runner(llama: FrozenLM) -> InProcess:
    return InProcess(lambda: llama)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, raw in {**DOCUMENTS, ".hidden/c.txt": b"never"}.items():
        path = tmp_path / "documents" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    return tmp_path / "documents"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_document_of_a_folder_comes_back(
    llama: FrozenLM, runner: InProcess, folder: Path, tmp_path: Path
) -> None:
    outcomes = pack_folder(runner, folder, tmp_path / "packed", QUICK)
    assert [str(o.file.relative_to(tmp_path / "packed")) for o in outcomes] == [f"{name}.proto" for name in DOCUMENTS]
    assert all(o.made and o.error is None for o in outcomes)
    for outcome, raw in zip(outcomes, DOCUMENTS.values(), strict=True):
        assert outcome.record is not None
        assert outcome.record["bytes_in"] == len(raw)
        assert outcome.record["bytes_out"] == outcome.file.stat().st_size
        assert unpack(llama, read_archive(outcome.file)).encode() == raw


def test_what_is_there_is_passed_over(runner: InProcess, folder: Path, tmp_path: Path) -> None:
    first = pack_folder(runner, folder, tmp_path / "packed", QUICK)
    before = contents(tmp_path / "packed")
    (tmp_path / "packed" / "a.txt.proto").unlink()
    again = pack_folder(runner, folder, tmp_path / "packed", QUICK)
    assert [o.made for o in again] == [True, False, False]
    assert [o.record for o in again] == [o.record for o in first]
    assert contents(tmp_path / "packed") == before


def test_a_document_that_fails_does_not_stop_the_others(runner: InProcess, folder: Path, tmp_path: Path) -> None:
    pack_folder(runner, folder, tmp_path / "packed", QUICK)
    (folder / "a.txt").write_bytes(b"changed")
    (folder / "bad.txt").write_bytes(b"ok \xff")
    (folder / "new.txt").write_bytes(b"new")
    (tmp_path / "packed" / "empty.txt.proto").write_bytes(b"not an archive")
    seen: list[Outcome] = []
    outcomes = pack_folder(runner, folder, tmp_path / "packed", QUICK, report=seen.append)
    told = {o.file.name: o.error or "" for o in outcomes}
    assert "holds another text than" in told["a.txt.proto"]
    assert "not UTF-8 (byte 0xff at offset 3)" in told["bad.txt.proto"]
    assert "damaged, or not a safetensors file" in told["empty.txt.proto"]
    assert [name for name, error in told.items() if not error] == ["b.md.proto", "new.txt.proto"]
    assert sorted(o.file for o in seen) == sorted(o.file for o in outcomes)
    assert not (tmp_path / "packed" / "bad.txt.proto").exists()
    forced = pack_folder(runner, folder, tmp_path / "packed", QUICK, overwrite=True)
    assert [o.file.name for o in forced if o.error] == ["bad.txt.proto"]


def test_folders_are_refused(runner: InProcess, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    for source, output, message in (
        (tmp_path / "none", tmp_path / "packed", "no such folder"),
        (tmp_path / "nothing", tmp_path / "packed", "holds no file to pack"),
        (folder, folder / "packed", "lies in the folder that is packed"),
    ):
        with pytest.raises(InputError, match=message):
            pack_folder(runner, source, output, QUICK)
    assert not (tmp_path / "packed").exists()


def test_an_encoder_that_serves_no_document_is_refused_once(runner: InProcess, folder: Path, tmp_path: Path) -> None:
    other = random_encoder(family("gpt2"))
    for config, message in (
        (PackConfig("instant"), "no encoder for LlamaForCausalLM comes with the package"),
        (PackConfig("fast", encoder=other), "this encoder belongs to"),
    ):
        with pytest.raises(InputError, match=message):
            pack_folder(runner, folder, tmp_path / "packed", config)
    assert not (tmp_path / "packed").exists()
    outcomes = pack_folder(runner, folder, tmp_path / "packed", PackConfig("instant", encoder=random_encoder()))
    assert [outcome.error for outcome in outcomes] == [None, None, None]


def test_every_text_of_a_list_is_fitted(llama: FrozenLM, runner: InProcess, tmp_path: Path) -> None:
    outcomes = fit_texts(runner, TEXTS, tmp_path / "fitted", RECIPE)
    assert [o.file.name for o in outcomes] == [f"0000{n}.safetensors" for n in range(1, 5)]
    for outcome, text in zip(outcomes, TEXTS, strict=True):
        assert outcome.record is not None
        decoded = decode(llama, load(outcome.file))
        assert decoded.exact == outcome.record["exact"] == (decoded.text == text)
    assert sum(o.record["exact"] for o in outcomes if o.record) >= 2


def test_a_list_that_was_stopped_resumes_to_the_same_files(runner: InProcess, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(outcome: Outcome) -> None:
        raise Stopped

    fit_texts(runner, TEXTS, tmp_path / "whole", RECIPE)
    with pytest.raises(Stopped):
        fit_texts(runner, TEXTS, tmp_path / "fitted", RECIPE, report=stop)
    finished = set(contents(tmp_path / "fitted"))
    assert 0 < len(finished) < len(TEXTS)
    again = fit_texts(runner, TEXTS, tmp_path / "fitted", RECIPE)
    assert {o.file.name for o in again if not o.made} == finished
    assert contents(tmp_path / "fitted") == contents(tmp_path / "whole")


def test_a_list_never_overwrites_another_text(runner: InProcess, tmp_path: Path) -> None:
    fit_texts(runner, ["ab"], tmp_path / "fitted", RECIPE)
    before = contents(tmp_path / "fitted")
    (outcome,) = fit_texts(runner, ["xy"], tmp_path / "fitted", RECIPE)
    assert "holds another text than the list; choose another folder" in (outcome.error or "")
    assert contents(tmp_path / "fitted") == before
    assert fit_texts(runner, ["xy"], tmp_path / "fitted", RECIPE, overwrite=True)[0].made
    cut = fit_texts(runner, ["abcdef"], tmp_path / "cut", RECIPE, max_tokens=2)[0]
    assert cut.record is not None
    assert cut.record["length"] == 2


def test_files_of_another_model_or_recipe_are_not_taken_for_done(
    runner: InProcess, folder: Path, tmp_path: Path
) -> None:
    fitted, packed = tmp_path / "fitted", tmp_path / "packed"
    fit_texts(runner, ["ab"], fitted, RECIPE)
    pack_folder(runner, folder, packed, QUICK)
    other = InProcess(lambda: family("gpt2"))
    for fitter, config, message in (
        (other, RECIPE, "was fitted on LlamaForCausalLM, another model"),
        (runner, replace(RECIPE, seed=5), "was fitted by None with seed 0"),
        (runner, replace(RECIPE, preset="mine"), "was fitted by None with seed 0"),
    ):
        (outcome,) = fit_texts(fitter, ["ab"], fitted, config)
        assert message in (outcome.error or "")
    errors = [outcome.error or "" for outcome in pack_folder(other, folder, packed, QUICK)]
    assert all("was packed for LlamaForCausalLM, another model; pack it anew (--force)" in error for error in errors)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file: cannot be made a folder \(File exists\)"):
        fit_texts(runner, ["ab"], tmp_path / "file", RECIPE)


def test_a_fit_in_another_way_is_not_taken_for_done(llama: FrozenLM, runner: InProcess, tmp_path: Path) -> None:
    fit_texts(runner, ["ab"], tmp_path, RECIPE)
    low = FrozenLM(copy.deepcopy(llama.model).to(torch.bfloat16), tokenizer(), llama.identity)
    for fitter, config, said in (
        (runner, replace(RECIPE, restarts=2), "restarts 1, not 2;"),
        (runner, replace(RECIPE, perturbation=0.2), "perturbation 0.1, not 0.2;"),
        (runner, replace(RECIPE, start="vocabulary"), "start text-e, not vocabulary;"),
        (runner, replace(RECIPE, stop=Stop(max_steps=9)), "stop "),
        (InProcess(lambda: low), RECIPE, "dtype float32, not bfloat16;"),
    ):
        (outcome,) = fit_texts(fitter, ["ab"], tmp_path, config)
        assert f"was fitted by None with seed 0: {said}" in (outcome.error or "")
    assert not fit_texts(runner, ["ab"], tmp_path, RECIPE)[0].made
    alone = load(tmp_path / "00001.safetensors")
    save(tmp_path / "00001.safetensors", replace(alone, provenance=replace(alone.provenance, recipe=None)),
         overwrite=True)  # fmt: skip
    (outcome,) = fit_texts(runner, ["ab"], tmp_path, RECIPE)
    assert "does not say by which recipe it was fitted; choose another folder" in (outcome.error or "")


def blocks_starter(lm: FrozenLM, b: int, shift: float) -> Starter:
    return Starter(torch.full((lm.width,), shift), torch.zeros(lm.width), blocks(b), lm.identity, {})


def test_a_long_text_records_the_start_and_arrangement_of_its_length(
    llama: FrozenLM, runner: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["x" * 40, "ab"]
    config = replace(preset(), stop=Stop(max_steps=0))
    of_blocks = blocks_starter(llama, 8, 0.0)
    shipped = {of_blocks.arrangement: of_blocks}
    monkeypatch.setattr(starts, "shipped_starter", lambda _, arrangement: shipped.get(arrangement))
    fit_texts(runner, texts, tmp_path / "auto", config)
    recipes = [load(file).provenance.recipe for file in sorted((tmp_path / "auto").iterdir())]
    assert [recipe["start"] for recipe in recipes if recipe] == [of_blocks.name, "text-e"]
    assert not any(outcome.made for outcome in fit_texts(runner, texts, tmp_path / "auto", config))
    shipped[blocks(8)] = blocks_starter(llama, 8, 1.0)
    long, short = fit_texts(runner, texts, tmp_path / "auto", config)
    assert f"start {of_blocks.name}, not {shipped[blocks(8)].name};" in (long.error or "")
    assert (short.made, short.error) == (False, None)
    shipped.clear()
    for directory in ("blocks of 8", "blocks of 16"):
        fit_texts(runner, texts, tmp_path / directory, config)
        monkeypatch.setattr(recipes_module, "AUTO_BLOCK", 16)
    long, short = fit_texts(runner, texts, tmp_path / "blocks of 8", config)
    assert "arrangement " in (long.error or "")
    assert (short.made, short.error) == (False, None)
    assert not any(outcome.made for outcome in fit_texts(runner, texts, tmp_path / "blocks of 16", config))


def test_a_start_for_blocks_and_restarts_of_drawn_starts_are_fitted(
    llama: FrozenLM, runner: InProcess, tmp_path: Path
) -> None:
    for name, config in (
        ("blocks", preset(start=blocks_starter(llama, 8, 0.0), stop=Stop(max_steps=0))),
        ("drawn", replace(ONE, start="normal", perturbation=0.0, restarts=2, stop=Stop(max_steps=0))),
    ):
        for made in (True, False):
            outcomes = fit_texts(runner, ["x" * 40], tmp_path / name, config)
            assert [(outcome.made, outcome.error) for outcome in outcomes] == [(made, None)]


def test_a_file_that_cannot_be_taken_is_the_outcome_of_its_row(runner: InProcess, tmp_path: Path) -> None:
    fit_texts(runner, TEXTS, tmp_path, RECIPE)
    first, second, third, _ = files = sorted(tmp_path.iterdir())
    first.write_bytes(b"not a safetensors file")
    second.write_bytes(files[3].read_bytes())
    third.unlink()
    before = contents(tmp_path)
    seen: list[Outcome] = []
    outcomes = fit_texts(runner, TEXTS, tmp_path, RECIPE, report=seen.append)  # the first and third are one batch
    assert [(outcome.made, outcome.error is None) for outcome in outcomes] == [
        (False, False), (False, False), (True, True), (False, True)
    ]  # fmt: skip
    assert "damaged, or not a safetensors file" in (outcomes[0].error or "")
    assert "holds another text than the list" in (outcomes[1].error or "")
    assert sorted(outcome.file for outcome in seen) == files
    after = contents(tmp_path)
    assert {name: raw for name, raw in after.items() if name != third.name} == before
    assert load(third).provenance.target_hash
    assert [o.error for o in fit_texts(runner, TEXTS, tmp_path, RECIPE, overwrite=True)] == [None] * 4


def test_an_archive_packed_in_another_way_is_not_taken_for_done(
    llama: FrozenLM, runner: InProcess, folder: Path, tmp_path: Path
) -> None:
    packed = tmp_path / "packed"
    pack_folder(runner, folder, packed, QUICK)
    before = contents(packed)
    low = FrozenLM(copy.deepcopy(llama.model).to(torch.bfloat16), tokenizer(), llama.identity)
    for packer, config, said in (
        (runner, replace(QUICK, effort=replace(effort_named(QUICK.effort), steps=13)), "effort"),
        (runner, replace(QUICK, store="float32"), "store"),
        (runner, replace(QUICK, chunk_tokens=2), "chunk_tokens"),
        (runner, replace(QUICK, recipe=replace(QUICK.recipe, perturbation=0.2)), "recipe"),
        (runner, replace(QUICK, margin=0.5), "margin"),
        (InProcess(lambda: low), QUICK, "dtype"),
    ):
        errors = [outcome.error or "" for outcome in pack_folder(packer, folder, packed, config)]
        assert all(f"was packed with another {said}; pack it anew (--force)" in error for error in errors)
    assert contents(packed) == before
    assert not any(outcome.error for outcome in pack_folder(runner, folder, packed, QUICK))


def test_rows_keep_their_numbers_and_a_bad_one_does_not_end_the_run(llama: FrozenLM, tmp_path: Path) -> None:
    lossy = FrozenLM(llama.model, odd("drops white space").tokenizer, llama.identity)
    rows = [Row(1, "ab"), Row(2, None), Row(3, None, "list.txt, line 3: bad"), Row(4, "\u00a0"), Row(5, "c d")]
    seen: list[Outcome] = []
    outcomes = fit_texts(InProcess(lambda: lossy), rows, tmp_path, RECIPE, report=seen.append)
    assert [outcome.file.name for outcome in outcomes] == [f"0000{n}.safetensors" for n in (1, 3, 4, 5)]
    assert [outcome.error is None for outcome in outcomes] == [True, False, False, True]
    assert outcomes[1].error == "list.txt, line 3: bad"
    assert (outcomes[2].error or "").startswith("text 4: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00001.safetensors", "00005.safetensors"]
    assert (outcomes[0].note, "does not keep this text as it is" in (outcomes[3].note or "")) == (None, True)
    assert sorted(outcome.file for outcome in seen) == [outcome.file for outcome in outcomes]


def test_why_work_failed_is_data() -> None:
    def fails(lm: FrozenLM, job: Exception) -> None:
        raise job

    runner = InProcess(lambda: family("llama"))
    errors = [InputError("InputError: a\nb"), ValueError("x"), KeyError(), InputError()]
    done = list(runner.run(fails, errors))
    assert [d.error for d in done] == ["InputError: a b", "ValueError: x", "KeyError", "InputError"]
    assert [d.mendable for d in done] == [True, False, False, True]
    with pytest.raises(InputError, match=r"^InputError: a b$"):
        one(runner, fails, errors[0])
    with pytest.raises(RuntimeError, match=r"^ValueError: x$"):
        one(runner, fails, errors[1])


def test_documents_whose_names_are_no_utf_8_are_packed(runner: InProcess, folder: Path, tmp_path: Path) -> None:
    try:
        (folder / "a.txt").rename(folder / os.fsdecode(b"caf\xe9.txt"))
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    for made in (True, False):
        outcomes = pack_folder(runner, folder, tmp_path / "packed", QUICK)
        assert [(o.error, o.made) for o in outcomes] == [(None, made)] * 3


def command(monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: str) -> tuple[int, str, str]:
    from prototokens.cli import app as cli

    monkeypatch.setattr("sys.argv", ["prototokens", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_the_commands(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    model = tmp_path / "model"
    save_model("llama", model)
    packed, fitted = str(tmp_path / "packed"), str(tmp_path / "fitted")
    pack = ("pack-all", str(folder), "-o", packed, "--effort", "fast", "--model", str(model))
    code, out, _ = command(monkeypatch, capsys, *pack)
    assert (code, out) == (0, "3 made, 0 there already, 0 failed\n")
    (folder / "bad.txt").write_bytes(b"\xff")
    code, out, err = command(monkeypatch, capsys, *pack, "--json")
    record = json.loads(out)
    assert (code, record["made"], len(record["files"]), len(record["failed"])) == (3, 0, 3, 1)
    assert "bad.txt.proto: failed:" in err

    (tmp_path / "list.txt").write_text("ab\n\ncd\n")
    fit = ("fit-all", str(tmp_path / "list.txt"), "-o", fitted, "--model", str(model))
    assert command(monkeypatch, capsys, *fit)[:2] == (0, "2 made, 0 there already, 0 failed\n")
    code, out, _ = command(monkeypatch, capsys, *fit, "--json")
    assert (code, json.loads(out)["made"], len(json.loads(out)["files"])) == (0, 0, 2)
    (tmp_path / "list.jsonl").write_text('{"words": "ab"}\n{"words": "cd"}\n')
    assert command(monkeypatch, capsys, "fit-all", str(tmp_path / "list.jsonl"), "--column", "words", *fit[2:])[0] == 0

    for arguments, message in (
        ((*pack, "--workers", "2"), "--workers and --gpus are for Ray"),
        ((*fit, "--threads", "0"), "--threads is 0; it must be at least 1"),
        ((*fit, "--tokens", "0"), "--tokens is 0; it must be at least 1"),
        (("fit-all", "nowhere.txt", *fit[2:]), "no such file: nowhere.txt"),
    ):
        code, out, err = command(monkeypatch, capsys, *arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert message in err
        assert err.count("\n") == 1
