"""Timings that can be compared: things run in turn in one process, warm-up left out, medians reported."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import torch

_STARTED = datetime.now().isoformat(timespec="seconds")


def medians(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each run; the first round of all is warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            synchronise()
            began = time.perf_counter()
            run()
            synchronise()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def synchronise() -> None:
    """Wait until the accelerator has done what it was told; without one there is nothing to wait for."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def circumstances() -> dict[str, Any]:
    """What a number needs beside it: command, commit, machine, threads, versions, and when its process began."""
    return {
        "command": " ".join(sys.argv),
        "commit": _commit(),
        "machine": f"{platform.machine()} {platform.processor()}".strip(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": _STARTED[:10],
        "started": _STARTED,
    }


def _commit() -> str:
    """The commit that is checked out; empty outside a repository, and where there is no git."""
    try:
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def print_json(rows: list[dict[str, Any]]) -> None:
    """The last line of a benchmark: everything, as one JSON object."""
    print(json.dumps({"rows": rows, **circumstances()}))
