"""An encoder's folder, by the Hugging Face convention: config.json, model.safetensors and a model card.

`model.safetensors` holds weights and record with a checksum; it appears whole or not at all. `start.safetensors` is the
learned start that the encoder was trained from, without its axes; the control `start` of an evaluation needs it.
`config.json` (the record again) and `README.md` are for people and for the Hub.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import InputError
from ..files.atomic import make_folder, new_file
from ..files.record import read_record, write_record
from ..fitting.starter import Starter, load_starter, save_starter

WEIGHTS = "model.safetensors"
START = "start.safetensors"
KIND = "an encoder"


def write_folder(
    folder: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    record: Mapping[str, Any],
    card: str,
    starter: Starter | None,
) -> Path:
    """Write an encoder's folder; an encoder in it is replaced, other files stay.

    Raises:
        InputError: the folder cannot be written.
    """
    folder = make_folder(folder)
    for name, text in (("config.json", json.dumps(record, indent=1) + "\n"), ("README.md", card)):
        with new_file(folder / name, overwrite=True) as temporary:
            Path(temporary).write_text(text, encoding="utf-8")
    if starter is None:
        (folder / START).unlink(missing_ok=True)
    else:
        save_starter(folder / START, _without_axes(starter), overwrite=True)
    write_record(folder / WEIGHTS, KIND, tensors, record, overwrite=True)
    return folder


def read_folder(
    name: str | os.PathLike[str], revision: str | None = None
) -> tuple[dict[str, Tensor], dict[str, Any], Starter | None]:
    """Tensors, record and learned start of an encoder in a folder, or on the Hub if there is no such folder.

    Raises:
        InputError: there is no such encoder, or it is damaged.
    """
    if Path(name).is_dir():
        weights: Path = Path(name) / WEIGHTS
        start: Path | None = Path(name) / START
    elif Path(name).exists() or Path(name).is_absolute():
        raise InputError(f"{name}: no folder of an encoder")
    else:
        weights, start = _from_hub(str(name), revision)
    return *read_record(weights, KIND), load_starter(start) if start is not None and start.exists() else None


def upload(repo_id: str, write: Any, *, private: bool, token: str | None) -> str:
    """Upload what `write(folder)` writes to a repository on the Hub, made if it does not exist; its address.

    Raises:
        InputError: the Hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        write(folder)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            info = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload encoder")
        except Exception as error:  # the Hub client raises its HTTP library's errors, which change with its versions
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{repo_id}: the Hub did not take it ({reason}); log in with: hf auth login") from None
    return str(info)


def _without_axes(starter: Starter) -> Starter:
    """The vectors alone, which an encoder begins at; the axes are large, and the name depends on them."""
    training = {"name": starter.name} | starter.training
    return Starter(starter.e, starter.m, starter.arrangement, starter.model, training)


def _from_hub(name: str, revision: str | None) -> tuple[Path, Path | None]:
    """Local copies of the weights, and of the learned start if the repository has one."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        weights = Path(hf_hub_download(name, WEIGHTS, revision=revision))
        try:
            return weights, Path(hf_hub_download(name, START, revision=revision))
        except EntryNotFoundError:
            return weights, None
    except Exception as error:  # as above
        raise InputError(
            f"unknown encoder {name!r}: no such folder, and the Hub does not give it ({type(error).__name__})"
        ) from None
