"""The training of an encoder goes on from the checkpoint in its folder, for the time that is left."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from gpu.cells import Cell, Result

_LEAST_SECONDS = 45.0
"""Less is not worth the loading."""


def cells(folder: Path | None, options: str, model: str, device: str, until: float) -> Iterator[Cell]:
    """One cell: the command of the documentation, with the options that the training was begun with."""
    if folder is not None and until - time.time() >= _LEAST_SECONDS:
        settings = {"part": "encoder", "folder": folder.name, "until": round(until)}
        yield Cell(settings, lambda: _train(folder, options, model, device, until))


def _train(folder: Path, options: str, model: str, device: str, until: float) -> Result:
    left = until - time.time()
    minutes = (left - _LEAST_SECONDS / 2) / 60
    command = [
        sys.executable, "-m", "prototokens", "encoder", "train", "-o", str(folder), "--model", model,
        "--device", device, "--minutes", f"{minutes:.2f}", "--json", *shlex.split(options),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=left)
    if done.returncode != 0:
        raise RuntimeError(f"status {done.returncode}: {' '.join(done.stderr.split())[-300:]}")
    try:
        printed = json.loads(done.stdout)
    except ValueError:
        printed = {}
    return {"minutes": minutes, "status": done.returncode, "printed": printed}
