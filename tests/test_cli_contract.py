"""How the command line ends: closed streams, readers that leave, signals, downloads, help and completion."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from families import save_model
from prototokens.archive.efforts import EFFORTS
from prototokens.arrangements import ARRANGEMENTS
from prototokens.cli import app as cli
from prototokens.cli import exits, file_model, options, terminal
from prototokens.cli.spread import add_command
from prototokens.encoder.evaluate import CONTROLS
from prototokens.errors import InputError
from prototokens.files.quantised import STORES
from prototokens.files.record import read_record, write_record
from prototokens.fitting import beginning
from prototokens.fitting.recipes import NAMED_STARTS, PRESETS
from prototokens.fitting.starts import start_vectors
from prototokens.geometry.curves import CURVE_KINDS
from prototokens.lm import download
from prototokens.lm.loading import DTYPES
from prototokens.study.scales import SCALES

PROGRAM = [sys.executable, "-m", "prototokens"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and the file of a fit."""
    place = tmp_path_factory.mktemp("place")
    save_model("llama", place / "tiny")
    fit = ["fit", "abcd", "--model", "tiny", "--max-steps", "0", "-o", "saved"]
    assert subprocess.run([*PROGRAM, *fit], cwd=place, capture_output=True).returncode == 1
    return place


def shell(command: str, place: Path) -> tuple[int, str, str]:
    """Run a line of bash in which $P is the program: exit code, stdout, stderr."""
    environment = os.environ | {"P": " ".join(PROGRAM)}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=place, capture_output=True, text=True, env=environment
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("arguments", ["--version", "inspect saved", "decode saved"])
def test_a_closed_stdout_is_one_line(place: Path, arguments: str) -> None:
    told = "error: stdout is closed; redirect it to a file, or to /dev/null\n"
    assert shell(f"$P {arguments} >&-", place) == (2, "", told)


def test_a_closed_stdin_matters_only_where_it_is_read(place: Path) -> None:
    assert shell("$P fit - --model tiny <&-", place) == (2, "", "error: stdin is closed: there is nothing to read\n")
    assert shell("$P inspect saved --json <&-", place)[0] == 0


