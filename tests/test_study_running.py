"""Running a study: killed at any point it ends with the same rows, none twice, none lost."""

from __future__ import annotations

import math
import os
import signal
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from families import analytic, counted, family
from prototokens import FrozenLM, InputError, decode, load
from prototokens.arrangements import arrangement_named
from prototokens.fitting import memory
from prototokens.fitting.memory import Passes
from prototokens.fitting.starter import Starter
from prototokens.lm import identity
from prototokens.runners.in_process import InProcess
from prototokens.study import STUDIES, running
from prototokens.study.reconstruction import arrangements, cost
from prototokens.study.running import ModelUnavailable, run_study
from prototokens.study.scales import SCALES
from prototokens.study.store import Store

SMOKE = SCALES["smoke"]
TIMED = {"seconds", "finished", "tokens_per_second"}
"""Columns that are never the same twice."""

GRID = arrangements.ArrangementsGrid((1, 3), 3, 1, "tuned", 4, 3)
CELLS = len(arrangements.NAMES) * 2 * 3


@pytest.fixture(autouse=True)
def small_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(arrangements.GRIDS, "smoke", GRID)


def runner(name: str = "llama") -> InProcess:
    return InProcess(lambda: family(name))


def run(path: Path, name: str = "llama", **options: Any) -> Any:
    with Store.open(path, write=True) as store:
        return run_study(store, runner(name), "arrangements", SMOKE, **options)


def rows(path: Path) -> list[dict[str, Any]]:
    with Store.open(path) as store:
        return [{k: v for k, v in row.items() if k not in TIMED} for row in store.rows()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of a run that nothing disturbed."""
    path = tmp_path_factory.mktemp("whole") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(arrangements.GRIDS, "smoke", GRID)
        end = run(path)
    assert (end.cells, end.done, end.failed) == (CELLS, CELLS, 0)
    return rows(path)


def killed(action: Callable[[], None]) -> bool:
    """Run something in a forked process; whether it was killed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, in newer Pythons: the child starts none
        child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_the_second() -> Callable[[], None]:
    acts = iter([lambda: None])
    return lambda: next(acts, kill)()


def after(function: Callable[..., Any], then: Callable[[], None]) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **options: Any) -> Any:
        value = function(*arguments, **options)
        then()
        return value

    return wrapped


def test_every_row_is_there_once_with_its_vectors(whole, tmp_path):
    run(tmp_path / "store")
    kept_rows = rows(tmp_path / "store")
    assert kept_rows == whole
    assert len({row["key"] for row in kept_rows}) == CELLS
    with Store.open(tmp_path / "store") as store:
        assert {p.stem for p in store.vectors.iterdir()} == {row["key"] for row in kept_rows}
        for row in kept_rows[::5]:
            tokens = load(store.vectors_path(row["key"]))
            assert decode(family("llama"), tokens).exact == bool(row["exact"])
            assert tokens.provenance.target_hash == row["text_hash"]
            assert tokens.arrangement.name == row["arrangement"]


@pytest.mark.parametrize("moment", ["vectors", "row"])
def test_killed_after_every_row_it_ends_with_the_same_rows(whole, tmp_path, monkeypatch, moment):
    """A child is killed once it has written one row, or that row's vectors after the row before; the next goes on."""
    path, kills = tmp_path / "store", 0
    while True:
        with monkeypatch.context() as patch:
            if moment == "row":
                patch.setattr(Store, "finish", after(Store.finish, kill))
            else:
                patch.setattr(running, "save", after(running.save, kill_at_the_second()))
            if not killed(lambda: run(path)):
                break
        kills += 1
        assert kills <= CELLS
        with Store.open(path) as store:
            assert store.counts()[0]["done"] == kills
            for row in store.rows():
                load(store.vectors_path(row["key"]))
    assert kills == (CELLS if moment == "row" else CELLS - 1)
    assert rows(path) == whole


def test_killed_while_texts_are_drawn_or_planned(whole, tmp_path, monkeypatch):
    for name in ("keep_texts", "plan"):
        with monkeypatch.context() as patch:
            patch.setattr(Store, name, after(getattr(Store, name), kill))
            assert killed(lambda: run(tmp_path / "store"))
    run(tmp_path / "store")
    assert rows(tmp_path / "store") == whole


