"""What a training keeps beside its weights: its settings, and the state of its optimisers as tensors by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_PREFIX = "optimiser."


def settings_record(config: DataclassInstance) -> dict[str, Any]:
    """The settings of a dataclass as JSON values, as they come back from a file."""
    return json.loads(json.dumps(asdict(config)))


def check_same_settings(holder: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to resume a training with other settings.

    Args:
        holder: what is trained, e.g. "the drafter".
        before: the settings that it has.
        now: those that are given.

    Raises:
        InputError: they differ; the message names the settings.
    """
    if before != now:
        changed = ", ".join(name for name in {**before, **now} if before.get(name) != now.get(name))
        raise InputError(
            f"{holder} to resume was trained with other settings ({changed}): give the same, or begin anew (--force)"
        )


def optimiser_tensors(optimisers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The states of optimisers as tensors by name."""
    return {
        f"{_PREFIX}{number}.{weight}.{name}": value
        for number, optimiser in enumerate(optimisers)
        for weight, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_optimisers(optimisers: Sequence[torch.optim.Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Load what `optimiser_tensors` gave; tensors of other names are passed over."""
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimisers]
    for key, value in tensors.items():
        if key.startswith(_PREFIX):
            _, number, weight, name = key.split(".", 3)
            states[int(number)].setdefault(int(weight), {})[name] = value
    for optimiser, state in zip(optimisers, states, strict=True):
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
