"""What commands tell a new user: which text a line is about, what a file is, and what numbers mean."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from families import save_model
from prototokens.cli import app as cli
from prototokens.study.store import Store


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model("llama", folder)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Run the command line in an empty folder: exit code, lines of stdout, lines of stderr without the progress."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, list[str], list[str]]:
        monkeypatch.setattr(sys, "argv", ["prototokens", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO()))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        told = [line for line in err.splitlines() if not line.startswith(("loading", "step "))]
        return int(ended.value.code or 0), out.splitlines(), told

    return call


def test_fit_all_says_which_text_a_line_is_about(run: Any, model: Path) -> None:
    long = "a b\x1b" * 30
    Path("list.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("ab", long, "x" * 99)))
    code, _, told = run("fit-all", "list.jsonl", "-o", "fitted", "--model", model, "--seed", 3)
    by_file = {line.split(":")[0]: line for line in told}
    assert re.fullmatch(r'.*: done(, NOT exact)? \(text 1: "ab"\)', by_file["fitted/00001.safetensors"])
    failed = by_file["fitted/00003.safetensors"]
    assert "failed: list.jsonl, row 3: " in failed
    assert failed.endswith(f'(text 3: "{"x" * 39}…")')
    assert code == 3
    assert "\x1b" not in "".join(told), "a text must not steer the terminal"


def test_too_many_restarts_are_refused_once_for_all_texts(run: Any, model: Path) -> None:
    Path("list.txt").write_text("ab\ncd\nefg\n")
    code, out, told = run("fit-all", "list.txt", "-o", "fitted", "--model", model, "--restarts", 1_000_000)
    assert (code, out, len(told)) == (2, [], 1)
    assert "use fewer restarts" in told[0]
    assert list(Path("fitted").iterdir()) == []


def test_a_folder_is_called_a_folder(run: Any) -> None:
    Path("folder").mkdir()
    for arguments in (["decode", "folder"], ["inspect", "folder"], ["unpack", "folder"]):
        assert run(*arguments) == (2, [], ["error: folder: is a folder, not a file"])
    assert run("report", "folder") == (2, [], ["error: folder: is a folder, not a store"])


def test_inspect_tells_the_range_of_many_norms(run: Any, model: Path) -> None:
    fit = ["fit", "abc", "--model", model, "--max-steps", 0]
    code, _, told = run(*fit, "--e-tokens", 5, "-o", "five")
    assert (code, told) == (1, ["note: 5 e-tokens for 3 tokens: more than one a token (--e-tokens)"])
    assert run(*fit, "--e-tokens", 3, "-o", "three")[2] == []
    run(*fit, "-o", "one")
    norms = json.loads(run("inspect", "five", "--json")[1][0])["e_norm"]
    (line,) = (line for line in run("inspect", "five")[1] if line.startswith("e_norm"))
    least, most, middle = re.fullmatch(r"e_norm +(\S+) to (\S+), median (\S+)", line).groups()  # type: ignore[union-attr]
    told_norms = [float(least), float(middle), float(most)]
    assert told_norms == pytest.approx([sorted(norms)[i] for i in (0, 2, 4)], rel=1e-3)
    (norm,) = json.loads(run("inspect", "one", "--json")[1][0])["e_norm"]
    assert re.search(rf"^e_norm +{re.escape(str(norm))}$", "\n".join(run("inspect", "one")[1]), re.M)


def test_decode_s_help_tells_of_the_newline(run: Any) -> None:
    assert "A newline is added only in a terminal." in " ".join(" ".join(run("decode", "--help")[1]).split())


def test_the_columns_of_a_dry_run_are_aligned(run: Any, model: Path) -> None:
    for study in ("cost", "arrangements", "roles"):
        code, out, _ = run("study", study, "--scale", "smoke", "--dry-run", "--model", model)
        lines = [line for line in out if " cells  at most " in line]
        assert code == 0
        assert len({line.index(" cells  at most ") for line in lines}) == 1
        assert len({len(line) for line in lines}) == 1


def test_a_store_that_is_refused_leaves_nothing_behind(run: Any, model: Path) -> None:
    Path("letter.txt").write_text("no store\n" * 99)
    code, _, told = run("study", "cost", "--scale", "smoke", "--model", model, "--store", "letter.txt")
    assert code == 2
    assert "not a store" in told[-1]
    code, _, told = run("study", "cost", "--scale", "laptop", "--model", model, "--store", "new")
    assert code == 2
    assert "has 64 positions" in told[-1]
    assert [path.name for path in Path().iterdir()] == ["letter.txt"]


def test_a_report_names_the_command_that_fills_its_gaps(run: Any) -> None:
    with Store.open("my results", write=True) as store:
        assert store.counts() == []
    lines = run("report", "my results")[1]
    assert "missing: cost: not run: prototokens study cost --store 'my results'" in lines