def test_an_exception_at_every_write_loses_nothing(whole, tmp_path, monkeypatch):
    path, original = tmp_path / "store", Store._transaction

    class Broken(Exception):
        pass

    def broken(at: int) -> Callable[[Store], Any]:
        left = iter(range(at))

        def transaction(self: Store) -> Any:
            if next(left, None) is None:
                raise Broken
            return original(self)

        return transaction

    for at in range(6):
        with monkeypatch.context() as patch:
            patch.setattr(Store, "_transaction", broken(at))
            with pytest.raises(Broken):
                run(path)
    run(path)
    assert rows(path) == whole


def test_what_is_finished_is_not_touched_and_not_run(tmp_path, monkeypatch, whole):
    path = tmp_path / "store"
    run(path)
    before = path.read_bytes()
    monkeypatch.setattr(arrangements, "fit_batch", lambda *_: pytest.fail("a finished batch was run"))
    assert run(path).done == CELLS
    with Store.open(path) as store:
        stamps = [row["finished"] for row in store.rows()]
    assert len(stamps) == CELLS
    assert rows(path) == whole
    assert len(before) == len(path.read_bytes())


def test_a_failing_batch_is_recorded_and_the_others_go_on(whole, tmp_path, monkeypatch):
    path, original = tmp_path / "store", arrangements.fit_batch

    def failing(lm: FrozenLM, ids: Any, config: Any) -> Any:
        if config.arrangement.name == "e*n":
            raise RuntimeError("no\nmemory")
        return original(lm, ids, config)

    with monkeypatch.context() as patch:
        patch.setattr(arrangements, "fit_batch", failing)
        for _ in range(2):  # failed cells are not tried again unasked
            end = run(path)
            assert (end.done, end.failed) == (CELLS - 6, 6)
    bad = [row for row in rows(path) if row["status"] == "failed"]
    assert {(row["arrangement"], row["error"]) for row in bad} == {("e*n", "RuntimeError: no memory")}
    good = [row for row in rows(path) if row["status"] == "done"]
    assert good == [row for row in whole if row["arrangement"] != "e*n"]
    assert run(path).failed == 6
    assert run(path, retry_failed=True).failed == 0
    assert rows(path) == whole


def test_two_machines_can_share_the_work(whole, tmp_path, monkeypatch):
    def failing(names: set[str]) -> Callable[..., Any]:
        original = arrangements.fit_batch

        def fit(lm: FrozenLM, ids: Any, config: Any) -> Any:
            assert config.arrangement.name in names
            return original(lm, ids, config)

        return fit

    halves = set(arrangements.NAMES[:2]), set(arrangements.NAMES[2:])
    for name, half in zip(("one", "two"), halves, strict=True):
        with monkeypatch.context() as patch:
            patch.setattr(arrangements, "fit_batch", failing(half))
            run(tmp_path / name)
    with Store.open(tmp_path / "one", write=True) as one, Store.open(tmp_path / "two") as two:
        one.merge(two)
        assert len(list(one.vectors.iterdir())) == CELLS
    assert rows(tmp_path / "one") == whole


def test_models_do_not_mix(tmp_path):
    path = tmp_path / "store"
    assert run(path, "llama").cells == run(path, "gpt2").cells == CELLS
    kept_rows = rows(path)
    assert len(kept_rows) == len({row["key"] for row in kept_rows}) == 2 * CELLS
    assert len({row["fingerprint"] for row in kept_rows}) == 2


def test_texts_are_drawn_once_for_a_store(tmp_path, monkeypatch):
    run(tmp_path / "store")
    monkeypatch.setattr("prototokens.texts.sampling.sample", lambda *_, **__: pytest.fail("texts were drawn again"))
    run(tmp_path / "store")


def test_texts_of_the_user_s_own(tmp_path):
    (tmp_path / "mine.txt").write_text("My own words, and more of them than anyone has asked for. " * 20)
    with Store.open(tmp_path / "store", write=True) as store:
        scale = SMOKE.with_corpora(old=str(tmp_path / "mine.txt"))
        assert run_study(store, runner(), "arrangements", scale).failed == 0
        assert {row["corpus"] for row in store.rows()} == {"mine.txt"}


