"""Assembly: from fitted chunks to an archive: dtypes of the vectors, the residual, and the text's pieces."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..arrangements import Arrangement
from ..files.quantised import STORES, StoredVectors, rounded
from ..lm.frozen import FrozenLM
from .archive import CHECKSUM_BYTES, Archive, checksum, piece_checksum
from .chunk_fits import is_held
from .chunks import chunk_logits, in_batches
from .efforts import ChunkFit
from .segments import Segment, cut_into_pieces

_LOST_SHARE = 0.05  # of a chunk's tokens; in the residual they take less than the next larger dtype


def assemble(
    lm: FrozenLM,
    arrangement: Arrangement,
    segments: Sequence[Segment],
    fits: Sequence[ChunkFit],
    m: Tensor,
    *,
    store: str,
    margin: float,
    batch_tokens: int,
    packing: Mapping[str, Any],
) -> Archive:
    """Make the archive of a document.

    Args:
        lm: the frozen model.
        arrangement: how vectors fill the input.
        segments: the whole text.
        fits: chunks in order, that cover the ids of all segments.
        m: the m-token that chunks share, (D,).
        store: one of `STORES`, or `"auto"`.
        margin: see `is_held`.
        batch_tokens: tokens that are decoded side by side.
        packing: what to record.
    """
    ids = torch.cat([torch.empty(0, dtype=torch.long), *(s.ids for s in segments)])
    fixed = lm.fixed_vectors(arrangement.fixed).cpu()
    chosen = Stores(lm, arrangement, fits, ids, m, fixed, margin, batch_tokens)
    stores = chosen.smallest() if store == "auto" else [_fitting(fit, store) for fit in fits]
    every_held = chosen.held(range(len(fits)), stores)
    if lm.dtype != torch.float32:  # other batch sizes change leads by more than a margin there
        every_held = [a & b for a, b in zip(every_held, chosen.alone(stores), strict=True)]
    missed = [~held for held in every_held]
    vectors: list[Tensor] = []
    store_of: list[str] = []
    for fit, name in zip(fits, stores, strict=True):
        of_chunk = _vectors(fit)
        vectors.append(of_chunk)
        store_of += [name] * len(of_chunk)
    residual = torch.cat([torch.empty(0, dtype=torch.bool), *missed]).nonzero().squeeze(1)
    checksums = [checksum(ids[fit.chunk.start : fit.chunk.stop]) for fit in fits]
    pieces, piece_checksums, literals = _pieces(lm, segments, [fit.chunk.length for fit in fits])
    raw = "".join(s.text for s in segments).encode()
    return Archive(
        model=lm.identity,
        arrangement=arrangement,
        m=m if any(fit.m is None for fit in fits) else torch.zeros_like(m),
        fixed=fixed,
        lengths=torch.tensor([fit.chunk.length for fit in fits], dtype=torch.long),
        own_m=torch.tensor([fit.m is not None for fit in fits], dtype=torch.bool),
        vectors=StoredVectors.of(torch.cat([torch.empty(0, lm.width), *vectors]), store_of),
        checksums=torch.cat([torch.empty(0, dtype=torch.uint8), *checksums]).reshape(len(fits), CHECKSUM_BYTES),
        residual_positions=residual,
        residual_ids=ids[residual],
        pieces=pieces,
        piece_checksums=piece_checksums,
        literals=literals,
        text_hash=hashlib.sha256(raw).hexdigest(),
        text_bytes=len(raw),
        packing=packing,
    )


def _fitting(fit: ChunkFit, store: str) -> str:
    """The dtype that was asked for, or float32 where it cannot hold a chunk's vectors."""
    return store if rounded(_vectors(fit), store).isfinite().all() else STORES[-1]


def _vectors(fit: ChunkFit) -> Tensor:
    """The vectors of a chunk as they are stored: its e-tokens, and its own m-token if it has one, (P, D)."""
    return fit.e if fit.m is None else torch.cat([fit.e, fit.m.unsqueeze(0)])


