"""Searches for the longest prefix, with an m per text or one m held fixed: what they find, and what they cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ...fitting.fit import fit_batch
from ...fitting.given import Given
from ...fitting.recipes import FitConfig
from ...lm.frozen import FrozenLM
from ..cells import Settings
from ..fits import measured, recipe
from ..jobs import Measurement
from ..prefix_search import Capacity, autoregressive, bisect, grow, one_step, prefix_h_lm_nats

ACCURACY = 0.99
"""Token accuracy at which a text counts as reconstructed."""

SHARED_M = "shared-m"
"""Method of the cells whose texts a held m is fitted to."""


@dataclass(frozen=True, eq=False)
class HeldM:
    """An m that is held fixed.

    Attributes:
        m: the m-token, (D,), or None where every text has its own.
        work: positions passed forward and backward to find it.
        measurements: of the texts that it was fitted to.
    """

    m: Tensor | None
    work: int
    measurements: list[Measurement]

    def work_per_text(self, n_texts: int) -> int:
        """The share of the work that each of the texts searched with this m has to bear, rounded up."""
        return -(-self.work // n_texts)


NO_M = HeldM(None, 0, [])


def fit_held_m(lm: FrozenLM, target_ids: Tensor, config: FitConfig) -> HeldM:
    """Fit one m to all texts (B, T) together, each with an e of its own."""
    results = fit_batch(lm, target_ids, config, Given(share="m"))
    work = [result.token_positions + result.backward_positions for result in results]
    measurements = [
        replace(measurement, columns={**measurement.columns, "work": positions})
        for measurement, positions in zip(measured(lm, target_ids, results), work, strict=True)
    ]
    return HeldM(results[0].tokens.m, sum(work), measurements)


def searched_prefix(longest: int) -> int:
    """Length of a prefix that an estimate takes for all of a search: about a quarter of the longest."""
    return max(1, longest // 4)


def search_steps(n_texts: int, longest: int, work: int) -> int:
    """Steps that the searches of a batch take at most, for an estimate.

    At worst texts are searched one by one. A step costs each position of the prefix twice, forward and backward.
    """
    return n_texts * work // (2 * searched_prefix(longest))


def search(lm: FrozenLM, cells: Sequence[Settings], target_ids: Tensor, nats_column: str) -> list[Measurement]:
    """Search the longest prefixes of texts, as the last cell's settings say.

    The first cells are those whose texts a held m is fitted to, if there are any (`SHARED_M`).

    Args:
        lm: the frozen model.
        cells: settings of the batch's cells.
        target_ids: their texts, (B, T).
        nats_column: name of the column that takes the H_LM of the longest prefix.

    Returns:
        One measurement for each cell, in order.
    """
    settings, began = cells[-1], time.perf_counter()
    config = recipe(settings)
    config = replace(config, stop=replace(config.stop, accuracy=ACCURACY))
    n_m_texts = sum(cell["method"] == SHARED_M for cell in cells)
    held = fit_held_m(lm, target_ids[:n_m_texts, : settings["first"]], config) if n_m_texts else NO_M
    searched, max_steps = target_ids[n_m_texts:], settings["max_steps"]
    m_work = held.work_per_text(len(searched))
    work = settings["work_limit"] - m_work
    if settings["method"] == "autoregressive":
        fit_prefixes = autoregressive(lm, replace(config, e_tokens=settings["vectors"]))
    else:
        fit_prefixes = one_step(lm, config, Given(m=held.m))
    if settings["method"] == "bisection":
        results = bisect(fit_prefixes, searched, max_steps, work=work)
    else:
        results = grow(fit_prefixes, searched, max_steps, first=settings["first"], work=work)
    seconds = (time.perf_counter() - began) / len(results)
    return held.measurements + [
        Measurement(_columns(lm, ids, result, m_work, nats_column) | {"seconds": seconds})
        for result, ids in zip(results, searched, strict=True)
    ]


def _columns(lm: FrozenLM, target_ids: Tensor, capacity: Capacity, m_work: int, nats_column: str) -> dict[str, Any]:
    """The columns of one text's search, ids (T,), all but its seconds; `m_work` is part of its work."""
    return {
        "capacity_tokens": capacity.n_tokens,
        nats_column: prefix_h_lm_nats(lm, target_ids, capacity.n_tokens),
        "bound_tokens": capacity.bound,
        "trials": len(capacity.trials),
        "steps": sum(trial.steps for trial in capacity.trials),
        "work": capacity.work + m_work,
        "m_work": m_work,
        "stop_reason": capacity.stop_reason,
    }
