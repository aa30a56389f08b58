"""One-step text generation with frozen language models (arXiv 2505.21189)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .arrangements import ARRANGEMENTS, Arrangement
    from .decoding import Decoded, decode
    from .errors import InputError
    from .fitting import FitResult, Given, fit, fit_batch
    from .lm import FrozenLM, load_lm
    from .recipes import PRESETS, AdamW, FitConfig, Stop, preset
    from .tokens import ProtoTokens, load, save

__all__ = [
    "ARRANGEMENTS", "PRESETS", "AdamW", "Arrangement", "Decoded", "FitConfig", "FitResult", "FrozenLM", "Given",
    "InputError", "ProtoTokens", "Stop", "decode", "fit", "fit_batch", "load", "load_lm", "preset", "save",
]  # fmt: skip

_HOME = {
    "arrangements": ("ARRANGEMENTS", "Arrangement"),
    "decoding": ("Decoded", "decode"),
    "errors": ("InputError",),
    "fitting": ("FitResult", "Given", "fit", "fit_batch"),
    "lm": ("FrozenLM", "load_lm"),
    "recipes": ("PRESETS", "AdamW", "FitConfig", "Stop", "preset"),
    "tokens": ("ProtoTokens", "load", "save"),
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
