"""The project's files: tensors and a JSON record in one safetensors file, checksummed, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import InputError
from .atomic import new_file

FORMAT_VERSION = 1
_KEY = "prototokens"


class DamagedFileError(InputError):
    """A file of this project whose contents are not what was written."""


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

    Memory is bounded by the file's size: every tensor is checked to lie in the file before it is read.

    Raises:
        DamagedFileError: its contents are not what was written.
        InputError: there is no such file, it cannot be read, or it is of another kind, a newer format or another
            program.
    """
    path = Path(path)
    header, tensors = _known_contents(path)
    if header.get("kind") != kind:
        raise InputError(f"{path}: holds {_shown_kind(header)}, not {kind}")
    try:
        is_whole = header.get("checksum") == _checksum(tensors, header["record"])
    except (TypeError, ValueError, RuntimeError, RecursionError) as error:
        raise DamagedFileError(f"{path}: damaged: its contents cannot be read ({error!r})"[:500]) from None
    if not is_whole:
        raise DamagedFileError(f"{path}: damaged: its contents do not match their checksum")
    return tensors, header["record"]


def record_kind(path: str | os.PathLike[str]) -> str:
    """What a file that `write_record` wrote holds, e.g. `"proto-tokens"`; errors as in `read_record`."""
    return _shown_kind(_known_contents(Path(path))[0])


def _shown_kind(header: Mapping[str, Any]) -> str:
    return " ".join(str(header.get("kind")).split())[:80]


def _known_contents(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header of a file in this format, and all tensors, not yet compared with their checksum."""
    if not _is(Path.is_file, path):
        raise InputError(f"{path}: {'is a folder, not a file' if _is(Path.is_dir, path) else 'no such file'}")
    header, tensors = _contents(path)
    version = header.get("format") if isinstance(header, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise InputError(f"{path}: format {version} is newer than {FORMAT_VERSION}; update prototokens")
    if version != FORMAT_VERSION or not isinstance(header.get("record"), dict):
        raise DamagedFileError(f"{path}: damaged: its metadata cannot be read")
    return header, tensors


def _contents(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """The header as it stands in a safetensors file, and all tensors."""
    try:
        with open(path, "rb"):  # safetensors does not tell a file without permission from a damaged one
            pass
        with _utf8_name(path) as name, safe_open(name, framework="pt") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                raise InputError(f"{path}: a safetensors file, but not one that prototokens wrote")
            header = json.loads(metadata[_KEY])
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except InputError:
        raise
    except (SafetensorError, ValueError, RuntimeError, RecursionError) as error:
        raise DamagedFileError(f"{path}: damaged, or not a safetensors file ({error})") from None


@contextmanager
def _utf8_name(path: Path) -> Iterator[Path]:
    """The file under a name that is UTF-8, since safetensors opens no other."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder, "link")
            link.symlink_to(path.resolve())
            yield link
    else:
        yield path


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    try:
        return kind(path)
    except OSError:  # e.g. a name that is too long
        return False


def _checksum(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
