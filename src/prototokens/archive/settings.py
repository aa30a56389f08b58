"""Settings of a packing: what its journal compares, what its archive records, and whether an archive is up to date."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ..fitting.recipes import FitConfig
from ..fitting.starts import start_name
from ..lm.frozen import FrozenLM
from ..lm.identity import library_versions, same_weights
from .efforts import effort_named

if TYPE_CHECKING:
    from .pack import PackConfig


def journal_settings(lm: FrozenLM, raw: bytes, config: PackConfig) -> dict[str, object]:
    """What finished batches depend on; how vectors are stored and batched is not part of it.

    Args:
        lm: the frozen model.
        raw: the text, UTF-8.
        config: how to pack, settled for the model.
    """
    asked = _asked(lm, config)
    return {
        "text": hashlib.sha256(raw).hexdigest(),
        "model": [lm.identity.fingerprint, lm.identity.tokenizer_hash],
        "chunk length": asked["chunk_tokens"],
        "tokens per vector": asked["tokens_per_vector"],
        **{name: asked[name] for name in ("dtype", "margin", "effort", "start", "recipe")},
    }


def same_setting(name: str, recorded: Any, current: Any) -> bool:
    """Whether a journal's setting means the same work as the current one, also if an earlier version recorded it."""
    if name != "model":
        return bool(recorded == current)
    if not isinstance(recorded, list) or [type(part) for part in recorded] != [str, str]:
        return False
    return same_weights(recorded[0], current[0]) and recorded[1] == current[1]


def packing_record(lm: FrozenLM, config: PackConfig, store: str) -> dict[str, Any]:
    """What an archive records about how it was packed; JSON values.

    Args:
        lm: the frozen model.
        config: how to pack, settled for the model.
        store: the dtype that was asked for.
    """
    return _asked(lm, config) | {"store": store, "versions": library_versions()}


def packed_otherwise(lm: FrozenLM, config: PackConfig, recorded: Mapping[str, Any]) -> list[str]:
    """Names of the settings in which an archive's record differs from what is asked for.

    An archive of an earlier version does not record all of them; those are not compared.
    """
    asked = _asked(lm, config.settled(lm))
    return [name for name, value in asked.items() if name in recorded and recorded[name] != value]


def _asked(lm: FrozenLM, config: PackConfig) -> dict[str, Any]:
    effort = effort_named(config.effort).to_json()
    apart = {name: effort.pop(name) for name in ("chunk_tokens", "tokens_per_vector", "margin")}
    return {
        "effort": effort,
        **apart,
        "dtype": lm.dtype_name,
        "store": config.store,
        "preset": config.recipe.preset,
        "start": _start_name(lm, config),
        "seed": config.recipe.seed,
        "recipe": _recipe_line(config.recipe),
    }


def _start_name(lm: FrozenLM, config: PackConfig) -> str:
    return start_name(lm, config.recipe) if config.encoder is None else config.encoder.name


_RECIPE = ("arrangement", "e_tokens", "start", "perturbation", "optimiser", "axes_optimiser", "stop", "restarts",
           "seed", "preset")  # fmt: skip


def _recipe_line(recipe: FitConfig) -> str:
    """A recipe as journals have always recorded it, and at its end the fields that were added since and are set.

    The start is named apart. The stopping rule is the effort's, and stands there in the form of the first version.
    """
    stop = recipe.stop
    values = {name: repr(getattr(recipe, name)) for name in _RECIPE} | {
        "start": "'auto'",
        "stop": f"Stop(max_steps={stop.max_steps}, accuracy={stop.accuracy}, margin={stop.margin}, patience=None, "
        "check_every=None)",
    }
    for field in fields(recipe):
        if field.name not in _RECIPE and (value := getattr(recipe, field.name)) != getattr(FitConfig(), field.name):
            values[field.name] = repr(value)
    return f"FitConfig({', '.join(f'{name}={value}' for name, value in values.items())})"
