"""How bench_blocks.py fits texts: in blocks, in two vectors, and by the baselines that blocks are compared with.

Every method takes texts (B, T) and returns, for each, the same columns: what was reached, what it cost, and what the
vectors take when they are stored coarsely, and still give then. Work is positions forward plus positions backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from prototokens import FitConfig, FitResult, FrozenLM, decode, fit_batch, preset
from prototokens.baselines.cramming import CRAMMING, CrammingResult, cram_batch
from prototokens.files.quantised import rounded
from prototokens.fitting.starter import Starter

STORES = {"float16": (16, 0), "int8": (8, 4), "int4": (4, 4)}
"""Bits of a number, and bytes of a vector's scale."""

METHODS = ("blocks", "two-vectors", "cramming", "windows")


def recipe(method: str, length: int, block: int, seed: int, budget: int, start: Starter | None) -> FitConfig:
    """The recipe of a method for texts of `length` tokens.

    `blocks` and `two-vectors` are the default preset. `cramming` gets as many [mem] vectors as blocks of that length
    have, m included. `windows` fits every `block` tokens apart, in two vectors. A start that is given is for blocks.
    """
    if method == "cramming":
        config = replace(CRAMMING, e_tokens=-(-length // block) + 1, seed=seed)
    else:
        config = preset("fast", seed=seed, tokens_per_vector=block if method == "blocks" else None)
    if method == "blocks" and start is not None:
        config = replace(config, start=start)
    return replace(config, stop=replace(config.stop, max_steps=budget))


def run(lm: FrozenLM, method: str, target_ids: Tensor, config: FitConfig, block: int) -> list[dict[str, Any]]:
    """Fit texts (B, T) side by side; columns of each."""
    if method == "cramming":
        crammed = cram_batch(lm, target_ids, config)
        return [_crammed(lm, result, ids) for result, ids in zip(crammed, target_ids, strict=True)]
    if method == "windows":
        return _in_windows(lm, target_ids, config, block)
    results = fit_batch(lm, target_ids, config)
    return [_fitted(lm, [result], ids) for result, ids in zip(results, target_ids, strict=True)]


def _in_windows(lm: FrozenLM, target_ids: Tensor, config: FitConfig, block: int) -> list[dict[str, Any]]:
    """All windows of `block` tokens of all texts side by side, and the shorter last ones after them."""
    n_whole = target_ids.shape[1] // block
    rest = target_ids[:, n_whole * block :]
    windows = target_ids[:, : n_whole * block].unflatten(1, (n_whole, block)).flatten(0, 1)
    whole = fit_batch(lm, windows, config)
    last = fit_batch(lm, rest, config) if rest.shape[1] else []
    return [
        _fitted(lm, [*whole[n * n_whole : (n + 1) * n_whole], *last[n : n + 1]], ids)
        for n, ids in enumerate(target_ids)
    ]


def _fitted(lm: FrozenLM, parts: Sequence[FitResult], target_ids: Tensor) -> dict[str, Any]:
    """Columns of a text from the fits of its parts, one after another; a fit of the whole text is one part."""

    def read(store: str) -> Tensor:
        stored = [replace(p.tokens, e=rounded(p.tokens.e, store), m=rounded(p.tokens.m, store)) for p in parts]
        return torch.cat([decoded.ids for decoded in decode(lm, stored)])

    n_vectors = sum(part.tokens.n_vectors for part in parts)
    return {
        "start": parts[0].tokens.provenance.start,
        "vectors": n_vectors,
        "exact": all(part.exact for part in parts),
        "token_accuracy": sum(p.token_accuracy * p.tokens.length for p in parts) / len(target_ids),
        "min_margin": min(part.min_margin for part in parts),
        "steps": max(part.steps for part in parts),
        "steps_of_windows": [part.steps for part in parts] if len(parts) > 1 else None,
        "work": sum(part.token_positions + part.backward_positions for part in parts),
        "seconds": max(part.seconds for part in parts),
        "rises": rises(parts[0].accuracy_history.tolist()) if len(parts) == 1 else None,
        **_stored(n_vectors, lm.width, target_ids, read),
    }


def _crammed(lm: FrozenLM, result: CrammingResult, target_ids: Tensor) -> dict[str, Any]:
    """Columns of a crammed text; its accuracies are those of the generation, those in `rises` teacher-forced."""
    n_vectors = len(result.memory)

    def read(store: str) -> Tensor:
        prompt = torch.cat([result.prompt[:-n_vectors], rounded(result.memory, store)])
        return lm.generate(prompt.unsqueeze(0), len(target_ids))[0].cpu()

    return {
        "start": "text-e",
        "vectors": n_vectors,
        "exact": result.exact,
        "token_accuracy": result.greedy_accuracy,
        "teacher_forced_accuracy": result.teacher_forced_accuracy,
        "min_margin": result.min_margin,
        "steps": result.steps,
        "work": result.token_positions + result.backward_positions,
        "seconds": result.seconds,
        "rises": rises(result.accuracy_history.tolist()),
        **_stored(n_vectors, lm.width, target_ids, read),
    }


def _stored(n_vectors: int, width: int, target_ids: Tensor, read: Callable[[str], Tensor]) -> dict[str, Any]:
    """What the vectors take in each store, and which share of the tokens they still give."""
    values: dict[str, Any] = {}
    for store, (bits, scale_bytes) in STORES.items():
        n_bytes = n_vectors * (width * bits / 8 + scale_bytes)
        values[f"bytes_per_token_{store}"] = round(n_bytes / len(target_ids), 2)
        values[f"accuracy_{store}"] = round((read(store) == target_ids).float().mean().item(), 4)
    return values


def rises(history: list[float]) -> list[tuple[int, float]]:
    """The steps at which the best accuracy so far rises, each with that accuracy."""
    steps_up: list[tuple[int, float]] = []
    for step, accuracy in enumerate(history):
        if not steps_up or accuracy > steps_up[-1][1]:
            steps_up.append((step, round(accuracy, 4)))
    return steps_up
