"""A study's batches at the smallest scale, run on a tiny model, without a store."""

from __future__ import annotations

import random
from functools import cache
from string import ascii_lowercase
from typing import Any

import torch

from families import family

Row = tuple[dict[str, Any], Any]
"""Settings and columns of a cell, as a row has them, and what was kept of its vectors."""


@cache
def text(source: str, number: int) -> str:
    """Letters, ever the same for a number of a kind."""
    return "".join(random.Random(f"{source} {number}").choices(ascii_lowercase + "  ", k=64))


def ids_of(cells: list[dict[str, Any]]) -> torch.Tensor:
    lm = family("llama")
    return torch.stack([lm.encode(text(cell["source"], cell["text"]))[: cell["tokens"]] for cell in cells])


def measure(module: Any, batch: int = 0, name: str = "llama", **changes: Any) -> list[Row]:
    """Run a batch of the smallest scale with some settings of all its cells changed."""
    cells = [{**cell, **changes} for cell in module.lay_out("smoke")[batch].cells]
    found = module.run(family(name), cells, ids_of(cells))
    assert len(found) == len(cells)
    return [({**cell, **one.columns}, one.vectors) for cell, one in zip(cells, found, strict=True)]


def of(rows: list[Row], method: str) -> list[dict[str, Any]]:
    return [row for row, _ in rows if row["method"] == method]
