"""An m that is held fixed while other texts are searched: how it is found, and what it costs each of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ...fitting.fit import fit_batch
from ...fitting.given import Given
from ...fitting.recipes import FitConfig
from ...lm.frozen import FrozenLM
from ..fits import measured
from ..jobs import Measurement
from ..prefix_search import Capacity, prefix_h_lm_nats

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


def search_columns(
    lm: FrozenLM, target_ids: Tensor, capacity: Capacity, m_work: int, nats_column: str
) -> dict[str, Any]:
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
