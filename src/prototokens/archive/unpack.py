"""unpack: the text of an archive, whole or in part, in batched single passes. Every chunk is checked."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..fitting.memory import free_bytes
from ..lm.frozen import FrozenLM
from ..lm.identity import check_same_model, same_weights
from ..lm.loading import load_lm
from .archive import Archive, piece_checksum
from .chunks import chunk_logits, default_batch_tokens, in_batches


@dataclass(frozen=True)
class Decoding:
    """What decoding took.

    Attributes:
        chunks: number of chunks decoded.
        n_tokens: number of their tokens.
        forward_passes: passes of the model.
        alone: chunks that were right only when decoded alone.
        anew: chunks that were right only after the weights were loaded again.
        seconds: wall time.
    """

    chunks: int = 0
    n_tokens: int = 0
    forward_passes: int = 0
    alone: int = 0
    anew: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The same as a record, under the names that `--json` prints."""
        record = asdict(self)
        return {"chunks": record.pop("chunks"), "tokens": record.pop("n_tokens"), **record}


class Reader:
    """Reads an archive with a model, all of it or parts, and never gives a wrong token.

    A chunk whose checksum fails is decoded once more alone. If it fails again, the weights are loaded again, in float32
    and in the dtype that it was packed with. If it still fails, it is named in an error.

    Args:
        lm: the model that the archive was packed with.
        archive: the archive.
        batch_tokens: tokens decoded side by side; None: from the free memory.
        anew: loads the weights again in the dtype of that name; None: `load_lm` by the model's name.

    Attributes:
        decoding: what decoding took so far.

    Raises:
        InputError: the archive belongs to another model, or the model cannot decode it.
    """

    def __init__(
        self,
        lm: FrozenLM,
        archive: Archive,
        *,
        batch_tokens: int | None = None,
        anew: Callable[[str], FrozenLM] | None = None,
    ) -> None:
        if batch_tokens is not None and batch_tokens < 1:
            raise InputError(f"batch_tokens is {batch_tokens}; it must be at least 1")
        _check_types(lm, archive)
        check_same_model("this archive belongs", archive.model, lm.identity)
        _check_fits(lm, archive)
        self.lm, self.archive = lm, archive
        self.batch_tokens = batch_tokens or default_batch_tokens(lm)
        self.decoding = Decoding()
        self._anew = anew or (lambda dtype: _loaded_anew(lm, dtype))
        self._found_anew: dict[str, FrozenLM | str] = {}

    def chunk_ids(self, chunk: int) -> Tensor:
        """Token ids of one chunk, int64, (T,)."""
        if not 0 <= chunk < len(self.archive):
            raise InputError(f"chunk is {chunk}; the archive has {len(self.archive)}, counted from 0")
        return self.ids([chunk])[chunk]

    def text(self) -> str:
        """The whole text."""
        return "".join(self.texts())

    def texts(self) -> Iterator[str]:
        """The whole text, piece by piece, decoded a few batches ahead; at its end the hash of the whole is checked."""
        digest, count = hashlib.sha256(), 0
        for piece in self._pieces(0, len(self.archive.pieces)):
            raw = piece.encode()
            digest.update(raw)
            count += len(raw)
            yield piece
        if digest.hexdigest() != self.archive.text_hash or count != self.archive.text_bytes:
            raise InputError("the text does not match the hash of what was packed")

    def range(self, start: int, stop: int) -> str:
        """Characters `start` ... `stop` - 1 of the text; only the chunks that hold them are decoded."""
        if not 0 <= start <= stop <= self.archive.n_characters:
            raise InputError(
                f"the range is {start} to {stop}; it must lie in the {self.archive.n_characters} characters of the text"
            )
        ends = self.archive.piece_starts[:, 2].contiguous()
        first, last = torch.searchsorted(ends, torch.tensor([start, stop]), right=False).tolist()
        first = max(0, first - (int(ends[first]) > start))
        text = "".join(self._pieces(first, last))
        return text[start - int(ends[first]) :][: stop - start]

    def _pieces(self, first: int, last: int) -> Iterator[str]:
        """Texts of pieces first ... last - 1, with the chunks of a few batches decoded at a time."""
        starts, waiting = self.archive.piece_starts, first
        while waiting < last:
            end, most = waiting + 1, int(self.archive.token_starts[starts[waiting, 1]]) + self.batch_tokens
            while end < last and self.archive.token_starts[starts[end + 1, 1]] <= most:
                end += 1
            ids = self.ids(range(int(starts[waiting, 1]), int(starts[end, 1])))
            for piece in range(waiting, end):
                yield self._piece(piece, ids)
            waiting = end

    def _piece(self, piece: int, ids: dict[int, Tensor]) -> str:
        (literal, chunk, character), (literal_end, chunk_end, character_end) = self.archive.piece_starts[
            piece : piece + 2
        ].tolist()
        text = self.archive.literals[literal:literal_end].decode(errors="replace")
        if chunk_end > chunk:
            text += self.lm.decode(torch.cat([ids[c] for c in range(chunk, chunk_end)]))
        wrong = piece_checksum(text) != int(self.archive.piece_checksums[piece])
        if wrong or len(text) != character_end - character:
            raise InputError(
                f"characters {character} to {character_end}: the right tokens give another text than was packed; "
                "this tokenizer decodes otherwise than the one that packed it (another version of its library?)"
            )
        return text

    def ids(self, chunks: Iterable[int]) -> dict[int, Tensor]:
        """Token ids of these chunks by their numbers, int64, (T,) each, decoded side by side.

        Raises:
            InputError: a chunk stays wrong; the message names it.
        """
        began, waiting = time.perf_counter(), list(chunks)
        ids_of: dict[int, Tensor] = {}
        self._count(chunks=len(waiting), n_tokens=sum(self.archive.lengths[chunk].item() for chunk in waiting))
        tried = []
        for turn in ("", "alone", *self._dtypes_anew()):
            if not waiting:
                break
            lm = self._loaded(turn) if turn not in ("", "alone") else self.lm
            if isinstance(lm, str):
                tried.append(f"not in {turn} anew ({lm})")
                continue
            right = self._pass(lm, waiting, 1 if turn else self.batch_tokens)
            ids_of |= right
            waiting = [chunk for chunk in waiting if chunk not in right]
            if turn:
                self._count(**{"alone" if turn == "alone" else "anew": len(right)})
                tried.append("alone in their batch" if turn == "alone" else f"with the weights anew in {turn}")
        self._count(seconds=time.perf_counter() - began)
        if waiting:
            named = " ".join(map(str, waiting[:8])) + (" ..." if len(waiting) > 8 else "")
            raise InputError(
                f"at least {len(waiting)} of {len(self.archive)} chunks do not decode to the tokens that were packed "
                f"(counted from 0: {named}); tried: {'; '.join(tried)}; "
                "decode with the model loaded as it was packed "
                f"({self.archive.packing.get('dtype', 'float32')}) or on another machine"
            )
        return ids_of

    def _pass(self, lm: FrozenLM, chunks: Sequence[int], batch_tokens: int) -> dict[int, Tensor]:
        """Ids of those of the chunks that match their checksums."""
        right = {}
        lengths = self.archive.lengths[list(chunks)].tolist()
        for batch in in_batches(lengths, batch_tokens):
            numbers = [chunks[n] for n in batch]
            e, m = self.archive.chunk_vectors(torch.tensor(numbers))
            logits = chunk_logits(lm, self.archive.arrangement, lengths[batch[0]], e, m, self.archive.fixed)
            self._count(forward_passes=1)
            for number, ids in zip(numbers, logits.argmax(-1).cpu(), strict=True):
                patched = self.archive.patched(number, ids)
                if self.archive.matches(number, patched):
                    right[number] = patched
        return right

    def _dtypes_anew(self) -> list[str]:
        """The dtypes to load the weights in again: float32, and the one that the archive was packed with."""
        return list(dict.fromkeys(["float32", str(self.archive.packing.get("dtype", "float32"))]))

    def _loaded(self, dtype: str) -> FrozenLM | str:
        """The model with its weights loaded again in a dtype, or the reason why that fails."""
        if dtype not in self._found_anew:
            try:
                lm = self._anew(dtype)
                same = same_weights(lm.identity.fingerprint, self.lm.identity.fingerprint)
                self._found_anew[dtype] = lm if same else "they are others by now"
            except InputError as error:
                self._found_anew[dtype] = str(error)
        return self._found_anew[dtype]

    def _count(self, **more: float) -> None:
        old = self.decoding
        self.decoding = replace(old, **{name: getattr(old, name) + value for name, value in more.items()})


