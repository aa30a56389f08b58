"""Quantised vectors: each is stored in float32, float16 or int8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError

STORES = ("int8", "float16", "float32")
"""The dtypes that vectors are stored in, the smallest first."""

_MOST = {"int8": 127, "int4": 7}


def rounded(vectors: Tensor, store: str) -> Tensor:
    """Vectors (..., D) as they are read again after storage in a dtype of `STORES`, or in int4; float32.

    int8 stores q = round(v / s) and one scale for every vector, s = max |v| / 127, float32; q s is read again.
    int4 does the same with 7; no archive uses it. float16 has no values above 65,504: larger ones become infinite.
    """
    if store in _MOST:
        q, scale = _integers(vectors, _MOST[store])
        return q.float() * scale
    return vectors.to(getattr(torch, store)).float()


def _integers(vectors: Tensor, most: int) -> tuple[Tensor, Tensor]:
    scale = vectors.abs().amax(-1, keepdim=True) / most  # (..., 1)
    return (vectors / scale.where(scale > 0, 1)).round().to(torch.int8), scale


@dataclass(frozen=True, eq=False)
class StoredVectors:
    """P vectors, each in the dtype that it is stored in.

    Attributes:
        store: the dtype of each vector, as its index in `STORES`, int64, (P,).
        int8: the vectors stored in int8, in order, (P_8, D).
        scale: their scales, float32, (P_8,).
        float16: the vectors stored in float16, in order, (P_16, D).
        float32: the vectors stored in float32, in order, (P_32, D).
    """

    store: Tensor
    int8: Tensor
    scale: Tensor
    float16: Tensor
    float32: Tensor

    def __post_init__(self) -> None:
        width = self.float32.shape[-1]
        known = self.store.ndim == 1 and not ((self.store < 0) | (self.store >= len(STORES))).any()
        counts = torch.bincount(self.store, minlength=len(STORES)).tolist() if known else [-1] * len(STORES)
        for name, count in zip(STORES, counts, strict=True):
            stored: Tensor = getattr(self, name)
            if tuple(stored.shape) != (count, width) or stored.dtype != getattr(torch, name):
                raise InputError(f"vectors stored in {name} are {tuple(stored.shape)} {stored.dtype}")
            if not stored.float().isfinite().all():
                raise InputError(f"vectors stored in {name} hold values that are not finite")
        if tuple(self.scale.shape) != (counts[0],) or not self.scale.isfinite().all():
            raise InputError(f"there are {tuple(self.scale.shape)} finite scales for {counts[0]} vectors in int8")

    @classmethod
    def of(cls, vectors: Tensor, stores: Sequence[str]) -> StoredVectors:
        """Store vectors (P, D), float32, each in the dtype of that name."""
        store = torch.tensor([STORES.index(name) for name in stores], dtype=torch.long)
        parts = [vectors[store == number] for number in range(len(STORES))]
        q, scale = _integers(parts[0], _MOST["int8"])
        return cls(store, q, scale.squeeze(-1).float(), parts[1].half(), parts[2].float())

    def __len__(self) -> int:
        return len(self.store)

    @property
    def counts(self) -> dict[str, int]:
        """How many vectors are stored in each dtype of `STORES`."""
        return {name: len(getattr(self, name)) for name in STORES}

    def take(self, indices: Tensor) -> Tensor:
        """The vectors at these indices, int64, (n,), as float32, (n, D)."""
        store = self.store[indices]
        vectors = torch.empty(len(indices), self.float32.shape[-1])
        for number, name in enumerate(STORES):
            has_dtype = store == number
            rank = (self.store == number).cumsum(0)[indices[has_dtype]] - 1  # among the vectors of that dtype
            rows: Tensor = getattr(self, name)[rank].float()
            vectors[has_dtype] = rows * self.scale[rank].unsqueeze(-1) if name == "int8" else rows
        return vectors

    def tensors(self) -> dict[str, Tensor]:
        """The tensors to write; `from_tensors` is the way back."""
        return {name: getattr(self, name) for name in ("store", "scale", *STORES)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> StoredVectors:
        """The vectors that `tensors` gave."""
        return cls(**{name: tensors[name] for name in ("scale", *STORES)}, store=tensors["store"].long())
