"""The commands pack, unpack and verify: bytes in are bytes out, and one clear line for every mistake."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from encoders import random_encoder
from families import save_model
from prototokens import load_lm, read_archive
from prototokens.archive import pack as packing
from prototokens.archive.efforts import EFFORTS
from prototokens.cli import app as cli

RAW = b"\xef\xbb\xbfTwo lines,\r\nna\xc3\xafve \xf0\x9f\x98\x80.\x00 \xef\xbf\xbd"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    for name in ("llama", "gpt2"):
        save_model(name, path / name)
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path, models: Path):
    """Run a command in an empty folder with a text in it: exit code, stdout as bytes, stderr without progress."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(EFFORTS, "fast", replace(EFFORTS["fast"], steps=5))
    (tmp_path / "text").write_bytes(RAW)

    def call(*arguments: object, stdin: bytes = b"") -> tuple[int, bytes, str]:
        monkeypatch.setattr(sys, "argv", ["prototokens", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capfdbinary.readouterr()
        told = "".join(line for line in err.decode().splitlines(True) if " tokens/s  " not in line)
        return stop.value.code, out, told

    return call


def pack(models: Path, *more: object) -> tuple[object, ...]:
    return ("pack", "text", "-o", "archive", "--model", models / "llama", "--effort", "fast", *more)


def test_bytes_in_are_bytes_out(run: Any, models: Path) -> None:
    code, out, err = run(*pack(models, "--json"))
    record = json.loads(out)
    assert (code, err) == (0, "")
    assert record["bytes_in"] == len(RAW)
    assert record["bytes_out"] == Path("archive").stat().st_size
    archive = read_archive("archive")
    assert (record["tokens"], record["chunks"]) == (archive.n_tokens, len(archive))
    assert (record["vectors"], record["tokens_per_vector"]) == (len(archive.vectors), 8)
    assert record["share_from_vectors"] == archive.share_from_vectors
    assert record["seconds"] > 0
    assert run("unpack", "archive", "-o", "again")[:2] == (0, b"")
    assert Path("again").read_bytes() == RAW
    assert run("unpack", "archive")[:2] == (0, RAW)
    code, out, err = run("verify", "archive")
    assert (code, err) == (0, "")
    assert f"{len(archive)} chunks, {archive.n_tokens} tokens, all as they were packed" in out.decode()
    assert sorted(path.name for path in Path().iterdir()) == ["again", "archive", "text"]


@pytest.mark.parametrize("raw", [b"", b"x", RAW])
def test_any_text_can_come_from_stdin(raw: bytes, run: Any, models: Path) -> None:
    command = ("pack", "-", "-o", "archive", "--model", models / "llama", "--effort", "fast")
    assert run(*command, stdin=raw)[0] == 0
    for options in ((), ("--batch-tokens", 1), ("--dtype", "bfloat16")):
        assert run("unpack", "archive", *options)[:2] == (0, raw)


def test_what_is_printed_says_what_it_costs(run: Any, models: Path) -> None:
    code, out, _ = run(*pack(models, "--store", "int8", "--chunk-tokens", 4))
    assert code == 0
    archive = read_archive("archive")
    assert f"bytes for {len(RAW)} bytes of text" in out.decode()
    held = archive.n_tokens - len(archive.residual_ids)
    source = f"the {len(archive.vectors)} vectors of {len(archive)} chunks alone"
    assert f"{held} of {archive.n_tokens} tokens come from {source}" in out.decode()
    assert f"(share from the vectors: {archive.share_from_vectors:.1%})" in out.decode()
    assert archive.vectors.counts["int8"] == len(archive.vectors)
    assert int(archive.lengths.max()) == 4


def test_ctrl_c_keeps_what_is_finished(run: Any, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_chunks, calls = packing.fit_chunks, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fit_chunks(*arguments)

    monkeypatch.setattr(packing, "fit_chunks", interrupted)
    small = ("--batch-tokens", 8, "--chunk-tokens", 8)
    code, out, err = run(*pack(models, *small))
    assert (code, out) == (130, b"")
    assert "the same command resumes" in err
    assert not Path("archive").exists()
    assert len(list(Path("archive.partial").glob("part-*"))) == 2
    code, _, err = run(*pack(models, *small, "--seed", 3))
    assert (code, err.count("\n")) == (2, 1)
    assert "unfinished work of another recipe" in err
    assert run(*pack(models, *small))[0] == 0
    assert run("unpack", "archive")[:2] == (0, RAW)
    assert not Path("archive.partial").exists()


def test_chunks_can_begin_at_an_encoder(run: Any, models: Path, tmp_path: Path) -> None:
    random_encoder(load_lm(str(models / "llama"))).save_pretrained("encoder")
    code, _, _ = run(*pack(models, "--encoder", "encoder", "--json"))
    assert code == 0
    assert read_archive("archive").packing["start"].startswith("encoder-")
    assert run("unpack", "archive")[:2] == (0, RAW)
    instant = ("--effort", "instant", "--encoder", "encoder", "--force", "--json")
    code, out, _ = run(*pack(models, *instant))
    assert (code, json.loads(out)["effort"]) == (0, "instant")
    assert run("unpack", "archive")[:2] == (0, RAW)
    for options, words in (
        (("--encoder", "encoder", "--start", "text-e"), "give --start or --encoder, not both"),
        (("--encoder", "nowhere"), "unknown encoder 'nowhere'"),
        (("--encoder", "shipped"), "no encoder for"),
        (("--effort", "instant"), "no encoder for"),
        (("--encoder", "encoder", "--tokens-per-vector", 8), "an e-token for every 2 tokens: leave out tokens_per_vec"),
    ):
        code, _, err = run(*pack(models, *options, "--force"))
        assert (code, err.count("\n")) == (2, 1)
        assert words in err


def test_a_damaged_archive_leaves_no_output(run: Any, models: Path) -> None:
    assert run(*pack(models))[0] == 0
    raw = bytearray(Path("archive").read_bytes())
    raw[-1] ^= 1
    Path("archive").write_bytes(raw)
    for command in (("unpack", "archive", "-o", "out"), ("unpack", "archive"), ("verify", "archive")):
        code, out, err = run(*command)
        assert (code, out) == (2, b"")
        assert err == "error: archive: damaged: its contents do not match their checksum\n"
    assert not Path("out").exists()


def test_mistakes_are_one_line(run: Any, models: Path) -> None:
    assert run(*pack(models))[0] == 0
    Path("latin").write_bytes(b"na\xefve")
    Path("other").write_text("x")
    for command, message in (
        (pack(models), "archive: exists already; choose another name, or overwrite it (--force)"),
        (
            pack(models, "--force", "--effort", "slow"),
            "unknown effort 'slow'; choose one of: instant fast balanced thorough",
        ),
        (pack(models, "--force", "--store", "int4"), "unknown store 'int4'; choose one of: auto int8 float16 float32"),
        (pack(models, "--force", "--chunk-tokens", 0), "chunk_tokens is 0; it must be at least 1"),
        (pack(models, "--force", "--chunk-tokens", 99), "make it at most 63 (--chunk-tokens)"),
        (pack(models, "--force", "--start", "nowhere"), "unknown start 'nowhere': no such file"),
        (("pack", "latin", "-o", "new"), "latin: not UTF-8 (byte 0xef at offset 2)"),
        (("pack", "nothing", "-o", "new"), "nothing: cannot be read (No such file or directory)"),
        (("unpack", "nothing"), "nothing: no such file"),
        (("unpack", "other"), "other: damaged, or not a safetensors file"),
        (("unpack", "archive", "-o", "text"), "text: exists already"),
        (("unpack", "archive", "--json"), "name a file for the text (-o)"),
        (("unpack", "archive", "--model", models / "gpt2"), "this archive belongs to"),
        (("verify", "archive", "--batch-tokens", 0), "batch_tokens is 0"),
    ):
        code, out, err = run(*command)
        assert (code, out) == (2, b""), command
        assert message in err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    assert Path("text").read_bytes() == RAW
    assert sorted(path.name for path in Path().iterdir()) == ["archive", "latin", "other", "text"]


def test_a_model_that_moved_is_named(run: Any, models: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    save_model("llama", moved)
    assert run("pack", "text", "-o", "archive", "--model", moved, "--effort", "fast")[0] == 0
    moved.rename(tmp_path / "away")
    code, _, err = run("verify", "archive")
    assert code == 2
    assert f"archive needs {moved}: say with --model where it lies now" in err
    assert run("verify", "archive", "--model", tmp_path / "away")[0] == 0


def test_force_overwrites(run: Any, models: Path) -> None:
    Path("archive").write_text("mine")
    assert run(*pack(models))[0] == 2
    assert Path("archive").read_text() == "mine"
    assert run(*pack(models, "--force"))[0] == 0
    Path("out").write_text("mine")
    assert run("unpack", "archive", "-o", "out", "--force", "--json")[0] == 0
    assert Path("out").read_bytes() == RAW
