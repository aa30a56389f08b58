"""What the studies take from fits: recipes by name, and a fit's columns."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..arrangements import arrangement_named, blocks
from ..baselines.cramming import CRAMMING, CrammingResult
from ..fitting.fit import FitResult
from ..fitting.recipes import FitConfig, preset
from ..fitting.starter import shipped_starter
from ..lm.frozen import FrozenLM
from ..lm.identity import Identity
from ..metrics import h_lm_nats
from .cells import Settings
from .jobs import Measurement


def recipe(settings: Settings, **changes: Any) -> FitConfig:
    """The recipe that a cell names, with its seed, step budget, arrangement and margin, and some fields changed."""
    name = cell_arrangement(settings)
    arranged = {} if name is None else {"arrangement": name}
    config = replace(_named(settings["recipe"]), seed=settings["seed"], **arranged | changes)
    margin = settings.get("margin", config.stop.margin)
    return replace(config, stop=replace(config.stop, max_steps=settings["max_steps"], margin=margin))


def cell_arrangement(settings: Settings) -> str | None:
    """Name of a cell's own arrangement, None if it has that of its recipe.

    `tokens_per_vector` is the length b of the text's blocks, each with an e-token of its own.
    """
    if settings.get("tokens_per_vector"):
        return blocks(settings["tokens_per_vector"]).name
    return settings.get("arrangement")


STOPPING_RULE = 2
"""Version of the stopping rule, raised whenever the same `Stop` ends a fit elsewhere.

2: below accuracy 1, the margin is asked of that share of the tokens instead of all.
"""


def recipe_hash(name: str) -> str:
    """Eight digits that change when the recipe of that name does, or the rule that its `Stop` stands for."""
    return config_hash(_named(name), STOPPING_RULE)


@lru_cache  # a grid asks once per cell
def config_hash(config: Any, version: int = 1) -> str:
    """Eight digits that change when a field of a frozen dataclass does, or the version of what it means."""
    content = json.dumps(asdict(config), sort_keys=True, default=str) + (f" {version}" if version > 1 else "")
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def start_hash(recipe_name: str, start: str | None, arrangement: str | None, model: Identity) -> str | None:
    """Twelve digits that change when the learned start that a fit begins at does, or its axes; None without one.

    Args:
        recipe_name: the recipe.
        start: the cell's own start; None: the recipe's.
        arrangement: the cell's own arrangement; None: the recipe's.
        model: the language model.
    """
    config = _named(recipe_name)
    if (start or config.start) != "auto":
        return None
    starter = shipped_starter(model, arrangement_named(arrangement or config.arrangement))
    return None if starter is None else starter.name.removeprefix("learned-")


def _named(name: str) -> FitConfig:
    return CRAMMING if name == "cramming" else preset(name, tokens_per_vector=None)


@torch.no_grad()
def information_nats(lm: FrozenLM, target_ids: Tensor) -> list[float]:
    """H_LM of each text (B, T), in nats, one text at a time: what else is asked for must not round it."""
    return [h_lm_nats(lm.next_token_logits(ids), ids.to(lm.device)).item() for ids in target_ids]


def fit_columns(result: FitResult) -> dict[str, Any]:
    """The columns of a fit."""
    return {
        "token_accuracy": result.token_accuracy,
        "exact": int(result.exact),
        "steps": result.steps,
        "stop_reason": result.stop_reason,
        "min_margin": result.min_margin,
        "loss_nats": result.loss,
        "token_positions": result.token_positions,
        "backward_positions": result.backward_positions,
        "seconds": result.seconds,
        "start": result.tokens.provenance.start,
        "e_tokens": len(result.tokens.e),
    }


def measured(lm: FrozenLM, target_ids: Tensor, results: list[FitResult]) -> list[Measurement]:
    """Fits as measurements, vectors kept, with the H_LM of their texts."""
    nats = information_nats(lm, target_ids)
    return [
        Measurement({**fit_columns(result), "h_lm_nats": h}, result.tokens)
        for result, h in zip(results, nats, strict=True)
    ]


def cramming_columns(result: CrammingResult) -> dict[str, Any]:
    """The columns of an autoregressive fit; its accuracy is that of greedy generation, the first token included."""
    return {
        "token_accuracy": result.greedy_accuracy,
        "greedy_accuracy": result.greedy_accuracy,
        "teacher_forced_accuracy": result.teacher_forced_accuracy,
        "exact": int(result.exact),
        "steps": result.steps,
        "stop_reason": result.stop_reason,
        "min_margin": result.min_margin,
        "loss_nats": result.loss,
        "token_positions": result.token_positions,
        "backward_positions": result.backward_positions,
        "seconds": result.seconds,
    }
