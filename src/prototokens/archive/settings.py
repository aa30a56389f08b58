"""Settings of a packing: what its journal compares, what its archive records, and whether an archive is up to date."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ..fitting.recipes import FitConfig
from ..fitting.starts import start_name
from ..lm.frozen import FrozenLM
from ..lm.identity import library_versions, same_weights
from .efforts import Effort, effort_named

if TYPE_CHECKING:
    from .pack import PackConfig


def journal_settings(lm: FrozenLM, raw: bytes, config: PackConfig) -> dict[str, object]:
    """What finished batches depend on; how vectors are stored and batched is not part of it.

    Args:
        lm: the frozen model.
        raw: the text, UTF-8.
        config: how to pack.
    """
    return {
        "text": hashlib.sha256(raw).hexdigest(),
        "model": [lm.identity.fingerprint, lm.identity.tokenizer_hash],
        "dtype": _dtype(lm),
        "effort": _effort_line(effort_named(config.effort)),
        "chunk length": config.chunk_tokens,
        "margin": margin_of(config),
        "start": _start_name(lm, config),
        "recipe": _recipe_line(config.recipe),
    }


def same_setting(name: str, recorded: Any, current: Any) -> bool:
    """Whether a journal's setting means the same work as the current one, also if an earlier version recorded it."""
    if name != "model":
        return bool(recorded == current)
    if not isinstance(recorded, list) or [type(part) for part in recorded] != [str, str]:
        return False
    return same_weights(recorded[0], current[0]) and recorded[1] == current[1]


def packing_record(lm: FrozenLM, config: PackConfig, chunk_tokens: int, store: str) -> dict[str, Any]:
    """What an archive records about how it was packed; JSON values.

    Args:
        lm: the frozen model.
        config: how to pack.
        chunk_tokens: the length of chunks that was taken.
        store: the dtype that was asked for.
    """
    return _asked(lm, config) | {"chunk_tokens": chunk_tokens, "store": store, "versions": library_versions()}


def packed_otherwise(lm: FrozenLM, config: PackConfig, recorded: Mapping[str, Any]) -> list[str]:
    """Names of the settings in which an archive's record differs from what is asked for.

    An archive of an earlier version does not record all of them; those are not compared.
    """
    asked = _asked(lm, config)
    if config.chunk_tokens is not None:
        asked["chunk_tokens"] = config.chunk_tokens
    return [name for name, value in asked.items() if name in recorded and recorded[name] != value]


def margin_of(config: PackConfig) -> float:
    """The margin that is asked for, in logits: the configuration's, or else the effort's."""
    return effort_named(config.effort).margin if config.margin is None else config.margin


def _asked(lm: FrozenLM, config: PackConfig) -> dict[str, Any]:
    return {
        "effort": json.loads(json.dumps(effort_named(config.effort).to_json())),  # as it comes back from a file
        "margin": margin_of(config),
        "dtype": _dtype(lm),
        "store": config.store,
        "preset": config.recipe.preset,
        "start": _start_name(lm, config),
        "seed": config.recipe.seed,
        "recipe": _recipe_line(config.recipe),
    }


def _dtype(lm: FrozenLM) -> str:
    return lm.dtype_name


def _start_name(lm: FrozenLM, config: PackConfig) -> str:
    return start_name(lm, config.recipe) if config.encoder is None else config.encoder.name


def _effort_line(effort: Effort) -> str:
    """An effort as journals have always recorded it, whatever its parts are called by now."""
    rounds = "".join(f"Attempt(own_m={r.own_m}, steps={r.steps}), " for r in effort.rounds)
    rounds = rounds.removesuffix(" " if len(effort.rounds) == 1 else ", ")
    return (
        f"Effort(lengths={effort.lengths}, attempts=({rounds}), spare={effort.tolerated_share}, "
        f"floor_tokens={effort.floor_tokens}, margin={effort.margin})"
    )


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
