"""The demo: sentences into vectors and back, timed beside greedy generation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..decoding import decode
from ..files.atomic import make_folder
from ..fitting.descent import FitProgress
from ..fitting.fit import FitResult, fit_batch
from ..fitting.recipes import preset
from ..lm.frozen import FrozenLM
from ..proto_tokens import save
from .terminal import say

SENTENCES = (
    "The old lighthouse keeper counted the ships and wrote their names in a small book.",
    "When the rain stopped, the children ran to the river to look for frogs.",
    "He who opens a school door closes a prison door, said the old teacher.",
)
_SECONDS = 170.0
_REPEATS = 5


def run_demo(lm: FrozenLM, folder: Path, progress: Callable[[FitProgress], None]) -> dict[str, Any]:
    """Fit the sentences within three minutes, save one file each, decode them, and time decoding.

    Args:
        lm: the frozen model.
        folder: made if it is missing; files of an earlier demo are replaced.
        progress: takes the progress of fitting.

    Returns:
        What `print_demo` shows, as JSON values.

    Raises:
        InputError: the folder cannot be made or written.
    """
    is_new = not folder.exists()
    make_folder(folder)
    encoded = [lm.encode(s) for s in SENTENCES]
    length = min(len(ids) for ids in encoded)  # a batch is rectangular: another model's tokenizer may cut a word off
    target_ids = torch.stack([ids[:length] for ids in encoded])
    began = time.perf_counter()
    try:
        results = fit_batch(
            lm, target_ids, preset(), progress=progress, should_stop=lambda: time.perf_counter() - began > _SECONDS
        )
    except BaseException:
        if is_new:
            folder.rmdir()
        raise
    seconds = time.perf_counter() - began
    sentences = []
    for number, (ids, result) in enumerate(zip(target_ids, results, strict=True), start=1):
        path = save(folder / f"sentence-{number}.safetensors", result.tokens, overwrite=True)
        sentences.append(_sentence(lm, ids, result) | {"file": str(path)})
    return {
        "model": lm.identity.name,
        "length": length,
        "fit_seconds": seconds,
        "sentences": sentences,
        **_speed(lm, results[0], length),
    }


def print_demo(record: dict[str, Any]) -> None:
    """Print what `run_demo` measured."""
    length, fast, slow = record["length"], record["decode_seconds"], record["generate_seconds"]
    say(f"... {len(record['sentences'])} sentences of {length} tokens in {record['fit_seconds']:.0f} s\n")
    for sentence in record["sentences"]:
        say(sentence["marked"])
        say(f"  {sentence['right']} of {length} tokens right, {sentence['steps']} steps, saved in {sentence['file']}\n")
    say(f"{length} tokens          forward passes   seconds (median of {_REPEATS})")
    say(f"one-step decoding   {1:14}   {fast:.3f}")
    say(f"greedy, KV cache    {length:14}   {slow:.3f}   ({slow / fast:.1f} times as long)")


def _sentence(lm: FrozenLM, target_ids: Tensor, result: FitResult) -> dict[str, Any]:
    decoded = decode(lm, result.tokens)
    right = decoded.ids == target_ids
    pieces = [lm.decode(token.unsqueeze(0)) for token in decoded.ids]
    marked = "".join(p if ok else f"[wrong: {p}]" for p, ok in zip(pieces, right.tolist(), strict=True))
    return {
        "text": decoded.text,
        "marked": decoded.text if decoded.exact else marked,
        "exact": decoded.exact,
        "right": int(right.sum()),
        "steps": result.steps,
    }


def _speed(lm: FrozenLM, result: FitResult, length: int) -> dict[str, float]:
    prompt = lm.fixed_vector("bos").expand(1, 1, -1)
    one_pass, generated = [], []
    for _ in range(_REPEATS + 1):  # in turn, so that both see the same machine; the first round warms up
        began = time.perf_counter()
        decode(lm, result.tokens, scores=False)
        one_pass.append(time.perf_counter() - began)
        began = time.perf_counter()
        lm.generate(prompt, length)
        generated.append(time.perf_counter() - began)
    return {"decode_seconds": statistics.median(one_pass[1:]), "generate_seconds": statistics.median(generated[1:])}
