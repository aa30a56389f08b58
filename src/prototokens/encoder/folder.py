"""An encoder's folder, by the Hugging Face convention: config.json, model.safetensors and a model card, here or there.

`model.safetensors` holds all that is read back, with a checksum; it appears whole or not at all. `config.json` (the
same record) and `README.md` are for people and for the Hub.
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

WEIGHTS = "model.safetensors"
KIND = "an encoder"


def write_folder(
    folder: str | os.PathLike[str], tensors: Mapping[str, Tensor], record: Mapping[str, Any], card: str
) -> Path:
    """Write an encoder's folder; an encoder that is there is replaced, other files stay.

    Raises:
        InputError: the folder cannot be written.
    """
    folder = make_folder(folder)
    for name, text in (("config.json", json.dumps(record, indent=1) + "\n"), ("README.md", card)):
        with new_file(folder / name, overwrite=True) as temporary:
            Path(temporary).write_text(text, encoding="utf-8")
    write_record(folder / WEIGHTS, KIND, tensors, record, overwrite=True)
    return folder


def read_folder(name: str | os.PathLike[str], revision: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and record of an encoder in a folder, or on the Hub if there is no such folder.

    Raises:
        InputError: there is no such encoder, or it is damaged.
    """
    if Path(name).is_dir():
        return read_record(Path(name) / WEIGHTS, KIND)
    if Path(name).exists() or Path(name).is_absolute():
        raise InputError(f"{name}: no folder of an encoder")
    return read_record(_from_hub(str(name), revision), KIND)


def upload(repo_id: str, write: Any, *, private: bool, token: str | None) -> str:
    """Make a repository on the Hub, if there is none, and upload what `write(folder)` writes; its address.

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


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, WEIGHTS, revision=revision))
    except Exception as error:  # as above
        raise InputError(
            f"unknown encoder {name!r}: no such folder, and the Hub does not give it ({type(error).__name__})"
        ) from None