def unpack(lm: FrozenLM, archive: Archive) -> str:
    """The text that was packed: the same characters, or an error.

    Args:
        lm: the model that the archive was packed with; any dtype, device and number of threads.
        archive: what `pack` made or `read_archive` read.

    Raises:
        InputError: an argument is of another type, the archive belongs to another model, or chunks stay wrong; the
            message names them.
    """
    return Reader(lm, archive).text()


def iter_text(lm: FrozenLM, archive: Archive) -> Iterator[str]:
    """The text piece by piece, each checked before it is given; the rest is decoded later. Else as `unpack`."""
    return Reader(lm, archive).texts()


def read_range(lm: FrozenLM, archive: Archive, start: int, stop: int) -> str:
    """Characters `start` ... `stop` - 1 of the text, decoding only the chunks that hold them; else as `unpack`."""
    return Reader(lm, archive).range(start, stop)


def chunk_ids(lm: FrozenLM, archive: Archive, chunk: int) -> Tensor:
    """Token ids of one chunk, int64, (T,), decoding no other; else as `unpack`."""
    return Reader(lm, archive).chunk_ids(chunk)


def _check_types(lm: object, archive: object) -> None:
    """Say what was meant where arguments are of another type.

    Raises:
        InputError: one is.
    """
    if isinstance(lm, Archive):
        raise InputError("the archive comes second: unpack(lm, archive)")
    if isinstance(archive, str | os.PathLike):
        path = os.fspath(archive)
        raise InputError(f"archive is the path {path}; read it first: unpack(lm, read_archive({path!r}))")
    if not isinstance(archive, Archive):
        raise InputError(f"archive is {type(archive).__name__}; it must be an Archive, as from pack or read_archive")
    if not isinstance(lm, FrozenLM):
        raise InputError(f"lm is {type(lm).__name__}; it must be a FrozenLM, as from load_lm")


