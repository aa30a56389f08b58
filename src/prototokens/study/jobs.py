"""Jobs: what a study has runners do with a loaded model: describe it, draw texts, measure a batch of cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from . import study_module
from .scales import scale_named

if TYPE_CHECKING:
    from torch import Tensor

    from ..lm.frozen import FrozenLM
    from ..proto_tokens import ProtoTokens


@dataclass(frozen=True, eq=False)
class Measurement:
    """What was measured for one cell.

    Attributes:
        columns: results by column name, JSON scalars.
        vectors: what was scored: proto-tokens, or (K, D) [mem] vectors of the autoregressive baseline; None where there
            is nothing to keep.
    """

    columns: dict[str, Any]
    vectors: ProtoTokens | Tensor | None = None


def describe(lm: FrozenLM, recorded: Sequence[str]) -> dict[str, Any]:
    """Work: what a result must say about the model and the machine behind it.

    A fingerprint among the `recorded` that an earlier version gave the same weights stands for them still, so that a
    store's cells are found again.
    """
    import torch

    from ..lm.identity import library_versions, same_weights

    fingerprint = lm.identity.fingerprint
    if fingerprint not in recorded:
        fingerprint = next((former for former in recorded if same_weights(former, fingerprint)), fingerprint)

    device = lm.device
    return {
        "name": lm.identity.name,
        "identity": asdict(lm.identity),
        "origin": {
            "fingerprint": fingerprint,
            "revision": lm.identity.revision,
            "dtype": lm.dtype_name,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "threads": torch.get_num_threads(),
            "versions": library_versions(),
        },
        "max_positions": lm.max_positions,
    }


def draw_texts(lm: FrozenLM, job: dict[str, Any]) -> list[list[int]]:
    """Work: the ids of texts; a job has the arguments of `texts.sample`, but for the model."""
    from ..texts.sampling import sample

    return sample(lm=lm, **job).tolist()


def measure(lm: FrozenLM, job: dict[str, Any]) -> list[Measurement]:
    """Work: one batch of a study, `{"study": name, "cells": [settings ...], "ids": [[id ...] ...]}`."""
    import torch

    from ..fitting.memory import passes_planned_for

    for settings, ids in zip(job["cells"], job["ids"], strict=True):
        if len(ids) != settings["tokens"]:
            raise InputError(
                f"a text of {settings['tokens']} tokens is asked for, and {lm.identity.name} has {lm.max_positions} "
                f"positions: texts are drawn at {len(ids)} tokens"
            )
    gigabytes = scale_named(job["cells"][0]["scale"]).pass_gigabytes
    with passes_planned_for(gigabytes * 10**9):
        measurements: list[Measurement] = study_module(job["study"]).run(lm, job["cells"], torch.tensor(job["ids"]))
    assert len(measurements) == len(job["cells"]), job["study"]
    return measurements
