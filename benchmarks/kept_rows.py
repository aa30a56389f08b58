"""Rows that benchmarks keep: one JSON object a line, in files that only grow, so that nothing is measured twice."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from prototokens import FitConfig, FrozenLM
from prototokens.arrangements import arrangement_named
from prototokens.fitting.starts import resolve_optimiser, start_name


def subject(lm: FrozenLM, config: FitConfig) -> dict[str, str]:
    """What was fitted and how, but for seed and step budget: a row of another model or recipe is another row."""
    config, _ = resolve_optimiser(lm, config)
    arrangement = arrangement_named(config.arrangement)
    optimiser = asdict(config.optimiser)
    if arrangement.block_length is None:  # it has no effect then
        del optimiser["least_rate"]
    settings = asdict(config) | {
        "optimiser": optimiser,
        "arrangement": arrangement.to_json(),
        "start": start_name(lm, config),
        "stop": asdict(config.stop) | {"max_steps": None, "patience": None},  # a rule of the first rows
        "seed": None,
        "preset": None,
        "axes_optimiser": None,  # the one in force stands under "optimiser"
        "axes": config.axes_optimiser is not None,
    }
    settings.pop("tokens_per_vector")  # the arrangement says it
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return {"model": lm.identity.name, "model_fingerprint": lm.identity.fingerprint[:12], "recipe_hash": digest[:12]}


def load_rows(path: Path, **wanted: Any) -> list[dict[str, Any]]:
    """The rows of a file that have all of these values; a last line that was cut off is no row."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    rows = [json.loads(line) for line in lines[:-1] if line]  # what no newline ends was cut off
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def add_rows(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write rows to the end of a file; they come back as they will be read."""
    path.parent.mkdir(exist_ok=True)
    lines = [json.dumps(row) for row in rows]
    with path.open("a+b") as file:
        _drop_cut_line(file)
        file.write("".join(line + "\n" for line in lines).encode())
    return [json.loads(line) for line in lines]


def _drop_cut_line(file: BinaryIO) -> None:
    """Remove what a cut left of a last line, so that the next row begins a line."""
    file.seek(0)
    content = file.read()
    if content and not content.endswith(b"\n"):
        file.truncate(content.rfind(b"\n") + 1)
