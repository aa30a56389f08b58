"""What each part of a recipe is worth: the recipe with one thing changed at a time, on the same texts.

A variant is a preset and a few fields of it, written `preset,field=value,...`; fields of the optimiser are named as
they are and set in both of a preset's, `axes=0` leaves out the learned axes of a start, and `axes=1` takes them without
another change. `--table tuning` is the search that made `tuned` the baseline that it is: its arrangement, start and
learning rate, on speeches of the train split. `--table cramming` tunes the learning rate of cramming on the same texts;
there a text is exact if greedy generation gives it back. `--table parts` takes the parts of the default recipe away,
one by one and all together, on bench_fit.py's texts. Rows already in the file are not run again.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

import bench_fit
from interleaved import circumstances, print_json
from kept_rows import add_rows, load_rows, subject
from prototokens import FitConfig, FrozenLM, fit_batch, load_lm, preset
from prototokens.baselines.cramming import CRAMMING, cram_batch
from prototokens.fitting.recipes import AdamW
from prototokens.texts.sampling import sample

ROWS = Path(__file__).parent / "rows" / "ablation.jsonl"
TABLES = {
    "tuning": (
        "tuned",
        "tuned,lr=0.11",
        "tuned,lr=0.45",
        "tuned,start=text-m",
        "tuned,arrangement=e|m*n",
        "tuned,arrangement=e|m*(n-1)",
        "tuned,arrangement=bos|e|m*(n-1)",
        "tuned,betas=0.9/0.95",
    ),
    "cramming": (
        "cramming,lr=0.22",
        "cramming,lr=0.33",
        "cramming,lr=0.45",
        "cramming,lr=0.66",
        "cramming,lr=1.0",
    ),
    "parts": (
        "fast",
        "fast,axes=0",
        "fast,start=text-e",
        "fast,anneal_below_nats=0",
        "fast,lr=0.22",
        "fast,betas=0.9/0.9",
        "fast,perturbation=0",
        "tuned",
        "tuned,start=auto",
        "tuned,start=auto,axes=1",
    ),
}


def recipe(variant: str, seed: int, steps: int) -> FitConfig:
    """The recipe that a variant names."""
    name, *changes = variant.split(",")
    config = replace(CRAMMING, seed=seed) if name == "cramming" else preset(name, seed=seed)
    of_optimiser = {f.name for f in fields(AdamW)}
    for change in changes:
        field, value = change.split("=")
        new: Any = value.replace("|", ",")
        if field == "betas":
            new = tuple(map(float, value.split("/")))
        elif field == "axes":
            field, new = "axes_optimiser", config.optimiser if value == "1" else None
        elif field == "e_tokens":
            new = int(value)
        elif field not in ("start", "arrangement"):
            new = float(value)
        if field in of_optimiser:
            config = replace(config, optimiser=replace(config.optimiser, **{field: new}))
            if config.axes_optimiser is not None:
                config = replace(config, axes_optimiser=replace(config.axes_optimiser, **{field: new}))
        else:
            config = replace(config, **{field: new})
    return replace(config, stop=replace(config.stop, max_steps=steps, margin=0.0))


def texts(lm: FrozenLM, table: str, length: int) -> torch.Tensor:
    """Eight texts, (8, length)."""
    if table in ("tuning", "cramming"):
        return sample("speeches", lm, length, 8, seed=3, split="train")
    return bench_fit.texts(lm, bench_fit.SOURCES, length, 4)


def run(lm: FrozenLM, variant: str, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One batch: every text at one seed."""
    target_ids = texts(lm, options.table, options.tokens)
    config = recipe(variant, seed, options.steps)
    solve = cram_batch if variant.split(",")[0] == "cramming" else fit_batch
    results = solve(lm, target_ids, config)
    marks = [n for n in (25, 50, 100, 200, 400) if n <= options.steps]
    return [
        {
            "table": options.table,
            "variant": variant,
            **subject(lm, config),
            "tokens": options.tokens,
            "seed": seed,
            "budget": options.steps,
            "text": number,
            "exact": result.exact,
            "steps": result.steps,
            "work": result.token_positions + result.backward_positions,
            "accuracy_at": {n: result.accuracy_history[: n + 1].max().item() for n in marks},
            "loss_at": {n: result.loss_history[: n + 1].min().item() for n in marks},
            **circumstances(),
        }
        for number, result in enumerate(results)
    ]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line per variant: exact ones, quartiles of steps, median work, mean best accuracy on the way."""
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        of_variant = [row for row in rows if row["variant"] == variant]
        marks = list(of_variant[0]["accuracy_at"])
        lines.append(
            {
                "variant": variant,
                "fits": len(of_variant),
                "exact": sum(row["exact"] for row in of_variant),
                "steps": statistics.quantiles([row["steps"] for row in of_variant], n=4, method="inclusive"),
                "median_work": statistics.median(row["work"] for row in of_variant),
                "accuracy_at": {
                    n: round(statistics.mean(row["accuracy_at"][n] for row in of_variant), 3) for n in marks
                },
                "loss_at": {n: round(statistics.mean(row["loss_at"][n] for row in of_variant), 3) for n in marks},
            }
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--table", choices=list(TABLES), default="parts")
    parser.add_argument("--variants", help="space-separated, instead of the table's")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--seeds", default="0", help="comma-separated")
    parser.add_argument("--steps", type=int, default=200, help="that a fit may take")
    parser.add_argument("--rows", type=Path, default=ROWS, help="where rows are kept")
    parser.add_argument("--quick", action="store_true", help="two variants, ten steps, nothing kept")
    options = parser.parse_args()
    variants = options.variants.split() if options.variants else TABLES[options.table]
    if options.quick:
        variants, options.seeds, options.steps, options.rows = variants[:2], "0", 10, Path("/dev/null")
    lm = load_lm(options.model)
    of_table = {"table": options.table, "tokens": options.tokens, "budget": options.steps}
    rows: list[dict[str, Any]] = []
    for variant in variants:
        kept = load_rows(options.rows, **of_table, **subject(lm, recipe(variant, 0, options.steps)))
        for seed in map(int, options.seeds.split(",")):
            of_seed = [row for row in kept if row["seed"] == seed]
            rows += of_seed or add_rows(options.rows, run(lm, variant, seed, options))
        print("  ".join(f"{k} {v}" for k, v in summary(rows)[-1].items()), flush=True)
    print_json(summary(rows))


if __name__ == "__main__":
    main()
