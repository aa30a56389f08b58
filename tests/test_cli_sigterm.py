"""SIGTERM ends what takes long: one line, what is finished is kept, and nothing is half written."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from encoders import prose_file
from families import save_model
from prototokens.drafting.drafter import load_drafter
from prototokens.encoder.encoding import Encoder
from prototokens.study import STUDIES
from prototokens.study.store import Store


@dataclass(frozen=True)
class Command:
    """A command that works for minutes on a tiny model.

    Attributes:
        arguments: without the model.
        is_working: whether a part of the work is done, by what stands on stderr.
        check: checks what the command leaves.
    """

    arguments: str
    is_working: Callable[[str], object]
    check: Callable[[], object]


def an_archive_s_parts() -> None:
    assert not Path("letter.proto").exists()
    assert [*Path("letter.proto.partial").glob("part-*")]


def finished_cells() -> None:
    with Store.open("store") as store:
        done = {row["study"]: row["done"] for row in store.counts()}
    assert sum(done.values()) >= 6
    assert done.keys() < STUDIES.keys()


def a_trained_encoder() -> None:
    assert Encoder.from_pretrained("mine").training["step"] >= 1


def a_trained_drafter() -> None:
    assert load_drafter("mine").training["step"] >= 1


COMMANDS = {
    "pack": Command(
        "pack letter.txt -o letter.proto --effort thorough --chunk-tokens 8 --batch-tokens 8",
        lambda _: list(Path().glob("letter.proto.partial/part-*")),
        an_archive_s_parts,
    ),
    "study": Command(
        "study all --scale smoke --store store", re.compile(r" ([6-9]|\d\d) of \d+ cells").search, finished_cells
    ),
    "encoder train": Command(
        "encoder train -o mine --source prose.txt --batch-positions 24 --block-length 2 --lengths 2,4 "
        "--set texts.validation_texts=2 --set encoder.width=16",
        re.compile(r"step \d+ of").search,
        a_trained_encoder,
    ),
    "drafter train": Command(
        "drafter train -o mine --source prose.txt --prompt-lengths 4 --new-tokens 8 --texts 8 --places 4 --masks 1 "
        "--input-width 4 --reader-width 4 --steps 5000",
        re.compile(r"step \d+ of").search,
        a_trained_drafter,
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model("llama", folder)
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_sigterm_keeps_what_is_finished(
    name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(prose_file(tmp_path)).rename("prose.txt")
    Path("letter.txt").write_text(Path("prose.txt").read_text() * 20)
    command = COMMANDS[name]
    arguments = [*command.arguments.split(), "--model", str(model)]
    with Path("stderr").open("w") as stderr:
        process = subprocess.Popen([sys.executable, "-m", "prototokens", *arguments], stdout=stderr, stderr=stderr)
    said = Path("stderr").read_text
    while process.poll() is None and not command.is_working(said()):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert (process.wait(timeout=120), said().splitlines()[-1]) == (130, "interrupted"), said()
    assert not [*Path().rglob(".prototokens-*")], "a file under its temporary name"
    command.check()
