"""Information (figure 3): H_LM of the longest text that one or two vectors hold, in one step and autoregressively.

One step with two vectors has an e and an m of each text's own; with one vector it has an e, and an m that all texts of
the kind share. Autoregressive cramming has one or two [mem] vectors. All four search by growth, with the same budget.

Reference: Exploring the Latent Capacity of LLMs for One-Step Text Generation (Mezentsev & Oseledets, 2025), figure 3,
https://arxiv.org/abs/2505.21189.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from torch import Tensor

from ...fitting.fit import Given
from ...lm.frozen import FrozenLM
from ..cells import Batch, Settings, cell_settings
from ..fits import recipe
from ..jobs import Measurement
from ..prefix_search import Attempt, autoregressive, grow, one_step, prefix_h_lm_nats
from .capacity import ACCURACY, common_m


@dataclass(frozen=True)
class Grid:
    """What is measured at a scale.

    Attributes:
        sources: kinds of text.
        texts: how many of each.
        seeds: how many.
        longest: length of the texts that are searched, in tokens.
        recipes: of one step and of cramming.
        max_steps: step budget of a trial.
        first: length of the first prefix.
        work: positions forward and backward that the search of one text may cost.
        rows: texts searched side by side.
    """

    sources: tuple[str, ...]
    texts: int
    seeds: int
    longest: int
    recipes: tuple[str, str]
    max_steps: int
    first: int
    work: int
    rows: int


GRIDS = {
    "smoke": Grid(("random", "old"), 1, 1, 8, ("fast", "cramming"), 10, 2, 120, 2),
    "laptop": Grid(("random", "old"), 2, 1, 48, ("fast", "cramming"), 120, 4, 3_000, 2),
    "paper": Grid(("random", "old", "recent", "generated"), 50, 1, 1448, ("paper", "paper"), 5000, 16, 20_000_000, 5),
}


def lay_out(scale: str) -> list[Batch]:
    """One batch per method, number of vectors, kind of text and seed, and per some texts."""
    grid = GRIDS[scale]
    # At worst texts are searched one by one, at about a quarter of the longest; a step costs a position there and back.
    middling = max(1, grid.longest // 4)
    return [
        Batch(
            study="information",
            label=f"{method}, {vectors} vectors, {source} from text {first}, seed {seed}",
            cells=tuple(
                cell_settings(
                    scale, source, text, grid.longest, seed, recipe_name, grid.max_steps,
                    method=method, vectors=vectors, first=grid.first, work_limit=grid.work,
                )
                for text in range(first, min(first + grid.rows, grid.texts))
            ),
            steps=min(grid.rows, grid.texts - first) * grid.work // (2 * middling),
            positions=middling + vectors,
            peak_positions=min(grid.rows, grid.texts - first) * (grid.longest + vectors),
        )
        for method, recipe_name in zip(("one-step", "autoregressive"), grid.recipes, strict=True)
        for vectors in (1, 2)
        for source in grid.sources
        for seed in range(grid.seeds)
        for first in range(0, grid.texts, grid.rows)
    ]  # fmt: skip


def run(lm: FrozenLM, cells: list[Settings], target_ids: Tensor) -> list[Measurement]:
    """Search the longest prefixes of the texts (B, T) that the batch's vectors hold."""
    settings, began = cells[0], time.perf_counter()
    attempt = _attempt(lm, settings, target_ids)
    results = grow(attempt, target_ids, settings["max_steps"], first=settings["first"], work=settings["work_limit"])
    seconds = (time.perf_counter() - began) / len(results)
    return [
        Measurement(
            {
                "capacity_tokens": result.tokens,
                "h_lm_nats": prefix_h_lm_nats(lm, ids, result.tokens),
                "bound_tokens": result.bound,
                "trials": len(result.trials),
                "steps": sum(trial.steps for trial in result.trials),
                "work": result.work,
                "stop_reason": result.stop_reason,
                "seconds": seconds,
            }
        )
        for result, ids in zip(results, target_ids, strict=True)
    ]


def _attempt(lm: FrozenLM, settings: Settings, target_ids: Tensor) -> Attempt:
    config = recipe(settings)
    config = replace(config, stop=replace(config.stop, accuracy=ACCURACY))
    if settings["method"] == "autoregressive":
        return autoregressive(lm, replace(config, e_tokens=settings["vectors"]))
    if settings["vectors"] == 2:
        return one_step(lm, config)
    return one_step(lm, config, Given(m=common_m(lm, target_ids, config, settings["first"])))
