"""The training curve: a JSONL file beside the encoder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...files.atomic import new_file


class Curve:
    """Rows of numbers by step, appended one at a time.

    Args:
        path: the JSONL file.
        step: the step that training resumes from. Later rows, which a killed run left, are dropped; at step 0 all are.
    """

    def __init__(self, path: str | os.PathLike[str], step: int) -> None:
        self.path = Path(path)
        rows = [row for row in read_curve(self.path) if row["step"] <= step] if step else []
        with new_file(self.path, overwrite=True) as temporary:
            Path(temporary).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def add(self, row: dict[str, Any]) -> None:
        """Append a row, which has a `step`."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def read_curve(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a curve's file; an incomplete last line is left out.

    Raises:
        InputError: another line is damaged.
    """
    path = Path(path)
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise InputError(f"{path}: line {number} is damaged; move the file away, or begin anew (--force)")
        rows.append(row)
    return rows
