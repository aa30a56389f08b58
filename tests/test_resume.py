"""Laws of the journal: killed anywhere, the same call resumes and ends the same; two at once are refused."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from archives import TEXT, config, same_archive
from families import counted, family
from prototokens import InputError, pack, read_archive, unpack
from prototokens.archive.efforts import Effort
from prototokens.archive.pack import PackConfig, Packer
from prototokens.archive.settings import journal_settings, same_setting
from prototokens.files.resume import Journal

EFFORT = Effort(tokens_per_vector=1, steps=2, chunk_tokens=2)
SETTINGS = {"text": "one", "margin": 0.5}


def small(**changes: object) -> PackConfig:
    return config(EFFORT, batch_tokens=4, **changes)


def parts(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.partial/part-*"))


class Stopped(BaseException):
    """What ends a packing from outside."""


@contextmanager
def stopped_after(calls: int) -> Iterator[None]:
    """End whatever runs the model when it has been called that often."""
    left = calls

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Stopped

    handle = family("llama").model.register_forward_pre_hook(count)
    try:
        yield
    finally:
        handle.remove()


def test_a_packing_stopped_at_any_call_of_the_model_ends_the_same(tmp_path: Path) -> None:
    lm, text = family("llama"), TEXT[:12]
    with counted(lm) as calls:
        packer = Packer(lm, text, small())
        whole = packer.archive()
    with counted(lm) as assembly:
        packer.archive()
    for after in range(0, len(calls.forward), 7):
        output = tmp_path / str(after)
        with pytest.raises(Stopped), stopped_after(after):
            pack(lm, text, small(), output=output)
        assert not output.exists()
        with counted(lm) as rest:
            assert same_archive(pack(lm, text, small(), output=output), whole)
        # At most the batch in flight is done again, three passes and one that scores, or else the assembly.
        assert after + len(rest.forward) <= len(calls.forward) + max(4, len(assembly.forward))
        assert same_archive(read_archive(output), whole)
    assert {path.suffix for path in tmp_path.iterdir()} == {""}


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from archives import TEXT
from families import family
from prototokens import InputError, pack
from prototokens.files.resume import Journal
from test_resume import small, parts

folder, lm, rename, seen = Path({folder!r}), family("llama"), os.replace, dict(calls=0, renames=0)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def run(calls=None, before=None, after=None, output=None):
    def count(*_):
        seen["calls"] += 1
        if seen["calls"] == calls:
            die()

    def replace(source, target):
        seen["renames"] += 1
        if seen["renames"] == before:
            die()
        rename(source, target)
        if seen["renames"] == after:
            die()

    lm.model.register_forward_pre_hook(count)
    os.replace = replace
    if output:
        os.link = lambda *_: die()
    pack(lm, TEXT, small(), output=folder / "text.proto")

def forked(work):
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return child

for how in ({points}):
    status = os.waitpid(forked(lambda: run(**how)), 0)[1]
    print(os.WTERMSIG(status), len(parts(folder)), flush=True)

reading, writing = os.pipe()

def hold():
    with Journal(folder / "held", {{}}):
        os.write(writing, b"in")
        signal.pause()

holder = forked(hold)
os.read(reading, 2)
for turn in range(2):
    try:
        with Journal(folder / "held", {{}}):
            print("free")
    except InputError as error:
        print(str(error).split(": ")[1])
    if not turn:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
"""
POINTS = "dict(calls=1), dict(before=1), dict(after=1), dict(calls=4), dict(calls=3), dict(before=2), dict(after=2), "
POINTS += "dict(calls=5), dict(after=3), dict(output=True), dict()"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_minus_9_at_many_points_loses_no_finished_batch_and_leaves_no_lock(tmp_path: Path) -> None:
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path), points=POINTS)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    *killed, refused, free = done.stdout.splitlines()
    assert (refused, free) == ("another process works on it; wait for it, or choose another name", "free"), done.stderr
    codes, counts = zip(*(map(int, line.split()) for line in killed), strict=True)
    assert codes == (*[9] * (len(codes) - 1), 0), done.stderr
    assert list(counts[:-1]) == sorted(counts[:-1])
    assert counts[0] == 0 < counts[3] < counts[-2]
    assert counts[-1] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.proto"]
    lm = family("llama")
    assert unpack(lm, read_archive(tmp_path / "text.proto")) == TEXT
    assert same_archive(read_archive(tmp_path / "text.proto"), pack(lm, TEXT, small()))


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "file", SETTINGS):
        with pytest.raises(InputError, match="file: another process works on it; wait for it, or choose another name"):
            Journal(tmp_path / "file", SETTINGS).__enter__()
        with Journal(tmp_path / "other", SETTINGS):
            pass
    with Journal(tmp_path / "file", SETTINGS):
        pass


