"""One-step decoding over the bare forward pass, and beside KV-cached greedy generation of the same number of tokens."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch

from interleaved import medians, print_json
from prototokens import FrozenLM, decode, fit_batch, load_lm, preset
from prototokens.fitting.recipes import Stop
from prototokens.texts.sampling import sample


def measure(lm: FrozenLM, texts: int, length: int, repeats: int) -> dict[str, Any]:
    # Speed does not depend on what the vectors hold, so that they need not be fitted.
    target_ids = sample("old", lm, length, texts)
    vectors = [r.tokens for r in fit_batch(lm, target_ids, replace(preset(), stop=Stop(max_steps=0)))]
    inputs_embeds = torch.cat([v.inputs_embeds() for v in vectors])
    read = range(inputs_embeds.shape[1] - length, inputs_embeds.shape[1])
    prompt = lm.fixed_vector("bos").expand(texts, 1, -1)

    @torch.no_grad()
    def bare() -> None:
        lm.logits(inputs_embeds, read)

    runs = {
        "decode": lambda: decode(lm, vectors, scores=False),
        "bare": bare,
        "greedy": lambda: lm.generate(prompt, length),
    }
    seconds = medians(runs, repeats)
    ratios = {
        "decode_over_bare": seconds["decode"] / seconds["bare"],
        "greedy_over_decode": seconds["greedy"] / seconds["decode"],
    }
    return {"texts": texts, "tokens": length, **seconds, **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--batches", default="1,4,16")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="five repeats")
    options = parser.parse_args()
    lm = load_lm(options.model)
    rows = []
    for texts in map(int, options.batches.split(",")):
        rows.append(measure(lm, texts, options.tokens, 5 if options.quick else options.repeats))
        print(
            "{texts} texts of {tokens} tokens: decode {decode:.3f} s, {decode_over_bare:.3f} of the bare pass; "
            "greedy {greedy_over_decode:.1f} times as long".format(**rows[-1]),
            flush=True,
        )
    print_json(rows)


if __name__ == "__main__":
    main()
