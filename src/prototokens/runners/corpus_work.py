"""The work of encoding a corpus: the texts of one row group, batched by length, on a model and an encoder."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..archive.chunks import chunk_logits, in_batches
from ..encoder.encoding import Encoder, encoder_vectors, shipped_encoder
from ..errors import InputError
from ..lm.frozen import FrozenLM
from ..lm.identity import Identity
from ..texts.tables import Row
from .vectors_table import pack_rows

BLANK = "is blank"
"""Why a row without text is passed over."""

_FORMAT = 1
_BATCH_TOKENS, _BATCH_TOKENS_ON_A_GPU = 256, 2048  # not by free memory: a call that resumes makes the same batches


def encode_group(lm: FrozenLM, job: dict[str, Any]) -> dict[str, Tensor]:
    """Work: encode the texts of a row group, batched by length, and score the vectors as they are stored."""
    rows: list[dict[str, Any]] = []
    passed_over: list[tuple[int, str]] = []
    encoder = _encoder_of(lm, job["encoder"])
    for row in job["rows"]:
        try:
            rows += _pieces(lm, encoder, row, job)
        except InputError as error:
            passed_over.append((row.number, str(error)))
    for batch in in_batches([len(row["ids"]) for row in rows], job["batch_tokens"]):
        ids = torch.stack([rows[place]["ids"] for place in batch])
        vectors, n_right = _vectors(lm, encoder, ids)
        for place, of_row, right in zip(batch, vectors, n_right, strict=True):
            rows[place] |= {"vectors": of_row, "n_right": right}
    return pack_rows(rows, passed_over) | {
        "group": torch.tensor(job["group"]),
        "rows_read": torch.tensor(len(job["rows"])),
        "digest": job["digest"],
    }


def _pieces(lm: FrozenLM, encoder: Encoder, row: Row, job: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that a text becomes, without their vectors.

    Raises:
        InputError: it cannot be encoded.
    """
    if row.problem is not None:
        raise InputError(row.problem)
    if row.text is None:
        raise InputError(BLANK)
    ids = lm.encode(row.text).cpu()
    kept = ids[: job["n_tokens"]]
    pieces = kept.split(job["piece_tokens"] or len(kept))
    longest, bound = len(pieces[0]), lm.max_positions
    needed = len(encoder.config.arrangement.layout(longest).slots)
    if bound is not None and needed > bound:
        raise InputError(
            f"has {longest} tokens, which need {needed} of the {bound} positions of {lm.identity.name}: "
            "cut texts (--piece-tokens), or keep their first tokens (--tokens)"
        )
    whole = len(pieces) == 1 and len(kept) == len(ids)
    return [
        {"row": row.number, "piece": place, "text": row.text if whole else lm.decode(piece), "ids": piece}
        for place, piece in enumerate(pieces)
    ]


@torch.no_grad()
def _vectors(lm: FrozenLM, encoder: Encoder, ids: Tensor) -> tuple[Tensor, list[int]]:
    """Vectors of texts (B, T) as they are stored, float16, (B, K + 1, D), and how many tokens they give back."""
    e, m = encoder_vectors(encoder, lm, ids)  # (B, K, D), (B, D)
    stored = torch.cat([e, m.unsqueeze(1)], 1).half()
    arrangement = encoder.config.arrangement
    fixed = lm.fixed_vectors(arrangement.fixed)
    taken = stored.float()
    logits = chunk_logits(lm, arrangement, ids.shape[1], taken[:, :-1], taken[:, -1], fixed)
    n_right = (logits.argmax(-1) == ids.to(logits.device)).sum(-1)
    return stored.cpu(), n_right.tolist()


def describe(lm: FrozenLM, job: dict[str, Any]) -> dict[str, Any]:
    """Work: what the table says about its vectors; finished row groups depend on all of it."""
    encoder = _encoder_of(lm, job["encoder"])
    described: dict[str, Any] = {
        "format": _FORMAT,
        "model": lm.identity.name,
        "model_revision": lm.identity.revision,
        "model_fingerprint": lm.identity.fingerprint,
        "tokenizer_hash": lm.identity.tokenizer_hash,
        "dtype": lm.dtype_name,
        "encoder": encoder.name,
        "arrangement": encoder.config.arrangement.to_json(),
        "width": lm.width,
        "batch_tokens": job["batch_tokens"] or (_BATCH_TOKENS_ON_A_GPU if lm.device.type == "cuda" else _BATCH_TOKENS),
    }
    plain: dict[str, Any] = json.loads(json.dumps(described))  # as it comes back from a file
    return plain


def _encoder_of(lm: FrozenLM, name: str | None) -> Encoder:
    """The named encoder, or the shipped one; it is loaded again only if its file has changed."""
    file = None if name is None else Path(name) / "model.safetensors"
    changed = file.stat().st_mtime_ns if file is not None and file.exists() else 0
    encoder = _loaded(name, lm.identity, changed)
    encoder.check(lm.identity)
    return encoder


@lru_cache(maxsize=1)
def _loaded(name: str | None, model: Identity, changed: int) -> Encoder:
    return shipped_encoder(model) if name is None else Encoder.from_pretrained(name)
