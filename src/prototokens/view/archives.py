"""An archive as a scene: which tokens come from its vectors, and what each window costs."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from ..archive.archive import CHECKSUM_BYTES, KIND, Archive, read_archive
from ..archive.unpack import Reader
from ..files.record import read_record
from ..lm.frozen import FrozenLM
from ..lm.pieces import pieces
from .scenes import Film, Lane, Mark, Scene, Table, counted

MARKS = {
    "V": Mark("from the vectors", "blue-2"),
    "R": Mark("from the residual", "orange-2", "wave"),
    "T": Mark("kept as bytes: the tokenizer does not reproduce it", "grey", "dots"),
}
MOST_TOKENS = 4096
"""Tokens that are shown; the bytes of all windows are."""
_MOST_ROWS = 400
_SCALE_BYTES = 4  # of a vector in int8
_HEADS = ("window", "tokens", "residual tokens", "bytes", "for vectors", "for the residual", "for checks",
          "bytes per token")  # fmt: skip


def scene_of_archive(lm: FrozenLM, path: str | os.PathLike[str], archive: Archive | None = None) -> Scene:
    """The scene of an archive's file. Only the windows that are shown are decoded, each in one pass.

    Raises:
        InputError: it is no archive, it belongs to another model, or it does not decode.
    """
    archive = archive or read_archive(path)
    shown = _shown(archive)
    texts, marks = _tokens(lm, archive, shown)
    table, bytes_of_windows = _windows(archive, path)
    n_bytes, n_windows, n_tokens = Path(path).stat().st_size, len(archive), archive.n_tokens
    status = f"{archive.share_from_vectors:.1%} of {counted(n_tokens, 'token')} come from the vectors."
    words = [
        f"{n_bytes:,} bytes for {archive.text_bytes:,} bytes of text, by {archive.model.name}: "
        f"{counted(len(archive.vectors), 'vector')} in {counted(n_windows, 'window')}. One pass decodes a window.",
        f"{n_bytes - bytes_of_windows:,} bytes belong to no window: the record, the pieces of the text, and what all "
        "windows share.",
    ]
    if shown < n_windows:
        words.append(f"The first {counted(shown, 'window')} of {n_windows:,} are shown; the table has all of them.")
    ends = archive.token_starts[1 : shown + 1].tolist()
    film = Film("", [Lane("", [texts], [marks])], [status], "", [""], 0.0, ends=[] if "T" in marks else ends)
    title = f"An archive of {counted(archive.n_characters, 'character')}"
    return Scene("archive", title, words, [film], MARKS, tables=[table])


def _shown(archive: Archive) -> int:
    """How many windows are shown: those of whole pieces, up to `MOST_TOKENS`, and at least the first piece."""
    if not len(archive):
        return 0
    ends = archive.piece_starts[:, 1]  # windows up to the end of each piece
    ends = ends[ends > 0]
    n_pieces = int((archive.token_starts[ends] <= MOST_TOKENS).sum())
    return int(ends[max(n_pieces, 1) - 1])


def _tokens(lm: FrozenLM, archive: Archive, shown: int) -> tuple[list[str], str]:
    """Texts and marks of the tokens of the first windows, with the literal bytes between them."""
    ids_of = Reader(lm, archive).ids(range(shown))
    residual = set(archive.residual_positions.tolist())
    texts: list[str] = []
    marks = ""
    starts, token_starts = archive.piece_starts.tolist(), archive.token_starts.tolist()
    for (literal, chunk, _), (literal_end, chunk_end, _) in pairwise(starts):
        if chunk_end > shown:
            break
        if literal_end > literal:
            texts.append(archive.literals[literal:literal_end].decode(errors="replace"))
            marks += "T"
        if chunk_end > chunk:
            texts += pieces(lm, torch.cat([ids_of[c] for c in range(chunk, chunk_end)]))
            positions = range(token_starts[chunk], token_starts[chunk_end])
            marks += "".join("R" if position in residual else "V" for position in positions)
    return texts, marks


def _windows(archive: Archive, path: str | os.PathLike[str]) -> tuple[Table, int]:
    """The bytes of each window as the file holds them, and of all together."""
    stored, _ = read_record(path, KIND)
    width, starts = archive.m.shape[-1], archive.token_starts
    sizes = torch.tensor([width + _SCALE_BYTES, 2 * width, 4 * width])[archive.vectors.store]
    sizes += stored["vectors.store"].element_size()
    vectors = _sums(sizes, archive.vector_starts[1:])
    positions = archive.residual_positions
    n_residual = _sums(torch.ones_like(positions), torch.searchsorted(positions, starts[1:]))
    entry = stored["residual_positions"].element_size() + stored["residual_ids"].element_size()
    check = CHECKSUM_BYTES + stored["lengths"].element_size() + stored["own_m"].element_size()
    rows, total = [], torch.zeros(6, dtype=torch.long)
    for number, (length, missed, of_vectors) in enumerate(
        zip(archive.lengths.tolist(), n_residual.tolist(), vectors.tolist(), strict=True), start=1
    ):
        counts = torch.tensor([length, missed, of_vectors + missed * entry + check, of_vectors, missed * entry, check])
        total += counts
        if number <= _MOST_ROWS:
            rows.append((str(number), *_cells(counts)))
    left_out = len(archive) - len(rows)
    caption = "The bytes of each window." + (f" {left_out:,} more windows are in the sum alone." if left_out else "")
    return Table(caption, _HEADS, rows, ("all", *_cells(total)) if len(archive) > 1 else ()), int(total[2])


def _cells(counts: Tensor) -> list[str]:
    length, _, every, *_ = values = counts.tolist()
    return [*(f"{value:,}" for value in values), f"{every / length:.1f}"]


def _sums(values: Tensor, ends: Tensor) -> Tensor:
    """Sums of the values up to each of the rising ends, each without those before, int64, (C,)."""
    totals = torch.cat([torch.zeros(1, dtype=torch.long), values.cumsum(0)])[ends]
    return totals.diff(prepend=torch.zeros(1, dtype=torch.long))
