"""`view`: what a file is decides what is drawn, and one line for every mistake."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from archives import BLOCKS, packed
from encoders import random_encoder
from families import ONE, budget, save_model
from prototokens import fit, load_lm, save
from prototokens.archive.archive import write_archive
from prototokens.cli import app as cli
from prototokens.files.record import record_kind, write_record
from prototokens.fitting.trace import save_trace
from traces import traced


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and a file of every kind."""
    folder = tmp_path_factory.mktemp("files")
    for name in ("llama", "gpt2"):
        save_model(name, folder / name)
    lm = load_lm(str(folder / "llama"))
    for name, text in (("a", "abc"), ("b", "Yes.")):
        result, trace = traced(lm, text, stop=replace(ONE.stop, max_steps=2))
        save(folder / name, result.tokens)
        save_trace(folder / f"{name}.trace", trace)
    foreign = load_lm(str(folder / "gpt2"))
    save(folder / "foreign", fit(foreign, foreign.encode("abc"), budget(ONE, max_steps=0)).tokens)
    write_archive(folder / "archive", replace(packed(BLOCKS), model=lm.identity))
    write_record(folder / "odd", "something else", {}, {}, overwrite=False)
    random_encoder(lm).save_pretrained(folder / "encoder")
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], files: Path, tmp_path: Path):
    """Run the command in the folder of the files: exit code, stdout, stderr."""
    monkeypatch.chdir(files)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prototokens", "view", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capfd.readouterr()
        return stop.value.code, out, "".join(x for x in err.splitlines(True) if not x.startswith("loading"))

    return call


@pytest.mark.parametrize(
    ("arguments", "kinds"),
    [
        (["a.trace"], ["fit"]),
        (["a"], ["decode"]),
        (["a", "b", "--points", "3"], ["path"]),
        (["archive"], ["archive"]),
        (["--encoder", "encoder", "--text", "abc", "--tokens", "2", "--model", "llama"], ["encoder"]),
        (["b.trace", "a", "archive", "a.trace", "b", "--encoder", "encoder", "--text", "ab"],
         ["fit", "archive", "fit", "path", "encoder"]),
    ],
)  # fmt: skip
def test_what_a_file_is_decides_what_is_drawn(run: Any, tmp_path: Path, arguments: list[str], kinds: list[str]) -> None:
    page = tmp_path / "page.html"
    code, out, err = run(*arguments, "-o", page)
    assert (code, err) == (0, "")
    assert out.startswith(f"saved: {page} (")
    assert out.rstrip().endswith(": " + ", ".join(kinds))
    assert re.findall(r'<section [^>]*data-kind="(\w+)"', page.read_text("utf-8")) == kinds


def test_a_trace_needs_no_model(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prototokens.lm.loading.load_lm", None)
    assert run("a.trace", "-o", tmp_path / "page.html")[0] == 0


MISTAKES = {
    "nothing": ((), "there is nothing to draw: give at least one file, or --encoder and --text"),
    "no file": (("nowhere",), "nowhere: no such file"),
    "kind": (("odd",), "odd: holds something else; view draws"),
    "three": (("a", "b", "foreign"), "3 files of proto-tokens; view draws one, or the way between two"),
    "points": (("a", "b", "--points", 1), "--points is 1; it must be at least 2 and at most 1000"),
    "two models": (("a", "foreign"), "a path needs proto-tokens of one model; these belong to"),
    "model": (("a", "--model", "gpt2"), "these proto-tokens belong to"),
    "text alone": (("a", "--text", "x"), "--encoder and --text go together: give both, or neither"),
    "tokens": (("a", "--tokens", 2), "--tokens cuts the encoder's text: give --encoder and --text too"),
    "no tokens": (("--encoder", "encoder", "--text", "x", "--tokens", 0), "--tokens is 0; it must be at least 1"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_leaves_no_page(run: Any, tmp_path: Path, arguments: Any, message: str) -> None:
    code, out, err = run(*arguments, "-o", tmp_path / "page.html")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_is_there_is_replaced_only_if_asked(run: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("mine")
    code, _, err = run("a.trace", "-o", page)
    assert (code, page.read_text()) == (2, "mine")
    assert "exists already" in err
    assert run("a.trace", "-o", page, "--force")[0] == 0
    assert page.read_text("utf-8").startswith("<!doctype html>")


def test_the_kind_of_a_file_is_told(files: Path) -> None:
    assert [record_kind(files / name) for name in ("a", "a.trace", "archive", "odd")] == [
        "proto-tokens", "trace", "archive", "something else",
    ]  # fmt: skip
