"""What a pass costs by its number of positions, behind a cache: the whole pass, and the head alone.

Inputs are what generation with drafts gives: vectors, a mask and places. Seconds are medians of --repeats runs in turn.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from interleaved import medians, print_json
from prototokens import load_lm
from prototokens.drafting.passes import Reading
from prototokens.drafting.states import logits_of, state_width

POSITIONS = "1,2,3,4,6,7,8,12,16,24,32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text-tokens", type=int, default=64, help="in the cache")
    parser.add_argument("--positions", default=POSITIONS, help="comma-separated; a pass pads them to fours")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    lm = load_lm(options.model)
    reading = Reading(lm, torch.zeros(options.text_tokens, dtype=torch.long))
    width = state_width(lm)

    @torch.no_grad()
    def run(n: int) -> None:
        inputs_embeds = lm.embed(torch.zeros(n, dtype=torch.long))
        logits, _ = reading.extend(inputs_embeds, torch.arange(n), torch.ones(n, n).tril().bool())
        logits.argmax(-1).tolist()
        reading.keep([], n)

    @torch.no_grad()
    def head(n: int) -> None:
        logits_of(lm, torch.zeros(n, width, device=lm.device)).argmax(-1).tolist()

    numbers = [int(x) for x in options.positions.split(",")]
    passes = medians({str(n): lambda n=n: run(n) for n in numbers}, options.repeats)
    heads = medians({str(n): lambda n=n: head(n) for n in numbers}, options.repeats)
    rows: list[dict[str, Any]] = [
        {"positions": n, "pass_seconds": passes[str(n)], "head_seconds": heads[str(n)]} for n in numbers
    ]
    for row in rows:
        print("{positions:3} positions: pass {pass_seconds:.4f} s, head {head_seconds:.4f} s".format(**row))
    print_json(rows)


if __name__ == "__main__":
    main()
