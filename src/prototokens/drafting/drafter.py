"""Drafter: learned inputs for one model, at whose outputs the tokens behind the next one are drafted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..files.record import read_record, write_record
from ..lm.frozen import FrozenLM
from ..lm.identity import Identity, check_same_model, hash_weights, library_versions
from .network import DrafterConfig, DrafterNetwork
from .states import state_width

_KIND = "a drafter"
_UNFINISHED = "unfinished."
_VOCABULARY = "vocabulary"


@dataclass(frozen=True, eq=False)
class Drafter:
    """Learned inputs at whose outputs a frozen model drafts its own continuation, and a small reader of these outputs.

    Attributes:
        config: how it is built.
        model: the language model that it was trained on; it serves no other.
        network: the weights, float32.
        training: how it was trained: settings, steps, versions.
        acceptance: row n: with n of the M masks behind a token, for each of the D drafts the share of unseen places at
            which it and all drafts before it were what the model writes, (M + 1) rows of D.
        vocabulary: the ids of the tokens that can be drafted, int64, (S,), ascending, on the CPU; None: all.
    """

    config: DrafterConfig
    model: Identity
    network: DrafterNetwork
    training: dict[str, Any]
    acceptance: tuple[tuple[float, ...], ...]
    vocabulary: Tensor | None = None

    def __post_init__(self) -> None:
        config, rows = self.config, self.acceptance
        widths = {len(row) for row in rows}
        if len(rows) != config.n_masks + 1 or widths != {config.n_drafts}:
            raise InputError(f"acceptance must have {config.n_masks + 1} rows of {config.n_drafts} shares")
        if not all(0 <= share <= 1 for row in rows for share in row):
            raise InputError(f"acceptance is {rows}; it must be shares from 0 to 1")
        ids = self.vocabulary
        if ids is not None and (ids.ndim != 1 or ids.dtype != torch.long or not len(ids) or (ids.diff() <= 0).any()):
            raise InputError("a drafter's vocabulary must be ids in ascending order, int64, (S,), at least one")

    @classmethod
    def untrained(cls, lm: FrozenLM, config: DrafterConfig | None = None, *, seed: int = 0) -> Drafter:
        """A drafter whose inputs are the model's mean embedding.

        Args:
            lm: the model that it is for.
            config: how to build it.
            seed: what the network's first layer is drawn from.
        """
        config = config or DrafterConfig()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = DrafterNetwork(config, lm.width, state_width(lm))
        network.begin_at(lm.embedding_statistics)
        training = {"step": 0, "versions": library_versions()}
        rows = (tuple(0.5**i * (i <= n) for i in range(1, config.n_drafts + 1)) for n in range(config.n_masks + 1))
        return cls(config, lm.identity, network.to(lm.device), training, tuple(rows))

    @cached_property
    def n_weights(self) -> int:
        """The number of trained weights."""
        return sum(p.numel() for p in self.network.parameters())

    @property
    def name(self) -> str:
        """A short name that tells drafters apart: `drafter-` and the first digits of a hash of the weights."""
        return f"drafter-{hash_weights(self.network.state_dict().values())[:12]}"

    def check(self, model: Identity) -> None:
        """Refuse another model, and say which one this drafter is for."""
        check_same_model("this drafter belongs", self.model, model)


def save_drafter(
    path: str | os.PathLike[str],
    drafter: Drafter,
    *,
    overwrite: bool = False,
    dtype: torch.dtype = torch.float32,
    unfinished: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a drafter to a `.safetensors` file; errors as in `save`.

    Args:
        path: where to write.
        drafter: what to write.
        overwrite: replace a file that is there.
        dtype: of the weights on disk; `torch.float16` halves the file. They are float32 again when loaded.
        unfinished: further tensors by name, which a training needs to resume; `load_drafter` passes over them.
    """
    record = {
        "config": asdict(drafter.config),
        "model": asdict(drafter.model),
        "training": drafter.training,
        "acceptance": [list(row) for row in drafter.acceptance],
        "state_width": drafter.network.state_width,
    }
    tensors = {name: tensor.to(dtype) for name, tensor in drafter.network.state_dict().items()}
    if drafter.vocabulary is not None:
        tensors[_VOCABULARY] = drafter.vocabulary
    tensors |= {f"{_UNFINISHED}{name}": tensor for name, tensor in (unfinished or {}).items()}
    return write_record(path, _KIND, tensors, record, overwrite=overwrite)


def load_drafter(path: str | os.PathLike[str]) -> Drafter:
    """Read a drafter that `save_drafter` wrote, on the CPU; errors as in `load`."""
    return read_drafter(path)[0]


def read_drafter(path: str | os.PathLike[str]) -> tuple[Drafter, dict[str, Tensor]]:
    """Read a drafter, and what its training needs to resume: nothing if it has ended; errors as in `load`."""
    tensors, record = read_record(path, _KIND)
    unfinished = {k.removeprefix(_UNFINISHED): tensors.pop(k) for k in list(tensors) if k.startswith(_UNFINISHED)}
    vocabulary = tensors.pop(_VOCABULARY, None)
    try:
        config = DrafterConfig(**record["config"])
        with torch.device("meta"):  # no memory for what the record only claims, and no random draws
            network = DrafterNetwork(config, tensors["masks"].shape[1], int(record["state_width"]))
        # Copied, since a file's tensors may lie at odd addresses, where kernels round in another way.
        weights = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
        network.load_state_dict(weights, assign=True)
        model, rows = Identity(**record["model"]), tuple(map(tuple, record["acceptance"]))
        return Drafter(config, model, network, dict(record["training"]), rows, vocabulary), unfinished
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise InputError(f"{path}: its record cannot be read ({' '.join(str(error).split())[:200]})") from None


def shipped_drafter(model: Identity) -> Drafter | None:
    """The drafter that comes with the package for this model, if there is one."""
    return next((drafter for drafter in _shipped() if drafter.model.fingerprint == model.fingerprint), None)


@cache
def _shipped() -> tuple[Drafter, ...]:
    folder = files("prototokens") / "shipped" / "drafters"
    with as_file(folder) as path:
        return tuple(load_drafter(p) for p in sorted(path.glob("*.safetensors")))
