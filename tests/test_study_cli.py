"""The commands around studies: killed from outside they go on, and every mistake is one clear line."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from families import build, save_model
from prototokens.cli import app as cli
from prototokens.cli import study as cli_study
from prototokens.runners.in_process import InProcess
from prototokens.study import STUDIES
from prototokens.study.cells import Batch
from prototokens.study.estimates import ModelSize, duration, estimate, size_of, table
from prototokens.study.reconstruction import arrangements, cost
from prototokens.study.store import Store

TIMED = {"seconds", "finished"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_model("llama", path)
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path):
    """Run the command line in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prototokens", "study", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capfd.readouterr()

    return call


def rows(path: Path) -> list[dict[str, Any]]:
    with Store.open(path) as store:
        return [{k: v for k, v in row.items() if k not in TIMED} for row in store.rows()]


def test_killed_from_outside_the_same_command_ends_with_the_same_rows(run, folder, tmp_path):
    call = ["study", "arrangements", "--scale", "smoke", "--model", str(folder), "--threads", "1", "--store"]
    command = [sys.executable, "-c", "from prototokens.cli.app import main; main()", *call, "killed"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if " 6 of 28 cells" in line:
            break
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    before = rows(Path("killed"))
    assert 6 <= len(before) < 28
    for name in ("killed", "whole"):
        assert run(*call[1:], name)[0] == 0
    whole = rows(Path("whole"))
    assert rows(Path("killed")) == whole
    assert len(whole) == len({row["key"] for row in whole}) == 28
    assert [row for row in whole if row["key"] in {b["key"] for b in before}] == before


def test_run_status_export_merge(run, folder, monkeypatch):
    monkeypatch.setitem(cost.GRIDS, "smoke", cost.GRIDS["smoke"][1:2])
    call = ("cost", "--scale", "smoke", "--model", folder, "--store")
    code, out, err = run(*call, "one")
    assert (code, out) == (0, f"cost on {folder}: 1 of 1 cells done, 0 failed\n")
    assert "1 of 1 cells" in err
    assert run("status", "--store", "one")[1].split()[-6:] == ["cost", "tiny", "smoke", "1", "0", "0"]
    assert run("export", "--store", "one", "--csv", "a.csv", "--parquet", "a.parquet")[:2] == (0, "1 rows\n")
    (row,) = csv.DictReader(Path("a.csv").read_text().splitlines())
    assert (next(iter(row)), row["recipe"], row["model"]) == ("key", "paper", "tiny")
    assert run(*call, "one")[0] == 0
    assert run("export", "--store", "one", "--csv", "b.csv", "--study", "cost")[0] == 0
    assert Path("a.csv").read_bytes() == Path("b.csv").read_bytes()
    assert run("merge", "one", "--store", "two")[:2] == (0, "1 cells from one\n")
    assert run("export", "--store", "two", "--csv", "b.csv", "--force")[0] == 0
    assert Path("a.csv").read_bytes() == Path("b.csv").read_bytes()


def test_failed_cells_exit_3_and_are_retried_when_asked(run, folder, monkeypatch):
    monkeypatch.setitem(cost.GRIDS, "smoke", cost.GRIDS["smoke"][1:2])
    call = ("cost", "--scale", "smoke", "--model", folder, "--store", "store")
    with monkeypatch.context() as patch:
        patch.setattr(cost, "fit_batch", lambda *_: 1 // 0)
        assert run(*call)[0] == 3
    code, out, _ = run(*call)
    assert (code, out) == (3, f"cost on {folder}: 0 of 1 cells done, 1 failed\n")
    assert rows(Path("store"))[0]["error"].startswith("ZeroDivisionError")
    assert run(*call, "--retry-failed")[0] == 0


def test_all_runs_every_study_on_every_model(run, folder, monkeypatch):
    seen: list[tuple[str, str]] = []

    def note(store: Store, runner: InProcess, study: str, scale: Any, **_: Any) -> Any:
        seen.append((runner._load.__self__.model, study))
        return cli_study_end

    from prototokens.study.running import StudyProgress

    cli_study_end = StudyProgress("", 1, 1, 0)
    monkeypatch.setattr("prototokens.study.running.run_study", note)
    assert run("all", "--model", folder, "--model", "b", "--store", "store")[0] == 0
    assert seen == [(model, study) for model in (str(folder), "b") for study in STUDIES]


def test_options_of_ray_reach_it(run, folder, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setitem(arrangements.GRIDS, "smoke", arrangements.ArrangementsGrid((1,), 1, 1, "tuned", 1, 1))
    seen: list[dict[str, Any]] = []

    def stand_in(load: Any, **options: Any) -> InProcess:
        seen.append(options)
        return InProcess(load)

    monkeypatch.setattr("prototokens.runners.on_ray.RayRunner", stand_in)
    call = ("arrangements", "--scale", "smoke", "--model", folder, "--store", "store", "--ray")
    assert run(*call, "local")[0] == 0
    assert run(*call, "ray://head:10001", "--workers", 3, "--gpus", 0.5, "--threads", 2, "--device", "cpu")[0] == 0
    assert seen == [
        {"address": None, "workers": None, "gpus": 0, "threads": 1},
        {"address": "ray://head:10001", "workers": 3, "gpus": 0.5, "threads": 2},
    ]


@pytest.mark.parametrize("study", [*STUDIES, "all"])
def test_a_dry_run_lists_the_paper_s_cells_for_six_models_that_are_not_here(run, study):
    code, out, err = run(study, "--scale", "paper", "--dry-run")
    assert (code, err) == (0, "")
    totals = [line for line in out.splitlines() if " on " in line and "at most" in line and line.endswith("GB")]
    assert len(totals) == 6 * (len(STUDIES) if study == "all" else 1)
    assert not list(Path().iterdir())


def test_a_dry_run_tells_the_size_of_any_model_without_loading_it(run, folder, monkeypatch):
    monkeypatch.setattr("prototokens.lm.loading.load_lm", lambda *_, **__: pytest.fail("the model was loaded"))
    code, out, _ = run("cost", "--scale", "smoke", "--model", folder, "--dry-run")
    assert code == 0
    assert out.count("1 cells") == 4
    assert f"cost on {folder}: at most" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cost"], "say where to keep results: --store FILE"),
        (["cost", "--store", "s", "--scale", "huge"], "unknown scale 'huge'; choose one of: smoke laptop paper"),
        (["cost", "--store", "no/s"], "no/s: there is no folder no"),
        (["cost", "--store", "s", "--workers", "2"], "--workers and --gpus are for Ray"),
        (["cost", "--store", "s", "--threads", "0"], "--threads is 0; it must be at least 1"),
        (["cost", "--store", "s", "--model", "nowhere/x"], "unknown model 'nowhere/x'"),
        (["cost", "--dry-run", "--model", "nowhere/x"], "unknown model 'nowhere/x'"),
        (["status", "--store", "none"], "none: no such store; a study makes it"),
        (["export", "--store", "none"], "say where to: --csv FILE or --parquet FILE"),
        (["export", "--store", "none", "--csv", "a", "--study", "b"], "unknown study 'b'; choose one of: arrangements"),
        (["merge", "none", "--store", "s"], "none: no such store"),
    ],
)
def test_every_mistake_is_one_line(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    assert message in err
    assert not Path("s").exists()


def test_a_store_is_not_merged_into_itself(run):
    Store.open("s", write=True).close()
    assert run("merge", "s", "--store", "s")[2] == "error: s: a store cannot be merged into itself\n"


def test_a_store_in_use_is_left_alone(run, folder):
    with Store.open("s", write=True):
        code, _, err = run("cost", "--scale", "smoke", "--model", folder, "--store", "s")
    assert (code, err) == (2, "error: s: another process is writing to it; wait, or choose another store\n")


def test_every_study_has_a_command_with_its_line():
    import typer

    program: Any = typer.main.get_command(cli_study.study_app)
    assert set(program.commands) == {*STUDIES, "all", "status", "export", "merge"}
    for name, line in STUDIES.items():
        assert program.commands[name].help.startswith(line)


def test_a_model_that_cannot_be_loaded_is_named_and_the_others_go_on(run, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(cost.GRIDS, "smoke", cost.GRIDS["smoke"][1:2])
    (tmp_path / "empty").mkdir()
    call = ("cost", "--scale", "smoke", "--store", "store", "--model", "empty", "--model")
    code, out, err = run(*call, folder, "--model", "nowhere/x")
    assert (code, out) == (3, f"cost on {folder}: 1 of 1 cells done, 0 failed\n")
    passed_over = [line for line in err.splitlines() if "passed over" in line]
    assert [line.split(" is passed over: ")[0] for line in passed_over] == ["empty", "nowhere/x"]
    assert "holds no model" in passed_over[0]
    assert "unknown model 'nowhere/x'" in passed_over[1]
    code, out, err = run(*call, "nowhere/x")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == "error: none of the models can be used: empty, nowhere/x"


def test_a_dry_run_passes_over_a_model_of_unknown_size(run, folder):
    code, out, err = run("cost", "--scale", "smoke", "--dry-run", "--model", "nowhere/x", "--model", folder)
    assert code == 3
    assert f"cost on {folder}: at most" in out
    assert err.startswith("nowhere/x is passed over: unknown model 'nowhere/x'")


def test_a_dry_run_fetches_a_configuration_and_no_weights(run, folder, monkeypatch):
    fetched: list[tuple[str, str, str | None]] = []

    def fetch(name: str, file: str, *, revision: str | None = None, **_: Any) -> str:
        fetched.append((name, file, revision))
        return str(folder / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("weights were fetched"))
    code, out, _ = run("cost", "--scale", "smoke", "--dry-run", "--model", "someone/tiny", "--revision", "v2")
    assert code == 0
    assert "cost on someone/tiny: at most" in out
    assert fetched == [("someone/tiny", "config.json", "v2")]


def test_a_model_s_size_is_that_of_its_weights(folder):
    config = build("llama").config
    size = size_of(str(folder))
    assert size.parameters == build("llama").num_parameters()
    assert (size.vocabulary, size.width, size.layers) == (264, config.hidden_size, config.num_hidden_layers)
    assert size.bytes_per_weight == 4


def test_an_estimate_is_the_formula_of_the_method_page():
    size = ModelSize(parameters=2e9, vocabulary=1000, width=100, layers=10, bytes_per_weight=2)
    small = Batch("cost", "small", (), steps=10, positions=1)
    large = Batch("cost", "large", (), steps=10, positions=10_000, peak_positions=500)
    assert estimate(small, size, "paper").seconds == pytest.approx(10 * 0.02)
    assert estimate(large, size, "paper").seconds == pytest.approx(10 * 4 * 2e9 * 10_000 / 1e14)
    assert estimate(small, size, "laptop").seconds == pytest.approx(10 * 0.3 * 2e9 / 135e6)
    per_position = 16 * 10 * 100 * 2 + 3 * 4 * 1000
    assert estimate(large, size, "paper").gigabytes == pytest.approx((4e9 + 500 * per_position) / 1e9)
    lines, total = table([small, large], size, "paper")
    assert len(lines) == 2
    assert total.seconds == pytest.approx(0.2 + estimate(large, size, "paper").seconds)
    assert total.gigabytes == estimate(large, size, "paper").gigabytes


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "0 s"), (89, "89 s"), (91, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (172800, "2.0 d")]
)
def test_durations_in_words(seconds, told):
    assert duration(seconds) == told
