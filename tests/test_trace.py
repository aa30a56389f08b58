"""Traces: what a fit decodes at every evaluation is what its vectors give, and costs no pass and no synchronisation."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from archives import ODD, odd
from families import ONE, RECIPE, batch, budget, counted, same_vectors, save_model
from prototokens import FrozenLM, InputError, decode, fit, fit_batch
from prototokens.arrangements import ARRANGEMENTS, blocks
from prototokens.cli import app as cli
from prototokens.files.record import read_record, write_record
from prototokens.fitting.objective import cross_entropy
from prototokens.fitting.trace import NOT_EVALUATED, Trace, TraceRecorder, load_trace, save_trace
from prototokens.lm.pieces import pieces, token_texts
from traces import traced

IN_BLOCKS = replace(ONE, arrangement=blocks(2))


def same_trace(a: Trace, b: Trace) -> bool:
    tensors = ("target_ids", "steps", "ids", "margins", "loss_nats")
    plain = ("kept", "block_length", "arrangement", "stop_reason", "model", "pieces", "words")
    return all(torch.equal(getattr(a, name).nan_to_num(9), getattr(b, name).nan_to_num(9)) for name in tensors) and all(
        getattr(a, name) == getattr(b, name) for name in plain
    )


@pytest.mark.parametrize("config", [ONE, IN_BLOCKS, RECIPE], ids=["two vectors", "blocks", "restarts"])
def test_a_trace_agrees_with_the_fit_and_changes_nothing(llama: FrozenLM, config: Any) -> None:
    ids = llama.encode("tree")
    with counted(llama) as plain_calls:
        plain = fit(llama, ids, config)
    with counted(llama) as calls:
        result, trace = traced(llama, "tree", config)
    assert same_vectors(plain, result)
    assert (calls.forward, calls.backward) == (plain_calls.forward, plain_calls.backward)
    kept = trace.ids[:, trace.kept, 0] != NOT_EVALUATED
    assert torch.equal(trace.loss_nats[kept, trace.kept], result.loss_history)
    assert torch.equal(trace.right[kept, trace.kept].float().mean(-1), result.accuracy_history)
    assert trace.steps.tolist() == list(range(result.steps + 1))
    assert trace.ids.shape == (result.steps + 1, config.restarts, 4)
    assert (trace.text, trace.stop_reason, trace.block_length) == (
        "tree",
        "accuracy",
        2 if config is IN_BLOCKS else None,
    )
    assert torch.equal(trace.ids[-1, trace.kept], decode(llama, result.tokens).ids)
    assert trace.margins[-1, trace.kept].min().item() == pytest.approx(result.min_margin, rel=2e-3)


def test_what_is_decoded_at_the_start_is_what_its_vectors_give(lm: FrozenLM) -> None:
    result, trace = traced(lm, "tree", budget(ONE, max_steps=0))
    decoded = decode(lm, result.tokens, scores=True)
    assert trace.ids[0, 0].tolist() == decoded.ids.tolist()
    wrong = ~trace.right[0, 0]
    assert wrong.any()
    assert (trace.margins[0, 0][wrong] < 0).all()
    assert [trace.words[token] for token in trace.ids[0, 0].tolist()] == list(decoded.text) or "\ufffd" in decoded.text


def test_every_text_of_a_batch_has_its_own_trace(llama: FrozenLM) -> None:
    recorder = TraceRecorder()
    texts = ("no", "aa", "Zq")
    results = fit_batch(llama, batch(llama, *texts), RECIPE, trace=recorder)
    with pytest.raises(InputError, match="holds 3 texts"):
        recorder.trace(llama)
    for text, result, trace in zip(texts, results, recorder.traces(llama), strict=True):
        assert trace.text == text
        assert len(trace.steps) == result.steps + 1
        evaluated = int(trace.n_evaluations[trace.kept])
        assert torch.equal(trace.loss_nats[:evaluated, trace.kept], result.loss_history)
        assert trace.right[evaluated - 1, trace.kept].all()


def test_a_row_that_ends_early_is_marked_and_micro_batches_give_the_same(llama: FrozenLM) -> None:
    config = budget(replace(RECIPE, restarts=3), max_steps=20, margin=1e9)
    recorders = TraceRecorder(), TraceRecorder()
    for recorder, rows_at_once in zip(recorders, (None, 1), strict=True):
        fit(llama, llama.encode("no"), budget(config, max_steps=0), trace=recorder, rows_at_once=rows_at_once)
    whole, parts = (recorder.trace(llama) for recorder in recorders)
    assert torch.equal(whole.ids, parts.ids)
    assert torch.allclose(whole.margins, parts.margins, atol=1e-2)


class Operations(TorchDispatchMode):
    """Names of the operations that run, among them those that wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.__name__.split(".")[0])
        return func(*args, **kwargs or {})


def test_recording_does_not_wait_for_the_device() -> None:
    recorder, rows = TraceRecorder(), torch.arange(2)
    recorder.begin(torch.zeros(2, 3, dtype=torch.long), 1, ARRANGEMENTS["e,m*n"])
    with Operations() as seen:
        recorder.record(0, rows, torch.zeros(2, 3).long(), torch.ones(2, 3).long(), torch.ones(2, 3), torch.ones(2, 3))
    waits = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "item", "copy_", "index"}
    assert seen.names
    assert not seen.names & waits
    with Operations() as waiting:
        torch.ones(2).sum().item()
    assert waiting.names & waits


