"""What steps and decodes cost over the bare model, and greedy generation over decodes; plain, compiled, CUDA graphs.

One row is one shape, dtype and way to run the model. What is compared is timed in turn, in one process. Vectors need
not be fitted, since speed does not depend on what they hold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from bare import bare_passes, head_width
from gpu.cells import Cell, NoRoomError, Result
from gpu.subjects import Load, random_ids
from interleaved import medians, synchronise
from prototokens import FrozenLM, ProtoTokens, Stop, decode, preset
from prototokens.arrangements import arrangement_named
from prototokens.fitting.fit import descend
from prototokens.fitting.memory import Passes, estimate_bytes, free_bytes
from prototokens.lm.generation import without_own_settings
from prototokens.lm.identity import library_versions
from prototokens.proto_tokens import Provenance

PLAIN, COMPILED, GRAPHS, COMPILED_GRAPHS = "plain", "compiled", "graphs", "compiled-graphs"
WAYS = {
    PLAIN: None,
    COMPILED: {"dynamic": True},  # inductor; one compilation serves all shapes
    GRAPHS: {"backend": "cudagraphs", "dynamic": False},  # the same kernels, recorded shape by shape
    COMPILED_GRAPHS: {"mode": "reduce-overhead", "dynamic": False},  # both, compiled shape by shape
}
"""Ways to run the model, and what `torch.compile` is told."""

_REPEATS = 5
_GREEDY_SECONDS = 12.0
"""Seconds of one cell for generation, which takes one repeat at least."""


def cells(load: Load, device: str, way: str, *, quick: bool) -> Iterator[Cell]:
    """All shapes for one way to run the model."""
    lengths, batches = ((8, 32), (1, 3)) if quick else ((32, 256, 1024), (1, 16, 64))
    dtypes = ("float32",) if quick else ("float32", "bfloat16") if way == PLAIN else ("bfloat16", "float32")
    models = Models(load, device, way)
    shapes = [(n_texts, length) for length in lengths for n_texts in batches]
    for dtype, what, (n_texts, length) in product(dtypes, RUNS, shapes):
        yield _cell(models, way, what, dtype, n_texts, length)


def best_batch_cells(load: Load, device: str, *, quick: bool) -> Iterator[Cell]:
    """Figure 4: larger batches, until both ways to decode write no more tokens a second."""
    lengths, batches = ((8,), (1, 3)) if quick else ((32, 256), (256, 1024))
    models = Models(load, device, PLAIN)
    dtypes = ("float32",) if quick else ("bfloat16", "float32")
    for dtype, length, n_texts, what in product(dtypes, lengths, batches, ("decode", "greedy")):
        yield _cell(models, "best-batch", what, dtype, n_texts, length)


def _cell(models: Models, part: str, what: str, dtype: str, n_texts: int, length: int) -> Cell:
    settings = {"part": part, "what": what, "dtype": dtype, "texts": n_texts, "tokens": length}
    return Cell(settings, lambda: RUNS[what](models, dtype, n_texts, length))


class Models:
    """The model in each dtype, loaded once, and made to run in one way.

    Args:
        load: loads it.
        device: where to.
        way: one of `WAYS`.
    """

    def __init__(self, load: Load, device: str, way: str) -> None:
        self.load, self.way = load, way
        self.device, self.is_cuda = device, torch.device(device).type == "cuda"
        self._dtype = ""
        self._lm: FrozenLM | None = None

    def get(self, dtype: str) -> FrozenLM:
        """The model in that dtype; another one is let go."""
        if self.way in (GRAPHS, COMPILED_GRAPHS) and not self.is_cuda:
            raise NoRoomError("CUDA graphs need a CUDA device")
        if self._lm is None or self._dtype != dtype:
            lm, options = self.load(self.device, dtype), WAYS[self.way]
            if options is not None:
                torch._dynamo.config.recompile_limit = 64  # shapes, with gradients and without
                if not self.is_cuda:
                    options = options | {"backend": "eager"}  # traced only: the compiler takes minutes there
                lm.model.compile(**options)
            self._lm, self._dtype = lm, dtype
        return self._lm


def time_step(models: Models, dtype: str, n_texts: int, length: int) -> Result:
    """A descent's steps, over as many forward and backward passes of the bare model to its input."""
    lm = models.get(dtype)
    steps = 16 if n_texts * length <= 4096 else 4  # timed together, so that what a descent does once is shared out
    config = replace(preset().at(length), stop=Stop(max_steps=steps, margin=float("inf")))
    layout = arrangement_named(config.arrangement).layout(length)
    upstream_bytes = n_texts * length * lm.vocabulary * 4
    _check_room(lm, len(layout.slots), estimate_bytes(lm, layout, n_texts) + upstream_bytes)
    target_ids = random_ids(lm, length, n_texts)
    bare = bare_passes(lm, layout, n_texts, steps)

    def fit() -> None:
        descend(lm, target_ids, config, passes=Passes(n_texts, False))

    first = _first_seconds(fit)
    seconds = medians({"fit": fit, "bare": bare}, _REPEATS)
    return {
        "step_seconds": seconds["fit"] / steps,
        "bare_seconds": seconds["bare"] / steps,
        "step_over_bare": seconds["fit"] / seconds["bare"],
        "first_seconds": first,
        "steps": steps,
        "repeats": _REPEATS,
    }


