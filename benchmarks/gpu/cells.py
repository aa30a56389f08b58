"""Cells: what is measured once, kept as a row as soon as it is known, and never measured again."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from interleaved import circumstances
from kept_rows import add_rows, load_rows

DONE, SKIPPED, FAILED = "done", "skipped", "failed"
BROKEN_DEVICE = 3
"""The status with which a process ends when its device answers no more: the next one begins anew."""

_ALIKE = {
    "device", "cuda", "transformers", "model", "model_fingerprint", "code", "precision",
    "command", "commit", "machine", "cpu_capability", "threads", "torch", "date", "started",
}  # fmt: skip
"""Columns that are alike in all rows that a process prints."""

Result = dict[str, Any]


class NoRoomError(Exception):
    """A size that does not fit: the row says so."""


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        settings: what tells it from all others, JSON values.
        run: measures; its result are the row's other columns.
    """

    settings: dict[str, Any]
    run: Callable[[], Result]


class Kept:
    """A file of rows, for one device and model.

    Args:
        path: the file, which only grows.
        identity: columns that all rows have, and in which rows must agree to count.
        n_retried: of how many rows, the first ones, what failed is measured again.
        about: further columns, in which rows may differ.
    """

    def __init__(self, path: Path, identity: Result, *, n_retried: int = 0, about: Result | None = None) -> None:
        self.path, self.identity, self.n_retried, self.about = path, identity, n_retried, about or {}
        self._begun = begun_file(path)

    def has(self, cell: Cell) -> bool:
        """Whether the cell has a row that counts."""
        wanted = self.identity | cell.settings
        return any(
            all(row.get(name) == value for name, value in wanted.items())
            for number, row in enumerate(load_rows(self.path))
            if number >= self.n_retried or row.get("state") != FAILED
        )

    def measure(self, cells: Iterable[Cell], until: float) -> bool:
        """Measure the cells that have no row, in order, as long as there is time; says whether none is left.

        Args:
            cells: what to measure.
            until: seconds since the epoch after which no cell is begun.
        """
        for cell in cells:
            if self.has(cell):
                continue
            if time.time() >= until:
                return False
            row = self._measure(cell)
            print(_line(row), flush=True)
            if row["state"] == FAILED and "CUDA error" in row["reason"]:
                raise SystemExit(BROKEN_DEVICE)
        return True

    def _measure(self, cell: Cell) -> Result:
        """One cell, whatever becomes of it; its row is on the disk when this returns."""
        key = {**self.identity, **cell.settings}
        self._begun.write_text(json.dumps(key))
        began = time.perf_counter()
        try:
            result = {"state": DONE, **cell.run()}
        except NoRoomError as error:
            result = {"state": SKIPPED, "reason": str(error)}
        except torch.OutOfMemoryError as error:
            result = {"state": SKIPPED, "reason": _reason(error)}
        except Exception as error:  # whatever a compiler or a driver raises
            result = {"state": FAILED, "reason": _reason(error)}
        if torch.cuda.is_available() and "CUDA error" not in result.get("reason", ""):
            gc.collect()
            torch.cuda.empty_cache()
        result |= {"cell_seconds": round(time.perf_counter() - began, 3), **self.about, **circumstances()}
        [row] = add_rows(self.path, [key | result])
        self._begun.unlink(missing_ok=True)
        return row


def begun_file(rows: Path) -> Path:
    """Where the cell in progress is named, for the case that its process dies."""
    return rows.with_name(rows.name + ".begun")


def keep_death(rows: Path, status: int) -> bool:
    """Enter the cell that was in progress when its process died as failed; says whether there was one."""
    begun = begun_file(rows)
    if not begun.exists():
        return False
    key = json.loads(begun.read_text())
    add_rows(rows, [key | {"state": FAILED, "reason": f"its process ended with status {status}"}])
    begun.unlink()
    return True


def _reason(error: BaseException) -> str:
    return (f"{type(error).__name__}: " + " ".join(str(error).split()))[:400]


def _line(row: Result) -> str:
    """A row in one line: its settings and its numbers."""
    parts = [f"{name} {_short(value)}" for name, value in row.items() if name not in _ALIKE and value is not None]
    return "  ".join(parts)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
