"""Traces for tests, and what the script of a page makes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from families import ONE
from prototokens import FitConfig, FitResult, FrozenLM, fit
from prototokens.fitting.trace import Trace, TraceRecorder


def traced(lm: FrozenLM, text: str, config: FitConfig = ONE, **changes: Any) -> tuple[FitResult, Trace]:
    """A fit of a text and its trace; the changes are made to the recipe."""
    recorder = TraceRecorder()
    result = fit(lm, lm.encode(text), replace(config, **changes), trace=recorder)
    return result, recorder.trace(lm)


def unfolded(lane: dict[str, Any]) -> list[list[str]]:
    """The texts of every frame, as the page's script unfolds them."""
    rows = [list(lane["first"])]
    for change in lane["changes"]:
        row = list(rows[-1])
        for place, number in zip(change[::2], change[1::2], strict=True):
            row[place] = number
        rows.append(row)
    return [[lane["words"][number] for number in row] for row in rows]
