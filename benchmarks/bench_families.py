"""What a learned start saves on tiny random models of every architecture family, over seeds.

A seed is a model with its own random weights, a start trained on it in 20 steps, and texts that the training has not
seen. Each text is fitted with the default recipe from three starts: the mean of its embeddings, the learned start with
steps along the coordinates, and the learned start with steps along its axes. A fit that is not exact counts with its
whole budget. The models are those of the tests, so that no weights are needed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interleaved import print_json
from prototokens import FrozenLM, Stop, fit_batch, preset
from prototokens.fitting.train_starter import StarterConfig, train_starter

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from families import FAMILIES, build, tokenizer

WAYS = {"mean": "no learned start", "start": "learned start, along the coordinates", "axes": "along its axes"}
UNSEEN = 1_000_000_000  # training draws from lower numbers


def draw(length: int, count: int, seed: int) -> Tensor:
    """Texts of lower-case letters."""
    return torch.randint(97, 123, (count, length), generator=torch.Generator().manual_seed(seed))


def measure(name: str, seed: int, length: int, texts: int, max_steps: int) -> list[dict[str, Any]]:
    """Three rows: the mean steps of the texts' fits, one row for each start."""
    lm = FrozenLM(build(name, seed), tokenizer())
    training = StarterConfig(lengths=(length,), batch_tokens=8 * length, inner_steps=12, steps=20, seed=seed)
    starter, unseen = train_starter(lm, draw, training), draw(length, texts, UNSEEN + seed)
    rows = []
    for way, start in (("mean", "text-e"), ("start", replace(starter, axes=None)), ("axes", starter)):
        fits = fit_batch(lm, unseen, preset(start=start, stop=Stop(max_steps=max_steps, margin=0.01)))
        steps, exact = [one.steps if one.exact else max_steps for one in fits], sum(one.exact for one in fits)
        rows.append({"family": name, "seed": seed, "way": way, "steps": statistics.mean(steps), "exact": exact})
    return rows


def table(rows: list[dict[str, Any]], texts: int) -> list[str]:
    """A line per family: the mean and the range over seeds of each start's steps, and how often the learned wins."""
    lines = [
        f"| family | {' | '.join(WAYS.values())} | learned start better | axes better still | exact |",
        "|" + 7 * "---|",
    ]
    for name in dict.fromkeys(row["family"] for row in rows):
        steps = {way: [r["steps"] for r in rows if (r["family"], r["way"]) == (name, way)] for way in WAYS}
        cells = [f"{statistics.mean(x):.0f} ({min(x):.0f} to {max(x):.0f})" for x in steps.values()]
        seeds = len(steps["mean"])
        started, along = (
            sum(a < b for a, b in zip(steps[better], steps[worse], strict=True))
            for better, worse in (("start", "mean"), ("axes", "start"))
        )
        exact = sum(row["exact"] for row in rows if row["family"] == name)
        wins = [f"{started} of {seeds}", f"{along} of {seeds}", f"{exact} of {3 * seeds * texts}"]
        lines.append(f"| {' | '.join([name, *cells, *wins])} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", default=",".join(FAMILIES), help="comma-separated")
    parser.add_argument("--seeds", type=int, default=10, help="how many seeds")
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=4)
    parser.add_argument("--max-steps", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="two families, two seeds")
    options = parser.parse_args()
    if options.quick:
        options.families, options.seeds = "llama,mamba", 2
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name in options.families.split(","):
        for seed in range(options.seeds):
            rows += measure(name, seed, options.tokens, options.texts, options.max_steps)
        print(*table([row for row in rows if row["family"] == name], options.texts)[2:], flush=True)
    print("\n".join(table(rows, options.texts)))
    print_json(rows)


if __name__ == "__main__":
    main()
