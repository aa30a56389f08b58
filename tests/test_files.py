"""Laws of the files: whole or not at all, on the disk before anything is dropped, and read back under any name."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from prototokens import InputError
from prototokens.files import atomic
from prototokens.files.atomic import new_file, replace_file
from prototokens.files.record import DamagedFileError, read_record, write_record
from prototokens.files.resume import Journal

ONE = {"x": torch.ones(1)}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.skipif(os.name == "nt", reason="needs permissions")
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path) -> None:
    for old in (0o600, 0o640, 0o664):
        path = tmp_path / f"{old:o}"
        path.touch()
        path.chmod(old)
        write_record(path, "kind", ONE, {}, overwrite=True)
        assert mode(path) == old
        with Journal(path, {}, overwrite=True) as journal:
            journal.finish(lambda written: written.write_text("done"))
        assert (mode(path), path.read_text()) == (old, "done")
    write_record(tmp_path / "new", "kind", ONE, {}, overwrite=False)
    (tmp_path / "plain").touch()
    assert mode(tmp_path / "new") == mode(tmp_path / "plain")


def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synchronised, renamed, linked and removed from here on, in order."""
    log: list[str] = []

    def watch(owner: Any, name: str, verb: str, which: int = 0) -> None:
        original = getattr(owner, name)

        def watched(*paths: Any, **options: Any) -> Any:
            log.append(f"{verb} {Path(paths[which]).name}")
            return original(*paths, **options)

        monkeypatch.setattr(owner, name, watched)

    watch(atomic, "_sync", "sync")
    watch(os, "replace", "name", 1)
    watch(os, "link", "name", 1)
    watch(Path, "unlink", "drop")
    return log


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_is_dropped_before_the_output_is_on_the_disk(
    overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with Journal(folder / "file", {}, overwrite=overwrite) as journal:
        journal.add(ONE)
        log = logged(monkeypatch)
        journal.finish(lambda path: path.write_text("done"))
    moved = ["sync output", "name file", "sync folder"]
    first = log.index(moved[0])
    assert log[first : first + 3] == moved
    assert "drop part-00000000.safetensors" in log[first + 3 :]


def test_contents_are_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "written").write_text("new")
    log = logged(monkeypatch)
    replace_file(tmp_path / "written", tmp_path / "file")
    assert log == ["sync written", "name file", f"sync {tmp_path.name}"]


def test_a_place_that_is_taken_meanwhile_is_one_error(tmp_path: Path) -> None:
    said = pytest.raises(InputError, match=r"file: cannot be written \(Is a directory\)")
    with said, new_file(tmp_path / "file", overwrite=True):
        (tmp_path / "file").mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_is_read_back_under_a_name_that_is_no_utf_8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"d\xe9j\xe0")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    path = write_record(folder / os.fsdecode(b"vu\xe9"), "kind", ONE, {"n": 1}, overwrite=False)
    tensors, record = read_record(path, "kind")
    assert torch.equal(tensors["x"], ONE["x"])
    assert record == {"n": 1}
    with Journal(folder / "work", {}) as journal:
        journal.add(ONE)
        assert len(list(journal.parts())) == 1


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_record(tmp_path / "file", "kind", ONE, {}, overwrite=False)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", refuse)
        with pytest.raises(InputError, match=r"cannot be read \(Permission denied\)") as error:
            read_record(path, "kind")
    assert not isinstance(error.value, DamagedFileError)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedFileError):
        read_record(path, "kind")
