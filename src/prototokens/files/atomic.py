"""Files are written whole or not at all: under a temporary name, then renamed. Nothing here needs torch."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import InputError

_TEMPORARY = ".prototokens-"


def check_new_file(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Refuse a path that cannot be written, before the work whose result it will hold.

    Raises:
        InputError: it is a folder, exists already, or lies in a folder that is missing or read-only.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder")
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: is no ordinary file")
        if path.exists() and not overwrite:
            raise InputError(f"{path}: exists already; choose another name, or overwrite it (--force)")
        if not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}")
        # Permissions do not tell all (a read-only or virtual file system): try.
        with tempfile.NamedTemporaryFile(dir=path.resolve().parent, prefix=_TEMPORARY):
            pass
    except OSError as error:
        raise InputError(f"{str(path)[:200]}: cannot be written ({error.strerror})") from None


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """Return a folder; it is made, with the folders above it, if it does not exist.

    Raises:
        InputError: it cannot be made.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made a folder ({error.strerror})") from None
    return folder


@contextmanager
def new_file(path: str | os.PathLike[str], *, overwrite: bool) -> Iterator[str]:
    """Give a temporary name beside `path`; the file is renamed to `path` if the block succeeds, else removed.

    A file that is replaced keeps its permissions.

    Raises:
        InputError: see `check_new_file` and `replace_file`.
    """
    check_new_file(path, overwrite=overwrite)
    path = Path(path).resolve()  # what a link leads to is written, the link stays
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=_TEMPORARY)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    os.close(handle)
    try:
        yield temporary
        replace_file(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def replace_file(written: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Move a finished file into its place, so that a crash at any moment leaves the old file or the new one.

    The contents reach the disk before the new name does, and the name before this returns. A file that is replaced
    keeps its permissions; a new one gets those of the process.

    Raises:
        InputError: it cannot be moved.
    """
    try:
        os.chmod(written, _mode(Path(path)))
        sync(written)
        os.replace(written, path)
        sync(Path(path).parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


def sync(path: str | os.PathLike[str]) -> None:
    """Wait until a file's contents, or a folder's names, have reached the disk.

    Not every system can do that for folders; there nothing is done.

    Raises:
        OSError: a file's contents cannot be written.
    """
    if os.path.isdir(path):
        with suppress(OSError):
            _sync(path)
    else:
        _sync(path)


def _sync(path: str | os.PathLike[str]) -> None:
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _mode(path: Path) -> int:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return 0o666 & ~_umask()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def utf8(raw: bytes, where: str) -> str:
    """The text of bytes, nothing changed; `where` says in the error where they are from.

    Raises:
        InputError: they are not UTF-8.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 (byte 0x{raw[error.start]:02x} at offset {error.start})") from None


def file_bytes(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