def test_parts_come_back_in_order_and_damaged_ones_do_not(tmp_path: Path) -> None:
    output = tmp_path / "file"
    with Journal(output, SETTINGS) as journal:
        for number in range(12):
            journal.add({"x": torch.tensor([number])})
    second = sorted((tmp_path / "file.partial").glob("part-*"))[1]
    second.write_bytes(second.read_bytes()[:-3])
    with Journal(output, SETTINGS) as journal:
        assert [int(part["x"]) for part in journal.parts()] == [0, *range(2, 12)]
        journal.add({"x": torch.tensor([12])})
        assert [int(part["x"]) for part in journal.parts()] == [0, *range(2, 13)]
        journal.finish(lambda path: path.write_text("done"))
    assert output.read_text() == "done"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_part_is_added_without_reading_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_listing(*_: object) -> None:
        raise AssertionError("the folder was read")

    with Journal(tmp_path / "file", SETTINGS) as journal:
        with monkeypatch.context() as patched:
            for name in ("glob", "iterdir"):
                patched.setattr(Path, name, no_listing)
            for number in range(3):
                journal.add({"x": torch.tensor([number])})
        assert [int(part["x"]) for part in journal.parts()] == [0, 1, 2]


def test_work_of_another_kind_is_refused_or_dropped(tmp_path: Path) -> None:
    output = tmp_path / "file"
    with Journal(output, SETTINGS) as journal:
        journal.add({"x": torch.zeros(1)})
    other = SETTINGS | {"text": "two", "more": 1}
    with pytest.raises(InputError, match=r"unfinished work of another more, text; .* begin anew \(--force\)"):
        Journal(output, other).__enter__()
    with Journal(output, SETTINGS) as journal:
        assert len(list(journal.parts())) == 1
    with Journal(output, other, overwrite=True) as journal:
        assert list(journal.parts()) == []
        journal.add({"x": torch.zeros(1)})


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:9])])
def test_parts_whose_settings_were_lost_are_kept_until_they_are_disowned(
    spoil: Callable[[Path], object], tmp_path: Path
) -> None:
    output = tmp_path / "file"
    with Journal(output, SETTINGS) as journal:
        journal.add({"x": torch.zeros(1)})
    spoil(tmp_path / "file.partial" / "settings.safetensors")
    for _ in range(2):
        with pytest.raises(InputError, match="its settings cannot be read; move the folder, or begin anew"):
            Journal(output, SETTINGS).__enter__()
    assert len(parts(tmp_path)) == 1
    with Journal(output, SETTINGS, overwrite=True) as journal:
        assert list(journal.parts()) == []


def test_settings_are_not_written_again(tmp_path: Path) -> None:
    with Journal(tmp_path / "file", SETTINGS) as journal:
        journal.add({"x": torch.zeros(1)})
    settings = tmp_path / "file.partial" / "settings.safetensors"
    before = settings.stat().st_ino, settings.stat().st_mtime_ns
    with Journal(tmp_path / "file", SETTINGS) as journal:
        assert len(list(journal.parts())) == 1
    assert (settings.stat().st_ino, settings.stat().st_mtime_ns) == before


def work(output: Path, meanwhile: Callable[[], object] = lambda: None) -> None:
    with Journal(output, SETTINGS) as journal:
        journal.add({"x": torch.zeros(1)})
        meanwhile()
        journal.finish(lambda path: path.write_text("done"))


def test_killed_right_after_it_had_finished_nothing_is_left_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: Journal) -> None:
        raise Stopped

    output = tmp_path / "file"
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "_drop", killed)
        with pytest.raises(Stopped):
            work(output)
    assert (tmp_path / "file.partial").exists()
    with pytest.raises(InputError, match="exists already"):
        Journal(output, SETTINGS).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert output.read_text() == "done"


