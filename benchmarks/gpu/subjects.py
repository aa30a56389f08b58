"""What is measured: the model, the texts, and the device with its versions."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from prototokens import FrozenLM, load_lm
from prototokens.texts.sampling import sample

HERE = Path(__file__).resolve().parent
TEXT = HERE / "text.txt"
"""The annual message of 1865, in the public domain, of a year that nothing was trained on: texts without a package."""

TINY = "tiny"
"""A random model of the tests, so that all can be tried without weights."""

Load = Callable[[str, str], FrozenLM]
"""Loads the model onto a device, in a dtype."""


def loader(model: str) -> Load:
    """How `model`, a name or path or `TINY`, is loaded; once for each device and dtype."""
    if model != TINY:
        return cache(lambda device, dtype: load_lm(model, device=device, dtype=dtype))
    sys.path.append(str(HERE.parents[1] / "tests"))
    from families import build, family, tokenizer

    identity = family("llama").identity

    def load(device: str, dtype: str) -> FrozenLM:
        return FrozenLM(build("llama").to(device, getattr(torch, dtype)), tokenizer(), identity)

    return cache(load)


def texts(lm: FrozenLM, length: int, n_texts: int) -> Tensor:
    """Chunks of a text that nothing was trained on, (B, T)."""
    return sample(TEXT, lm, length, n_texts, seed=7)


def random_ids(lm: FrozenLM, length: int, n_texts: int) -> Tensor:
    """Ids for timings that do not depend on the text, (B, T)."""
    generator = torch.Generator().manual_seed(length)
    return torch.randint(min(lm.vocabulary, 256), (n_texts, length), generator=generator)


def device_name(device: str) -> str:
    """What the device calls itself."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device} ({platform.processor() or platform.machine()}, threads: {torch.get_num_threads()})"


def identity(lm: FrozenLM, device: str) -> dict[str, Any]:
    """What a row must agree in to count as measured already: device, versions, model."""
    return {
        "device": device_name(device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "model": lm.identity.name if lm.identity.name.count("/") < 2 else Path(lm.identity.name).name,
        "model_fingerprint": lm.identity.fingerprint[:12],
    }


def code_hash() -> str:
    """A hash of the library's source: which code a row was measured with, where there is no repository."""
    source = HERE.parents[1] / "src" / "prototokens"
    digest = hashlib.sha256()
    for path in sorted(source.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def precision() -> str:
    """How products of float32 matrices are computed; `highest` is float32 itself."""
    return torch.get_float32_matmul_precision()
