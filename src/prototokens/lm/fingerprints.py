"""Fingerprints: SHA-256 over what a model's logits depend on, the same for every way in which files lay it out.

Hashed is each tensor's name, dtype, shape and bytes, in the order of the names, and then the configuration: the
values that change logits, see `config_values`. Copies that are sharded or ordered in another way agree, and so does the
model in memory in the dtype of its files. A GGUF file is hashed as a file.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError
from .compiled import uncompiled
from .config_values import config_values

_BLOCK_BYTES = 1 << 22
_MOST_HEADER_BYTES = 100_000_000  # as safetensors bounds it
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip

_former: dict[str, dict[str, Callable[[], str | None]]] = {}
"""For a fingerprint, how to compute those that earlier versions gave the same weights, in files and in memory."""


class _Span(NamedTuple):
    """Where a file holds a tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def fingerprint_files(files: Sequence[Path], config: str | None = None) -> str:
    """The fingerprint of the tensors that safetensors files hold together, and of a configuration.

    Args:
        files: the files.
        config: the configuration's values, see `read_config_values`; None for weights alone.

    Raises:
        InputError: a file is damaged or cannot be read.
    """
    weights = _combine(line for file in files for line in _tensor_lines(file))
    return _remember(weights, config, "files", cache(lambda: hash_files(files)))


def fingerprint_model(model: nn.Module) -> str:
    """The fingerprint of a model in memory: of its files, if it was loaded in their dtype and they name tensors alike.

    Raises:
        InputError: its weights are offloaded.
    """
    model = uncompiled(model)
    state = model.state_dict()
    if any(tensor.is_meta for tensor in state.values()):
        raise InputError("weights that are offloaded cannot be hashed: give FrozenLM an identity, or use load_lm")
    reference = weakref.ref(model)
    weights = _combine(
        _line(name, _DTYPES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape), _hash_tensor(tensor))
        for name, tensor in _as_saved(model, state).items()
    )
    config = config_values(getattr(model, "config", None))
    return _remember(weights, config, "memory", cache(lambda: _hash_state(reference())))


def hash_file(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def hash_files(files: Sequence[Path]) -> str:
    """SHA-256 over the contents of files, whatever their names: the fingerprint by the former scheme."""
    with ThreadPoolExecutor() as pool:
        digests = sorted(pool.map(hash_file, files))
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def former_fingerprints(fingerprint: str) -> set[str]:
    """The fingerprints that earlier versions gave the weights of this one, if they were hashed in this process."""
    known = set()
    for compute in _former.get(fingerprint, {}).values():
        with suppress(OSError):  # the files may be gone
            known.add(compute())
    return {value for value in known if value is not None}


def _remember(weights: str, config: str | None, place: str, first_scheme: Callable[[], str | None]) -> str:
    """The fingerprint of weights and configuration, of which the former ones are remembered."""
    fingerprint = weights if config is None else hashlib.sha256(f"{weights}\n{config}".encode()).hexdigest()
    _former.setdefault(fingerprint, {}).update({place: first_scheme, "weights": lambda: weights})
    return fingerprint


def _tensor_lines(file: Path) -> list[str]:
    try:
        with file.open("rb") as opened:
            spans = _spans(opened, file)
            if not spans:
                return []
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:

                def line(span: _Span) -> str:
                    digest = hashlib.sha256()
                    for start in range(span.start, span.end, _BLOCK_BYTES):
                        with view[start : min(start + _BLOCK_BYTES, span.end)] as block:
                            digest.update(block)
                    return _line(span.name, span.dtype, span.shape, digest.hexdigest())

                with ThreadPoolExecutor() as pool:
                    return list(pool.map(line, spans))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None


def _spans(opened: Any, file: Path) -> list[_Span]:
    """The tensors that the header of a safetensors file names."""
    damaged = InputError(f"{file}: damaged, or not a safetensors file")
    n_bytes = os.fstat(opened.fileno()).st_size
    prefix = opened.read(8)
    header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else n_bytes
    if header_bytes > min(n_bytes - 8, _MOST_HEADER_BYTES):
        raise damaged
    try:
        header = json.loads(opened.read(header_bytes))
        header.pop("__metadata__", None)
        spans = [
            _Span(
                name,
                str(entry["dtype"]),
                tuple(entry["shape"]),
                *(8 + header_bytes + at for at in entry["data_offsets"]),
            )
            for name, entry in header.items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise damaged from None
    if any(not 8 + header_bytes <= span.start <= span.end <= n_bytes for span in spans):
        raise damaged
    return spans


def _line(name: str, dtype: str, shape: tuple[int, ...], digest: str) -> str:
    return json.dumps([name, dtype, list(shape), digest])


def _combine(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _as_saved(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state as `save_pretrained` would write it: tied tensors once, and under the names that files use."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    kept = {name: tensor for name, tensor in state.items() if name not in tied}
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # the module is not part of transformers' promised interface
        return kept
    return revert_weight_conversion(model, kept) if hasattr(model, "save_pretrained") else kept


def _hash_tensor(tensor: Tensor) -> str:
    return hashlib.sha256(_bytes(tensor)).hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()


def _hash_state(model: nn.Module | None) -> str | None:
    """The fingerprint of a model in memory by the former scheme."""
    if model is None:
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()
