"""What a drafter's learned inputs have in common with the m-token of reconstruction: cosines, and lengths.

All vectors are taken as differences from the mean embedding. A drafter's inputs are the means over places of texts of
what its network gives. For comparison: two m-tokens of reconstruction, of two vectors and of blocks.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interleaved import print_json
from prototokens import FrozenLM, load_lm
from prototokens.arrangements import arrangement_named, blocks
from prototokens.drafting.drafter import Drafter, load_drafter, shipped_drafter
from prototokens.drafting.states import states_kept
from prototokens.fitting.starter import shipped_starter
from prototokens.texts.sampling import sample


@torch.no_grad()
def mean_inputs(lm: FrozenLM, drafter: Drafter) -> Tensor:
    """The drafter's inputs behind the tokens of eight held-out texts, mean over them, (M, D)."""
    ids = sample("speeches", lm, 64, 8, seed=5, split="test")
    with states_kept(lm) as kept:
        lm.next_token_logits(ids)
    states, tokens = kept[0][:, :-1].float(), lm.embed(ids[:, 1:])
    network = drafter.network.to(lm.device)
    lags = torch.zeros(tokens.shape[0] * tokens.shape[1], dtype=torch.long, device=lm.device)
    return network.inputs(states.flatten(0, 1), tokens.flatten(0, 1), lags).mean(0).cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--drafter", type=Path, action="append", help="may be given several times; else the shipped one"
    )
    options = parser.parse_args()
    lm = load_lm(options.model)
    drafters = {str(path): load_drafter(path) for path in options.drafter or ()}
    if not drafters and (shipped := shipped_drafter(lm.identity)):
        drafters = {"shipped": shipped}
    vectors: dict[str, Tensor] = {}
    for name, arrangement in {"two vectors": arrangement_named("m,e,m*(n-1)"), "blocks of 8": blocks(8)}.items():
        if starter := shipped_starter(lm.identity, arrangement):
            vectors[f"m of {name}"] = starter.m
    for name, drafter in drafters.items():
        vectors |= {f"{name}, mask {i}": row for i, row in enumerate(mean_inputs(lm, drafter), 1)}
    mean = lm.embedding_statistics.mean.cpu()
    rows: list[dict[str, Any]] = []
    for name, vector in vectors.items():
        cosines = {
            second_name: round(torch.cosine_similarity(vector - mean, second - mean, dim=0).item(), 3)
            for second_name, second in vectors.items()
            if second_name != name
        }
        rows.append({"vector": name, "length": round((vector - mean).norm().item(), 2), "cosines": cosines})
        print(rows[-1])
    print_json(rows)


if __name__ == "__main__":
    main()
