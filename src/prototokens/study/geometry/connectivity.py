"""Connectivity (figure 7): whether two solutions of one text are joined by a way on which every point decodes to it.

Each text is fitted from several seeds, from a text-independent start, in two vectors, and where the grid says so once
more to a larger margin, or in blocks with an e-token each. Every pair of its solutions of one kind is then joined

    segment  by the straight segment, which is only looked at
    bezier   by a quadratic Bezier curve, its control point fitted; the paper's
    chain    by two straight pieces, the point between them fitted
    cubic    by a cubic Bezier curve, both control points fitted

and all ways are scored at the same places. The curves of one kind and text are fitted side by side, as many at once as
the scale says. A pair of which an end is not exact has no curve: there is nothing to stay at.

Reference: Exploring the Latent Capacity of LLMs for One-Step Text Generation (Mezentsev & Oseledets, 2025), figure 7,
https://arxiv.org/abs/2505.21189.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from torch import Tensor

from ...fitting.fit import FitResult, fit_batch
from ...geometry.connecting import connect_pairs
from ...geometry.curves import ConnectConfig, Connection
from ...geometry.paths import Path, segment
from ...geometry.profiles import even_taus, profile
from ...lm.frozen import FrozenLM
from ..cells import STEP_OVER_FORWARD, Batch, Settings, cell_settings, chunked, json_list
from ..fits import config_hash, measured, recipe
from ..jobs import Measurement

_BEZIER = ConnectConfig(kind="bezier", inner=1, check_every=20, check_taus=31)

CURVES = {"bezier": _BEZIER, "chain": replace(_BEZIER, kind="chain"), "cubic": replace(_BEZIER, inner=2)}
"""The ways that are fitted, by name; the budget of steps is the grid's. Half as many evaluations as by default, each at
twice as many places: where a curve leaves the basin is narrow."""

INEXACT = "an end is not exact"
"""Why a pair has no curve."""

Solution = tuple[int, int]
"""Number of the text, seed of the fit."""


@dataclass(frozen=True)
class Solutions:
    """A kind of solutions whose pairs are joined.

    Attributes:
        margin: in logits; a fit ends when every token leads by more, so that curves begin inside a basin and not on
            its rim.
        max_steps: step budget of a fit.
        tokens_per_vector: length of the text's blocks, each with an e-token of its own; None: two vectors.
    """

    margin: float
    max_steps: int
    tokens_per_vector: int | None = None


@dataclass(frozen=True)
class ConnectivityGrid:
    """What is measured at a scale.

    Attributes:
        length: in tokens, of every text.
        texts: how many.
        seeds: solutions of each, of every kind.
        kinds: the kinds of solutions.
        curves: which of `CURVES` are fitted.
        taus: places at which a way is scored, its ends included.
        curve_steps: step budget of a curve.
        texts_at_once: texts of a batch.
        pairs_at_once: curves fitted side by side, which a GPU's memory bounds.
        start: where fits begin; text-independent, so that seeds begin far apart.
        recipe: name of a preset.
    """

    length: int
    texts: int
    seeds: int
    kinds: tuple[Solutions, ...]
    curves: tuple[str, ...]
    taus: int
    curve_steps: int
    texts_at_once: int
    pairs_at_once: int
    start: str = "vocabulary"
    recipe: str = "fast"


GRIDS = {
    "smoke": ConnectivityGrid(
        length=2,
        texts=1,
        seeds=2,
        kinds=(Solutions(0.01, 60), Solutions(0.01, 60, 1)),
        curves=("bezier",),
        taus=5,
        curve_steps=10,
        texts_at_once=1,
        pairs_at_once=1,
    ),
    "laptop": ConnectivityGrid(
        length=16,
        texts=3,
        seeds=2,
        kinds=(Solutions(3.0, 1000), Solutions(6, 1500), Solutions(3, 500, 8)),
        curves=("bezier",),
        taus=21,
        curve_steps=660,
        texts_at_once=3,
        pairs_at_once=1,
    ),
    "paper": ConnectivityGrid(
        length=256,
        texts=5,
        seeds=10,
        kinds=(Solutions(3.0, 5000), Solutions(6, 10_000), Solutions(3, 2000, 8)),
        curves=tuple(CURVES),
        taus=21,
        curve_steps=2000,
        texts_at_once=1,
        pairs_at_once=5,
    ),
}


def lay_out(scale: str) -> list[Batch]:
    """One batch per kind of solutions and group of texts: a cell for each fit, then one for each way between a pair."""
    grid = GRIDS[scale]
    return [
        _batch(scale, grid, kind, texts)
        for kind in grid.kinds
        for texts in chunked(range(grid.texts), grid.texts_at_once)
    ]


def _batch(scale: str, grid: ConnectivityGrid, kind: Solutions, texts: Sequence[int]) -> Batch:
    in_blocks = {"tokens_per_vector": kind.tokens_per_vector} if kind.tokens_per_vector else {}

    def cell(text: int, seed: int, method: str, **columns: Any) -> Settings:
        return cell_settings(
            scale, "old", text, grid.length, 0, grid.recipe, kind.max_steps,
            method=method, start=grid.start, margin=kind.margin, fit_seed=seed, **in_blocks, **columns,
        )  # fmt: skip

    fits = [cell(text, seed, "fit") for seed in range(grid.seeds) for text in texts]
    ways: dict[str, Settings] = {"segment": {"inner": 0, "curve_steps": 0}}
    for name in grid.curves:
        config = CURVES[name]
        ways[name] = {"inner": config.inner, "curve_steps": grid.curve_steps, "curve_hash": config_hash(config)}
    pairs = [
        cell(text, first, method, other_seed=second, taus=grid.taus, **settings)
        for method, settings in ways.items()
        for text in texts
        for first, second in combinations(range(grid.seeds), 2)
    ]
    steps, positions, peak = _cost(grid, kind, len(texts))
    vectors = f"in blocks of {kind.tokens_per_vector}" if kind.tokens_per_vector else "in two vectors"
    return Batch(
        study="connectivity",
        label=f"margin {kind.margin:g}, {vectors}, {grid.seeds} of texts {texts[0]} to {texts[-1]}",
        cells=(*fits, *pairs),
        steps=steps,
        positions=math.ceil(positions / steps),
        peak_positions=peak,
    )


def _cost(grid: ConnectivityGrid, kind: Solutions, texts: int) -> tuple[int, int, int]:
    """Steps of a batch at most, the positions of all of them together, and those of the largest step.

    The positions are those of a step, forward and backward, that cost as much.
    """
    width, pairs = grid.length + 1, math.comb(grid.seeds, 2)
    at_once = min(pairs, grid.pairs_at_once)
    rounds = texts * math.ceil(pairs / at_once)
    fit_steps, curve_steps = grid.seeds * kind.max_steps, len(grid.curves) * rounds * grid.curve_steps
    fit_positions, curve_positions, evaluations = texts * width, 0, 0
    for config in (CURVES[name] for name in grid.curves):
        curve_positions = at_once * config.taus * width
        evaluations += rounds * (grid.curve_steps // config.check_every + 1) * at_once * config.check_taus * width
    positions = fit_steps * fit_positions + curve_steps * curve_positions + evaluations // STEP_OVER_FORWARD
    return fit_steps + curve_steps, positions, max(fit_positions, curve_positions)


def run(lm: FrozenLM, cells: list[Settings], target_ids: Tensor) -> list[Measurement]:
    """Fit the texts of the cells (B, T) from every seed, join their solutions, and score the ways."""
    ids_of = {cell["text"]: ids for cell, ids in zip(cells, target_ids, strict=True)}
    by_method = {
        method: [n for n, cell in enumerate(cells) if cell["method"] == method]
        for method in dict.fromkeys(cell["method"] for cell in cells)
    }
    fits: dict[Solution, FitResult] = {}
    measurements: dict[int, Measurement] = {}
    for seed in dict.fromkeys(cells[n]["fit_seed"] for n in by_method["fit"]):
        numbers = [n for n in by_method["fit"] if cells[n]["fit_seed"] == seed]
        ids = target_ids[numbers]
        results = fit_batch(lm, ids, recipe(cells[0] | {"seed": seed}, start=cells[0]["start"]))
        fits |= {(cells[n]["text"], seed): result for n, result in zip(numbers, results, strict=True)}
        measurements |= dict(zip(numbers, measured(lm, ids, results), strict=True))
    for method, numbers in by_method.items():
        for text in dict.fromkeys(cells[n]["text"] for n in numbers if method != "fit"):
            of_text = [n for n in numbers if cells[n]["text"] == text]
            ways = _ways(lm, [cells[n] for n in of_text], fits, ids_of[text])
            measurements |= dict(zip(of_text, ways, strict=True))
    return [measurements[n] for n in range(len(cells))]


def _ways(
    lm: FrozenLM, cells: Sequence[Settings], fits: dict[Solution, FitResult], target_ids: Tensor
) -> list[Measurement]:
    """One kind of way between the pairs of one text's solutions, the curves fitted side by side."""
    pairs = [(fits[cell["text"], cell["fit_seed"]], fits[cell["text"], cell["other_seed"]]) for cell in cells]
    exact = [first.exact and last.exact for first, last in pairs]
    method = cells[0]["method"]
    paths: list[Path | None]
    curves: list[Connection | None] = [None] * len(cells)
    if method == "segment":
        paths = [segment(first.tokens, last.tokens) for first, last in pairs]
    else:
        config = replace(CURVES[method], max_steps=cells[0]["curve_steps"])
        joined = [(first.tokens, last.tokens) for (first, last), whole in zip(pairs, exact, strict=True) if whole]
        made = (
            curve
            for some in chunked(joined, GRIDS[cells[0]["scale"]].pairs_at_once)
            for curve in connect_pairs(lm, some, config, target_ids.expand(len(some), -1))
        )
        curves = [next(made) if whole else None for whole in exact]
        paths = [curve.path if curve else None for curve in curves]
    return [
        Measurement(
            {"both_exact": int(whole), "missing": None if path else INEXACT}
            | _profile_columns(lm, path, target_ids, cell["taus"])
            | _curve_columns(curve)
        )
        for cell, whole, path, curve in zip(cells, exact, paths, curves, strict=True)
    ]


def _profile_columns(lm: FrozenLM, path: Path | None, target_ids: Tensor, taus: int) -> dict[str, Any]:
    """Scores along a way, the whole profile as JSON lists, and its length; nulls where there is no way."""
    if path is None:
        names = ("accuracies", "losses_nats", "lowest_accuracy", "highest_loss_nats", "barrier_nats", "length",
                 "length_ratio")  # fmt: skip
        return dict.fromkeys(names)
    seen = profile(lm, path, even_taus(taus), target_ids)
    return {
        "accuracies": json_list(seen.token_accuracy.tolist()),
        "losses_nats": json_list(seen.loss_nats.tolist()),
        "lowest_accuracy": seen.lowest_accuracy,
        "highest_loss_nats": seen.loss_nats.max().item(),
        "barrier_nats": seen.barrier,
        "length": path.length(),
        "length_ratio": path.ratio,
    }


def _curve_columns(curve: Connection | None) -> dict[str, Any]:
    """What the fit of a curve cost; nulls where none was fitted."""
    names = ("steps", "stop_reason", "token_positions", "backward_positions", "seconds")
    return {name: getattr(curve, name) if curve else None for name in names}
