"""Rows as a study's store gives them, made up: enough of every study for every table and figure."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

Row = dict[str, Any]
SOURCES = ("random", "old", "recent", "generated")


def row(study: str, **columns: Any) -> Row:
    """A cell that is done, with what all studies have in common; columns change that."""
    common = {
        "study": study, "scale": "laptop", "model": "tiny", "recipe": "fast", "source": "old", "text": 0, "seed": 0,
        "tokens": 8, "max_steps": 400, "token_accuracy": 1.0, "exact": 1, "steps": 50, "token_positions": 900,
        "backward_positions": 800, "seconds": 2.5, "h_lm_nats": 30.0, "status": "done", "error": None,
        "fingerprint": "f" * 64, "dtype": "float32", "device": "cpu", "threads": 2, "prototokens": "0.1.0",
        "torch": "2.13.0", "transformers": "5.23.0", "finished": "2026-11-22T15:00:00+00:00",
    }  # fmt: skip
    made = common | columns
    key = " ".join(f"{name}={made[name]}" for name in sorted(made) if name not in ("finished", "status", "error"))
    return {"key": key} | made


def every_study() -> list[Row]:
    """A few cells of each of the seven studies, solved and unsolved."""
    rows = [
        row(
            "arrangements",
            arrangement=name,
            tokens=tokens,
            text=text,
            token_accuracy=1.0 if tokens < 3 else 0.25 * text,
        )
        for name, tokens, text in product(("e*n", "e,m*(n-1)", "m,e,m*(n-1)"), (1, 2, 4), range(3))
    ]
    rows += [
        row("sharing", shared=shared, group_size=size, group=text // size, text=text, seed=seed, tokens=16,
            token_accuracy=1 - 0.1 * seed - 0.01 * size)
        for shared, size, text, seed in product("em", (1, 4), range(4), range(2))
    ]  # fmt: skip
    for source, shared, text, tokens in product(SOURCES, (0, 1), range(3), (4, 8, 16, 32)):
        accuracy = min(1.0, 12 * (1 + text) / tokens / (1 + shared))
        rows.append(row("capacity", source=source, m_shared=shared, text=text, tokens=tokens, method="grid",
                        token_accuracy=accuracy, exact=int(accuracy == 1), h_lm_nats=4.0 * tokens))  # fmt: skip
    rows += [
        row("capacity", source=source, m_shared=0, text=text, method=method, capacity_tokens=20 + text, work=5e4,
            capacity_h_lm_nats=80.0 + text)
        for source, text, method in product(SOURCES, range(2), ("growth", "bisection"))
    ]  # fmt: skip
    rows += [
        row("information", source=source, vectors=vectors, method=method, text=text, capacity_tokens=10 * vectors,
            h_lm_nats=(30.0 if method == "one-step" else 55.0) * vectors + text)
        for source, vectors, method, text in product(SOURCES, (1, 2), ("one-step", "autoregressive"), range(3))
    ]  # fmt: skip
    for (method, batch, speed), tokens, repeat in product(
        (("one-step", 1, 90.0), ("one-step-batched", 8, 200.0), ("autoregressive", 1, 12.0)), (8, 16, 32), range(2)
    ):
        speed = speed * (1 if method == "autoregressive" else math.log2(tokens)) + repeat
        rows.append(row("throughput", method=method, batch=batch, tokens=tokens, text=repeat, tokens_per_second=speed))
    rows += [
        row("cost", recipe=recipe, tokens=tokens, text=text, seconds=tokens * (1.0 + text), exact=int(recipe == "fast"))
        for recipe, tokens, text in product(("fast", "paper"), (8, 16), range(2))
    ]
    rows += [
        row("quality", method=method, tokens=16, text=text, correct_prefix=8 * text, bleu=40.0 + text, rouge_l=0.9,
            chrf=88.0, passes=passes, exact=text % 2, greedy_accuracy=0.75 if passes == 16 else None)
        for (method, passes), text in product(
            (("one-step", 1), ("one-vector", 1), ("jacobi", 9), ("autoregressive", 16)), range(3)
        )
    ]  # fmt: skip
    return rows
