"""Archive: the frozen value that a document packs into, and its file."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..arrangements import Arrangement
from ..errors import InputError
from ..files.quantised import StoredVectors
from ..files.record import read_record, write_record
from ..lm.identity import Identity

KIND = "archive"
CHECKSUM_BYTES = 8  # of a chunk's SHA-256; that of the whole text is kept in full
_LONGEST = 2**31 - 1  # tokens of a chunk
_MOST_BYTES = 2**53


@dataclass(frozen=True, eq=False)
class Archive:
    """A document as the proto-tokens of its chunks, and all that is needed to restore the same bytes.

    The text is S consecutive pieces. A piece is a few literal bytes, followed by the text of the next chunks' ids,
    decoded together; either part can be empty. Thus a chunk may end inside a character, and no text is tokenised again.
    A chunk's ids are those that its vectors decode to, with the tokens of the residual put in their places.

    Attributes:
        model: the language model that the vectors belong to.
        arrangement: how vectors fill the input.
        m: the m-token that chunks share, float32, (D,); zeros if every chunk has its own.
        fixed: the arrangement's fixed vectors, float32, (F, D).
        lengths: tokens of each chunk, int64, (C,).
        own_m: whether a chunk has an m-token of its own instead, bool, (C,).
        vectors: each chunk's e-tokens, one for every block of the arrangement or else a single one, followed by the
            chunk's own m-token if it has one.
        checksums: the first 8 bytes of the SHA-256 of each chunk's ids, uint8, (C, 8).
        residual_positions: positions in the document of the tokens that do not come from vectors, rising, int64, (R,).
        residual_ids: their ids, int64, (R,).
        pieces: of each piece the number of literal bytes, of chunks, and of characters in all, int64, (S, 3).
        piece_checksums: CRC-32 of each piece's text, int64, (S,).
        literals: literal bytes of all pieces, UTF-8.
        text_hash: SHA-256 of the whole text, UTF-8.
        text_bytes: its length in bytes.
        packing: how it was packed: effort, margin, dtype, versions and the like.
    """

    model: Identity
    arrangement: Arrangement
    m: Tensor
    fixed: Tensor
    lengths: Tensor
    own_m: Tensor
    vectors: StoredVectors
    checksums: Tensor
    residual_positions: Tensor
    residual_ids: Tensor
    pieces: Tensor
    piece_checksums: Tensor
    literals: bytes
    text_hash: str
    text_bytes: int
    packing: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Refuse parts that contradict each other, so that no count is larger than what the file holds.

        Raises:
            InputError: they do.
        """
        self._check_record()
        chunks, width = self.lengths.shape[0], self.m.shape[-1]
        shapes = {
            "m": (width,),
            "fixed": (len(self.arrangement.fixed), width),
            "lengths": (chunks,),
            "own_m": (chunks,),
            "checksums": (chunks, CHECKSUM_BYTES),
            "residual_positions": (len(self.residual_ids),),
            "pieces": (len(self.pieces), 3),
            "piece_checksums": (len(self.pieces),),
        }
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise InputError(f"{name} is {tuple(getattr(self, name).shape)}; it must be {shape}")
        most = torch.tensor([len(self.literals), chunks, self.text_bytes])
        if bool((self.pieces < 0).any() or (self.pieces > most).any() or (self.lengths > _LONGEST).any()):
            raise InputError("the archive holds counts that do not fit its contents")  # before any sum can overflow
        positions = self.residual_positions
        holds = {
            "a chunk without tokens": bool((self.lengths < 1).any()),
            "another number of vectors than its chunks have": len(self.vectors) != int(self.vector_starts[-1]),
            "vectors of another width": self.vectors.float32.shape[-1] != width,
            "vectors that are not finite": not bool(self.m.isfinite().all() and self.fixed.isfinite().all()),
            "a residual outside its tokens": bool(((positions < 0) | (positions >= self.n_tokens)).any()),
            "a residual that is not in order": bool((positions.diff() < 1).any())
            or bool((self.residual_ids < 0).any()),
            "pieces that do not fit its chunks": self.pieces.sum(0)[:2].tolist() != [len(self.literals), chunks],
            "more characters than bytes": self.n_characters > self.text_bytes,
        }
        for what, is_so in holds.items():
            if is_so:
                raise InputError(f"the archive holds {what}")

    def _check_record(self) -> None:
        model = (self.model.name, self.model.fingerprint, self.model.tokenizer_hash, self.model.revision or "")
        if not all(isinstance(value, str) for value in (*model, self.text_hash)):
            raise InputError("the archive's model and hash must be text")
        if type(self.text_bytes) is not int or not 0 <= self.text_bytes <= _MOST_BYTES:
            raise InputError(f"the archive's text has {str(self.text_bytes)[:40]} bytes; it must be a number from 0")
        if not isinstance(self.packing, Mapping):
            raise InputError(f"the archive's packing record is {type(self.packing).__name__}; it must be an object")

    def __len__(self) -> int:
        """C, the number of chunks."""
        return len(self.lengths)

    @property
    def n_tokens(self) -> int:
        """Tokens of all chunks."""
        return int(self.lengths.sum())

    @property
    def n_characters(self) -> int:
        """Characters of the text."""
        return int(self.pieces[:, 2].sum())

    @property
    def share_from_vectors(self) -> float:
        """Share of the text's tokens that come from the vectors alone; 1 for an empty text.

        Each token of the residual and each literal byte counts as a token that does not.
        """
        total = self.n_tokens + len(self.literals)
        return (self.n_tokens - len(self.residual_ids)) / total if total else 1.0

    @cached_property
    def vector_starts(self) -> Tensor:
        """Where each chunk's vectors begin among all, and where the last end, int64, (C+1,)."""
        b = self.arrangement.block_length
        n_e_tokens = torch.ones_like(self.lengths) if b is None else (self.lengths + b - 1) // b
        return torch.cat([torch.zeros(1, dtype=torch.long), (n_e_tokens + self.own_m).cumsum(0)])

    @cached_property
    def token_starts(self) -> Tensor:
        """Where each chunk's tokens begin among the document's, and where the last ends, int64, (C+1,)."""
        return torch.cat([torch.zeros(1, dtype=torch.long), self.lengths.cumsum(0)])

    @cached_property
    def piece_starts(self) -> Tensor:
        """Literal bytes, chunks and characters before each piece, and in all, int64, (S+1, 3)."""
        return torch.cat([torch.zeros(1, 3, dtype=torch.long), self.pieces.cumsum(0)])

    def chunk_vectors(self, chunks: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of these chunks, int64, (n,), of one length: e (n, K, D) and m (n, D), float32."""
        first, with_m = self.vector_starts[chunks], self.own_m[chunks]
        after = self.vector_starts[chunks + 1] - with_m.long()  # the first vector that is no e-token of the chunk
        m = self.m.repeat(len(chunks), 1)
        m[with_m] = self.vectors.take(after[with_m])
        n_e_tokens = int(after[0] - first[0])
        every = first[:, None] + torch.arange(n_e_tokens)  # (n, K)
        return self.vectors.take(every.flatten()).unflatten(0, every.shape), m

    def patched(self, chunk: int, ids: Tensor) -> Tensor:
        """The ids of a chunk, int64, (T,), from those that its vectors decode to."""
        start, end = self.token_starts[chunk : chunk + 2]
        first, last = torch.searchsorted(self.residual_positions, torch.stack([start, end])).tolist()
        ids = ids.clone()
        ids[self.residual_positions[first:last] - start] = self.residual_ids[first:last]
        return ids

    def matches(self, chunk: int, ids: Tensor) -> bool:
        """Whether these ids have the checksum of that chunk."""
        return bool((checksum(ids) == self.checksums[chunk]).all())


def checksum(ids: Tensor) -> Tensor:
    """The first 8 bytes of the SHA-256 of ids (T,) as little-endian 64-bit integers, uint8, (8,)."""
    digest = hashlib.sha256(ids.to("cpu", torch.int64).numpy().astype("<i8").tobytes()).digest()
    return torch.tensor(list(digest[:CHECKSUM_BYTES]), dtype=torch.uint8)


def piece_checksum(text: str) -> int:
    """CRC-32 of a piece's text, UTF-8."""
    return zlib.crc32(text.encode())


def write_archive(path: str | os.PathLike[str], archive: Archive, *, overwrite: bool = False) -> Path:
    """Write an archive to a file, which appears whole or not at all.

    Raises:
        InputError: the file exists (and `overwrite` is not set), or cannot be written.
    """
    tensors = {name: _narrow(getattr(archive, name)) for name in _INTEGERS}
    tensors |= {f"vectors.{name}": tensor for name, tensor in archive.vectors.tensors().items()}
    tensors["vectors.store"] = archive.vectors.store.to(torch.uint8)
    if not archive.own_m.all():
        tensors["m"] = archive.m.half() if torch.equal(archive.m.half().float(), archive.m) else archive.m
    tensors |= {"fixed": archive.fixed, "own_m": archive.own_m, "checksums": archive.checksums}
    tensors["literals"] = torch.from_numpy(np.frombuffer(archive.literals, np.uint8).copy())
    record = {
        "arrangement": archive.arrangement.to_json(),
        "model": asdict(archive.model),
        "text_hash": archive.text_hash,
        "text_bytes": archive.text_bytes,
        "packing": dict(archive.packing),
    }
    return write_record(path, KIND, tensors, record, overwrite=overwrite)


def read_archive(path: str | os.PathLike[str]) -> Archive:
    """Read an archive that `write_archive` wrote.

    Raises:
        InputError: there is no such file, it is damaged or cut short, of a newer format, or no archive.
    """
    tensors, record = read_record(path, KIND)
    try:
        vectors = StoredVectors.from_tensors(
            {name.removeprefix("vectors."): t for name, t in tensors.items() if name.startswith("vectors.")}
        )
        return Archive(
            model=Identity(**record["model"]),
            arrangement=Arrangement.from_json(record["arrangement"]),
            m=_shared_m(tensors, vectors.float32.shape[-1]),
            fixed=tensors["fixed"].float(),
            own_m=tensors["own_m"].bool(),
            vectors=vectors,
            checksums=tensors["checksums"],
            literals=tensors["literals"].numpy().tobytes(),
            text_hash=record["text_hash"],
            text_bytes=record["text_bytes"],
            packing=record["packing"],
            **{name: _long(tensors[name]) for name in _INTEGERS},
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise InputError(f"{path}: its record cannot be read ({error!r})") from None


_INTEGERS = ("lengths", "residual_positions", "residual_ids", "pieces", "piece_checksums")


def _shared_m(tensors: Mapping[str, Tensor], width: int) -> Tensor:
    """The m-token that chunks share; zeros if the file holds none, since every chunk has its own."""
    return torch.zeros(width) if "m" not in tensors and tensors["own_m"].all() else tensors["m"].float()


def _long(values: Tensor) -> Tensor:
    if values.is_floating_point() or values.is_complex():
        raise TypeError(f"{values.dtype} in place of integers")
    return values.long()


def _narrow(values: Tensor) -> Tensor:
    """Integers from 0 in the smallest dtype that holds them all."""
    most = int(values.max()) if values.numel() else 0
    for dtype in (torch.uint8, torch.uint16, torch.int32):
        if most <= torch.iinfo(dtype).max:
            return values.to(dtype)
    return values
