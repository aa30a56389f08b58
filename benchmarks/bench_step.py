"""What a step of a fit costs over the bare model: a forward and a backward pass to the input, on the same positions."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch

from interleaved import medians, print_json
from prototokens import FrozenLM, load_lm, preset
from prototokens.arrangements import arrangement_named
from prototokens.fitting.fit import descend
from prototokens.fitting.recipes import Stop
from prototokens.texts.sampling import sample


def measure(lm: FrozenLM, texts: int, tokens: int, steps: int, repeats: int) -> dict[str, Any]:
    target_ids = sample("old", lm, tokens, texts)
    config = replace(preset(), stop=Stop(max_steps=steps, margin=float("inf")))
    layout = arrangement_named(config.arrangement).layout(tokens)
    inputs_embeds = torch.randn(texts, len(layout.slots), lm.width) * lm.embedding_statistics.std
    upstream = torch.randn(texts, tokens, lm.next_token_logits(target_ids[:, :1]).shape[-1])

    def bare() -> None:
        for turn in range(steps + 1):  # the steps, and the evaluation after the last one
            x = inputs_embeds.clone().requires_grad_()
            logits = lm.logits(x, layout.read_positions())
            if turn < steps:
                torch.autograd.grad(logits, x, upstream)

    seconds = medians({"fit": lambda: descend(lm, target_ids, config), "bare": bare}, repeats)
    ratio = seconds["fit"] / seconds["bare"]
    return {"texts": texts, "tokens": tokens, "steps": steps, **seconds, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--shapes", default="1x16,8x16,1x64,4x64", help="texts x tokens, comma-separated")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="steps timed together, so that set-up is shared out")
    parser.add_argument("--quick", action="store_true", help="two shapes, five repeats")
    options = parser.parse_args()
    if options.quick:
        options.shapes, options.repeats = "1x16,8x16", 5
    lm = load_lm(options.model)
    rows = []
    for shape in options.shapes.split(","):
        rows.append(measure(lm, *map(int, shape.split("x")), options.steps, options.repeats))
        print("{texts}x{tokens}: fit {fit:.3f} s, bare {bare:.3f} s, ratio {ratio:.3f}".format(**rows[-1]), flush=True)
    print_json(rows)


if __name__ == "__main__":
    main()
