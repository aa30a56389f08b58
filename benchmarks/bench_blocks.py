"""Long texts in blocks: steps, positions and bytes per token, by the length of the text and of its blocks.

Texts: those of bench_fit.py's kind, speeches that nothing was trained on, half of them before 1919 and half of 2026, at
every seed. A text that is not exact within the budget counts with all that was spent on it. Beside the steps stands
the size of the vectors: after the fit they are rounded, and decoded once more. Rows already in the file are not run
again. A batch of texts is the unit of work. `--blocks 0` keeps two vectors. The last line is JSON.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench_fit import SOURCES
from interleaved import circumstances, print_json
from kept_rows import add_rows, load_rows, subject
from prototokens import FitConfig, FitResult, FrozenLM, decode, fit_batch, load_lm, preset
from prototokens.files.quantised import rounded
from prototokens.texts.sampling import sample

ROWS = Path(__file__).parent / "rows" / "blocks.jsonl"
STORES = {"float16": (16, 0), "int8": (8, 4), "int4": (4, 4)}
"""Bits of a number, and bytes of a vector's scale."""


def recipe(options: argparse.Namespace, block: int, seed: int) -> FitConfig:
    config = preset("fast", seed=seed, tokens_per_vector=block or None, perturbation=options.perturbation)
    return replace(config, stop=replace(config.stop, max_steps=options.budget))


def stored(lm: FrozenLM, result: FitResult, target_ids: torch.Tensor) -> dict[str, Any]:
    """What the vectors take in each store, and which share of the tokens they still give."""
    values: dict[str, Any] = {}
    for store, (bits, scale_bytes) in STORES.items():
        tokens = replace(result.tokens, e=rounded(result.tokens.e, store), m=rounded(result.tokens.m, store))
        ids = decode(lm, tokens).ids
        n_bytes = result.tokens.n_vectors * (result.tokens.m.numel() * bits / 8 + scale_bytes)
        values[f"bytes_per_token_{store}"] = round(n_bytes / len(target_ids), 2)
        values[f"accuracy_{store}"] = round((ids == target_ids).float().mean().item(), 4)
    return values


def run(lm: FrozenLM, tokens: int, block: int, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One batch: every text at one seed."""
    config = recipe(options, block, seed)
    target_ids = torch.cat(
        [sample(s, lm, tokens, options.per_source, seed=7, split="test") for s in options.sources.split(",")]
    )
    results = fit_batch(lm, target_ids, config)
    return [
        {
            **subject(lm, config.at(tokens)),
            **settings(options, tokens, block, seed),
            "text": number,
            "source": options.sources.split(",")[number // options.per_source],
            "start": result.tokens.provenance.start,
            "e_tokens": len(result.tokens.e),
            "exact": result.exact,
            "token_accuracy": result.token_accuracy,
            "min_margin": result.min_margin,
            "steps": result.steps,
            "work_per_token": round((result.token_positions + result.backward_positions) / tokens, 1),
            "seconds": result.seconds,
            **stored(lm, result, target_ids[number]),
            **circumstances(),
        }
        for number, result in enumerate(results)
    ]


def settings(options: argparse.Namespace, tokens: int, block: int, seed: int) -> dict[str, Any]:
    return {
        "tokens": tokens,
        "block": block,
        "seed": seed,
        "budget": options.budget,
        "perturbation": options.perturbation,
        "per_source": options.per_source,
        "sources": options.sources,
    }


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line for each length of texts and of blocks."""
    lines = []
    for tokens, block in sorted({(row["tokens"], row["block"]) for row in rows}):
        kind = [row for row in rows if (row["tokens"], row["block"]) == (tokens, block)]
        steps = sorted(row["steps"] for row in kind)
        lines.append(
            {
                "tokens": tokens,
                "block": block,
                "runs": len(kind),
                "exact": sum(row["exact"] for row in kind),
                "median_steps": statistics.median(steps),
                "steps_from": steps[0],
                "steps_to": steps[-1],
                "work_per_token": statistics.median(row["work_per_token"] for row in kind),
                **{
                    name: round(statistics.mean(row[name] for row in kind), 4)
                    for store in STORES
                    for name in (f"bytes_per_token_{store}", f"accuracy_{store}")
                },
            }
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--lengths", default="64,128,256", help="tokens of a text, comma-separated")
    parser.add_argument("--blocks", default="8,16", help="tokens of a block, comma-separated; 0: two vectors")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--budget", type=int, default=250, help="steps")
    parser.add_argument("--perturbation", type=float, default=preset("fast").perturbation)
    parser.add_argument("--sources", default=SOURCES, help="where texts come from, comma-separated")
    parser.add_argument("--per-source", type=int, default=4, help="texts from each source")
    parser.add_argument("--rows", type=Path, default=ROWS, help="where rows are kept")
    parser.add_argument("--quick", action="store_true", help="64 tokens in blocks of 8, seed 0, two texts")
    options = parser.parse_args()
    if options.quick:
        options.lengths, options.blocks, options.seeds, options.per_source = "64", "8", "0", 1
        options.rows = Path("/dev/null")
    lm = load_lm(options.model)
    rows: list[dict[str, Any]] = []
    for tokens in map(int, options.lengths.split(",")):
        for block in map(int, options.blocks.split(",")):
            for seed in map(int, options.seeds.split(",")):
                wanted = settings(options, tokens, block, seed) | subject(lm, recipe(options, block, seed).at(tokens))
                kept = load_rows(options.rows, **wanted)
                rows += kept or add_rows(options.rows, run(lm, tokens, block, seed, options))
                print(*(f"{k} {v}" for k, v in summary(rows)[-1].items()), flush=True)
    lines = summary(rows)
    for line in lines:
        print("  ".join(f"{k} {v}" for k, v in line.items()))
    print_json(lines)


if __name__ == "__main__":
    main()
