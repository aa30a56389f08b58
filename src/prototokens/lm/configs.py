"""A model's configuration alone: what it tells of a model's size costs no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import InputError
from .hub import hub_errors
from .names import BUILT_IN, local_path
from .sources import built_in_file


def find_config(name: str, revision: str | None = None) -> Any:
    """The Hugging Face configuration of a model; of a Hub id, `config.json` is all that is fetched.

    Args:
        name: as for `find_source`.
        revision: branch, tag or commit on the Hub; only for Hub ids.

    Raises:
        UnknownModelError: there is no model of that name here, and none can be asked for.
        InputError: its configuration cannot be read.
    """
    from transformers import AutoConfig

    path = local_path(name, revision)
    if name == BUILT_IN:
        path = built_in_file()
    try:
        if path is not None and path.is_file():
            return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        return AutoConfig.from_pretrained(path or _config_from_hub(name, revision))
    except InputError:
        raise
    except Exception as error:  # transformers raises what its many configurations raise
        raise InputError(f"{name}: its configuration cannot be read ({' '.join(str(error).split())[:300]})") from None


def _config_from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    with hub_errors(name, revision):
        return Path(hf_hub_download(name, "config.json", revision=revision)).parent
