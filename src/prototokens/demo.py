"""The demo: sentences into vectors and back, timed beside greedy generation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from .decoding import decode
from .errors import InputError
from .fitting import FitResult, fit_batch
from .lm import FrozenLM
from .recipes import Stop, preset
from .tokens import save

SENTENCES = (
    "The lighthouse keeper counted the ships and wrote their names in a book.",
    "When the rain stopped, the children ran down to the river to look for frogs.",
    "He who opens a school door closes a prison, said the old teacher.",
)
_REPEATS = 5


def run_demo(lm: FrozenLM, folder: Path, show_progress: Callable[[], AbstractContextManager[Any]]) -> int:
    """Fit the sentences, print what comes back and how fast, and save one file each to `folder`.

    Args:
        lm: the frozen model.
        folder: made if it is missing; files of an earlier demo are replaced.
        show_progress: gives a context whose value takes a fit's progress.

    Returns:
        0 if all sentences came back exactly, else 1.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror})") from None
    encoded = [lm.encode(s) for s in SENTENCES]
    length = min(len(ids) for ids in encoded)
    config = preset(stop=Stop(max_steps=300, margin=0.01))
    print(f"Fitting {len(SENTENCES)} sentences of {length} tokens on {lm.identity.name} ...", flush=True)
    began = time.perf_counter()
    with show_progress() as show:
        results = fit_batch(lm, torch.stack([ids[:length] for ids in encoded]), config, progress=show)
    print(f"... done in {time.perf_counter() - began:.0f} s\n")
    for number, (ids, result) in enumerate(zip(encoded, results, strict=True), start=1):
        path = save(folder / f"sentence-{number}.safetensors", result.tokens, overwrite=True)
        _show_text(lm, ids[:length], result, path)
    _show_speed(lm, results[0], length)
    return 0 if all(r.exact for r in results) else 1


def _show_text(lm: FrozenLM, target_ids: torch.Tensor, result: FitResult, path: Path) -> None:
    decoded = decode(lm, result.tokens)
    pairs = zip(decoded.ids.tolist(), target_ids.tolist(), strict=True)
    pieces = [lm.decode(torch.tensor([got])) if got == want else f"[wrong: {lm.decode(torch.tensor([got]))}]"
              for got, want in pairs]  # fmt: skip
    right = round(result.token_accuracy * len(target_ids))
    print("".join(pieces) if right < len(target_ids) else decoded.text)
    print(f"  {right} of {len(target_ids)} tokens right, {result.steps} steps, saved in {path}\n")


def _show_speed(lm: FrozenLM, result: FitResult, length: int) -> None:
    prompt = lm.fixed_vector("bos").expand(1, 1, -1)
    one_pass, generated = [], []
    for _ in range(_REPEATS + 1):  # in turn, so that both see the same machine; the first round warms up
        began = time.perf_counter()
        decode(lm, result.tokens)
        one_pass.append(time.perf_counter() - began)
        began = time.perf_counter()
        lm.generate(prompt, length)
        generated.append(time.perf_counter() - began)
    fast, slow = statistics.median(one_pass[1:]), statistics.median(generated[1:])
    print(f"{length} tokens     forward passes   seconds (median of {_REPEATS})")
    print(f"one-step decode            1   {fast:9.3f}")
    print(f"greedy, KV cache   {length:9}   {slow:9.3f}   ({slow / fast:.1f} times as long)")
