"""Throughput (figure 4): verified tokens per second of decoding, in one step and autoregressively.

The same texts are fitted both ways, and each is read back alone: one forward pass, or greedy generation with a KV
cache; and all of them in one batched pass. The three are timed in turn, warm-up left out, medians of the repeats. Only
what comes back exactly counts: a text that does not has no tokens per second, and none in its batch's.

Reference: Exploring the Latent Capacity of LLMs for One-Step Text Generation (Mezentsev & Oseledets, 2025), figure 4,
https://arxiv.org/abs/2505.21189.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ...baselines.cramming import cram_batch, reconstruct
from ...decoding import decode
from ...fitting.fit import FitResult, fit_batch
from ...lm.frozen import FrozenLM
from ..cells import Batch, Settings, cell_settings
from ..fits import information_nats, recipe
from ..jobs import Measurement

METHODS = ("one-step", "one-step-batched", "autoregressive")


@dataclass(frozen=True)
class Grid:
    """What is measured at a scale.

    Attributes:
        lengths: in tokens.
        texts: how many, all in one batched pass.
        max_steps: step budget of a fit.
        repeats: timings of each decoding.
    """

    lengths: tuple[int, ...]
    texts: int
    max_steps: int
    repeats: int


GRIDS = {
    "smoke": Grid((4,), 2, 25, 3),
    "laptop": Grid((8, 16, 32), 4, 150, 5),
    "paper": Grid((16, 32, 64, 128, 256, 512), 8, 5000, 5),
}


def lay_out(scale: str) -> list[Batch]:
    """One batch per length: what is compared is timed in turn, in one process."""
    grid = GRIDS[scale]
    return [
        Batch(
            study="throughput",
            label=f"{tokens} tokens",
            cells=tuple(
                cell_settings(
                    scale, "old", text, tokens, 0, "cramming" if method == "autoregressive" else "fast", grid.max_steps,
                    method=method, batch=grid.texts if method == "one-step-batched" else 1, repeats=grid.repeats,
                )
                for method in METHODS
                for text in range(grid.texts)
            ),
            steps=2 * grid.max_steps,
            positions=grid.texts * (tokens + 1),
        )
        for tokens in grid.lengths
    ]  # fmt: skip


def run(lm: FrozenLM, cells: list[Settings], target_ids: Tensor) -> list[Measurement]:
    """Fit the texts (B, T), the same for each method, and time their decoding."""
    texts = len(cells) // len(METHODS)
    own_ids, repeats = target_ids[:texts], cells[0]["repeats"]
    fits = fit_batch(lm, own_ids, recipe(cells[0]))
    crams = cram_batch(lm, own_ids, recipe(cells[-1]))
    batch = [fit.tokens for fit in fits]
    jobs: list[Callable[[], list[Tensor]]] = [lambda: [d.ids for d in decode(lm, batch)]]
    for fit, cram in zip(fits, crams, strict=True):
        jobs.append(lambda fit=fit: [decode(lm, fit.tokens).ids])  # type: ignore[misc]
        jobs.append(lambda cram=cram: list(reconstruct(lm, cram.prompt.unsqueeze(0), own_ids.shape[1])))  # type: ignore[misc]
    found, seconds = _timed(lm, jobs, repeats)
    return _measurements(own_ids, fits, found, seconds, information_nats(lm, own_ids))


def _timed(
    lm: FrozenLM, jobs: list[Callable[[], list[Tensor]]], repeats: int
) -> tuple[list[list[Tensor]], list[float]]:
    """What each job gives, and the median of its seconds; jobs in turn, a first round to warm up."""
    found = [job() for job in jobs]
    times: list[list[float]] = [[] for _ in jobs]
    for _ in range(repeats):
        for job, own in zip(jobs, times, strict=True):
            _wait(lm)
            began = time.perf_counter()
            job()
            _wait(lm)
            own.append(time.perf_counter() - began)
    return found, [median(own) for own in times]


def _wait(lm: FrozenLM) -> None:
    if lm.device.type == "cuda":
        torch.cuda.synchronize(lm.device)


def _measurements(
    target_ids: Tensor, fits: list[FitResult], found: list[list[Tensor]], seconds: list[float], nats: list[float]
) -> list[Measurement]:
    texts, length = target_ids.shape
    batched = [torch.equal(ids.cpu(), own) for ids, own in zip(found[0], target_ids, strict=True)]
    one_step = [torch.equal(found[1 + 2 * i][0].cpu(), target_ids[i]) for i in range(texts)]
    generated = [torch.equal(found[2 + 2 * i][0].cpu(), target_ids[i]) for i in range(texts)]

    def row(i: int, exact: bool, tokens: int, took: float) -> dict[str, Any]:
        rate = tokens / took if exact else None
        return {"exact": int(exact), "tokens_per_second": rate, "seconds": took, "h_lm_nats": nats[i]}

    return [
        *(Measurement(row(i, one_step[i], length, seconds[1 + 2 * i]), fits[i].tokens) for i in range(texts)),
        *(Measurement(row(i, batched[i], length * sum(batched), seconds[0])) for i in range(texts)),
        *(Measurement(row(i, generated[i], length, seconds[2 + 2 * i])) for i in range(texts)),
    ]
