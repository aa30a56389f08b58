"""GGUF files: converted once to a folder that transformers loads, and checked against its hashes at every use."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from .fingerprints import hash_file

_RECORD = "prototokens-source.json"


def cache_folder() -> Path:
    """Where converted models are kept: $PROTOTOKENS_CACHE, or `prototokens` in the user's cache folder."""
    chosen = os.environ.get("PROTOTOKENS_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prototokens"


def converted(path: Path, digest: str) -> Path:
    """The folder with a GGUF file's configuration, tokenizer and dequantised float32 weights.

    A folder whose files do not match their hashes is made anew. Of several processes one converts, the others wait.

    Args:
        path: the GGUF file.
        digest: its SHA-256.

    Raises:
        InputError: the file is incomplete or no causal LM, a package is missing, or the cache cannot be written.
    """
    from filelock import FileLock

    cache = cache_folder()
    folder = cache / digest[:16]
    if _is_intact(folder, digest):
        return folder
    _check_packages(path)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{folder.name}.lock"):
            if not _is_intact(folder, digest):  # another process may have converted it meanwhile
                _convert(path, folder, digest)
    except OSError as error:
        raise InputError(f"{cache}: cannot be written ({error.strerror or error}); set PROTOTOKENS_CACHE") from None
    return folder


def _is_intact(folder: Path, digest: str) -> bool:
    """Whether a folder holds the conversion of the file with this hash, every byte of it."""
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        hashes: Mapping[str, str] = record["files"]
        return record["fingerprint"] == digest and hashes == _hashes(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: hash_file(path) for path in sorted(folder.iterdir()) if path.name != _RECORD}


def _check_packages(path: Path) -> None:
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"reading {path.name} needs {' and '.join(missing)}: pip install 'prototokens[gguf]'")


def _convert(path: Path, folder: Path, digest: str) -> None:
    """Read a GGUF file and write its folder, whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    from safetensors import SafetensorError

    model, tokenizer = _read(path)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        record = {"file": path.name, "fingerprint": digest, "files": _hashes(temporary)}
        (temporary / _RECORD).write_text(json.dumps(record), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except SafetensorError as error:  # its way of telling an OSError
        raise OSError(str(error)) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read(path: Path) -> tuple[Any, Any]:
    """The causal LM in a GGUF file, float32, and its tokenizer.

    Raises:
        InputError: it cannot be read, or lacks weights.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        n_parts = _split_count(path)
        if n_parts > 1:
            raise InputError(f"{path}: is one of {n_parts} parts of a model; merge them: llama-gguf-split --merge")
        model_and_report: Any = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, output_loading_info=True
        )
        loaded, report = model_and_report
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        config = loaded.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(loaded.state_dict())
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{path}: too large to be converted in the memory of this machine") from None
    except Exception as error:  # the libraries raise what they please, down to a bare Exception
        reason = " ".join(str(error).split()) or repr(error)
        raise InputError(f"{path}: cannot be read as a GGUF causal LM ({reason[:300]})") from None
    check_complete(path, report)
    return plain, tokenizer


def check_complete(name: object, report: Mapping[str, Any]) -> None:
    """Refuse a model of which weights were missing or misshapen: transformers fills those in at random.

    Args:
        name: what the message calls the model.
        report: the loading info of `from_pretrained`.

    Raises:
        InputError: weights are missing.
    """
    keys = [*report.get("missing_keys", ()), *(entry[0] for entry in report.get("mismatched_keys", ()))]
    if keys:
        raise InputError(f"{name}: its files lack weights that the model needs: {', '.join(sorted(keys)[:3])}")


def _split_count(path: Path) -> int:
    from gguf import GGUFReader

    field = GGUFReader(path).get_field("split.count")
    return int(field.contents()) if field is not None else 1