def test_a_file_that_appears_meanwhile_is_kept_and_so_is_the_work(tmp_path: Path) -> None:
    output = tmp_path / "file"
    with pytest.raises(InputError, match="made by another program meanwhile"):
        work(output, meanwhile=lambda: output.write_text("mine"))
    assert output.read_text() == "mine"
    with Journal(output, SETTINGS, overwrite=True) as journal:
        assert len(list(journal.parts())) == 1
        journal.finish(lambda path: path.write_text("done"))
    assert output.read_text() == "done"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_of_someone_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "file.partial"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"holds 'notes\.txt'; move that elsewhere"):
            Journal(tmp_path / "file", SETTINGS, overwrite=overwrite).__enter__()
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").rename(tmp_path / "notes.txt")
    with Journal(tmp_path / "file", SETTINGS) as journal:
        (folder / "late.txt").write_text("mine too")
        journal.finish(lambda path: path.write_text("done"))
    assert [path.name for path in folder.iterdir()] == ["late.txt"]


def test_an_output_that_is_there_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "file"
    output.write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        Journal(output, SETTINGS).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with Journal(output, SETTINGS, overwrite=True) as journal:
        pass
    assert output.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # no work, no journal
    link = tmp_path / "link"
    link.symlink_to(output)
    with Journal(link, SETTINGS, overwrite=True) as journal:
        journal.finish(lambda path: path.write_text("new"))
    assert link.is_symlink()
    assert output.read_text() == "new"


def test_another_text_or_setting_does_not_take_the_parts_and_another_store_does(tmp_path: Path) -> None:
    lm, output = family("llama"), tmp_path / "file"
    with pytest.raises(Stopped), stopped_after(11):
        pack(lm, TEXT, small(), output=output)
    finished = len(parts(tmp_path))
    assert finished
    for text, changes, what in (
        (TEXT + "!", {}, "text"),
        (TEXT, {"margin": 0.3}, "margin"),
        (TEXT, {"chunk_tokens": 4}, "chunk length"),
        (TEXT, {"tokens_per_vector": 3}, "recipe, tokens per vector"),
        (TEXT, {"effort": replace(EFFORT, tolerated_share=0.5)}, "effort"),
        (TEXT, {"effort": replace(EFFORT, own_m=False)}, "effort"),
        (TEXT, {"recipe": replace(small().recipe, seed=5)}, "recipe"),
    ):
        with pytest.raises(InputError, match=f"unfinished work of another {what};"):
            pack(lm, text, replace(small(), **changes), output=output)
    with pytest.raises(InputError, match="another model"):
        pack(family("mistral"), TEXT, small(), output=output)
    assert len(parts(tmp_path)) == finished
    archive = pack(lm, TEXT, small(store="float32"), output=output)
    assert set(archive.vectors.counts.values()) == {0, len(archive.vectors)}
    assert unpack(lm, archive) == TEXT


FIRST_VERSION = {
    "text": hashlib.sha256(TEXT.encode()).hexdigest(),
    "model": [family("llama").identity.fingerprint, family("llama").identity.tokenizer_hash],
    "dtype": "float32",
    "effort": "Effort(lengths=(2,), attempts=(Attempt(own_m=False, steps=2), Attempt(own_m=True, steps=2)), spare=0.5, "
    "floor_tokens=1, margin=0.5)",
    "chunk length": None,
    "margin": 0.2,
    "start": "text-e",
    "recipe": "FitConfig()",
}
"""What the first release wrote beside unfinished work, whose chunks had one e-token each."""


def test_unfinished_work_of_the_first_version_is_refused_and_kept_until_it_is_disowned(tmp_path: Path) -> None:
    lm, output = family("llama"), tmp_path / "file"
    with Journal(output, FIRST_VERSION) as journal:
        journal.add({"tasks": torch.tensor([[0, 2, 0, 1]]), "e": torch.zeros(1, lm.width)})
    for _ in range(2):
        with pytest.raises(InputError, match=r"unfinished work of another .*effort.*begin anew \(--force\)"):
            pack(lm, TEXT, small(), output=output)
    assert len(parts(tmp_path)) == 1
    assert unpack(lm, pack(lm, TEXT, small(), output=output, overwrite=True)) == TEXT


def test_weights_that_an_earlier_version_fingerprinted_otherwise_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = family("llama")
    settings = journal_settings(lm, b"", small().settled(lm))
    weights, vocabulary = lm.identity.fingerprint, lm.identity.tokenizer_hash
    assert same_setting("model", [weights, vocabulary], settings["model"])
    for wrong in ([weights], [None, None], ["0" * 64, vocabulary], [weights, "0" * 64], None):
        assert not same_setting("model", wrong, settings["model"])
    monkeypatch.setattr(
        "prototokens.archive.settings.same_weights", lambda recorded, current: recorded in ("former", current)
    )
    assert same_setting("model", ["former", vocabulary], settings["model"])
