"""The paper's Table 4 for this model: seconds until a text is exact, or until a cap on steps and seconds that is kept.

Reference: Exploring the Latent Capacity of LLMs for One-Step Text Generation (Mezentsev & Oseledets, 2025), Table 4,
https://arxiv.org/abs/2505.21189.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from gpu.cells import Cell, NoRoomError, Result
from gpu.subjects import Load, texts
from interleaved import synchronise
from prototokens import FitConfig, FrozenLM, Stop, fit, preset
from prototokens.arrangements import arrangement_named, blocks

BLOCK = 8
MAX_STEPS, MAX_SECONDS = 1000, 10.0
"""The cap of a fit. The paper's own is 5,000 steps."""


_ORDER = (("fast", "blocks"), ("fast", "two vectors"), ("paper", "two vectors"), ("paper", "blocks"))


def recipe(name: str, vectors: str, max_steps: int) -> FitConfig:
    """A preset with two vectors, or with an e-token for every block of `BLOCK` tokens."""
    config = replace(preset(name), tokens_per_vector=None)
    if vectors == "blocks":
        config = replace(config, arrangement=blocks(BLOCK))
    return replace(config, stop=replace(config.stop, max_steps=max_steps))


def cells(load: Load, device: str, *, quick: bool) -> Iterator[Cell]:
    """One text after another, so that every setting has its first text before any has its second."""
    lengths, n_texts, max_steps = ((4, 8), 1, 20) if quick else ((32, 64, 128, 256, 512), 3, MAX_STEPS)
    for text, (name, vectors), length in product(range(n_texts), _ORDER, lengths):
        yield _cell(load, device, recipe(name, vectors, max_steps), length, text)


def _cell(load: Load, device: str, config: FitConfig, length: int, text: int) -> Cell:
    settings = {
        "part": "table-4", "recipe": config.preset, "arrangement": arrangement_named(config.arrangement).name,
        "dtype": "float32", "tokens": length, "text": text, "max_steps": config.stop.max_steps,
        "max_seconds": MAX_SECONDS,
    }  # fmt: skip
    return Cell(settings, lambda: _fit(load(device, "float32"), config, length, text))


def _fit(lm: FrozenLM, config: FitConfig, length: int, text: int) -> Result:
    """Fit one text alone; what is made once per shape and process is left out of the seconds."""
    if lm.max_positions is not None and length + 1 > lm.max_positions:
        raise NoRoomError(f"{length} tokens, and the model has {lm.max_positions} positions")
    target_ids = texts(lm, length, text + 1)[text]
    fit(lm, target_ids, replace(config, stop=Stop(max_steps=2, margin=float("inf"))))
    synchronise()
    began = time.perf_counter()
    result = fit(lm, target_ids, config, should_stop=lambda: time.perf_counter() - began > MAX_SECONDS)
    synchronise()
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "seconds_per_step": seconds / max(1, result.steps),
        "steps": result.steps,
        "exact": result.exact,
        "token_accuracy": result.token_accuracy,
        "stop_reason": result.stop_reason,
        "work": result.token_positions + result.backward_positions,
    }