def _check_fits(lm: FrozenLM, archive: Archive) -> None:
    """Refuse an archive that the model cannot decode, before memory is taken for it.

    Raises:
        InputError: it has vectors of another width, a chunk too long for the model or for the memory, or ids that the
            model does not have.
    """
    name = lm.identity.name
    if archive.m.shape[-1] != lm.width:
        raise InputError(f"this archive holds vectors of width {archive.m.shape[-1]}, and {name} has {lm.width}")
    if bool((archive.residual_ids >= lm.vocabulary).any()):
        raise InputError(f"this archive holds token ids from {lm.vocabulary} on, and {name} has none of these")
    longest = int(archive.lengths.max()) if len(archive) else 0
    positions = len(archive.arrangement.layout(1).slots) + longest - 1
    if lm.max_positions is not None and positions > lm.max_positions:
        raise InputError(
            f"this archive holds a chunk of {longest} tokens, which needs {positions} positions, and {name} has "
            f"{lm.max_positions}"
        )
    needed, free = longest * lm.vocabulary * 4, free_bytes(lm)
    if free is not None and needed > free:
        raise InputError(
            f"this archive holds a chunk of {longest} tokens, whose logits take {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free"
        )


def _loaded_anew(lm: FrozenLM, dtype: str) -> FrozenLM:
    return load_lm(lm.identity.name, revision=lm.identity.revision, dtype=dtype, device=lm.device)
