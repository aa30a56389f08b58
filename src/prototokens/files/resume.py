"""Journal: finished work beside the file that it is for, so that the same command resumes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from ..errors import InputError
from .atomic import check_new_file, replace_file, sync
from .record import DamagedFileError, read_record, write_record

_KIND = "finished work"
_SUFFIX = ".partial"
_SETTINGS = "settings.safetensors"
_WRITTEN = "output"
_OURS = re.compile(r"lock|settings\.safetensors|part-\d+\.safetensors|output|\.prototokens-.*")


class Journal:
    """The folder `OUTPUT.partial`: what the work is, its finished parts, and a lock that ends with its process.

    Use it in a `with` block. Every part is a file that appears whole or not at all. A crash loses at most the part
    that was being written. Parts are removed only when the output is on the disk, or with `overwrite`.

    Args:
        output: the file that the work is for.
        settings: what the work is, JSON values; parts made with other settings are refused.
        overwrite: replace an existing output, and drop the unfinished parts of other work.
        same: whether the recorded and the current value of a setting, by its name, mean the same work; None: equality.

    Raises:
        InputError: on entering: the output exists or cannot be written, another process works on it, or the folder
            holds parts made with other settings, or parts whose settings cannot be read.
    """

    def __init__(
        self,
        output: str | os.PathLike[str],
        settings: Mapping[str, Any],
        *,
        overwrite: bool = False,
        same: Callable[[str, Any, Any], bool] | None = None,
    ) -> None:
        self.output = Path(output)
        self.settings = dict(settings)
        self.overwrite = overwrite
        self._same = same or (lambda name, recorded, current: recorded == current)
        self.folder = unfinished_work(self.output)

    def __enter__(self) -> Journal:
        from filelock import FileLock, Timeout

        if not self.folder.exists():
            check_new_file(self.output, overwrite=self.overwrite)
        strangers = [name for name in self._names() if not _OURS.fullmatch(name)]
        if strangers:
            raise InputError(
                f"{self.folder}: is where unfinished work is kept, and holds {strangers[0]!r}; move that elsewhere"
            )
        try:
            self.folder.mkdir(exist_ok=True)
            self._lock = FileLock(self.folder / "lock")
            self._lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"{self.output}: another process works on it; wait for it, or choose another name"
            ) from None
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written ({error.strerror})") from None
        try:
            if _same_file(self.folder / _WRITTEN, self.output):  # killed right after it had finished
                self._drop()
            check_new_file(self.output, overwrite=self.overwrite)
            self._begin()
            self._next_number = self._first_free_number()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._paths():  # nothing to resume
            self._drop()
        self._lock.release()

    def _begin(self) -> None:
        """Take over the parts of the same work, or drop those of other work if that was asked for."""
        path = self.folder / _SETTINGS
        settings = _undamaged(path) if path.exists() else None
        recorded = settings[1] if settings else None
        differing = [] if recorded is None else self._differing(recorded)
        if recorded is not None and not differing:
            return
        if self._paths() and not self.overwrite:
            if recorded is None:
                raise InputError(
                    f"{self.folder}: holds unfinished work, and its settings cannot be read; "
                    "move the folder, or begin anew (--force)"
                )
            raise InputError(
                f"{self.folder}: holds unfinished work of another {', '.join(differing)}; "
                "resume it by the command and version that began it, or begin anew (--force)"
            )
        for part in self._paths():
            part.unlink()
        sync(self.folder)  # parts of other work must not come back under the new settings
        write_record(path, _KIND, {}, self.settings, overwrite=True)

    def _differing(self, recorded: Mapping[str, Any]) -> list[str]:
        """Names of the settings that the recorded work has otherwise."""
        names = sorted(self.settings.keys() | recorded.keys())
        return [name for name in names if not self._same(name, recorded.get(name), self.settings.get(name))]

    def parts(self) -> Iterator[dict[str, Tensor]]:
        """All finished parts, in the order they were made; a damaged one is dropped, and will be made anew.

        Raises:
            InputError: a part cannot be read for another reason, such as missing permission.
        """
        for path in self._paths():
            part = _undamaged(path)
            if part is None:
                path.unlink()
            else:
                yield part[0]

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.safetensors"))

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep a finished part."""
        path = self.folder / f"part-{self._next_number:08d}.safetensors"
        write_record(path, _KIND, tensors, {}, overwrite=False)
        self._next_number += 1

    def _first_free_number(self) -> int:
        paths = self._paths()
        return int(paths[-1].stem.removeprefix("part-")) + 1 if paths else 0

    def finish(self, write: Callable[[Path], object]) -> None:
        """Let `write` write the output under the name it is given, move it to its place, and drop the journal.

        Nothing is dropped before the output is on the disk.

        Raises:
            InputError: meanwhile there is another file in its place, which is not to be overwritten; the journal stays.
        """
        written, target = self.folder / _WRITTEN, self.output.resolve()
        written.unlink(missing_ok=True)
        write(written)
        if self.overwrite:
            replace_file(written, target)
        else:
            try:
                sync(written)
                os.link(written, target)  # unlike a move it never replaces an existing file
                sync(target.parent)
            except FileExistsError:
                raise InputError(
                    f"{self.output}: was made by another program meanwhile; move it, or overwrite it (--force): "
                    "what is finished is kept"
                ) from None
            except OSError:  # a file system without links
                check_new_file(self.output, overwrite=False)
                replace_file(written, target)
        self._drop()

    def _names(self) -> list[str]:
        try:
            return sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be read ({error.strerror})") from None

    def _drop(self) -> None:
        """Remove the journal's own files, and the folder if nothing else is in it."""
        ours = [name for name in self._names() if _OURS.fullmatch(name)]
        for name in sorted(
            ours, key=(_WRITTEN, "lock").__contains__
        ):  # a kill in between leaves a sign that all is done
            (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()


def unfinished_work(output: Path) -> Path:
    """The folder where the journal of an output lies while there is unfinished work."""
    target = output.resolve()  # what a link leads to is written, the link stays
    return target.with_name(target.name + _SUFFIX)


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _undamaged(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    try:
        return read_record(path, _KIND)
    except DamagedFileError:
        return None
