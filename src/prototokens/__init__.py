"""One-step text generation with frozen language models (arXiv 2505.21189)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .archive import Archive, read_archive, write_archive
    from .arrangements import ARRANGEMENTS, Arrangement
    from .capacity import Capacity, bisect, grow
    from .cramming import CrammingResult, cram, cram_batch, reconstruct
    from .decoding import Decoded, decode
    from .encoder.config import EncoderConfig
    from .encoder.encoding import Encoder, encode
    from .encoder.training import train_encoder
    from .errors import InputError
    from .fitting import FitResult, Given, fit, fit_batch
    from .geometry.connecting import connect
    from .geometry.curves import ConnectConfig
    from .geometry.paths import Path
    from .jacobi import JacobiResult, jacobi_decode
    from .lm import FrozenLM, load_lm
    from .packing import PackConfig, pack
    from .recipes import PRESETS, AdamW, FitConfig, Stop, preset
    from .tokens import ProtoTokens, load, save
    from .unpacking import chunk_ids, iter_text, read_range, unpack

__all__ = [
    "ARRANGEMENTS", "PRESETS", "AdamW", "Archive", "Arrangement", "Capacity", "ConnectConfig", "CrammingResult",
    "Decoded", "Encoder", "EncoderConfig", "FitConfig", "FitResult", "FrozenLM", "Given", "InputError", "JacobiResult",
    "PackConfig", "Path", "ProtoTokens", "Stop", "bisect", "chunk_ids", "connect", "cram", "cram_batch", "decode",
    "encode", "fit", "fit_batch", "grow", "iter_text", "jacobi_decode", "load", "load_lm", "pack", "preset",
    "read_archive", "read_range", "reconstruct", "save", "train_encoder", "unpack", "write_archive",
]  # fmt: skip

_HOME = {
    "archive": ("Archive", "read_archive", "write_archive"),
    "arrangements": ("ARRANGEMENTS", "Arrangement"),
    "capacity": ("Capacity", "bisect", "grow"),
    "cramming": ("CrammingResult", "cram", "cram_batch", "reconstruct"),
    "decoding": ("Decoded", "decode"),
    "encoder.config": ("EncoderConfig",),
    "encoder.encoding": ("Encoder", "encode"),
    "encoder.training": ("train_encoder",),
    "errors": ("InputError",),
    "fitting": ("FitResult", "Given", "fit", "fit_batch"),
    "geometry.connecting": ("connect",),
    "geometry.curves": ("ConnectConfig",),
    "geometry.paths": ("Path",),
    "jacobi": ("JacobiResult", "jacobi_decode"),
    "lm": ("FrozenLM", "load_lm"),
    "packing": ("PackConfig", "pack"),
    "recipes": ("PRESETS", "AdamW", "FitConfig", "Stop", "preset"),
    "tokens": ("ProtoTokens", "load", "save"),
    "unpacking": ("chunk_ids", "iter_text", "read_range", "unpack"),
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
