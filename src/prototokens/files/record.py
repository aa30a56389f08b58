"""The project's files: tensors and a JSON record in one safetensors file, checksummed, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
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
