"""Generation with drafts beside plain greedy generation: tokens a pass, and wall time in turn in one process.

Prompts come from held-out speeches (`speeches`, the test split), from the speech of 2026 and from other prose; the
model writes behind each by every method in turn, and every text is compared with that of plain generation. Methods:

    plain            one token a pass, with the KV cache
    lookup           transformers' prompt lookup decoding: n-grams of the text so far are the drafts
    untrained        learned inputs at the mean embedding, before any training
    reconstruction   the m-token of the shipped start, which was trained to bring texts back, at every place
    masks            the learned inputs alone, no network: of --masks FILE
    chain            the drafter, one candidate for each place: of --drafter FILE, or the shipped one
    tree             the drafter, several candidates for each place
    tree+lookup      and beside them what n-grams of the text so far draft: the default of `generate`

A method's name may end in @COST: what a further position costs, as a share of a pass (`tree@0.01`); without it the
cost is measured on this machine. One row for each prompt and method; seconds are medians of --repeats runs in turn.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interleaved import circumstances, medians, print_json
from kept_rows import add_rows
from prototokens import FrozenLM, load_lm
from prototokens.arrangements import arrangement_named
from prototokens.drafting.drafter import Drafter, load_drafter, shipped_drafter
from prototokens.drafting.generating import DraftTree, Generation, generate, stop_tokens
from prototokens.drafting.network import DrafterConfig
from prototokens.drafting.passes import position_cost
from prototokens.fitting.starter import shipped_starter
from prototokens.lm.generation import without_own_settings
from prototokens.texts.sampling import sample

ROWS = Path(__file__).parent / "rows" / "generate.jsonl"
METHODS = "plain,lookup,untrained,reconstruction,chain,tree,tree+lookup"
MASKS = DrafterConfig(n_masks=3, n_drafts=3, input_width=0, reader_width=0)


@dataclass
class Count:
    """Passes of a model."""

    passes: int = 0


@contextmanager
def counted(lm: FrozenLM) -> Iterator[Count]:
    """Count the model's passes while the block runs, whoever makes them."""
    count = Count()

    def add(*_: Any) -> None:
        count.passes += 1

    handle = lm.model.register_forward_hook(add)
    try:
        yield count
    finally:
        handle.remove()


def lookup(lm: FrozenLM, prompt_ids: Tensor, n_tokens: int, lookup_tokens: int) -> Tensor:
    """Greedy generation by prompt lookup decoding, the new ids alone, (N,)."""
    from transformers import GenerationConfig

    ids = prompt_ids.unsqueeze(0).to(lm.device)
    settings = GenerationConfig(
        max_new_tokens=n_tokens,
        eos_token_id=stop_tokens(lm) or None,
        pad_token_id=0,
        do_sample=False,
        prompt_lookup_num_tokens=lookup_tokens,
    )
    model = without_own_settings(lm.model)
    whole = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return whole[0, len(prompt_ids) :].cpu()


def of_reconstruction(lm: FrozenLM) -> Drafter | None:
    """A drafter whose learned inputs are the m-token of reconstruction, where the model has a shipped start."""
    starter = shipped_starter(lm.identity, arrangement_named("m,e,m*(n-1)"))
    if starter is None:
        return None
    drafter = Drafter.untrained(lm, MASKS)
    network = drafter.network
    with torch.no_grad():
        network.masks.copy_((starter.m.to(lm.device) - network.embedding_mean) / network.embedding_std)
    return drafter


def methods(
    lm: FrozenLM, drafter: Drafter | None, options: argparse.Namespace
) -> dict[str, Callable[[Tensor], Tensor | Generation]]:
    """How each method writes behind a prompt."""
    drafters: dict[str, Drafter | None] = {
        "plain": None,
        "untrained": Drafter.untrained(lm, MASKS),
        "reconstruction": of_reconstruction(lm),
        "masks": load_drafter(options.masks) if options.masks else None,
        "chain": drafter,
        "tree": drafter,
        "tree+lookup": drafter,
    }

    def write(name: str) -> Callable[[Tensor], Tensor | Generation]:
        method, _, cost = name.partition("@")
        if method == "lookup":
            return lambda ids: lookup(lm, ids, options.tokens, int(cost or options.lookup_tokens))
        tree = DraftTree(
            width=options.width if method.startswith("tree") else 1,
            lookup=method.endswith("+lookup"),
            position_cost=float(cost) if cost else None,
        )
        return lambda ids: generate(lm, ids, drafter=drafters[method], max_new_tokens=options.tokens, tree=tree)

    names = [name for name in options.methods.split(",") if name]
    for name in names:
        method = name.partition("@")[0]
        if method not in ("lookup", *drafters):
            raise SystemExit(f"error: unknown method {method!r}; choose of: {METHODS},masks")
        if method not in ("plain", "lookup") and drafters[method] is None:
            raise SystemExit(f"error: {method} needs a trained drafter or start: give --drafter or --masks")
    return {name: write(name) for name in dict.fromkeys(["plain", *names])}


