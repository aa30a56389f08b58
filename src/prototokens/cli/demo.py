"""The demo: sentences into vectors and back, timed beside greedy generation."""

from __future__ import annotations

import math
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
from ..fitting.trace import TraceRecorder
from ..lm.frozen import FrozenLM
from ..lm.pieces import pieces
from ..proto_tokens import save
from ..view.fits import scene_of_fit
from ..view.page import write_page
from ..view.races import REPEATS, run_race, scene_of_decode
from .terminal import say

SENTENCES = (
    "The old lighthouse keeper counted the ships and wrote their names in a small book.",
    "When the rain stopped, the children ran to the river to look for frogs.",
    "He who opens a school door closes a prison door, said the old teacher.",
)
_SECONDS = 170.0
_PAGE = "first-sentence.html"


def run_demo(lm: FrozenLM, folder: Path, progress: Callable[[FitProgress], None]) -> dict[str, Any]:
    """Fit the sentences within three minutes, save one file each, decode them, time decoding, and draw the first.

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
    began, recorder = time.perf_counter(), TraceRecorder()
    try:
        results = fit_batch(
            lm,
            target_ids,
            preset(),
            progress=progress,
            should_stop=lambda: time.perf_counter() - began > _SECONDS,
            trace=recorder,
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
    race = run_race(lm, results[0].tokens, enough_seconds=math.inf)
    scenes = [scene_of_fit(recorder.traces(lm)[0]), scene_of_decode(lm, results[0].tokens, race)]
    return {
        "model": lm.identity.name,
        "length": length,
        "fit_seconds": seconds,
        "sentences": sentences,
        "decode_seconds": race.decode_seconds,
        "generate_seconds": race.generate_seconds,
        "page": str(write_page(folder / _PAGE, scenes, overwrite=True)),
    }


def print_demo(record: dict[str, Any]) -> None:
    """Print what `run_demo` measured."""
    length, fast, slow = record["length"], record["decode_seconds"], record["generate_seconds"]
    say(f"... {len(record['sentences'])} sentences of {length} tokens in {record['fit_seconds']:.0f} s\n")
    for sentence in record["sentences"]:
        say(sentence["marked"])
        say(f"  {sentence['right']} of {length} tokens right, {sentence['steps']} steps, saved in {sentence['file']}\n")
    say(f"{length} tokens          forward passes   seconds (median of {REPEATS})")
    say(f"one-step decoding   {1:14}   {fast:.3f}")
    say(f"greedy, KV cache    {length:14}   {slow:.3f}   ({slow / fast:.1f} times as long)\n")
    say(f"The first fit step by step, and its decode: open {record['page']}")


def _sentence(lm: FrozenLM, target_ids: Tensor, result: FitResult) -> dict[str, Any]:
    decoded = decode(lm, result.tokens, scores=False)
    right = decoded.ids == target_ids
    told = zip(pieces(lm, decoded.ids), right.tolist(), strict=True)
    marked = "".join(piece if ok else f"[wrong: {piece}]" for piece, ok in told)
    return {
        "text": decoded.text,
        "marked": decoded.text if decoded.exact else marked,
        "exact": decoded.exact,
        "right": int(right.sum()),
        "steps": result.steps,
    }
