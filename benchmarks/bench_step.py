"""What a step of a fit costs over the bare model: a forward and a backward pass to the input, on the same positions.

`--compile` also times the same steps with a compiled copy of the model (`torch.compile`), compilation left out, and
says how long the first fit took with it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bare import bare_passes
from interleaved import medians, print_json
from prototokens import FrozenLM, load_lm, preset
from prototokens.arrangements import arrangement_named
from prototokens.fitting.fit import descend
from prototokens.fitting.recipes import Stop
from prototokens.texts.sampling import sample


def measure(
    lm: FrozenLM, compiled: FrozenLM | None, texts: int, length: int, steps: int, repeats: int
) -> dict[str, Any]:
    target_ids = sample("old", lm, length, texts)
    config = replace(preset(), stop=Stop(max_steps=steps, margin=float("inf")))
    layout = arrangement_named(config.arrangement).layout(length)
    bare = bare_passes(lm, layout, texts, steps)
    runs: dict[str, Callable[[], object]] = {"fit": lambda: descend(lm, target_ids, config), "bare": bare}
    row: dict[str, Any] = {"texts": texts, "tokens": length, "steps": steps}
    if compiled is not None:
        start = time.perf_counter()
        descend(compiled, target_ids, config)
        row["first_compiled"] = time.perf_counter() - start
        runs["compiled"] = lambda: descend(compiled, target_ids, config)
    seconds = medians(runs, repeats)
    row |= seconds | {"ratio": seconds["fit"] / seconds["bare"]}
    if compiled is not None:
        row["compiled_ratio"] = seconds["compiled"] / seconds["fit"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--shapes", default="1x16,8x16,1x64,4x64", help="texts x tokens, comma-separated")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="steps timed together, so that set-up is shared out")
    parser.add_argument("--compile", action="store_true", help="time a compiled copy of the model, too")
    parser.add_argument("--quick", action="store_true", help="two shapes, five repeats")
    options = parser.parse_args()
    if options.quick:
        options.shapes, options.repeats = "1x16,8x16", 5
    lm = load_lm(options.model)
    compiled = load_lm(options.model) if options.compile else None
    if compiled is not None:
        compiled.model.compile(dynamic=True)
    rows = []
    for shape in options.shapes.split(","):
        rows.append(measure(lm, compiled, *map(int, shape.split("x")), options.steps, options.repeats))
        print("{texts}x{tokens}: fit {fit:.3f} s, bare {bare:.3f} s, ratio {ratio:.3f}".format(**rows[-1]), flush=True)
        if compiled is not None:
            print(
                "  compiled {compiled:.3f} s, ratio to the plain fit {compiled_ratio:.3f}; "
                "the first fit took {first_compiled:.1f} s".format(**rows[-1]),
                flush=True,
            )
    print_json(rows)


if __name__ == "__main__":
    main()
