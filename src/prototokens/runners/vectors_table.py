"""A table of texts and their vectors: the Parquet file that `encode_corpus` writes, one row group at a time.

Columns: `row` and `piece`, where the text comes from; `text`; `ids`; `vectors`, the e-tokens and then the m-token, in
float16; `exact` and `token_accuracy`, measured on the vectors as they are stored. The schema's metadata says which
model and encoder they belong to. `datasets` and every other reader of Parquet reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..texts.tables import package

METADATA = "prototokens"
"""The key of the schema's metadata; its value is a JSON object."""


def pack_rows(rows: list[dict[str, Any]], passed_over: list[tuple[int, str]]) -> dict[str, Tensor]:
    """Rows as tensors, so that a journal keeps them.

    Args:
        rows: of each `row`, `piece`, `text`, `ids` (T,), `vectors` (P, D) float16, and `n_right`.
        passed_over: number and reason of each row that has no vectors.
    """
    texts = [row["text"].encode() for row in rows]
    width = rows[0]["vectors"].shape[-1] if rows else 0
    numbers = [
        [row["row"], row["piece"], len(text), len(row["ids"]), len(row["vectors"]), row["n_right"]]
        for row, text in zip(rows, texts, strict=True)
    ]
    ids = [torch.as_tensor(row["ids"], dtype=torch.int32) for row in rows]
    return {
        "numbers": torch.tensor(numbers, dtype=torch.long).reshape(len(rows), 6),
        "text": _bytes(b"".join(texts)),
        "ids": torch.cat([torch.empty(0, dtype=torch.int32), *ids]),
        "vectors": torch.cat([torch.empty(0, width, dtype=torch.float16), *(row["vectors"] for row in rows)]),
        "passed_over": _bytes(json.dumps(passed_over).encode()),
    }


def passed_over_in(part: Mapping[str, Tensor]) -> tuple[tuple[int, str], ...]:
    """Number and reason of the rows of a part that have no vectors."""
    return tuple((number, reason) for number, reason in json.loads(part["passed_over"].numpy().tobytes()))


def write_table(path: Path, parts: Iterable[Mapping[str, Tensor]], metadata: Mapping[str, Any]) -> None:
    """Write parts to a Parquet file, each a row group. One part is in memory at a time.

    Args:
        path: where to write.
        parts: as from `pack_rows`, in order.
        metadata: JSON values for the schema.

    Raises:
        InputError: pyarrow is not installed.
    """
    parquet = package("pyarrow.parquet")
    schema = _schema(metadata)
    with parquet.ParquetWriter(path, schema) as writer:
        for part in parts:
            if len(part["numbers"]):
                writer.write_table(_table(part, schema))


def read_metadata(path: Path) -> dict[str, Any]:
    """What the file says about its vectors: model, encoder, arrangement and how it was made."""
    schema = package("pyarrow.parquet").read_schema(path)
    metadata: dict[str, Any] = json.loads(schema.metadata[METADATA.encode()])
    return metadata


def _schema(metadata: Mapping[str, Any]) -> Any:
    arrow = package("pyarrow")
    fields = [
        ("row", arrow.int64()),
        ("piece", arrow.int32()),
        ("text", arrow.string()),
        ("ids", arrow.list_(arrow.int32())),
        ("vectors", arrow.list_(arrow.list_(arrow.float16()))),
        ("exact", arrow.bool_()),
        ("token_accuracy", arrow.float32()),
    ]
    return arrow.schema(fields, metadata={METADATA: json.dumps(dict(metadata), sort_keys=True)})


def _table(part: Mapping[str, Tensor], schema: Any) -> Any:
    """A part as an Arrow table; its lists share the part's memory."""
    arrow = package("pyarrow")
    row, piece, text_bytes, length, n_vectors, n_right = part["numbers"].numpy().T
    vectors = part["vectors"].numpy()  # (sum of P, D)
    raw = part["text"].numpy().tobytes()
    ends = np.cumsum(text_bytes)
    texts = [raw[end - count : end].decode() for end, count in zip(ends, text_bytes, strict=True)]
    widths = np.full(len(vectors), vectors.shape[-1])
    listed = arrow.ListArray.from_arrays(_offsets(widths), arrow.array(vectors.reshape(-1)))
    columns = [
        arrow.array(row),
        arrow.array(piece.astype(np.int32)),
        arrow.array(texts, arrow.string()),
        arrow.ListArray.from_arrays(_offsets(length), arrow.array(part["ids"].numpy())),
        arrow.ListArray.from_arrays(_offsets(n_vectors), listed),
        arrow.array(n_right == length),
        arrow.array((n_right / length).astype(np.float32)),
    ]
    return arrow.Table.from_arrays(columns, schema=schema)


def _offsets(counts: np.ndarray) -> Any:
    return package("pyarrow").array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))


def _bytes(raw: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(raw, np.uint8).copy())
