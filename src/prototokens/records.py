"""The project's files: tensors and a JSON record in one safetensors file, checksummed, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import InputError

FORMAT_VERSION = 1
_KEY = "prototokens"
_TEMPORARY = ".prototokens-"


def write_record(
    path: str | os.PathLike[str],
    kind: str,
    tensors: Mapping[str, Tensor],
    record: Mapping[str, Any],
    *,
    overwrite: bool,
) -> Path:
    """Write tensors and a record of JSON values to a safetensors file.

    Args:
        path: where to write; the name is taken as given.
        kind: what the file holds, e.g. `"proto-tokens"`.
        tensors: on any device.
        record: JSON values.
        overwrite: replace a file that is there.

    Raises:
        InputError: the file exists (and `overwrite` is not set), or cannot be written.
    """
    held = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    header = {"format": FORMAT_VERSION, "kind": kind, "record": dict(record), "checksum": _checksum(held, record)}
    with new_file(path, overwrite=overwrite) as temporary:
        try:
            save_file(held, temporary, metadata={_KEY: json.dumps(header)})
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: cannot be written ({error})") from None
    return Path(path)


def read_record(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_record` wrote under the same kind: tensors and record.

    Raises:
        InputError: there is no such file, it is damaged, of another kind or a newer format, or not of this project.
    """
    path = Path(path)
    if not _is_file(path):
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                raise InputError(f"{path}: a safetensors file, but not one that prototokens wrote")
            header = json.loads(metadata[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged, or not a safetensors file ({error})") from None
    version = header.get("format") if isinstance(header, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise InputError(f"{path}: format {version} is newer than {FORMAT_VERSION}; update prototokens")
    if version != FORMAT_VERSION or not isinstance(header.get("record"), dict):
        raise InputError(f"{path}: damaged: its metadata cannot be read")
    if header.get("kind") != kind:
        raise InputError(f"{path}: holds {header.get('kind')}, not {kind}")
    if header.get("checksum") != _checksum(tensors, header["record"]):
        raise InputError(f"{path}: damaged: its contents do not match their checksum")
    return tensors, header["record"]


def check_new_file(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Refuse a path that cannot be written, before the work whose result it is to hold.

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


@contextmanager
def new_file(path: str | os.PathLike[str], *, overwrite: bool) -> Iterator[str]:
    """A temporary name beside `path`, renamed to it when the block ends well and removed when it doesn't."""
    check_new_file(path, overwrite=overwrite)
    path = Path(path).resolve()  # what a link leads to is written, the link stays
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=_TEMPORARY)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    os.close(handle)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # e.g. a name that is too long
        return False


def _checksum(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
