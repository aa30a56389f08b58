"""Starter: a learned start for one model, so that a fit begins near where its solutions lie."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..arrangements import Arrangement
from ..errors import InputError
from ..files.record import read_record, write_record
from ..lm.identity import Identity, check_same_model

_KIND = "a learned start"


@dataclass(frozen=True, eq=False)
class Starter:
    """A start that was trained on other texts of the same model.

    A fit begins at e = mean embedding of the text's tokens + `e`, and m = `m`. Where every block of the text has an
    e-token of its own, each begins at the mean embedding of its block's tokens + `e`.

    Attributes:
        e: what is added to the mean embedding of the text's tokens, float32, (D,).
        m: the m-token that every text begins with, float32, (D,).
        arrangement: the arrangement that it was trained in. It serves no other, but blocks of any length if it was
            trained for blocks.
        model: the language model that it was trained on; it serves no other.
        training: how it was trained: texts, lengths, steps, seed, versions, and positions passed forward and backward.
        axes: orthogonal axes for the descent of e and of m, float16, (2, D, D), columns; None: the coordinates.
            Their directions are the eigenvectors of the second moments of unit gradients, met in the fits of its
            training. A step along an axis is in proportion to the axis's length, which was trained too.
    """

    e: Tensor
    m: Tensor
    arrangement: Arrangement
    model: Identity
    training: dict[str, Any]
    axes: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("e", "m"):
            tensor = getattr(self, name)
            if tensor.ndim != 1 or tensor.dtype != torch.float32 or not tensor.isfinite().all():
                raise InputError(f"a starter's {name} must be finite float32, (D,); it is {tuple(tensor.shape)}")
        width = len(self.m)
        if self.axes is not None and (self.axes.shape != (2, width, width) or not self.axes.isfinite().all()):
            raise InputError(
                f"a starter's axes must be finite, (2, {width}, {width}); they are {tuple(self.axes.shape)}"
            )

    @cached_property
    def name(self) -> str:
        """A short name that tells learned starts apart: `learned-` and the beginning of a hash of the vectors."""
        digest = hashlib.sha256(torch.cat([self.e, self.m]).numpy().tobytes())
        if self.axes is not None:
            digest.update(self.axes.numpy().tobytes())
        return f"learned-{digest.hexdigest()[:12]}"

    def check(self, model: Identity, arrangement: Arrangement) -> None:
        """Refuse another model or arrangement, and say which ones this start is for."""
        check_same_model("this learned start belongs", self.model, model)
        if not self.arrangement.is_of_family(arrangement):
            raise InputError(f"this learned start is for {self.arrangement.name!r}, not for {arrangement.name!r}")


def save_starter(
    path: str | os.PathLike[str],
    starter: Starter,
    *,
    overwrite: bool = False,
    unfinished: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a learned start to a `.safetensors` file; errors as in `save`.

    `unfinished` holds further tensors by name, which a training needs to resume; `load_starter` passes over them.
    """
    record = {
        "arrangement": starter.arrangement.to_json(),
        "model": asdict(starter.model),
        "training": starter.training,
    }
    tensors = {"e": starter.e, "m": starter.m} | ({} if starter.axes is None else {"axes": starter.axes})
    return write_record(path, _KIND, tensors | dict(unfinished or {}), record, overwrite=overwrite)


def load_starter(path: str | os.PathLike[str]) -> Starter:
    """Read a learned start that `save_starter` wrote; errors as in `load`."""
    return read_starter(path)[0]


def read_starter(path: str | os.PathLike[str]) -> tuple[Starter, dict[str, Tensor]]:
    """Read a learned start, and all tensors of its file; errors as in `load`."""
    tensors, record = read_record(path, _KIND)
    try:
        starter = Starter(
            e=tensors["e"],
            m=tensors["m"],
            arrangement=Arrangement.from_json(record["arrangement"]),
            model=Identity(**record["model"]),
            training=record["training"],
            axes=tensors.get("axes"),
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: its record cannot be read ({error!r})") from None
    return starter, tensors


def shipped_starter(model: Identity, arrangement: Arrangement) -> Starter | None:
    """The learned start that comes with the package for this model and arrangement, if there is one.

    Of several for blocks it is the one that was trained for blocks of the nearest length.
    """
    starters = [
        starter
        for starter in _shipped()
        if starter.model.fingerprint == model.fingerprint and starter.arrangement.is_of_family(arrangement)
    ]
    return min(starters, key=lambda starter: _ratio(starter.arrangement, arrangement), default=None)


def _ratio(one: Arrangement, other: Arrangement) -> float:
    """How many times longer the blocks of one are than those of the other, at least 1; 1 without blocks."""
    shorter, longer = sorted((one.block_length or 1, other.block_length or 1))
    return longer / shorter


@cache
def _shipped() -> tuple[Starter, ...]:
    folder = files("prototokens") / "shipped" / "starters"
    with as_file(folder) as path:
        return tuple(load_starter(p) for p in sorted(path.glob("*.safetensors")))