def test_texts_of_a_folder_are_drawn_anew_when_the_folder_has_changed(tmp_path):
    folder = tmp_path / "mine"
    (folder / "more").mkdir(parents=True)
    (folder / "more" / "a.txt").write_text("My own words, and more of them than anyone has asked for. " * 20)

    def hashes():
        with Store.open(tmp_path / "store", write=True) as store:
            assert run_study(store, runner(), "arrangements", SMOKE.with_corpora(old=str(folder))).failed == 0
            return {row["text_hash"] for row in store.rows()}

    before = hashes()
    (folder / ".hidden.txt").write_text("It is not read.")
    assert hashes() == before
    (folder / "more" / "a.txt").write_text("Other words stand in the same file now, enough of them. " * 20)
    changed = hashes()
    assert changed > before
    (folder / "more" / "a.txt").rename(folder / "b.txt")
    (folder / "a.txt").write_text("A second file comes first, and all of its words are again others. " * 20)
    assert hashes() > changed


def test_a_model_with_too_few_positions_for_a_text_fails_those_cells_only(tmp_path, monkeypatch):
    monkeypatch.setitem(arrangements.GRIDS, "smoke", arrangements.ArrangementsGrid((2, 60), 1, 1, "tuned", 1, 1))
    end = run(tmp_path / "store")
    assert (end.done, end.failed) == (len(arrangements.NAMES), len(arrangements.NAMES))
    for row in rows(tmp_path / "store"):
        assert (row["status"] == "failed") == (row["tokens"] == 60)
        assert row["status"] == "done" or "a text of 60 tokens is asked for" in row["error"]


def test_a_source_that_cannot_be_had_is_one_clear_error(tmp_path):
    with Store.open(tmp_path / "store", write=True) as store, pytest.raises(InputError, match=r"^no such file: .*none"):
        run_study(store, runner(), "arrangements", SMOKE.with_corpora(old=str(tmp_path / "none.txt")))


def test_any_model_will_do(tmp_path):
    with Store.open(tmp_path / "store", write=True) as store:
        end = run_study(store, InProcess(analytic), "arrangements", SMOKE)
    assert (end.done, end.failed) == (CELLS, 0)


def starter(lm: FrozenLM, value: float, axes: float | None = None) -> Starter:
    """A learned start for a tiny model; its axes are turned by an angle."""
    vectors = torch.full((2, lm.width), value)
    turned = None
    if axes is not None:
        turned = torch.eye(lm.width).repeat(2, 1, 1)
        cos, sin = math.cos(axes), math.sin(axes)
        turned[:, :2, :2] = torch.tensor([[cos, -sin], [sin, cos]])
    arrangement = arrangement_named("m,e,m*(n-1)")
    return Starter(vectors[0], vectors[1], arrangement, lm.identity, {}, None if turned is None else turned.half())


def test_a_new_learned_start_makes_new_cells_where_it_is_used_and_only_there(tmp_path, monkeypatch):
    lm, keys = family("llama"), {}
    monkeypatch.setitem(cost.GRIDS, "smoke", (cost.Part("fast", (2,), 1, 1, 1), cost.Part("paper", (2,), 1, 1, 1)))
    shipped = {"none": (), "one": (starter(lm, 0.1),), "other": (starter(lm, 0.2),),
               "axes": (starter(lm, 0.1, 0.3),), "turned": (starter(lm, 0.1, 0.6),)}  # fmt: skip
    for name, starters in shipped.items():
        monkeypatch.setattr("prototokens.fitting.starter._shipped", lambda starters=starters: starters)
        with Store.open(tmp_path / name, write=True) as store:
            assert run_study(store, runner(), "cost", SMOKE).failed == 0
            for row in store.rows():
                keys.setdefault(row["recipe"], []).append(row["key"])
                used = starters and row["recipe"] == "fast"
                assert row.get("start_hash") == (starters[0].name.removeprefix("learned-") if used else None)
                assert row["start"] == (
                    starters[0].name if used else {"fast": "text-e", "paper": "normal"}[row["recipe"]]
                )
    assert len(set(keys["fast"])) == len(shipped)
    assert len(set(keys["paper"])) == 1


