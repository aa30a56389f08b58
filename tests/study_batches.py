"""A study's batches at the smallest scale, run on a tiny model, and what their columns are when worked out by hand."""

from __future__ import annotations

import math
import random
import re
from functools import cache
from string import ascii_lowercase
from typing import Any

import pytest
import torch
from torch import Tensor

from families import family
from prototokens import FrozenLM

Row = tuple[dict[str, Any], Any]
"""Settings and columns of a cell, as a row has them, and what was kept of its vectors."""


@cache
def text(source: str, number: int) -> str:
    """Letters, ever the same for a number of a kind."""
    return "".join(random.Random(f"{source} {number}").choices(ascii_lowercase + "  ", k=64))


def ids_of(cells: list[dict[str, Any]]) -> Tensor:
    lm = family("llama")
    return torch.stack([lm.encode(text(cell["source"], cell["text"]))[: cell["tokens"]] for cell in cells])


def measure(module: Any, batch: int = 0, name: str = "llama", **changes: Any) -> list[Row]:
    """Run a batch of the smallest scale with some settings of all its cells changed."""
    cells = [{**cell, **changes} for cell in module.lay_out("smoke")[batch].cells]
    return measure_cells(module, cells, name)


def measure_cells(module: Any, cells: list[dict[str, Any]], name: str = "llama") -> list[Row]:
    measurements = module.run(family(name), cells, ids_of(cells))
    assert len(measurements) == len(cells)
    return [({**cell, **one.columns}, one.vectors) for cell, one in zip(cells, measurements, strict=True)]


def of(rows: list[Row], method: str) -> list[dict[str, Any]]:
    return [row for row, _ in rows if row["method"] == method]


def fitted_ids(row: dict[str, Any]) -> Tensor:
    """The ids that a row's vectors were fitted to: all of the text that its cell names, or a chunk of it."""
    (ids,) = ids_of([row])
    if row.get("method") == "shared-m":
        return ids[: row["first"]]
    start = row.get("chunk_start", row.get("chunk", 0) * row.get("chunk_tokens", 0))
    return ids[start : start + row.get("chunk_tokens", len(ids))]


def spelt_out(arrangement: str, e_tokens: Tensor, m: Tensor, length: int) -> tuple[Tensor, int]:
    """Inputs (L, D), written out, and the position whose output is the first token; e-tokens (K, D)."""
    in_blocks = re.fullmatch(r"m,\(e(?:,m\*(\d+))?\)", arrangement)
    if in_blocks:
        b = int(in_blocks[1] or 0) + 1
        return torch.stack([m] + [m if i % b else e_tokens[i // b] for i in range(length)]), 1
    (e,) = e_tokens
    vectors, first = {
        "e*n": ([e] * length, 0),
        "e*n/2,m*n/2": ([e] * math.ceil(length / 2) + [m] * (length // 2), 0),
        "(e,m)*n/2": ([(e, m)[i % 2] for i in range(length)], 0),
        "e,m*n": ([e] + [m] * length, 1),
        "e,m*(n-1)": ([e] + [m] * (length - 1), 0),
        "m,e,m*(n-1)": ([m, e] + [m] * (length - 1), 1),
    }[arrangement]
    return torch.stack(vectors), first


@torch.no_grad()
def outputs(lm: FrozenLM, inputs: Tensor) -> Tensor:
    """The model's logits at every position of inputs (L, D), asked of the model itself, (L, V)."""
    return lm.model(inputs_embeds=inputs[None], use_cache=False).logits[0].double()


def scores(logits: Tensor, ids: Tensor) -> dict[str, float]:
    """Accuracy, loss and smallest margin of outputs (T, V) against ids (T,), token by token."""
    right, losses, margins = [], [], []
    for row, target in zip(logits.tolist(), ids.tolist(), strict=True):
        top = max(row)
        losses.append(top + math.log(sum(math.exp(x - top) for x in row)) - row[target])
        margins.append(row[target] - max(x for i, x in enumerate(row) if i != target))
        right.append(row.index(top) == target)
    count = len(right)
    return {
        "token_accuracy": sum(right) / count,
        "exact": int(all(right)),
        "loss_nats": sum(losses) / count,
        "min_margin": min(margins),
    }


def read_out(lm: FrozenLM, tokens: Any) -> Tensor:
    """Logits (T, V) that one pass over the vectors gives, the input spelt out by hand."""
    inputs, first = spelt_out(tokens.arrangement.name, tokens.e, tokens.m, tokens.length)
    return outputs(lm, inputs)[first : first + tokens.length]


@torch.no_grad()
def h_lm_by_hand(lm: FrozenLM, ids: Tensor) -> float:
    """-sum of log P(t_i | t_1 ... t_(i-1)) from i = 2 on, in nats."""
    log_p = outputs(lm, lm.embed(ids)).log_softmax(-1)
    return -sum(log_p[i, ids[i + 1]].item() for i in range(len(ids) - 1))


def greedy_by_hand(lm: FrozenLM, prompt: Tensor, length: int) -> Tensor:
    """Argmax token by token, without a cache, from a prompt (P, D)."""
    ids: list[int] = []
    for _ in range(length):
        given = torch.cat([prompt, lm.embed(torch.tensor(ids, dtype=torch.long))])
        ids.append(int(outputs(lm, given)[-1].argmax()))
    return torch.tensor(ids)


def jacobi_by_hand(lm: FrozenLM, prompt: Tensor, length: int) -> tuple[Tensor, int]:
    """Fixed-point iteration over all tokens at once: the ids, and how many passes it took to see that they stand."""
    guess = [int(outputs(lm, prompt)[-1].argmax())] * length
    passes = 1
    while length > 1 and passes <= length:
        logits = outputs(lm, torch.cat([prompt, lm.embed(torch.tensor(guess[:-1]))]))
        new = logits[len(prompt) - 1 :].argmax(-1).tolist()
        passes += 1
        if new == guess:
            break
        guess = new
    return torch.tensor(guess), passes


def batch_of(module: Any, **settings: Any) -> int:
    """Number of the first batch at the smallest scale whose last cell has these settings."""
    laid_out = module.lay_out("smoke")
    return next(n for n, b in enumerate(laid_out) if settings.items() <= b.cells[-1].items())


def without_h_lm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the passes that H_LM takes, so that what is counted are the fit's."""
    for place in ("fits", "reconstruction.quality", "reconstruction.throughput"):
        monkeypatch.setattr(f"prototokens.study.{place}.information_nats", lambda _, ids: [0.0] * len(ids))
