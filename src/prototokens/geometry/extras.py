"""Optional libraries of the geometry extra, imported when they are first needed."""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import InputError


def scikit_learn(module: str, what: str) -> Any:
    """A module of scikit-learn, `sklearn.<module>`.

    Args:
        module: its name below sklearn.
        what: what needs it, in the plural; begins the error.

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError:
        raise InputError(f"{what} need scikit-learn: pip install 'prototokens[geometry]'") from None