class Stores:
    """Which tokens the chunks' vectors give after storage in a dtype."""

    def __init__(
        self,
        lm: FrozenLM,
        arrangement: Arrangement,
        fits: Sequence[ChunkFit],
        ids: Tensor,
        m: Tensor,
        fixed: Tensor,
        margin: float,
        batch_tokens: int,
    ) -> None:
        self.lm, self.arrangement, self.fits, self.margin = lm, arrangement, fits, margin
        self.ids, self.m, self.fixed, self.batch_tokens = ids, m, fixed, batch_tokens

    def smallest(self) -> list[str]:
        """For each chunk the smallest dtype in which it loses at most a twentieth of its tokens to rounding."""
        every = list(range(len(self.fits)))
        wanted = self.held(every, [STORES[-1]] * len(every))
        stores, waiting = [STORES[-1]] * len(every), every
        for store in STORES[:-1]:
            held_each = self.held(waiting, [store] * len(waiting))
            lost = [int((wanted[n] & ~held).sum()) for n, held in zip(waiting, held_each, strict=True)]
            kept = [n for n, count in zip(waiting, lost, strict=True) if count <= _LOST_SHARE * len(wanted[n])]
            for number in kept:
                stores[number] = store
            waiting = [n for n in waiting if stores[n] == STORES[-1]]
        return stores

    def held(self, chunks: Sequence[int], stores: Sequence[str]) -> list[Tensor]:
        """For each of these chunks, stored in these dtypes, which tokens its vectors give, bool, (T,)."""
        held_each: list[Tensor] = [torch.empty(0, dtype=torch.bool)] * len(chunks)
        fits = [self.fits[chunk] for chunk in chunks]
        for batch in in_batches([fit.chunk.length for fit in fits], self.batch_tokens):
            e = torch.stack([rounded(fits[n].e, stores[n]) for n in batch])  # (B, K, D)
            m = torch.stack([self._m(fits[n], stores[n]) for n in batch])  # (B, D)
            targets = torch.stack([self.ids[fits[n].chunk.start : fits[n].chunk.stop] for n in batch])
            logits = chunk_logits(self.lm, self.arrangement, targets.shape[1], e, m, self.fixed)
            for number, held in zip(batch, is_held(logits, targets, self.margin, self.lm.dtype), strict=True):
                held_each[number] = held
        return held_each

    def alone(self, stores: Sequence[str]) -> list[Tensor]:
        """`held` for every chunk, each in a pass of its own, as a reader decodes chunks that fail in a batch."""
        batch_tokens, self.batch_tokens = self.batch_tokens, 1
        held_each = self.held(range(len(self.fits)), stores)
        self.batch_tokens = batch_tokens
        return held_each

    def _m(self, fit: ChunkFit, store: str) -> Tensor:
        return self.m if fit.m is None else rounded(fit.m, store)


def _pieces(lm: FrozenLM, segments: Sequence[Segment], lengths: Sequence[int]) -> tuple[Tensor, Tensor, bytes]:
    """Pieces of the text, (S, 3), their checksums, (S,), and all literal bytes."""
    rows: list[list[int]] = []
    checksums: list[int] = []
    literals, first = b"", 0
    for segment in segments:
        begin = 0
        if not len(segment.ids):
            literals += segment.text.encode()
            rows.append([len(segment.text.encode()), 0, len(segment.text)])
            checksums.append(piece_checksum(segment.text))
            continue
        last, n_tokens = first, 0
        while n_tokens < len(segment.ids):
            n_tokens, last = n_tokens + lengths[last], last + 1
        for piece in cut_into_pieces(lm, segment, lengths[first:last]):
            lead = piece.lead.encode()
            literals += lead
            rows.append([len(lead), piece.chunks, piece.characters])
            checksums.append(piece_checksum(segment.text[begin : begin + piece.characters]))
            begin += piece.characters
        first = last
    shape = (len(rows), 3)
    return torch.tensor(rows, dtype=torch.long).reshape(shape), torch.tensor(checksums, dtype=torch.long), literals
