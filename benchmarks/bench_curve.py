"""One long curve between two solutions of one text: how its lowest accuracy grows with its steps.

The text is one of the study `connectivity` at the laptop's scale; two fits from `vocabulary` with different seeds are
joined by a quadratic Bezier curve. 2,400 steps take about an hour on one thread.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from interleaved import print_json
from prototokens import FrozenLM, fit, load_lm, preset
from prototokens.fitting.descent import FitProgress
from prototokens.geometry.connecting import connect_pairs
from prototokens.geometry.curves import ConnectConfig
from prototokens.geometry.profiles import even_taus, profile
from prototokens.texts.sampling import sample


def solutions(lm: FrozenLM, options: argparse.Namespace) -> list[Any]:
    """The fits of the text, one for each seed."""
    target_ids = sample("old", lm, options.tokens, options.text + 1)[options.text]
    config = preset(start="vocabulary", perturbation=0.0)
    config = replace(config, stop=replace(config.stop, max_steps=options.fit_steps, margin=options.margin))
    results = [fit(lm, target_ids, replace(config, seed=int(seed))) for seed in options.seeds.split(",")]
    if len(results) != 2 or not all(result.exact for result in results):
        raise SystemExit(f"error: of {len(results)} fits {sum(r.exact for r in results)} are exact; two are needed")
    return [result.tokens for result in results]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--text", type=int, default=1, help="number of the text")
    parser.add_argument("--seeds", default="0,2", help="of the two fits")
    parser.add_argument("--margin", type=float, default=3.0, help="that the fits reach, in logits")
    parser.add_argument("--fit-steps", type=int, default=1500, help="that a fit may take")
    parser.add_argument("--steps", type=int, default=2400, help="of the curve")
    parser.add_argument("--quick", action="store_true", help="a text of two tokens, ten steps")
    options = parser.parse_args()
    if options.quick:
        options.tokens, options.margin, options.steps = 2, 0.01, 10
    lm = load_lm(options.model)
    first, last = solutions(lm, options)
    config = ConnectConfig(max_steps=options.steps, check_every=min(40, options.steps), check_taus=31)
    evaluations: list[dict[str, float]] = []

    def record(progress: FitProgress) -> None:
        evaluations.append({"step": progress.step, "lowest_accuracy": progress.token_accuracy})
        print("step {step}: lowest accuracy of the best curve {lowest_accuracy:.3f}".format(**evaluations[-1]))

    curve = connect_pairs(lm, [(first, last)], config, progress=record)[0]
    scores = profile(lm, curve.path, even_taus(101))
    print_json(
        [
            {
                "steps": curve.steps,
                "lowest_accuracy": scores.token_accuracy.min().item(),
                "mean_accuracy": scores.token_accuracy.mean().item(),
                "exact_share": (scores.token_accuracy == 1).float().mean().item(),
                "barrier_nats": scores.barrier,
                "length_ratio": curve.path.ratio,
                "evaluations": evaluations,
            }
        ]
    )


if __name__ == "__main__":
    main()
