"""Which natural texts a recipe reaches: whole sentences at several seeds, and a longer text with restarts."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch

from interleaved import print_json
from prototokens import FrozenLM, fit_batch, load_lm, preset
from prototokens.texts import sample


def reach(
    lm: FrozenLM, start: str, tokens: int, texts: int, seeds: int, restarts: int, max_steps: int
) -> list[dict[str, Any]]:
    target_ids = torch.cat(
        [sample(s, lm, tokens, -(-texts // 2), seed=11, start="sentence") for s in ("old", "recent")]
    )
    rows = []
    for seed in range(seeds):
        config = preset(start=start, restarts=restarts, seed=seed)
        config = replace(config, stop=replace(config.stop, max_steps=max_steps))
        for number, result in enumerate(fit_batch(lm, target_ids[:texts], config)):
            row = {
                "tokens": tokens,
                "text": number,
                "seed": seed,
                "restarts": restarts,
                "exact": result.exact,
                "token_accuracy": result.token_accuracy,
                "steps": result.steps,
                "positions": result.token_positions + result.backward_positions,
                "start": result.tokens.provenance.start,
            }
            rows.append(row)
            print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--start", default="auto")
    parser.add_argument("--quick", action="store_true", help="two texts of 8 tokens at one seed")
    options = parser.parse_args()
    lm = load_lm(options.model)
    if options.quick:
        print_json(reach(lm, options.start, 8, 2, 1, 1, 200))
        return
    print_json(reach(lm, options.start, 16, 3, 3, 1, 400) + reach(lm, options.start, 32, 1, 1, 4, 1500))


if __name__ == "__main__":
    main()
