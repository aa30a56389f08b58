"""The longest exact prefix for a given price: proto-tokens, cramming with one and two vectors, the published recipe.

The price is the positions, forward and backward, that `paper` spends in 2,500 steps at 32 tokens. Proto-tokens and
cramming grow the prefix while it holds, from the vectors that held the last one. What `paper` reached is read from the
rows that bench_fit.py made on the same texts: the right tokens before the first wrong one, and all right tokens. Rows
already in the file are not run again. From a work of `--apart` on, texts are grown one after another, and each is a row
as soon as it ends. Proto-tokens are two vectors, so that cramming with two is the fair comparison.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_fit
from interleaved import circumstances, print_json
from kept_rows import add_rows, load_rows, subject
from prototokens import FitConfig, FrozenLM, load_lm, preset
from prototokens.baselines.cramming import CRAMMING
from prototokens.study.prefix_search import autoregressive, grow, one_step, prefix_h_lm_nats

ROWS = Path(__file__).parent / "rows" / "prefix.jsonl"
TEXTS = "0,1,4,5"  # of bench_fit's eight: two from before 1919, two of 2026
LENGTH = bench_fit.DRAWN_AT[32]
FIRST = 8
METHODS = {  # how, by which recipe, and how many steps one length may take
    "one-step": (one_step, preset("fast"), 600),
    "autoregressive": (autoregressive, CRAMMING, 2500),
    "autoregressive-two-vectors": (autoregressive, replace(CRAMMING, e_tokens=2), 2500),
    "autoregressive-published": (autoregressive, preset("paper"), 2500),
}


def recipe(method: str, lr: float | None) -> FitConfig:
    """The recipe of a method; cramming's learning rate may be another."""
    _, config, _ = METHODS[method]
    if lr is None or config.preset != CRAMMING.preset:
        return config
    return replace(config, optimiser=replace(config.optimiser, lr=lr))


def run(lm: FrozenLM, method: str, texts: list[int], options: argparse.Namespace) -> list[dict[str, Any]]:
    target_ids = bench_fit.texts(lm, bench_fit.SOURCES, LENGTH, 4)[texts]
    fitter, _, _ = METHODS[method]
    config, steps = recipe(method, options.cramming_lr), options.steps or METHODS[method][2]
    search = {"first": options.first, "factor": options.factor, "work": options.work}
    capacities = grow(fitter(lm, config), target_ids, steps, **search)
    return [
        {
            "method": method,
            **subject(lm, config),
            "text": text,
            "work_allowed": options.work,
            "factor": options.factor,
            "max_steps": steps,
            **_first(options),
            "prefix": capacity.n_tokens,
            "h_lm_nats": prefix_h_lm_nats(lm, ids, capacity.n_tokens),
            "work": capacity.work,
            "stop_reason": capacity.stop_reason,
            "trials": [[t.n_tokens, t.reached, t.steps, t.work] for t in capacity.trials],
            **circumstances(),
        }
        for text, ids, capacity in zip(texts, target_ids, capacities, strict=True)
    ]


def _first(options: argparse.Namespace) -> dict[str, int]:
    """The length that a search begins at, where it is not that of the first rows."""
    return {} if options.first == FIRST else {"first": options.first}


def published(lm: FrozenLM, texts: list[int]) -> list[dict[str, Any]]:
    rows = load_rows(bench_fit.ROWS, tokens=32, seed=0, **subject(lm, preset("paper")))
    return [
        {
            "method": "paper",
            "text": r["text"],
            "prefix": r["prefix"],
            "right": round(32 * r["token_accuracy"]),
            "work": r["work"],
        }
        for r in rows
        if r["text"] in texts and "prefix" in r
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--methods", default="one-step,autoregressive,autoregressive-two-vectors", help="comma-separated"
    )
    parser.add_argument("--work", type=int, default=2 * 2500 * 32, help="positions forward and backward for each text")
    parser.add_argument("--texts", default=TEXTS, help="numbers of bench_fit.py's eight texts, comma-separated")
    parser.add_argument("--cramming-lr", type=float, help="in standard deviations of the embeddings")
    parser.add_argument("--steps", type=int, help="that one length may take, instead of the method's own bound")
    parser.add_argument("--first", type=int, default=FIRST, help="length that a search begins at")
    parser.add_argument("--apart", type=int, default=500_000, help="work from which texts are grown apart")
    parser.add_argument("--factor", type=float, default=1.25, help="by which the prefix grows")
    parser.add_argument("--rows", type=Path, default=ROWS, help="where rows are kept")
    parser.add_argument("--quick", action="store_true", help="one text, a twentieth of the price, nothing kept")
    options = parser.parse_args()
    if options.quick:
        options.texts, options.work, options.rows = "0", options.work // 20, Path("/dev/null")
    texts = [int(x) for x in options.texts.split(",")]
    lm = load_lm(options.model)
    rows: list[dict[str, Any]] = []
    for method in filter(None, options.methods.split(",")):
        settings = {"work_allowed": options.work, "factor": options.factor, **_first(options)}
        settings["max_steps"] = options.steps or METHODS[method][2]
        kept = load_rows(options.rows, method=method, **settings, **subject(lm, recipe(method, options.cramming_lr)))
        kept = [row for row in kept if row["text"] in texts]
        missing = [text for text in texts if text not in {row["text"] for row in kept}]
        rows += kept
        for together in [[text] for text in missing] if options.work >= options.apart else filter(None, [missing]):
            rows += add_rows(options.rows, run(lm, method, together, options))
    rows += published(lm, texts)
    for method in dict.fromkeys(r["method"] for r in rows):
        prefixes = [r["prefix"] for r in rows if r["method"] == method]
        print(f"{method}: longest exact prefix {prefixes}, median {statistics.median(prefixes)}")
    print_json(rows)


if __name__ == "__main__":
    main()