def time_decode(models: Models, dtype: str, n_texts: int, length: int) -> Result:
    """Decoding, strings included and scores left out, over the bare forward pass that gives its logits."""
    lm = models.get(dtype)
    layout = arrangement_named(preset().at(length).arrangement).layout(length)
    _check_room(lm, len(layout.slots), n_texts * length * lm.vocabulary * (4 + lm.dtype.itemsize))
    vectors = _proto_tokens(lm, n_texts, length)
    inputs_embeds = torch.cat([one.inputs_embeds() for one in vectors]).to(lm.device)

    @torch.no_grad()
    def bare() -> None:
        lm.logits(inputs_embeds, layout.read_positions())

    first = _first_seconds(bare)
    seconds = medians({"decode": lambda: decode(lm, vectors, scores=False), "bare": bare}, _REPEATS)
    return {
        "decode_seconds": seconds["decode"],
        "bare_seconds": seconds["bare"],
        "decode_over_bare": seconds["decode"] / seconds["bare"],
        "tokens_per_second": n_texts * length / seconds["decode"],
        "first_seconds": first,
        "repeats": _REPEATS,
    }


def time_greedy(models: Models, dtype: str, n_texts: int, length: int) -> Result:
    """Greedy generation with a KV cache after the vector of BOS; with a static one where the way compiles."""
    lm = models.get(dtype)
    _check_room(lm, 1 + length, 2 * n_texts * head_width(lm) * 4)
    prompt = lm.fixed_vector("bos").expand(n_texts, 1, -1)
    generate = _generator(models, lm, prompt)
    first = _first_seconds(lambda: generate(length if models.way != PLAIN else min(length, 8)))
    times: list[float] = []
    while len(times) < _REPEATS and sum(times) + (times[-1] if times else 0) < _GREEDY_SECONDS:
        synchronise()
        began = time.perf_counter()
        generate(length)
        synchronise()
        times.append(time.perf_counter() - began)
    seconds = sorted(times)[len(times) // 2]
    return {
        "greedy_seconds": seconds,
        "tokens_per_second": n_texts * length / seconds,
        "first_seconds": first,
        "repeats": len(times),
    }


def _generator(models: Models, lm: FrozenLM, prompt: Tensor) -> Callable[[int], Any]:
    if models.way == PLAIN or not models.is_cuda:
        return lambda length: lm.generate(prompt, length)
    from transformers import CompileConfig, GenerationConfig

    # transformers compiles the pass of a static cache by itself; all its shapes are then fixed.
    options = WAYS[models.way] or {}
    compiled = CompileConfig(mode=options.get("mode"), backend=options.get("backend", "inductor"), dynamic=False)
    blank = without_own_settings(lm.model)
    mask = torch.ones(prompt.shape[:2], dtype=torch.long, device=lm.device)

    def generate(length: int) -> Tensor:
        settings = GenerationConfig(
            max_new_tokens=length, do_sample=False, use_cache=True, pad_token_id=0, cache_implementation="static",
            compile_config=compiled,
        )  # fmt: skip
        return blank.generate(inputs_embeds=prompt.to(lm.dtype), attention_mask=mask, generation_config=settings)

    return generate


def _first_seconds(run: Callable[[], Any]) -> float:
    """Seconds of the first call, in which compilation happens."""
    synchronise()
    began = time.perf_counter()
    run()
    synchronise()
    return time.perf_counter() - began


def _check_room(lm: FrozenLM, n_positions: int, n_bytes: int) -> None:
    """Refuse what the model or the memory has no room for.

    Raises:
        NoRoomError: it has none.
    """
    if lm.max_positions is not None and n_positions > lm.max_positions:
        raise NoRoomError(f"{n_positions} positions, and the model has {lm.max_positions}")
    free = free_bytes(lm)
    if free is not None and n_bytes > 0.9 * free:
        raise NoRoomError(f"about {n_bytes / 1e9:.1f} GB are needed, and {free / 1e9:.1f} GB are free")


def _proto_tokens(lm: FrozenLM, n_texts: int, length: int) -> list[ProtoTokens]:
    """Random vectors in the default arrangement for that length."""
    arrangement = arrangement_named(preset().at(length).arrangement)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(n_texts, arrangement.n_e_tokens(length) + 1, lm.width, generator=generator)
    drawn = drawn * lm.embedding_statistics.std
    provenance = Provenance(lm.identity, "", 0.0, 0.0, 0.0, lm.dtype_name, None, "normal", 0, library_versions())
    return [ProtoTokens(rows[:-1], rows[-1], length, arrangement, provenance) for rows in drawn]


RUNS: dict[str, Callable[[Models, str, int, int], Result]] = {
    "decode": time_decode,
    "step": time_step,
    "greedy": time_greedy,
}
"""What is timed: with the models, a dtype, the number of texts and their length."""
