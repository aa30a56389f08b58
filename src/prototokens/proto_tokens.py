"""ProtoTokens: the frozen value that a fit finds, and its file."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .arrangements import MOST_TOKENS, Arrangement
from .errors import InputError
from .files.record import read_record, write_record
from .lm.identity import Identity

KIND = "proto-tokens"
_PROVENANCE_TYPES: dict[str, Any] = {
    "model": Identity,
    "target_hash": str,
    "token_accuracy": int | float,
    "min_margin": int | float,
    "loss": int | float,
    "dtype": str,
    "preset": str | None,
    "start": str,
    "seed": int,
    "versions": dict,
    "recipe": dict | None,
}


@dataclass(frozen=True)
class Provenance:
    """Where vectors come from, and their scores.

    Attributes:
        model: the language model they belong to.
        target_hash: `hash_ids` of the text's ids.
        token_accuracy: share of correct tokens when they were scored, at batch 1.
        min_margin: smallest logit margin over the tokens in that evaluation, in logits.
        loss: mean cross-entropy in that evaluation, in nats per token.
        dtype: the dtype that the model was loaded in, e.g. `"float32"`.
        preset: name of the recipe, or None.
        start: where the fit began: a kind of start, or the name of a learned one.
        seed: the seed of the fit.
        versions: versions of the libraries that made them.
        recipe: the recipe's settings as JSON values, where files of one list are compared by them; else None.
    """

    model: Identity
    target_hash: str
    token_accuracy: float
    min_margin: float
    loss: float
    dtype: str
    preset: str | None
    start: str
    seed: int
    versions: dict[str, str]
    recipe: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, kind in _PROVENANCE_TYPES.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise InputError(f"the provenance's {name} is {value!r:.80}; that is of another type than a fit writes")


@dataclass(frozen=True, eq=False)
class ProtoTokens:
    """The vectors of one text: all that is needed to decode it, and to trust it.

    Attributes:
        e: e-tokens, float32, (K, D).
        m: m-token, float32, (D,).
        length: T, the number of tokens of the text.
        arrangement: how e, m and the fixed vectors fill the input.
        provenance: model, scores and versions.
        fixed: the arrangement's fixed vectors in the order of `arrangement.fixed`, float32, (F, D).
    """

    e: Tensor
    m: Tensor
    length: int
    arrangement: Arrangement
    provenance: Provenance
    fixed: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    def __post_init__(self) -> None:
        if self.e.ndim != 2 or self.m.ndim != 1:
            raise InputError(f"e is {tuple(self.e.shape)} and m {tuple(self.m.shape)}; they must be (K, D) and (D,)")
        if self.fixed.numel() == 0:
            object.__setattr__(self, "fixed", self.m.new_empty(0, self.m.shape[-1]))
        width = self.m.shape[-1]
        for name, shape in (("e", (self.e.shape[0], width)), ("m", (width,)), ("fixed", self._fixed_shape)):
            tensor = getattr(self, name)
            if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
                raise InputError(f"{name} is {tuple(tensor.shape)} {tensor.dtype}; it must be {shape} torch.float32")
            if not tensor.isfinite().all():
                raise InputError(f"{name} holds values that are not finite; these vectors decode to nothing")
        if type(self.length) is not int or self.length < 1 or self.e.shape[0] < 1:
            raise InputError(f"length {self.length!r} with {self.e.shape[0]} e-tokens: both must be numbers from 1")
        if self.length > MOST_TOKENS:
            raise InputError(f"length {self.length} is above {MOST_TOKENS}, the most that one forward pass may decode")
        needed = self.arrangement.n_e_tokens(self.length, self.e.shape[0])
        if self.e.shape[0] != needed:
            raise InputError(
                f"{self.e.shape[0]} e-tokens for {self.length} tokens in {self.arrangement.name!r}: it takes {needed}"
            )

    @property
    def n_vectors(self) -> int:
        """The number of fitted vectors: K e-tokens and m."""
        return len(self.e) + 1

    @property
    def n_bytes(self) -> int:
        """The size of the fitted vectors in float32, in bytes."""
        return self.e.nbytes + self.m.nbytes

    @property
    def _fixed_shape(self) -> tuple[int, int]:
        return (len(self.arrangement.fixed), self.m.shape[-1])

    def inputs_embeds(self) -> Tensor:
        """The input of the one forward pass, (1, L, D), float32."""
        layout = self.arrangement.layout(self.length, self.e.shape[0])
        return layout.inputs_embeds(self.e.unsqueeze(0), self.m.unsqueeze(0), self.fixed)


def save(path: str | os.PathLike[str], tokens: ProtoTokens, *, overwrite: bool = False) -> Path:
    """Write proto-tokens to a `.safetensors` file; the name is taken as given.

    The file appears whole or not at all.

    Args:
        path: where to write.
        tokens: what to write.
        overwrite: replace an existing file.

    Returns:
        The path.

    Raises:
        InputError: the file exists (and `overwrite` is not set), or cannot be written.
    """
    record = {
        "length": tokens.length,
        "arrangement": tokens.arrangement.to_json(),
        "provenance": asdict(tokens.provenance),
    }
    tensors = {"e": tokens.e, "m": tokens.m, "fixed": tokens.fixed}
    return write_record(path, KIND, tensors, record, overwrite=overwrite)


def load(path: str | os.PathLike[str]) -> ProtoTokens:
    """Read proto-tokens from a file that `save` wrote.

    Raises:
        InputError: there is no such file, it is damaged, or it was not written by `save`.
    """
    tensors, record = read_record(path, KIND)
    try:
        provenance = dict(record["provenance"])
        model = Identity(**provenance.pop("model"))
        return ProtoTokens(
            e=tensors["e"],
            m=tensors["m"],
            fixed=tensors["fixed"],
            length=record["length"],
            arrangement=Arrangement.from_json(record["arrangement"]),
            provenance=Provenance(model=model, **provenance),
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: its record cannot be read ({error!r})") from None
