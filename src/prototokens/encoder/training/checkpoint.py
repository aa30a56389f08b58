"""Checkpoints: all that a training needs to resume, in one safetensors file, written whole or not at all."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ...files.record import read_record, write_record
from ..network import EncoderNetwork

FILE = "checkpoint.safetensors"
_KIND = "an encoder's training"


@dataclass
class Progress:
    """How far a training is. Texts, lengths and noise are drawn from the seed and the step, so this is all its state.

    Attributes:
        step: optimiser steps taken.
        frontier: the curriculum's longest length, in tokens.
        frontier_step: the step at which the frontier became that length.
        tokens: number of training tokens so far.
        positions: input positions passed forward through the LM for training, those of `Objective.refine_steps`
            included.
        seconds: wall time of training, over all runs.
        validation: the last validation's row of the curve.
    """

    step: int = 0
    frontier: int = 1
    frontier_step: int = 0
    tokens: int = 0
    positions: int = 0
    seconds: float = 0.0
    validation: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    path: str | os.PathLike[str],
    network: EncoderNetwork,
    optimiser: torch.optim.Optimizer,
    progress: Progress,
    settings: dict[str, Any],
) -> None:
    """Write weights, optimiser state and progress.

    Args:
        path: where; an existing checkpoint is replaced.
        network: the weights.
        optimiser: AdamW over them.
        progress: how far training is.
        settings: the training's settings, as JSON values; a later run compares them with its own.
    """
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for number, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{name}": value for name, value in state.items()}
    write_record(path, _KIND, tensors, {"progress": vars(progress), "settings": settings}, overwrite=True)


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], Progress, dict[str, Any]]:
    """Tensors, progress and settings of a checkpoint.

    Raises:
        InputError: there is none, or it is damaged.
    """
    tensors, record = read_record(path, _KIND)
    try:
        return tensors, Progress(**record["progress"]), record["settings"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: its record cannot be read ({error!r})") from None


def restore(tensors: dict[str, Tensor], network: EncoderNetwork, optimiser: torch.optim.Optimizer) -> None:
    """Load a checkpoint's tensors into the network and the optimiser."""
    network.load_state_dict({k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")})
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, number, name = key.split(".", 2)
            states.setdefault(int(number), {})[name] = value
    optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
