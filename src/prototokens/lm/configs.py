"""A model's configuration alone: what it tells of a model's size costs no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import InputError
from .sources import BUILT_IN, built_in_file


def find_config(name: str, revision: str | None = None) -> Any:
    """The Hugging Face configuration of a model; of a Hub id, `config.json` is all that is fetched.

    Args:
        name: as for `find_source`.
        revision: branch, tag or commit on the Hub; only for Hub ids.

    Raises:
        InputError: there is no such model, or its configuration cannot be read.
    """
    from transformers import AutoConfig

    path = built_in_file() if name == BUILT_IN else Path(name).expanduser()
    try:
        if path.is_file():
            return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        return AutoConfig.from_pretrained(path if path.is_dir() else _config_from_hub(name, revision))
    except InputError:
        raise
    except Exception as error:  # transformers raises what its many configurations raise
        raise InputError(f"{name}: its configuration cannot be read ({' '.join(str(error).split())[:300]})") from None


def _config_from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RevisionNotFoundError

    choices = f"a model is {BUILT_IN!r}, a folder, a .gguf file, or a Hub id such as 'EleutherAI/pythia-160m'"
    try:
        return Path(hf_hub_download(name, "config.json", revision=revision)).parent
    except HFValidationError:
        raise InputError(f"unknown model {name!r}: {choices}") from None
    except GatedRepoError:
        raise InputError(f"{name}: the Hub grants it on request; ask there, then run: hf auth login") from None
    except RevisionNotFoundError:
        raise InputError(f"{name}: the Hub has no revision {revision!r} of it") from None
    except Exception as error:  # the Hub client raises its HTTP library's errors, which change with their versions
        reason = type(error).__name__
        raise InputError(f"unknown model {name!r}: its config.json cannot be had ({reason}); {choices}") from None
