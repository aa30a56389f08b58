"""unpack: the text of an archive, whole or in part, in batched single passes; every chunk is checked."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import InputError
from ..lm.frozen import FrozenLM, load_lm
from .archive import Archive, piece_checksum
from .chunks import chunk_logits, default_batch_tokens, in_batches


@dataclass(frozen=True)
class Decoding:
    """What it took to decode chunks.

    Attributes:
        chunks: chunks decoded.
        tokens: their tokens.
        forward_passes: passes of the model.
        alone: chunks that came right only alone in their batch.
        anew: chunks that came right only with the weights loaded anew.
        seconds: wall time.
    """

    chunks: int = 0
    tokens: int = 0
    forward_passes: int = 0
    alone: int = 0
    anew: int = 0
    seconds: float = 0.0


class Reader:
    """Reads an archive with a model: all of it or parts, never a wrong token.

    A chunk whose checksum fails is decoded once more alone in its batch, and then with the weights loaded anew, in
    float32 and in the dtype that it was packed with; if it fails still, it is named in an error.

    Args:
        lm: the model that the archive was packed with.
        archive: the archive.
        batch_tokens: tokens decoded side by side; None: from the memory at hand.
        anew: loads the weights anew in the dtype of that name; None: `load_lm` by the model's name.

    Attributes:
        decoding: what decoding took so far.

    Raises:
        InputError: the archive belongs to another model.
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
        _check_model(lm, archive)
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
        """The whole text, piece by piece, decoded a few batches ahead; its end is checked against the whole's hash."""
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
        if not 0 <= start <= stop <= self.archive.characters:
            raise InputError(
                f"the range is {start} to {stop}; it must lie in the {self.archive.characters} characters of the text"
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
            InputError: a chunk does not come right; the message names it.
        """
        began, waiting = time.perf_counter(), list(chunks)
        found: dict[int, Tensor] = {}
        self._count(chunks=len(waiting), tokens=sum(self.archive.lengths[chunk].item() for chunk in waiting))
        tried = []
        for turn in ("", "alone", *self._dtypes_anew()):
            if not waiting:
                break
            lm = self._loaded(turn) if turn not in ("", "alone") else self.lm
            if isinstance(lm, str):
                tried.append(f"not in {turn} anew ({lm})")
                continue
            right = self._pass(lm, waiting, 1 if turn else self.batch_tokens)
            found |= right
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
        return found

    def _pass(self, lm: FrozenLM, chunks: Sequence[int], batch_tokens: int) -> dict[int, Tensor]:
        """Ids of those of the chunks that come right."""
        right = {}
        lengths = self.archive.lengths[list(chunks)].tolist()
        for batch in in_batches(lengths, batch_tokens):
            numbers = [chunks[n] for n in batch]
            e, m = self.archive.chunk_vectors(torch.tensor(numbers))
            logits = chunk_logits(lm, self.archive.arrangement, lengths[batch[0]], e, m, self.archive.fixed)
            self._count(forward_passes=1)
            for number, ids in zip(numbers, logits.argmax(-1).cpu(), strict=True):
                patched = self.archive.patched(number, ids)
                if self.archive.is_right(number, patched):
                    right[number] = patched
        return right

    def _dtypes_anew(self) -> list[str]:
        """The dtypes to load the weights anew in: float32, and the one that the archive was packed with."""
        return list(dict.fromkeys(["float32", str(self.archive.packing.get("dtype", "float32"))]))

    def _loaded(self, dtype: str) -> FrozenLM | str:
        """The weights anew in a dtype, or why they cannot be had."""
        if dtype not in self._found_anew:
            try:
                lm = self._anew(dtype)
                same = lm.identity.fingerprint == self.lm.identity.fingerprint
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
        InputError: the archive belongs to another model, or chunks do not come right; the message names them.
    """
    return Reader(lm, archive).text()


def iter_text(lm: FrozenLM, archive: Archive) -> Iterator[str]:
    """The text piece by piece, each checked before it is given, while the rest is not decoded yet; else as `unpack`."""
    return Reader(lm, archive).texts()


def read_range(lm: FrozenLM, archive: Archive, start: int, stop: int) -> str:
    """Characters `start` ... `stop` - 1 of the text, decoding only the chunks that hold them; else as `unpack`."""
    return Reader(lm, archive).range(start, stop)


def chunk_ids(lm: FrozenLM, archive: Archive, chunk: int) -> Tensor:
    """Token ids of one chunk, int64, (T,), decoding no other; else as `unpack`."""
    return Reader(lm, archive).chunk_ids(chunk)


def _check_model(lm: FrozenLM, archive: Archive) -> None:
    own, wanted = lm.identity, archive.model
    if wanted.fingerprint != own.fingerprint:
        revision = f" at revision {wanted.revision}" if wanted.revision else ""
        raise InputError(
            f"this archive belongs to {wanted.name}{revision} (weights {wanted.fingerprint[:12]}), "
            f"not to {own.name} (weights {own.fingerprint[:12]})"
        )
    if wanted.tokenizer_hash != own.tokenizer_hash:
        raise InputError(f"this archive belongs to {wanted.name} with another tokenizer vocabulary")
    if archive.m.shape[-1] != lm.width:
        raise InputError(f"this archive holds vectors of width {archive.m.shape[-1]}, and {own.name} has {lm.width}")


def _loaded_anew(lm: FrozenLM, dtype: str) -> FrozenLM:
    return load_lm(lm.identity.name, revision=lm.identity.revision, dtype=dtype, device=lm.device)
