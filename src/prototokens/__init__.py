"""One-step text generation with frozen language models (arXiv 2505.21189)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .archive.archive import read_archive
    from .archive.pack import pack
    from .archive.unpack import unpack
    from .arrangements import Arrangement
    from .decoding import decode
    from .drafting.drafter import Drafter, load_drafter
    from .drafting.generating import generate
    from .encoder.encoding import Encoder, encode
    from .errors import InputError
    from .fitting.fit import FitResult, fit, fit_batch
    from .fitting.given import Given
    from .fitting.recipes import AdamW, FitConfig, Stop, preset
    from .lm.frozen import FrozenLM
    from .lm.loading import load_lm
    from .proto_tokens import ProtoTokens, load, save

__all__ = [
    "AdamW", "Arrangement", "Drafter", "Encoder", "FitConfig", "FitResult", "FrozenLM", "Given", "InputError",
    "ProtoTokens", "Stop", "decode", "encode", "fit", "fit_batch", "generate", "load", "load_drafter", "load_lm",
    "pack", "preset", "read_archive", "save", "unpack",
]  # fmt: skip

_HOME = {
    "archive.archive": ("read_archive",),
    "archive.pack": ("pack",),
    "archive.unpack": ("unpack",),
    "arrangements": ("Arrangement",),
    "decoding": ("decode",),
    "drafting.drafter": (
        "Drafter",
        "load_drafter",
    ),
    "drafting.generating": ("generate",),
    "encoder.encoding": (
        "Encoder",
        "encode",
    ),
    "errors": ("InputError",),
    "fitting.fit": (
        "FitResult",
        "fit",
        "fit_batch",
    ),
    "fitting.given": ("Given",),
    "fitting.recipes": (
        "AdamW",
        "FitConfig",
        "Stop",
        "preset",
    ),
    "lm.frozen": ("FrozenLM",),
    "lm.loading": ("load_lm",),
    "proto_tokens": (
        "ProtoTokens",
        "load",
        "save",
    ),
}


def __getattr__(name: str) -> Any:
    # Importing the package stays quick: torch comes in with the first name that needs it.
    for module, names in _HOME.items():
        if name in names:
            value = getattr(import_module(f".{module}", __name__), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
