"""Throughput (figure 4): verified tokens per second of decoding, in one step and autoregressively.

The same texts are fitted both ways: up to `LONGEST_IN_TWO` tokens with two vectors, longer ones in blocks of
`AUTO_BLOCK` tokens, and with as many [mem] vectors as e-tokens and m together. Each is read back alone, and all of them
in one batch: by one forward pass, or by greedy generation with a KV cache. All four ways are timed in turn, warm-up
left out, medians of the repeats; a batch is one timing, hence one row. Only texts that are exact count: without one
there are no tokens per second.

Reference: Exploring the Latent Capacity of LLMs for One-Step Text Generation (Mezentsev & Oseledets, 2025), figure 4,
https://arxiv.org/abs/2505.21189.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ...baselines.cramming import cram_batch, reconstruct
from ...decoding import decode
from ...fitting.fit import fit_batch
from ...fitting.recipes import AUTO_BLOCK, LONGEST_IN_TWO
from ...lm.frozen import FrozenLM
from ..cells import STEP_OVER_FORWARD, Batch, Settings, cell_settings
from ..fits import information_nats, recipe
from ..jobs import Measurement

METHODS = ("one-step", "one-step-batched", "autoregressive", "autoregressive-batched")
"""Compare like with like: alone with alone, a batch with a batch."""


@dataclass(frozen=True)
class ThroughputGrid:
    """What is measured at a scale.

    Attributes:
        lengths: in tokens.
        texts: how many, all in one batch.
        max_steps: step budget of a fit.
        longest_in_two: tokens up to which two vectors are taken.
        tokens_per_vector: length of the blocks of longer texts.
        repeats: timings of each way to decode.
    """

    lengths: tuple[int, ...]
    texts: int
    max_steps: int
    repeats: int
    longest_in_two: int = LONGEST_IN_TWO
    tokens_per_vector: int = AUTO_BLOCK

    def vectors(self, method: str, length: int) -> Settings:
        """What tells how many vectors a method has for a text of `length` tokens; in one step nothing for two."""
        if length <= self.longest_in_two:
            return {} if method.startswith("one-step") else {"vectors": 2}
        b = self.tokens_per_vector
        return {"tokens_per_vector": b} if method.startswith("one-step") else {"vectors": -(-length // b) + 1}


GRIDS = {
    "smoke": ThroughputGrid((4, 6), 2, 25, 3, 4, 4),
    "laptop": ThroughputGrid((32, 128, 512), 3, 120, 5),
    "paper": ThroughputGrid((16, 32, 64, 128, 256, 512), 8, 5000, 5),
}

_FLOOR_POSITIONS = 46
"""Positions whose pass takes as long as that of one: below, reading the weights is what it costs."""


def lay_out(scale: str) -> list[Batch]:
    """One batch per length: what is compared is timed in turn, in one process."""
    grid = GRIDS[scale]
    return [
        Batch(
            study="throughput",
            label=f"{length} tokens",
            cells=tuple(
                cell_settings(
                    scale, "old", text, length, 0, "fast" if method.startswith("one-step") else "cramming",
                    grid.max_steps, method=method, batch=grid.texts if _is_batched(method) else 1, repeats=grid.repeats,
                    **grid.vectors(method, length),
                )
                for method in METHODS
                for text in range(1 if _is_batched(method) else grid.texts)
            ),
            steps=2 * grid.max_steps + _generation_steps(grid, length),
            positions=_positions(grid, length),
        )
        for length in grid.lengths
    ]  # fmt: skip


def _positions(grid: ThroughputGrid, length: int) -> int:
    """Input positions of a step, the mean of the two methods."""
    n_memory = grid.vectors(METHODS[-1], length)["vectors"]
    return math.ceil(grid.texts * (length + 1 + n_memory / 2))


def _generation_steps(grid: ThroughputGrid, length: int) -> int:
    """Steps of a fit that take as long as all timings of greedy generation, token by token."""
    passes = (grid.texts + 1) * (grid.repeats + 1) * length
    return math.ceil(passes * _FLOOR_POSITIONS / (STEP_OVER_FORWARD * max(_FLOOR_POSITIONS, _positions(grid, length))))


def _is_batched(method: str) -> bool:
    return method.endswith("-batched")


Decode = Callable[[], list[Tensor]]
"""Decodes some texts: ids (T,) of each."""


def run(lm: FrozenLM, cells: list[Settings], target_ids: Tensor) -> list[Measurement]:
    """Fit the texts (B, T), the same for each method, and time their decoding.

    A batch's row has the settings of its first text; `exact` says whether all its texts are.
    """
    texts = target_ids[[n for n, cell in enumerate(cells) if cell["method"] == "one-step"]]
    length = texts.shape[1]
    fits = fit_batch(lm, texts, recipe(cells[0]))
    crams = cram_batch(lm, texts, recipe(cells[-1], e_tokens=cells[-1]["vectors"]))

    def in_one_step(some: slice) -> Decode:
        batch = [fit.tokens for fit in fits[some]]
        return lambda: [decoded.ids for decoded in decode(lm, batch, scores=False)]

    def autoregressively(some: slice) -> Decode:
        prompts = torch.stack([cram.prompt for cram in crams[some]])
        return lambda: list(reconstruct(lm, prompts, length))

    decodings, vectors = [], []
    read_texts = [slice(None) if _is_batched(c["method"]) else slice(c["text"], c["text"] + 1) for c in cells]
    for cell, some in zip(cells, read_texts, strict=True):
        one_step = cell["method"].startswith("one-step")
        decodings.append((in_one_step if one_step else autoregressively)(some))
        vectors.append(fits[cell["text"]].tokens if cell["method"] == "one-step" else None)
    decoded, seconds = timed(lm, decodings, cells[0]["repeats"])
    nats = information_nats(lm, texts)
    return [
        Measurement(_columns(ids, texts[some], took) | ({} if len(ids) > 1 else {"h_lm_nats": nats[some][0]}), kept)
        for ids, some, took, kept in zip(decoded, read_texts, seconds, vectors, strict=True)
    ]


def timed(lm: FrozenLM, decodings: list[Decode], repeats: int) -> tuple[list[list[Tensor]], list[float]]:
    """The ids that each way to decode gives, and the median of its seconds.

    The ways are timed in turn; a first round, which is not timed, warms up.
    """
    decoded = [decoding() for decoding in decodings]
    times: list[list[float]] = [[] for _ in decodings]
    for _ in range(repeats):
        for decoding, seconds in zip(decodings, times, strict=True):
            _synchronise(lm)
            began = time.perf_counter()
            decoding()
            _synchronise(lm)
            seconds.append(time.perf_counter() - began)
    return decoded, [median(seconds) for seconds in times]


def _synchronise(lm: FrozenLM) -> None:
    if lm.device.type == "cuda":
        torch.cuda.synchronize(lm.device)


def _columns(decoded: list[Tensor], target_ids: Tensor, seconds: float) -> dict[str, Any]:
    """How many of the texts (B, T) were decoded exactly, and the verified tokens per second."""
    exact_texts = sum(torch.equal(ids.cpu(), target) for ids, target in zip(decoded, target_ids, strict=True))
    rate = exact_texts * target_ids.shape[1] / seconds if exact_texts else None
    return {
        "exact": int(exact_texts == len(target_ids)),
        "exact_texts": exact_texts,
        "tokens_per_second": rate,
        "seconds": seconds,
    }
