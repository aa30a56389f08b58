"""The training curve: a JSONL file beside the encoder, and if asked for TensorBoard or trackio."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...files.atomic import new_file

VIEWERS = ("none", "tensorboard", "trackio")


class Curve:
    """Rows of numbers by step, appended as they come.

    Args:
        path: the JSONL file; rows after `step`, which a killed run left, are dropped.
        step: the step that training goes on from.
        viewer: one of `VIEWERS`: where rows are shown as well. TensorBoard's files lie beside the JSONL file.

    Raises:
        InputError: the viewer is unknown or not installed.
    """

    def __init__(self, path: str | os.PathLike[str], step: int, viewer: str = "none") -> None:
        self.path = Path(path)
        rows = [row for row in read_curve(self.path) if row["step"] <= step]
        with new_file(self.path, overwrite=True) as temporary:
            Path(temporary).write_text("".join(json.dumps(row) + "\n" for row in rows))
        self._show, self._end = _viewer(viewer, self.path.parent)

    def add(self, row: dict[str, Any]) -> None:
        """Append a row, which has a `step`."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self._show({k: v for k, v in _flat(row).items() if isinstance(v, int | float)}, row["step"])

    def close(self) -> None:
        """Let the viewer finish its writing."""
        self._end()


def read_curve(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a curve's file; a last line that was not written to its end is left out."""
    path = Path(path)
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        flat |= _flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _viewer(name: str, folder: Path) -> tuple[Any, Any]:
    """A function of numbers and step that shows them, and one that ends it."""
    if name not in VIEWERS:
        raise InputError(f"unknown viewer {name!r}; choose one of: {' '.join(VIEWERS)}")
    if name == "none":
        return lambda numbers, step: None, lambda: None
    try:
        if name == "trackio":
            trackio = importlib.import_module("trackio")
            trackio.init(project="prototokens-encoder", name=folder.resolve().name)
            return lambda numbers, step: trackio.log(numbers, step=step), trackio.finish
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(folder))
    except ImportError:
        raise InputError(f"{name} is not installed: pip install {name}") from None

    def show(numbers: dict[str, float], step: int) -> None:
        for key, value in numbers.items():
            writer.add_scalar(key, value, step)

    return show, writer.close