@pytest.mark.cuda
def test_recording_does_not_synchronise_a_gpu(llama: FrozenLM) -> None:
    recorder = TraceRecorder()
    ids = torch.zeros(2, 3, dtype=torch.long, device="cuda")
    recorder.begin(ids, 1, ARRANGEMENTS["e,m*n"])
    torch.cuda.set_sync_debug_mode("error")
    try:
        recorder.record(0, torch.arange(2), ids, ids + 1, ids.float(), ids.float())
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_rivals_change_no_score() -> None:
    logits = torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(0))
    target = torch.arange(10).view(2, 5)
    plain, named = cross_entropy(logits, target), cross_entropy(logits, target, rivals=True)
    assert torch.equal(plain.loss, named.loss)
    assert torch.equal(plain.margin, named.margin)
    assert torch.equal(plain.logit_gradient, named.logit_gradient)
    assert plain.rival_ids is None
    without = logits.scatter(-1, target.unsqueeze(-1), float("-inf"))
    assert torch.equal(named.rival_ids, without.argmax(-1))


# Files.


@pytest.fixture(scope="module")
def trace(llama: FrozenLM) -> Trace:
    return traced(llama, "né 😀", budget(replace(IN_BLOCKS, restarts=2), max_steps=3))[1]


def test_a_trace_is_read_as_it_was_written(trace: Trace, tmp_path: Path) -> None:
    path = save_trace(tmp_path / "a", trace)
    assert same_trace(load_trace(path), trace)
    with pytest.raises(InputError, match="exists already"):
        save_trace(path, trace)
    assert path.stat().st_size < 6 * trace.ids.numel() + 12_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kept": 2}, "restart 2 kept"),
        ({"block_length": 0}, "block_length is 0"),
        ({"pieces": ["a"]}, "the texts of 1 tokens for 8"),
        ({"words": []}, "its record cannot be read"),
        ({"model": None}, "its record cannot be read"),
    ],
)
def test_a_damaged_trace_is_refused(trace: Trace, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = save_trace(tmp_path / "a", trace)
    tensors, record = read_record(path, "trace")
    write_record(path, "trace", tensors, record | changes, overwrite=True)
    with pytest.raises(InputError, match=message):
        load_trace(path)


def test_a_trace_with_tensors_of_other_shapes_is_refused(trace: Trace, tmp_path: Path) -> None:
    path = save_trace(tmp_path / "a", trace)
    tensors, record = read_record(path, "trace")
    write_record(path, "trace", tensors | {"margins": tensors["margins"][:1]}, record, overwrite=True)
    with pytest.raises(InputError, match="margins is"):
        load_trace(path)
    write_record(path, "trace", tensors | {"ids": tensors["ids"] + 1000}, record, overwrite=True)
    with pytest.raises(InputError, match="ids are missing"):
        load_trace(path)


def test_a_recorder_serves_one_fit(llama: FrozenLM) -> None:
    recorder = TraceRecorder()
    with pytest.raises(InputError, match="no fit that has ended"):
        recorder.traces(llama)
    fit(llama, llama.encode("ab"), budget(ONE, max_steps=0), trace=recorder)
    with pytest.raises(InputError, match="holds a fit already"):
        fit(llama, llama.encode("ab"), budget(ONE, max_steps=0), trace=recorder)


# Pieces.


@pytest.mark.parametrize("habit", ODD)
@pytest.mark.parametrize("text", ["a", "abc", " naïve 😀.\r\n", "\ufffd\ufffd!", "  ", "日本語"])
def test_pieces_joined_are_the_text(habit: str, text: str) -> None:
    lm = odd(habit)
    try:
        ids = lm.encode(text)
    except InputError:  # white space alone, for a tokenizer that drops it
        return
    cut = pieces(lm, ids)
    assert len(cut) == len(ids)
    assert "".join(cut) == lm.decode(ids)


def test_a_piece_is_what_its_token_adds(llama: FrozenLM) -> None:
    assert pieces(llama, llama.encode("a 😀b")) == ["a", " ", "", "", "", "😀", "b"]
    spaces = odd("strips a space at the beginning")
    ids = spaces.encode(" b").tolist()
    assert token_texts(spaces, ids) == dict(zip(ids, " b", strict=True))


# The command line.


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path):
    """Run `fit` in a folder that holds a tiny model: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    save_model("llama", "tiny")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prototokens", "fit", "ab", "--model", "tiny", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capfd.readouterr()

    return call


def test_fit_keeps_a_trace(run: Any) -> None:
    code, out, _ = run("-o", "vectors", "--trace", "steps", "--max-steps", 3, "--tokens-per-vector", 1)
    assert code in (0, 1)
    assert "trace: steps (prototokens view steps" in out
    trace = load_trace("steps")
    assert (trace.text, trace.block_length) == ("ab", 1)
    code, _, err = run("-o", "again", "--trace", "steps")
    assert (code, Path("again").exists()) == (2, False)
    assert "error: steps: exists already" in err
    assert run("-o", "again", "--trace", "again")[2].count("error: --trace and --output are both again") == 1
    assert run("-o", "vectors", "--trace", "steps", "--force", "--max-steps", 0)[0] in (0, 1)
    assert load_trace("steps").steps.tolist() == [0]