def measure(
    lm: FrozenLM, prompt_ids: Tensor, runs: dict[str, Callable[[Tensor], Tensor | Generation]], repeats: int
) -> list[dict[str, Any]]:
    """One row for each method, of one prompt."""
    rows = []
    plain = runs["plain"](prompt_ids)
    assert isinstance(plain, Generation)
    for name, run in runs.items():
        with counted(lm) as count:
            result = run(prompt_ids)
        ids = result.ids if isinstance(result, Generation) else result
        same = min(len(ids), len(plain.ids))
        differs = (ids[:same] != plain.ids[:same]).nonzero()
        rows.append(
            {
                "method": name,
                "n_tokens": len(ids),
                "passes": count.passes,
                "tokens_per_pass": len(ids) / count.passes,
                "same_text": torch.equal(ids, plain.ids),
                "first_difference": int(differs[0]) if len(differs) else None,
                "verified": sum(result.verified) if isinstance(result, Generation) else None,
                "accepted": list(result.accepted) if isinstance(result, Generation) else None,
            }
        )
    if repeats:
        seconds = medians({name: lambda run=run: run(prompt_ids) for name, run in runs.items()}, repeats)
        rows = [row | {"seconds": seconds[row["method"]]} for row in rows]
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each method over all prompts, and by source."""
    lines = []
    for source in ["all", *dict.fromkeys(row["source"] for row in rows)]:
        chosen = [row for row in rows if source in ("all", row["source"])]
        plain = {row["prompt"]: row for row in chosen if row["method"] == "plain"}
        for method in dict.fromkeys(row["method"] for row in chosen):
            of_method = [row for row in chosen if row["method"] == method]
            accepted = [n for row in of_method for n in row["accepted"] or ()]
            line = {
                "source": source,
                "method": method,
                "prompts": len(of_method),
                "tokens_per_pass": sum(r["n_tokens"] for r in of_method) / sum(r["passes"] for r in of_method),
                "same_text": sum(row["same_text"] for row in of_method),
                "accepted_at_least": [
                    round(statistics.mean(n >= depth for n in accepted), 3) for depth in (1, 2, 3)
                ] if accepted else None,
            }  # fmt: skip
            if "seconds" in of_method[0]:
                times = sum(row["seconds"] for row in of_method)
                line["times_as_fast"] = sum(plain[row["prompt"]]["seconds"] for row in of_method) / times
            lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--methods", default=METHODS, help="comma-separated, after plain")
    parser.add_argument("--drafter", type=Path, help="of chain and tree; the shipped one if not given")
    parser.add_argument("--masks", type=Path, help="a drafter without a network, of the method masks")
    parser.add_argument("--sources", default="speeches,recent", help="named sources or files, comma-separated")
    parser.add_argument("--prompts", type=int, default=4, help="of each source")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128, help="new tokens")
    parser.add_argument("--width", type=int, default=4, help="candidates for each place of a tree")
    parser.add_argument("--lookup-tokens", type=int, default=10, help="drafts of prompt lookup")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs in turn; 0: passes only")
    parser.add_argument("--rows", type=Path, default=ROWS, help="where rows are kept")
    parser.add_argument("--quick", action="store_true", help="one prompt, no timing, nothing kept")
    options = parser.parse_args()
    if options.quick:
        options.prompts, options.repeats, options.rows = 1, 0, Path("/dev/null")
    lm = load_lm(options.model, dtype=options.dtype)
    drafter = load_drafter(options.drafter) if options.drafter else shipped_drafter(lm.identity)
    runs = methods(lm, drafter, options)
    place = {"model": lm.identity.name, "dtype": lm.dtype_name, "position_cost": position_cost(lm)}
    if drafter is not None:
        place |= {"drafter": drafter.name, "samples": drafter.training.get("samples"), "width": options.width}
    place |= circumstances()
    rows: list[dict[str, Any]] = []
    for source in options.sources.split(","):
        prompts = sample(source, lm, options.prompt_tokens, options.prompts, seed=5, split="test")
        for number, prompt_ids in enumerate(prompts):
            of_prompt = measure(lm, prompt_ids, runs, options.repeats)
            rows += [{"source": source, "prompt": f"{source} {number}", **row} for row in of_prompt]
            print(
                f"{source} {number}: "
                + "  ".join(f"{row['method']} {row['tokens_per_pass']:.2f}" for row in of_prompt),
                flush=True,
            )
    lines = summary(rows)
    for line in lines:
        print("  ".join(f"{k} {f'{v:.2f}' if isinstance(v, float) else v}" for k, v in line.items()))
    if not options.quick:
        add_rows(options.rows, [row | place for row in rows])
    print_json(lines)


if __name__ == "__main__":
    main()
