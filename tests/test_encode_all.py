"""A corpus becomes one table: every row as it is encoded alone, whole or not there, the same after any interruption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet
import pytest
import torch

from encoders import random_encoder
from families import save_model
from prototokens import FrozenLM, InputError
from prototokens.arrangements import Arrangement
from prototokens.cli import app
from prototokens.runners import corpus, corpus_work
from prototokens.runners.corpus import CorpusConfig, CorpusProgress, encode_corpus, grouped
from prototokens.runners.in_process import InProcess
from prototokens.runners.vectors_table import read_metadata
from prototokens.runners.work import Done, Work
from prototokens.texts.tables import Row

TEXTS = ["ab", "cde", "", "fg", "a longer text", "x" * 80, "hij", "ab"]
"""The third is blank and the sixth has more tokens than the model has positions."""


@pytest.fixture
def runner(llama: FrozenLM) -> InProcess:
    return InProcess(lambda: llama)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(random_encoder().save_pretrained(tmp_path_factory.mktemp("encoders") / "mine"))


@pytest.fixture
def config(encoder: str) -> CorpusConfig:
    return CorpusConfig(encoder, batch_tokens=8)


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    return str(path)


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "ROWS_PER_GROUP", 2)
    monkeypatch.setattr(corpus, "_GROUPS_AT_ONCE", 3)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(path).to_pylist()


def test_every_row_is_as_it_is_encoded_alone(
    llama: FrozenLM, runner: InProcess, config: CorpusConfig, source: str, tmp_path: Path
) -> None:
    done = encode_corpus(runner, source, tmp_path / "out", config)
    rows, encoder = rows_of(tmp_path / "out"), random_encoder()
    assert [(row["row"], row["piece"], row["text"]) for row in rows] == [
        (number, 0, text) for number, text in enumerate(TEXTS, 1) if number not in (3, 6)
    ]
    for row in rows:
        ids = llama.encode(row["text"])
        e, m = encoder.vectors(llama, ids[None])
        stored = torch.tensor(row["vectors"])
        assert torch.allclose(stored, torch.cat([e[0], m]).detach(), rtol=1e-2, atol=1e-3)  # float16
        layout = encoder.config.arrangement.layout(len(ids))
        logits = llama.logits(layout.inputs_embeds(stored[None, :-1], stored[None, -1], torch.empty(0, llama.width)),
                              layout.read_positions())  # fmt: skip
        right = logits.argmax(-1)[0] == ids
        assert row["ids"] == ids.tolist()
        assert row["token_accuracy"] == pytest.approx(right.float().mean().item())
        assert row["exact"] == bool(right.all())
    assert (done.rows, done.rows_read, done.n_tokens) == (6, 8, sum(len(row["ids"]) for row in rows))
    assert done.n_exact == sum(row["exact"] for row in rows)
    assert [number for number, _ in done.passed_over] == [3, 6]
    assert done.passed_over[0][1] == "is blank"
    assert "has 80 tokens, which need" in done.passed_over[1][1]
    assert not (tmp_path / "out.partial").exists()


def test_the_schema_says_which_model_and_encoder(
    llama: FrozenLM, runner: InProcess, config: CorpusConfig, source: str, tmp_path: Path
) -> None:
    encode_corpus(runner, source, tmp_path / "out", config)
    metadata, encoder = read_metadata(tmp_path / "out"), random_encoder()
    assert metadata["encoder"] == encoder.name
    assert metadata["model_fingerprint"] == llama.identity.fingerprint
    assert Arrangement.from_json(metadata["arrangement"]) == encoder.config.arrangement
    schema = pyarrow.parquet.read_schema(tmp_path / "out")
    assert str(schema.field("vectors").type.value_type.value_type) == "halffloat"
    assert pyarrow.parquet.ParquetFile(tmp_path / "out").num_row_groups == 4  # one for every two rows of the source


def test_datasets_reads_it(runner: InProcess, config: CorpusConfig, source: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    encode_corpus(runner, source, tmp_path / "out.parquet", config)
    table = datasets.Dataset.from_parquet(str(tmp_path / "out.parquet"), cache_dir=str(tmp_path / "cache"))
    assert table[0]["text"] == "ab"
    assert (len(table), len(table[0]["vectors"])) == (6, len(rows_of(tmp_path / "out.parquet")[0]["vectors"]))
    assert "float16" in str(table.features["vectors"])


class Stopped(Exception):
    """What ends a call in the middle."""


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_a_stopped_call_resumes_to_the_same_bytes(
    runner: InProcess, config: CorpusConfig, source: str, tmp_path: Path, groups: int
) -> None:
    def stop(state: CorpusProgress) -> None:
        if state.groups_done == groups:
            raise Stopped

    encode_corpus(runner, source, tmp_path / "whole", config)
    with pytest.raises(Stopped):
        encode_corpus(runner, source, tmp_path / "out", config, progress=stop)
    assert not (tmp_path / "out").exists()
    seen: list[int] = []
    resumed = encode_corpus(
        runner, source, tmp_path / "out", config, progress=lambda state: seen.append(state.groups_done)
    )
    assert seen == list(range(groups + 1, 5))
    assert resumed.rows == 6
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_call_resumes_to_the_same_bytes(
    runner: InProcess, config: CorpusConfig, source: str, tmp_path: Path
) -> None:
    encode_corpus(runner, source, tmp_path / "whole", config)
    for groups in (1, 2, 4):
        child = os.fork()
        if child == 0:
            encode_corpus(runner, source, tmp_path / "out", config, progress=killing_after(groups))
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        assert not (tmp_path / "out").exists()
        assert len(list((tmp_path / "out.partial").glob("part-*"))) == groups
    encode_corpus(runner, source, tmp_path / "out", config)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "texts.jsonl", "whole"]


def killing_after(groups: int) -> Any:
    def kill(state: CorpusProgress) -> None:
        if state.groups_done == groups:
            os.kill(os.getpid(), signal.SIGKILL)

    return kill


class Backwards:
    """A runner that finishes last what it was given first, as a runner of many processes may."""

    def __init__(self, lm: FrozenLM) -> None:
        self.inner = InProcess(lambda: lm)

    def run(self, work: Work, jobs: list[Any]) -> Iterator[Done]:
        yield from reversed(list(self.inner.run(work, jobs)))

    def close(self) -> None:
        """Nothing to close."""


def test_the_order_of_finishing_and_a_damaged_part_change_nothing(
    llama: FrozenLM, runner: InProcess, config: CorpusConfig, source: str, tmp_path: Path
) -> None:
    done = encode_corpus(runner, source, tmp_path / "whole", config)
    assert encode_corpus(Backwards(llama), source, tmp_path / "backwards", config) == done
    with pytest.raises(Stopped):
        encode_corpus(Backwards(llama), source, tmp_path / "out", config, progress=stop_after(2))
    parts = sorted((tmp_path / "out.partial").glob("part-*"))
    assert len(parts) == 2
    parts[0].write_bytes(parts[0].read_bytes()[:-1])
    encode_corpus(Backwards(llama), source, tmp_path / "out", config)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


def stop_after(groups: int) -> Any:
    def stop(state: CorpusProgress) -> None:
        if state.groups_done == groups:
            raise Stopped

    return stop


def test_a_corpus_that_changed_or_other_settings_are_refused(
    runner: InProcess, config: CorpusConfig, source: str, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        encode_corpus(runner, source, tmp_path / "out", config, progress=stop_after(1))
    with pytest.raises(InputError, match="holds unfinished work of another n_tokens"):
        encode_corpus(runner, source, tmp_path / "out", replace(config, n_tokens=2))
    changed = Path(source).read_text().replace("cde", "edc")
    Path(source).write_text(changed)
    with pytest.raises(InputError, match=r"rows 1 to 2 are others than when .* was begun: restore the corpus"):
        encode_corpus(runner, source, tmp_path / "out", config)
    shutil.rmtree(tmp_path / "out.partial")
    encode_corpus(runner, source, tmp_path / "out", config)
    assert rows_of(tmp_path / "out")[1]["text"] == "edc"
    with pytest.raises(InputError, match="exists"):
        encode_corpus(runner, source, tmp_path / "out", config)


def test_a_corpus_that_lost_rows_is_refused(
    runner: InProcess, config: CorpusConfig, source: str, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        encode_corpus(runner, source, tmp_path / "out", config, progress=stop_after(3))
    lines = Path(source).read_text().splitlines(keepends=True)
    Path(source).write_text("".join(lines[:4]))  # two whole groups, just as they were
    with pytest.raises(InputError, match=r"out\.partial was begun with more rows than the corpus has: restore"):
        encode_corpus(runner, source, tmp_path / "out", config)
    Path(source).write_text("".join(lines))
    assert encode_corpus(runner, source, tmp_path / "out", config).rows == 6


def test_a_unit_that_fails_keeps_the_others(
    runner: InProcess, config: CorpusConfig, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = corpus_work._vectors

    def fails(lm: FrozenLM, encoder: Any, ids: torch.Tensor) -> Any:
        if ids.shape[1] == 13:
            raise RuntimeError("no kernel")
        return vectors(lm, encoder, ids)

    monkeypatch.setattr(corpus_work, "_vectors", fails)
    with pytest.raises(RuntimeError, match="rows 5 to 6 failed: RuntimeError: no kernel; finished rows are kept"):
        encode_corpus(runner, source, tmp_path / "out", config)
    monkeypatch.undo()
    assert len(list((tmp_path / "out.partial").glob("part-*"))) == 2


def test_where_memory_runs_out_the_user_is_told_what_to_do(
    runner: InProcess, config: CorpusConfig, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB")

    monkeypatch.setattr(corpus_work, "_vectors", fails)
    with pytest.raises(InputError, match=r"failed: memory ran out; ask for less .* 8 GiB\); finished rows are kept"):
        encode_corpus(runner, source, tmp_path / "out", config)


def test_texts_are_cut_as_asked(llama: FrozenLM, runner: InProcess, config: CorpusConfig, tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("a longer text\nab\n")
    encode_corpus(runner, str(path), tmp_path / "first", replace(config, n_tokens=3))
    assert [row["text"] for row in rows_of(tmp_path / "first")] == ["a l", "ab"]
    encode_corpus(runner, str(path), tmp_path / "pieces", replace(config, piece_tokens=5))
    rows = rows_of(tmp_path / "pieces")
    assert [(row["row"], row["piece"], row["text"]) for row in rows] == [
        (1, 0, "a lon"), (1, 1, "ger t"), (1, 2, "ext"), (2, 0, "ab")
    ]  # fmt: skip
    assert "".join(row["text"] for row in rows[:3]) == "a longer text"
    for mistake in ({"n_tokens": 0}, {"piece_tokens": 0}, {"n_tokens": 2, "piece_tokens": 2}):
        with pytest.raises(InputError, match=r"it must be at least 1|give one"):
            replace(config, **mistake)


def test_a_folder_and_the_hub_are_corpora_too(
    runner: InProcess, config: CorpusConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "letters").mkdir()
    for name in ("b", "a"):
        (tmp_path / "letters" / f"{name}.txt").write_text(f"{name} one\ntwo")
    encode_corpus(runner, str(tmp_path / "letters"), tmp_path / "folder", config)
    assert [row["text"] for row in rows_of(tmp_path / "folder")] == ["a one\ntwo", "b one\ntwo"]
    asked: dict[str, Any] = {}

    def load_dataset(name: str, **options: Any) -> list[dict[str, str]]:
        asked.update(options, name=name)
        return [{"body": "ab"}, {"body": "cd"}]

    monkeypatch.setattr(corpus, "package", lambda name: SimpleNamespace(load_dataset=load_dataset))
    encode_corpus(runner, "some/set", tmp_path / "hub", replace(config, column="body", split="test"))
    assert [row["text"] for row in rows_of(tmp_path / "hub")] == ["ab", "cd"]
    assert asked == {"name": "some/set", "split": "test", "streaming": True}
    encode_corpus(runner, "some/set-1.0", tmp_path / "dotted", replace(config, column="body"))
    assert asked["name"] == "some/set-1.0"
    with pytest.raises(InputError, match=r"no such file: some/texts\.csv"):
        encode_corpus(runner, "some/texts.csv", tmp_path / "none", config)

    def broken(name: str, **options: Any) -> Iterator[dict[str, str]]:
        yield {"body": "ab"}
        raise OSError("connection lost")

    monkeypatch.setattr(corpus, "package", lambda name: SimpleNamespace(load_dataset=broken))
    with pytest.raises(InputError, match=r"some/set ends after row 1 \(connection lost\): the same command goes on"):
        encode_corpus(runner, "some/set", tmp_path / "cut", replace(config, column="body"))


def test_sources_without_text_are_refused(runner: InProcess, config: CorpusConfig, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text(" \n\n")
    for name, message in (
        ("empty.txt", "is empty: give a corpus with some text in it"),
        ("blank.txt", "has no text that can be encoded: row 1 is blank"),
        ("none.txt", "no such file"),
        ("letters.doc", "unknown source"),
    ):
        with pytest.raises(InputError, match=message):
            encode_corpus(runner, str(tmp_path / name), tmp_path / "out", config)
    assert not (tmp_path / "out").exists()


def test_groups_are_cut_by_rows_and_by_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "CHARACTERS_PER_GROUP", 5)
    texts = ["abcde", "a", "b", "c", None, "abcdefgh", "x"]
    groups = list(grouped(Row(number, text) for number, text in enumerate(texts)))
    assert [[row.number for row in group] for group in groups] == [[0], [1, 2], [3, 4], [5], [6]]


def test_an_encoder_that_was_trained_on_is_loaded_anew(
    runner: InProcess, config: CorpusConfig, encoder: str, source: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(encoder, tmp_path / "mine")
    encode_corpus(runner, source, tmp_path / "first", replace(config, encoder=str(folder)))
    random_encoder(seed=1).save_pretrained(folder)
    encode_corpus(runner, source, tmp_path / "second", replace(config, encoder=str(folder)))
    names = [read_metadata(tmp_path / name)["encoder"] for name in ("first", "second")]
    assert names == [random_encoder().name, random_encoder(seed=1).name]


def test_the_command_names_what_it_passes_over(
    encoder: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    save_model("llama", tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> int:
        command = ["prototokens", "encode-all", *arguments, "--model", "tiny", "--encoder", encoder]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stop:
            app.main()
        return stop.value.code  # type: ignore[return-value]

    assert run(source, "-o", "table") == 3
    out, err = capfd.readouterr()
    assert out.startswith("saved: table, ")
    assert f"{source}: 1 blank rows are left out (3)\n" in err
    assert f"{source}, row 6: passed over: has 80 tokens" in err
    assert run(source, "-o", "table") == 2
    assert "table: exists already" in capfd.readouterr().err
    assert run(source, "-o", "table", "--force", "--tokens", "9", "--json") == 0  # the long one is cut
    record = json.loads(capfd.readouterr().out)
    assert (record["rows"], record["passed_over"]) == (7, [{"row": 3, "reason": "is blank"}])
    assert record["vectors"] == sum(len(row["vectors"]) for row in rows_of(tmp_path / "table"))
    (tmp_path / "short.txt").write_text("ab\n")
    assert run("short.txt", "-o", "short") == 0
    assert run("short.txt", "-o", "again", "--tokens", "0") == 2
    assert not (tmp_path / "again").exists()
