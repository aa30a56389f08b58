"""ProtoTokens: the frozen value that a fit finds, and its file."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .arrangements import Arrangement
from .errors import InputError

FORMAT_VERSION = 1
_KEY = "prototokens"


@dataclass(frozen=True)
class Identity:
    """Which language model vectors belong to.

    Attributes:
        name: Hub id, alias or path that loads it.
        revision: the Hub revision, if one was asked for.
        fingerprint: SHA-256 over all source weights; does not depend on the dtype they are loaded in.
        tokenizer_hash: SHA-256 over the vocabulary.
    """

    name: str
    revision: str | None
    fingerprint: str
    tokenizer_hash: str


@dataclass(frozen=True)
class Provenance:
    """Where vectors come from and what they were seen to do.

    Attributes:
        model: the language model they belong to.
        target_hash: `hash_ids` of the text's ids.
        token_accuracy: share of right tokens when they were scored, at batch 1.
        min_margin: smallest logit margin over the tokens in that evaluation, in logits.
        loss: mean cross-entropy in that evaluation, in nats per token.
        dtype: the dtype that the model was loaded in, e.g. `"float32"`.
        preset: name of the recipe, or None.
        seed: the seed of the fit.
        versions: versions of the libraries at work.
    """

    model: Identity
    target_hash: str
    token_accuracy: float
    min_margin: float
    loss: float
    dtype: str
    preset: str | None
    seed: int
    versions: dict[str, str]


@dataclass(frozen=True, eq=False)
class ProtoTokens:
    """The vectors of one text: all that is needed to decode it, and to trust it.

    Attributes:
        e: e-tokens, float32, (K, D).
        m: m-token, float32, (D,).
        length: T, the number of tokens of the text.
        arrangement: how e, m and the fixed vectors fill the input.
        provenance: model, scores and versions.
        fixed: the arrangement's fixed vectors in the order of `arrangement.fixed`, float32, (F, D).
    """

    e: Tensor
    m: Tensor
    length: int
    arrangement: Arrangement
    provenance: Provenance
    fixed: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    def __post_init__(self) -> None:
        if self.fixed.numel() == 0:
            object.__setattr__(self, "fixed", self.m.new_empty(0, self.m.shape[-1]))
        width = self.m.shape[-1]
        for name, shape in (("e", (self.e.shape[0], width)), ("m", (width,)), ("fixed", self._fixed_shape)):
            tensor = getattr(self, name)
            if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
                raise InputError(f"{name} is {tuple(tensor.shape)} {tensor.dtype}; it must be {shape} torch.float32")
            if not tensor.isfinite().all():
                raise InputError(f"{name} holds values that are not finite; these vectors decode to nothing")
        if self.length < 1 or self.e.shape[0] < 1:
            raise InputError(f"length {self.length} with {self.e.shape[0]} e-tokens: both must be at least 1")

    @property
    def _fixed_shape(self) -> tuple[int, int]:
        return (len(self.arrangement.fixed), self.m.shape[-1])

    def inputs_embeds(self) -> Tensor:
        """The input of the one forward pass, (1, L, D), float32."""
        layout = self.arrangement.layout(self.length, self.e.shape[0])
        return layout.inputs_embeds(self.e.unsqueeze(0), self.m.unsqueeze(0), self.fixed)


def hash_ids(ids: Tensor) -> str:
    """SHA-256 of token ids (T,), taken as little-endian 64-bit integers."""
    return hashlib.sha256(ids.detach().to("cpu", torch.int64).numpy().astype("<i8").tobytes()).hexdigest()


def save(path: str | os.PathLike[str], tokens: ProtoTokens, *, overwrite: bool = False) -> Path:
    """Write proto-tokens to a `.safetensors` file; the name is taken as given.

    The file appears whole or not at all.

    Args:
        path: where to write.
        tokens: what to write.
        overwrite: replace a file that is there.

    Returns:
        The path.

    Raises:
        InputError: the file exists (and `overwrite` is not set), or cannot be written.
    """
    tensors = {name: getattr(tokens, name).contiguous().cpu() for name in ("e", "m", "fixed")}
    record = {
        "format": FORMAT_VERSION,
        "length": tokens.length,
        "arrangement": tokens.arrangement.to_json(),
        "provenance": asdict(tokens.provenance),
        "vectors_hash": _hash_vectors(tensors),
    }
    with new_file(path, overwrite=overwrite) as temporary:
        save_file(tensors, temporary, metadata={_KEY: json.dumps(record)})
    return Path(path)


def load(path: str | os.PathLike[str]) -> ProtoTokens:
    """Read proto-tokens from a file that `save` wrote.

    Raises:
        InputError: there is no such file, it is damaged, or it was not written by `save`.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                raise InputError(f"{path}: a safetensors file, but not one that prototokens wrote")
            record = json.loads(metadata[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: damaged, or not a safetensors file ({error})") from None
    return _from_record(path, record, tensors)


def _from_record(path: Path, record: Any, tensors: dict[str, Tensor]) -> ProtoTokens:
    version = record.get("format") if isinstance(record, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise InputError(f"{path}: format {version} is newer than {FORMAT_VERSION}; update prototokens")
    try:
        if record["vectors_hash"] != _hash_vectors(tensors):
            raise InputError(f"{path}: damaged: the vectors do not match their checksum")
        provenance = dict(record["provenance"])
        model = Identity(**provenance.pop("model"))
        return ProtoTokens(
            e=tensors["e"],
            m=tensors["m"],
            fixed=tensors["fixed"],
            length=record["length"],
            arrangement=Arrangement.from_json(record["arrangement"]),
            provenance=Provenance(model=model, **provenance),
        )
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: damaged: its metadata cannot be read ({error!r})") from None


def _hash_vectors(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def library_versions() -> dict[str, str]:
    """Versions of the libraries that shape a result."""
    return {name: version(name) for name in ("prototokens", "torch", "transformers")}


def check_new_file(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Refuse a path that cannot be written, before the work whose result it is to hold.

    Raises:
        InputError: it is a folder, exists already, or lies in a folder that is missing or read-only.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already; choose another name, or overwrite it (--force)")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: cannot be written (permission denied)")


@contextmanager
def new_file(path: str | os.PathLike[str], *, overwrite: bool) -> Iterator[str]:
    """A temporary name beside `path`, renamed to it when the block ends well and removed when it doesn't."""
    path = Path(path)
    check_new_file(path, overwrite=overwrite)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    os.close(handle)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
