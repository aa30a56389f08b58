"""Checkpoints: all that a training needs to resume, in one safetensors file, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ...files.record import read_record, write_record
from ...files.trainings import optimiser_tensors, restore_optimisers
from ..network import EncoderNetwork

FILE = "checkpoint.safetensors"
_KIND = "an encoder's training"


@dataclass
class Progress:
    """How far a training is. Texts, lengths and noise are drawn from the seed and the step, so this is all its state.

    Attributes:
        step: optimiser steps taken.
        tokens: number of training tokens so far.
        positions: input positions passed forward through the LM for training, those of `Objective.refine_steps`
            included.
        seconds: wall time of training, over all runs.
        validation: the last validation's row of the curve.
    """

    step: int = 0
    tokens: int = 0
    positions: int = 0
    seconds: float = 0.0
    validation: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    path: str | os.PathLike[str],
    network: EncoderNetwork,
    optimisers: Sequence[torch.optim.Optimizer],
    progress: Progress,
    settings: dict[str, Any],
) -> None:
    """Write weights, the optimisers' states and progress.

    Args:
        path: where; an existing checkpoint is replaced.
        network: the weights.
        optimisers: of these weights.
        progress: how far training is.
        settings: the training's settings, as JSON values; a later run compares them with its own.
    """
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= optimiser_tensors(optimisers)
    write_record(path, _KIND, tensors, {"progress": vars(progress), "settings": settings}, overwrite=True)


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], Progress, dict[str, Any]]:
    """Tensors, progress and settings of a checkpoint.

    Raises:
        InputError: there is none, it is damaged, or it is of a former version.
    """
    tensors, record = read_record(path, _KIND)
    if "frontier" in record.get("progress", {}):
        raise InputError(
            f"{path}: a training of a former version, whose encoders had no blocks; begin anew (--force), or from its "
            "encoder in another folder (--begin)"
        )
    try:
        return tensors, Progress(**record["progress"]), record["settings"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: its record cannot be read ({error!r})") from None


def restore(tensors: dict[str, Tensor], network: EncoderNetwork, optimisers: Sequence[torch.optim.Optimizer]) -> None:
    """Load a checkpoint's tensors into the network and the optimisers."""
    network.load_state_dict({k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")})
    restore_optimisers(optimisers, tensors)