@pytest.mark.parametrize("study", STUDIES)
def test_a_start_is_a_condition_of_the_cells_that_begin_at_it(study, monkeypatch, tmp_path):
    """What a row says of its fit's start, and what its key knows of it, are the same thing."""
    lm = family("llama")
    shipped = starter(lm, 0.01)
    monkeypatch.setattr("prototokens.fitting.starter._shipped", lambda: (shipped,))
    with Store.open(tmp_path / "store", write=True) as store:
        assert run_study(store, runner(), study, SMOKE).failed == 0
        rows = [row for row in store.rows() if "steps" in row and row.get("start") is not None]
    for row in rows:
        began_there = row["start"] in (shipped.name, "auto")
        assert began_there == (row.get("start_hash") is not None), row


def test_free_memory_has_no_say_in_how_a_cell_is_rounded(tmp_path, monkeypatch):
    """What is free is not in a cell's key; what the passes are planned for is."""
    texts_in_a_pass = []
    for free in (10**12, 10**5):
        monkeypatch.setattr(memory, "free_bytes", lambda _, free=free: free)
        with counted(family("llama")) as calls:
            run(tmp_path / str(free))
        texts_in_a_pass.append(calls.forward)
    assert texts_in_a_pass[0] == texts_in_a_pass[1]
    assert rows(tmp_path / str(10**12)) == rows(tmp_path / str(10**5))
    monkeypatch.setitem(SCALES, "smoke", replace(SMOKE, pass_gigabytes=8))
    run(tmp_path / "larger")
    assert {row["pass_gigabytes"] for row in rows(tmp_path / "larger")} == {8}
    assert not {row["key"] for row in rows(tmp_path / "larger")} & {row["key"] for row in rows(tmp_path / str(10**5))}


def test_passes_are_planned_for_the_memory_that_is_named(monkeypatch):
    lm, layout = family("llama"), arrangement_named("m,e,m*(n-1)").layout(2)
    one = memory.estimate_bytes(lm, layout, 1)
    for free in (1, 10**12):
        monkeypatch.setattr(memory, "free_bytes", lambda _, free=free: free)
        for room, planned in ((100 * one, Passes(7, False)), (5 * one, Passes(4, False)), (1, Passes(1, True))):
            with memory.passes_planned_for(room):
                assert memory.plan_passes(lm, layout, 7, Passes()) == planned


def test_a_model_that_cannot_be_loaded_or_is_too_small_is_told_apart(tmp_path):
    def broken() -> FrozenLM:
        raise RuntimeError("out of\nmemory")

    def missing() -> FrozenLM:
        raise InputError("that model is nowhere")

    with Store.open(tmp_path / "store", write=True) as store:
        for load, message in ((broken, "RuntimeError: out of memory"), (missing, "that model is nowhere")):
            with pytest.raises(ModelUnavailable, match=f"^{message}$"):
                run_study(store, InProcess(load), "arrangements", SMOKE)
        with pytest.raises(ModelUnavailable, match="64 positions; the scale paper needs more than 64"):
            run_study(store, runner(), "cost", SCALES["paper"])


def test_cells_of_weights_with_a_former_fingerprint_are_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: list[dict[str, Any]]
) -> None:
    run(tmp_path / "store")
    lm = family("llama")
    former, current = lm.identity.fingerprint, "0" * 64
    renamed = FrozenLM(lm.model, lm.tokenizer, replace(lm.identity, fingerprint=current))

    def run_again() -> int:
        with Store.open(tmp_path / "store", write=True) as store:
            return run_study(store, InProcess(lambda: renamed), "arrangements", SMOKE).done

    monkeypatch.setattr(identity, "former_fingerprints", lambda value: {former} if value == current else set())
    assert run_again() == CELLS
    assert rows(tmp_path / "store") == whole
    monkeypatch.setattr(identity, "former_fingerprints", lambda value: set())
    run_again()
    assert len(rows(tmp_path / "store")) == 2 * CELLS, "other weights are another model"