def test_errors_do_not_go_to_stdout_where_stderr_is_closed(place: Path) -> None:
    assert shell("$P decode nowhere 2>&-", place) == (2, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_under_stdout_is_one_line(place: Path) -> None:
    code, _, err = shell("$P inspect saved >/dev/full", place)
    assert (code, err) == (2, f"error: stdout cannot be written ({os.strerror(errno.ENOSPC)})\n")


@pytest.mark.parametrize("arguments", ["inspect saved", "--help", "fit --help", "models"])
def test_a_reader_that_has_gone_is_no_error(place: Path, arguments: str) -> None:
    for reader in ("true", "head -c 1"):  # gone before the first byte, or after it
        code, _, err = shell(f"(sleep 0.1; $P {arguments}) | {reader}", place)
        assert (code, err) == (0, "")


def test_a_fit_whose_reader_has_gone_keeps_its_exit_code(place: Path) -> None:
    for stream in ("", "2>&1"):
        fit = f"$P fit ab --model tiny --max-steps 0 -o gone --force {stream}"
        assert shell(f"(sleep 0.1; {fit}) | true", place)[0] == 1


@pytest.mark.parametrize("keep", [True, False])
def test_sigterm_is_taken_like_ctrl_c(place: Path, keep: bool, tmp_path: Path) -> None:
    fit = ["fit", "a" * 40, "--model", str(place / "tiny"), "-o", "kept", "--max-steps", "1000000", "--margin", "1e9"]
    process = subprocess.Popen(
        [*PROGRAM, *fit, *(["--keep"] if keep else [])],
        cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step"):
            break
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.splitlines()[-1]) == (130, "interrupted")
    assert [path.name for path in tmp_path.iterdir()] == (["kept"] if keep else [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_fit_also_while_starts_are_drawn(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    drawn: list[int] = []

    def draw(*arguments: Any) -> Any:
        drawn.append(1)
        os.kill(os.getpid(), number)
        return start_vectors(*arguments)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(beginning, "start_vectors", draw)
    assert run(monkeypatch, "fit", "ab", "--model", place / "tiny", "--restarts", 9, "--keep") == 130
    assert (len(drawn), list(tmp_path.iterdir())) == (1, [])


def test_sigterm_ends_every_command_and_its_handler_comes_back() -> None:
    def command() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return exits.DONE

    def ignored(*_: Any) -> None:
        """What the program had before."""

    before = signal.signal(signal.SIGTERM, ignored)
    try:
        assert exits.exit_code(command) == 130
        assert signal.getsignal(signal.SIGTERM) is ignored
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_loop_that_asks_ends_with_what_it_has() -> None:
    with terminal.interrupts() as signals:
        assert not signals.should_stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received
        assert signals.should_stop()
        with pytest.raises(KeyboardInterrupt):  # a second one ends the program
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.skipif(sys.platform == "darwin", reason="there file names are UTF-8")
def test_file_names_that_are_no_utf8(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    name = os.fsdecode(b"a\xff.txt")
    (tmp_path / "docs" / name).write_text("ab")
    assert run(monkeypatch, "pack-all", "docs", "-o", "packed", "--model", place / "tiny", "--json") == 0
    out, err = capfd.readouterr()
    (file,) = json.loads(out)["files"]
    assert file["file"] == f"packed/{name}.proto"  # JSON spells the byte as half a surrogate pair
    assert Path(file["file"]).exists()
    assert "packed/a\\udcff.txt.proto: done" in err
    for command in (["fit", "ab", "--model", place / "tiny", "--max-steps", 0, "-o", name], ["inspect", name]):
        assert run(monkeypatch, *command, "--json") in (0, 1)
        assert json.loads(capfd.readouterr().out)["file"] == name
    assert run(monkeypatch, "decode", name + "x") == 2
    assert capfd.readouterr().err == "error: a\\udcff.txtx: no such file\n"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["prototokens", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code  # type: ignore[return-value]


@pytest.fixture
def foreign(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A file of a model on the Hub; the list takes the names that are loaded."""
    tensors, record = read_record(place / "saved", "proto-tokens")
    record["provenance"]["model"] |= {"name": "some/model", "revision": None}
    monkeypatch.chdir(tmp_path)
    write_record(tmp_path / "foreign", "proto-tokens", tensors, record, overwrite=False)
    loaded: list[str] = []

    def load(self: object, name: str) -> Any:
        loaded.append(name)
        raise InputError("loading has begun")

    monkeypatch.setattr(options.LoadOptions, "load", load)
    monkeypatch.setattr(download, "download_size", lambda *_: 123_456_789)
    return loaded


def test_a_file_starts_no_download_unasked(
    foreign: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "decode", "foreign") == 2
    err = capfd.readouterr().err
    assert "foreign needs some/model, which is not on this machine; fetch it (123 MB from the Hub)" in err
    assert (err.count("\n"), foreign) == (1, [])
    assert run(monkeypatch, "decode", "foreign", "--model", "some/model") == 2
    assert foreign == ["some/model"]


@pytest.mark.parametrize("answer", [True, False])
def test_a_yes_in_the_terminal_starts_the_download(
    foreign: list[str], monkeypatch: pytest.MonkeyPatch, answer: bool
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(file_model, "_at_a_terminal", lambda: True)
    monkeypatch.setattr(file_model.typer, "confirm", lambda question, **_: asked.append(question) or answer)
    assert run(monkeypatch, "decode", "foreign") == 2
    assert "some/model" in asked[0]
    assert "123 MB" in asked[0]
    assert foreign == (["some/model"] if answer else [])


def test_a_model_that_is_here_is_no_download(place: Path) -> None:
    for name in ("smollm2-135m", str(place / "tiny"), "/no/path", "not a name"):
        assert not download.would_download(name)
    assert download.would_download("some/model")


def test_what_a_file_holds_does_not_steer_the_terminal() -> None:
    assert exits.printable("a\x1b[2Jé") == "a\\x1b[2Jé"


def test_an_error_of_the_system_names_its_file(capfd: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        raise PermissionError(errno.EACCES, "Permission denied", "some/file")

    assert exits.exit_code(command) == 2
    assert capfd.readouterr() == ("", "error: some/file: Permission denied\n")


def help_of(*arguments: str) -> str:
    environment = os.environ | {"COLUMNS": "80", "TERMINAL_WIDTH": "80"}
    done = subprocess.run([*PROGRAM, *arguments, "--help"], capture_output=True, text=True, env=environment, check=True)
    return done.stdout


@pytest.mark.parametrize("group", [(), ("study",), ("encoder",), ("starter",), ("drafter",)])
def test_the_line_of_every_command_is_whole(group: tuple[str, ...]) -> None:
    program: Any = typer.main.get_command(cli.app)
    for name in group:
        program = program.commands[name]
    lines = help_of(*group).splitlines()
    whole = " ".join(" ".join(lines).replace("│", " ").split())
    for name, command in program.commands.items():
        short = command.get_short_help_str()
        assert not short.endswith("...")
        assert f"{name} {short}" in whole
        assert group == ("study",) or any(re.match(rf"│ {name} +{re.escape(short)} +│$", line) for line in lines)


def test_options_stand_in_panels() -> None:
    text = help_of("fit")
    for panel in ("Arguments", "Options", "Model", "Recipe"):
        assert f"╭─ {panel} ─" in text
    assert text.index("─ Model ─") < text.index("--device-map") < text.index("─ Recipe ─") < text.index("--preset")


def test_every_exit_code_is_in_the_help_and_in_the_docs() -> None:
    codes = {exits.DONE, exits.NOT_EXACT, exits.MISTAKE, exits.SOME_FAILED, exits.BUG, exits.INTERRUPTED}
    page = (Path(__file__).parent.parent / "docs" / "commands.md").read_text()
    assert {int(code) for code in re.findall(r"^\| `(\d+)` \|", page, re.MULTILINE)} == codes
    assert {int(code) for code in re.findall(r"\b(\d+) [a-z]", exits.EXIT_CODES)} == codes


@pytest.mark.parametrize(
    ("name", "lines", "bad_rows"),
    [
        ("list.txt", ["", "x" * 80], [2]),
        ("list.jsonl", ['{"text": 3}', "[1]", "{", '{"a": 1}', "", '{"text": "' + "x" * 80 + '"}'], [1, 2, 3, 4, 6]),
    ],
)
def test_what_fails_in_a_list_is_named_by_file_and_row(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    name: str, lines: list[str], bad_rows: list[int],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("\n".join(lines))
    assert run(monkeypatch, "fit-all", name, "-o", "fitted", "--model", place / "tiny") == 3
    failed = [line for line in capfd.readouterr().err.splitlines() if "failed" in line]
    assert len(failed) == len(bad_rows)
    for line, number in zip(sorted(failed), bad_rows, strict=True):
        told = line.removeprefix(f"fitted/{number:05d}.safetensors: failed: ")
        assert name in told
        assert re.search(rf"\b(row|line) {number}\b", told)


@pytest.mark.parametrize(
    ("command", "option", "choices"),
    [
        ("fit", "dtype", DTYPES),
        ("fit", "preset", PRESETS),
        ("fit", "start", NAMED_STARTS),
        ("fit", "arrangement", ARRANGEMENTS),
        ("pack", "effort", EFFORTS),
        ("pack", "store", ("auto", *STORES)),
        ("pack", "start", NAMED_STARTS),
        ("pack-all", "effort", EFFORTS),
        ("path", "kind", CURVE_KINDS),
        ("encoder eval", "controls", CONTROLS),
        ("study all", "scale", SCALES),
    ],
)
def test_the_help_names_every_choice(command: str, option: str, choices: Collection[str]) -> None:
    program: Any = typer.main.get_command(cli.app)
    for name in command.split():
        program = program.commands[name]
    (text,) = (parameter.help for parameter in program.params if parameter.name == option)
    for choice in choices:
        assert re.search(rf"(?<![\w-]){re.escape(choice)}(?![\w-])", text), choice
    if option == "dtype":  # and no other
        assert set(re.findall(r"auto|\w*float\d+", text)) == set(choices)


def test_the_shell_completes_commands(place: Path) -> None:
    assert "complete" in shell("_PROTOTOKENS_COMPLETE=source_bash $P", place)[1]
    complete = "COMP_WORDS='prototokens dec' COMP_CWORD=1 _PROTOTOKENS_COMPLETE=complete_bash $P"
    assert shell(complete, place)[:2] == (0, "decode\n")


@dataclass(frozen=True)
class Inner:
    depth: Annotated[int, typer.Option(help="How deep.")] = 3


@dataclass(frozen=True)
class Outer:
    name: Annotated[str, typer.Option(help="Which.")] = "x"
    inner: Inner = Inner()


def test_a_command_s_groups_become_options() -> None:
    app, seen = typer.Typer(), []

    def command(outer: Outer, last: bool = False) -> int:
        """Do it."""
        seen.append((outer, last))
        return 0

    add_command(app, "command")(command)
    app(["--depth", "4", "--last"], standalone_mode=False)
    assert seen == [(Outer("x", Inner(4)), True)]


def test_progress_off_a_terminal_is_a_line_now_and_then(capfd: pytest.CaptureFixture[str]) -> None:
    for seconds, lines in ((1000.0, "a\n"), (0.0, "a\nb\n")):
        with terminal.progress_line(seconds) as line:
            line("a")
            line("b")
        assert capfd.readouterr() == ("", lines)


@pytest.mark.parametrize("provenance", [["x"], "x", None, 3, {"model": "x"}])
def test_a_provenance_that_is_no_object_is_one_line(
    place: Path, tmp_path: Path, provenance: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tensors, record = read_record(place / "saved", "proto-tokens")
    path = tmp_path / "strange"
    write_record(path, "proto-tokens", tensors, record | {"provenance": provenance}, overwrite=False)
    assert run(monkeypatch, "inspect", path) == 2
    assert capfd.readouterr().err.startswith(f"error: {path}: its record cannot be read")
