"""The price of a fit: positions passed forward and backward until a text is exact, for the recipes side by side.

Texts: chunks of speeches that nothing was trained on, half of them before 1919 and half of 2026, at every seed (or of
other sources, which are summed up apart). A text that is not exact within the budget counts with all that was spent on
it, and is named. Rows already in the file are not run again; a batch of texts is the unit of work, since its shape
changes trajectories. Wall time is compared within one process only.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from interleaved import circumstances, print_json
from kept_rows import add_rows, load_rows, subject
from prototokens import FrozenLM, decode, fit_batch, load_lm, preset
from prototokens.metrics import correct_prefix
from prototokens.texts.sampling import sample

ROWS = Path(__file__).parent / "rows" / "fit.jsonl"
SOURCES = "old,recent"
RECIPES = ("paper", "tuned", "fast")
DRAWN_AT = {32: 128}  # texts of 32 tokens are the beginnings of those that bench_prefix.py grows


def texts(lm: FrozenLM, sources: str, length: int, per_source: int) -> torch.Tensor:
    """Texts of every source, (B, length)."""
    drawn_length = DRAWN_AT.get(length, length)
    drawn = [sample(source, lm, drawn_length, per_source, seed=7, split="test") for source in sources.split(",")]
    return torch.cat(drawn)[:, :length]


def run(lm: FrozenLM, recipe: str, length: int, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One batch: every text at one seed."""
    config = preset(recipe, seed=seed)
    config = replace(config, stop=replace(config.stop, max_steps=options.budget))
    sources, per_source = options.sources, options.per_source
    target_ids = texts(lm, sources, length, per_source)
    results = fit_batch(lm, target_ids, config)
    return [
        {
            "recipe": recipe,
            **subject(lm, config),
            "tokens": length,
            "seed": seed,
            "budget": options.budget,
            "per_source": per_source,
            "sources": sources,
            "text": number,
            "source": sources.split(",")[number // per_source],
            "start": result.tokens.provenance.start,
            "exact": result.exact,
            "token_accuracy": result.token_accuracy,
            "prefix": int(correct_prefix(decode(lm, result.tokens).ids, target_ids[number])),
            "min_margin": result.min_margin,
            "steps": result.steps,
            "work": result.token_positions + result.backward_positions,
            "seconds": result.seconds,
            "curve": _rises(result.accuracy_history.tolist()),
            **circumstances(),
        }
        for number, result in enumerate(results)
    ]


def _rises(history: list[float]) -> list[tuple[int, float]]:
    """The steps at which the best accuracy so far rises, each with that accuracy."""
    rises: list[tuple[int, float]] = []
    for step, accuracy in enumerate(history):
        if not rises or accuracy > rises[-1][1]:
            rises.append((step, round(accuracy, 4)))
    return rises


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line per length and recipe; ratios are over the pairs of text and seed that the default recipe ran too.

    That of seconds is over the pairs that both ran in one process.
    """
    lines: list[dict[str, Any]] = []
    for length in sorted({r["tokens"] for r in rows}):
        fast = {(r["text"], r["seed"]): r for r in rows if (r["tokens"], r["recipe"]) == (length, "fast")}
        for recipe in RECIPES:
            of_recipe = [r for r in rows if (r["tokens"], r["recipe"]) == (length, recipe)]
            shared = [r for r in of_recipe if (r["text"], r["seed"]) in fast]
            if of_recipe:
                together = [r for r in shared if _process(fast[r["text"], r["seed"]]) == _process(r)]
                lines.append(
                    {
                        "tokens": length,
                        "recipe": recipe,
                        "pairs": len(of_recipe),
                        "exact": sum(r["exact"] for r in of_recipe),
                        "exact_within_150": sum(r["exact"] and r["steps"] <= 150 for r in of_recipe),
                        "exact_within_500": sum(r["exact"] and r["steps"] <= 500 for r in of_recipe),
                        "median_steps": statistics.median(r["steps"] for r in of_recipe),
                        "median_work": statistics.median(r["work"] for r in of_recipe),
                        "times_the_work_of_fast": _ratio("work", shared, fast),
                        "times_the_seconds_of_fast": _ratio("seconds", together, fast),
                        "budget": max(r["budget"] for r in of_recipe),
                    }
                )
    return lines


def _process(row: dict[str, Any]) -> tuple[Any, ...]:
    return row.get("started"), row["command"]


def _ratio(name: str, rows: list[dict[str, Any]], fast: dict[Any, dict[str, Any]]) -> float | None:
    """Median of some rows over that of the same texts and seeds by the default recipe."""
    if not rows:
        return None
    same = statistics.median(fast[r["text"], r["seed"]][name] for r in rows)
    return round(statistics.median(r[name] for r in rows) / same, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--recipes", default="fast,tuned,paper")
    parser.add_argument("--lengths", default="16,32", help="tokens, comma-separated")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--budget", type=int, default=2500, help="steps")
    parser.add_argument("--sources", default=SOURCES, help="where texts come from, comma-separated")
    parser.add_argument("--per-source", type=int, default=4, help="texts from each source")
    parser.add_argument("--rows", type=Path, default=ROWS, help="where rows are kept")
    parser.add_argument("--quick", action="store_true", help="without `paper`; 16 tokens, seed 0, four texts")
    options = parser.parse_args()
    if options.quick:
        options.recipes, options.lengths, options.seeds, options.per_source = "fast,tuned", "16", "0", 2
        options.budget, options.rows = 300, Path("/dev/null")
    lm = load_lm(options.model)
    fixed = {"budget": options.budget, "per_source": options.per_source, "sources": options.sources}
    rows = [r for name in RECIPES for r in load_rows(options.rows, recipe=name, **fixed, **subject(lm, preset(name)))]
    for length in map(int, options.lengths.split(",")):
        for recipe in options.recipes.split(","):
            for seed in map(int, options.seeds.split(",")):
                if any((r["recipe"], r["tokens"], r["seed"]) == (recipe, length, seed) for r in rows):
                    continue
                new = add_rows(options.rows, run(lm, recipe, length, seed, options))
                rows += new
                print(f"{recipe} at {length} tokens, seed {seed}: {sum(r['exact'] for r in new)} of {len(new)} exact")
    lines = summary(rows)
    for line in lines:
        print("  ".join(f"{k} {v}" for k, v in line.items()))
    for row in rows:
        if not row["exact"]:
            print("not exact: {recipe}, {tokens} tokens, text {text} ({source}), seed {seed}".format(**row))
    print_json(lines)


if __name__ == "__main__":
    main()
