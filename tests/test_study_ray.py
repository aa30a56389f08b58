"""Ray: the same rows as in this process, also where workers die."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from encoders import random_encoder
from families import ONE, save_model
from prototokens import InputError, Stop, load_lm, read_archive, unpack
from prototokens.archive.pack import PackConfig
from prototokens.runners.bulk import fit_texts, pack_folder
from prototokens.runners.corpus import CorpusConfig, encode_corpus
from prototokens.runners.in_process import InProcess
from prototokens.study.reconstruction import arrangements
from prototokens.study.running import StudyProgress, run_study
from prototokens.study.scales import SCALES
from prototokens.study.store import Store

ray = pytest.importorskip("ray")
from prototokens.runners.on_ray import RayRunner  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # of Ray's own files
TIMED = {"seconds", "finished"}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A real Ray on this machine, shared by the tests."""
    # Workers find this module's functions by value: they need not import the tests.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_model("llama", path)
    return path


class Load:
    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __call__(self) -> Any:
        return load_lm(self.folder)


def no_model() -> Any:
    """Loads nothing, for work that needs no model: torch takes seconds to import in every new worker."""


def cannot_load() -> Any:
    raise InputError("that model is nowhere")


def rows(path: Path) -> list[dict[str, Any]]:
    with Store.open(path) as store:
        return [{k: v for k, v in row.items() if k not in TIMED} for row in store.rows()]


def double(lm: Any, job: int) -> int:
    return 2 * job


def torch_threads(lm: Any, job: int) -> int:
    import torch

    return torch.get_num_threads()


def dies_once(lm: Any, job: dict[str, Any]) -> int:
    """Kills its process the first time that it is asked."""
    if not os.path.exists(job["flag"]):
        Path(job["flag"]).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return job["value"]


def dies(lm: Any, job: int) -> int:
    if job == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return job


def fails(lm: Any, job: int) -> int:
    if job == 1:
        raise ValueError("one\nline")
    return job


def test_a_lost_worker_s_work_is_done_by_another(tmp_path):
    jobs = [{"flag": str(tmp_path / str(i // 2)), "value": i} for i in range(4)]
    with closing(RayRunner(no_model, workers=2)) as runner:
        done = list(runner.run(dies_once, jobs))
        assert sorted((d.number, d.value, d.error) for d in done) == [(i, i, None) for i in range(4)]
        assert {d.value for d in runner.run(double, [1, 2, 3])} == {2, 4, 6}
        assert len(runner._actors) <= 2


def test_work_that_fails_or_kills_every_worker_does_not_stop_the_rest():
    with closing(RayRunner(no_model, workers=1, retries=1)) as runner:
        failed = {d.number: d for d in runner.run(fails, [0, 1, 2])}
        lost = {d.number: d for d in runner.run(dies, [0, 1, 2])}
    assert failed[1].error == "ValueError: one line"
    assert lost[1].error.startswith("its worker was lost 2 times")
    for done in (failed, lost):
        assert [done[i].value for i in (0, 2)] == [0, 2]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_worker_computes_with_the_threads_that_it_was_given(folder: Path, threads: int) -> None:
    """Whatever OMP_NUM_THREADS says here, and though unpickling imports torch first."""
    with closing(RayRunner(Load(folder), workers=1, threads=threads)) as runner:
        assert [done.value for done in runner.run(torch_threads, [0])] == [threads]


def test_a_study_one_of_whose_workers_is_killed_ends_with_the_rows_of_this_process(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(arrangements.GRIDS, "smoke", arrangements.ArrangementsGrid((1, 3), 2, 1, "tuned", 4, 2))
    with Store.open(tmp_path / "here", write=True) as store:
        in_process = run_study(store, InProcess(Load(folder)), "arrangements", SCALES["smoke"])
    seen: list[StudyProgress] = []

    def kill_one(progress: StudyProgress) -> None:
        seen.append(progress)
        if len(seen) == 3:
            ray.kill(runner._actors[0])

    with closing(RayRunner(Load(folder), workers=2)) as runner, Store.open(tmp_path / "there", write=True) as store:
        on_ray = run_study(store, runner, "arrangements", SCALES["smoke"], progress=kill_one)
    batches = 2 * len(arrangements.NAMES)  # of two lengths, with two texts each
    assert (on_ray.done, on_ray.failed) == (in_process.done, in_process.failed) == (2 * batches, 0)
    assert len(seen) == 1 + batches
    # One thread here and there, on one device: the same bits.
    assert rows(tmp_path / "there") == rows(tmp_path / "here")


def test_a_model_that_a_worker_cannot_load_is_one_clear_error(tmp_path):
    with (
        closing(RayRunner(cannot_load, workers=1)) as runner,
        Store.open(tmp_path / "store", write=True) as store,
        pytest.raises(InputError, match=r"^that model is nowhere$"),
    ):
        run_study(store, runner, "cost", SCALES["smoke"])


def test_more_than_there_is_is_refused():
    with pytest.raises(InputError, match="no room for a worker of 64 threads"):
        RayRunner(no_model, threads=64)
    with pytest.raises(InputError, match="and 8 GPUs"):
        RayRunner(no_model, gpus=8)


def test_documents_and_lists_of_texts_are_done_on_ray_as_here(folder: Path, tmp_path: Path) -> None:
    documents, recipe = tmp_path / "documents", replace(ONE, stop=Stop(max_steps=5))
    documents.mkdir()
    for name in ("one", "two"):
        (documents / name).write_text(name)
    (tmp_path / "list.txt").write_text("ab\ncde\n")
    encoder = random_encoder(load_lm(str(folder))).save_pretrained(tmp_path / "encoder")
    made, tables = [], []
    for name, runner in (("ray", RayRunner(Load(folder), workers=1)), ("here", InProcess(Load(folder)))):
        with closing(runner):
            encode_corpus(runner, str(tmp_path / "list.txt"), tmp_path / f"{name}.parquet", CorpusConfig(str(encoder)))
            packed = pack_folder(runner, documents, tmp_path / name / "packed", PackConfig(effort="fast"))
            fitted = fit_texts(runner, ["ab", "cd"], tmp_path / name / "fitted", recipe)
        assert [outcome.error for outcome in (*packed, *fitted)] == [None] * 4
        made.append([outcome.file.name for outcome in (*packed, *fitted)])
        tables.append(pyarrow.parquet.read_table(tmp_path / f"{name}.parquet"))
    assert made[0] == made[1]
    assert tables[0].drop_columns("vectors") == tables[1].drop_columns("vectors")
    lm = load_lm(str(folder))
    for name in ("ray", "here"):
        texts = [unpack(lm, read_archive(tmp_path / name / "packed" / archive)) for archive in made[0][:2]]
        assert texts == ["one", "two"]
