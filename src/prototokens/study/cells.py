"""Cells and batches: what a study measures, named by content."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Settings = dict[str, Any]
"""Settings of a cell: JSON scalars by column name."""


STEP_OVER_FORWARD = 3
"""Price of a position forward and backward over that of one forward alone, near enough for an estimate."""


@dataclass(frozen=True)
class Batch:
    """Cells that are measured side by side, as the grid lays them out before any model is loaded.

    Attributes:
        study: name of the study.
        label: what tells the batch apart within the study, for people.
        cells: settings of each cell.
        steps: the step budget, all fits of the batch together.
        positions: input positions that a step passes, all texts together. In a search: those of one prefix of middle
            length.
        peak_positions: those of the largest step, where steps differ.
    """

    study: str
    label: str
    cells: tuple[Settings, ...]
    steps: int
    positions: int
    peak_positions: int | None = None


@dataclass(frozen=True)
class BoundCell:
    """A cell that knows its model and its text.

    Attributes:
        key: content key, see `cell_keys`.
        study: name of the study.
        batch: name of the batch, the unit of work; batches sort by it in the order of the grid.
        position: place in the batch, from 0.
        settings: the cell's columns.
    """

    key: str
    study: str
    batch: str
    position: int
    settings: Settings


def cell_settings(
    scale: str, source: str, text: int, length: int, seed: int, recipe: str, max_steps: int, **columns: Any
) -> Settings:
    """Settings of one cell: those that all studies have in common, and the study's own.

    Args:
        scale: smoke, laptop or paper.
        source: random, old, recent or generated.
        text: number of the text within its source, from 0.
        length: of the text in tokens; it is the column `tokens`.
        seed: seed of the fit.
        recipe: name of a preset.
        max_steps: step budget of a fit.
        columns: further columns.
    """
    return {
        "scale": scale,
        "source": source,
        "text": text,
        "tokens": length,
        "seed": seed,
        "recipe": recipe,
        "max_steps": max_steps,
        **columns,
    }


def cell_keys(study: str, fingerprint: str, dtype: str, cells: Sequence[Settings], text_hashes: list[str]) -> list[str]:
    """Content keys of a batch's cells, each 32 hexadecimal digits of a SHA-256.

    The same measurement has the same key on every machine, whatever the model's files are called there. What else is
    in the batch belongs to the content, since it changes how the fit is rounded.

    Args:
        study: name of the study.
        fingerprint: the model's, over its source weights.
        dtype: what the weights are loaded as; another dtype gives other results.
        cells: settings of the batch's cells.
        text_hashes: hash of each cell's text.
    """
    together = _digest([study, fingerprint, dtype, list(cells), text_hashes])
    return [_digest([together, position])[:32] for position in range(len(cells))]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def micro_batches(n_rows: int, width: int, positions: int) -> Settings:
    """The setting `rows_at_once` of a fit of `n_rows` texts that share a vector; none where one pass holds them all.

    Args:
        n_rows: texts of the batch.
        width: input positions of each.
        positions: input positions of a pass at most.
    """
    return {} if n_rows * width <= positions else {"rows_at_once": max(1, positions // width)}


def chunked(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    """Runs of at most `size` items, in order."""
    return (items[i : i + size] for i in range(0, len(items), size))


def finite(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Columns as strict JSON: a number that is not finite becomes null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in columns.items()}


def json_list(values: Iterable[float]) -> str:
    """Numbers as a JSON list of six decimals; what is not finite is null."""
    return json.dumps([round(value, 6) if math.isfinite(value) else None for value in values])
