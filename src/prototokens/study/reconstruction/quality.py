"""Quality: how like the original the decoded text is, by scheme, on the same texts with the same step budget.

`one-step` is the default recipe; `one-vector` the arrangement e x N, in one pass too; `autoregressive` greedy
generation from one crammed vector, token by token; `jacobi` fixed-point decoding from that vector, in as many parallel
passes as it takes.

References: Cramming 1568 Tokens into a Single Vector and Back Again (Kuratov et al., 2025),
https://arxiv.org/abs/2502.13063; Accelerating Transformer Inference for Translation via Parallel Decoding (Santilli et
al., 2023), https://arxiv.org/abs/2305.10427.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...baselines.cramming import cram_batch
from ...baselines.jacobi import jacobi_decode
from ...decoding import decode
from ...fitting.fit import fit_batch
from ...lm.frozen import FrozenLM
from ...metrics import correct_prefix, text_quality, token_accuracy
from ..cells import Batch, Settings, cell_settings, chunked
from ..fits import cramming_columns, fit_columns, information_nats, recipe
from ..jobs import Measurement
from ..scales import PAPER_SOURCES


@dataclass(frozen=True)
class QualityGrid:
    """What is measured at a scale.

    Attributes:
        lengths: in tokens.
        texts: how many of each kind.
        recipes: of the one-step schemes and of cramming.
        max_steps: step budget of a fit.
        positions: input positions of a batch at most.
    """

    lengths: tuple[int, ...]
    texts: int
    recipes: tuple[str, str]
    max_steps: int
    positions: int


GRIDS = {
    "smoke": QualityGrid((4,), 1, ("fast", "cramming"), 15, 512),
    "laptop": QualityGrid((16,), 2, ("fast", "cramming"), 120, 512),
    "paper": QualityGrid((16, 32, 64, 128, 256, 512), 50, ("fast", "cramming"), 5000, 8192),
}

ONE_VECTOR = {"arrangement": "e*n", "start": "text-e"}
"""What `one-vector` changes of the recipe: no learned start was made for e alone."""

_FITS = (("one-step",), ("one-vector",), ("autoregressive", "jacobi"))
"""Methods that read the same vectors are one batch."""


def lay_out(scale: str) -> list[Batch]:
    """One batch per length and fit, with texts of all kinds."""
    grid = GRIDS[scale]
    return [
        Batch(
            study="quality",
            label=f"{' and '.join(methods)} at {length}, {texts[0][0]} {texts[0][1]}",
            cells=tuple(
                cell_settings(
                    scale, source, text, length, 0, grid.recipes["jacobi" in methods], grid.max_steps, method=method,
                    **(ONE_VECTOR if method == "one-vector" else {}),
                )
                for method in methods
                for source, text in texts
            ),
            steps=grid.max_steps,
            positions=len(texts) * (length + 1),
        )
        for length in grid.lengths
        for methods in _FITS
        for texts in chunked(
            [(kind, n) for kind in PAPER_SOURCES for n in range(grid.texts)], max(1, grid.positions // (length + 1))
        )
    ]  # fmt: skip


def run(lm: FrozenLM, cells: list[Settings], target_ids: Tensor) -> list[Measurement]:
    """Fit the texts (B, T) and compare what is decoded with them."""
    if cells[0]["method"] == "autoregressive":
        return _autoregressive(lm, cells, target_ids[: len(cells) // 2])
    changes = {name: cells[0][name] for name in ONE_VECTOR if name in cells[0]}
    nats = information_nats(lm, target_ids)
    return [
        Measurement(
            {**fit_columns(fit), **_likeness(lm, decode(lm, fit.tokens).ids, ids), "passes": 1, "h_lm_nats": h}
            | {"work": fit.token_positions + fit.backward_positions},
            fit.tokens,
        )
        for fit, ids, h in zip(fit_batch(lm, target_ids, recipe(cells[0], **changes)), target_ids, nats, strict=True)
    ]


def _autoregressive(lm: FrozenLM, cells: list[Settings], target_ids: Tensor) -> list[Measurement]:
    """Generation from the crammed vectors, and Jacobi decoding from the same."""
    nats, length = information_nats(lm, target_ids), target_ids.shape[1]
    generated, iterated = [], []
    for cram, ids, h in zip(cram_batch(lm, target_ids, recipe(cells[0])), target_ids, nats, strict=True):
        shared = cramming_columns(cram) | {
            "h_lm_nats": h,
            "work": cram.token_positions + cram.backward_positions,
        }
        jacobi = jacobi_decode(lm, cram.prompt, length)
        token_by_token = {**shared, **_likeness(lm, cram.greedy_ids, ids), "passes": length}
        in_parallel = {**shared, **_likeness(lm, jacobi.ids, ids), "passes": jacobi.passes}
        generated.append(Measurement(token_by_token, cram.memory))
        iterated.append(Measurement(in_parallel, cram.memory))
    return [*generated, *iterated]


def _likeness(lm: FrozenLM, ids: Tensor, target_ids: Tensor) -> dict[str, Any]:
    """Scores of the decoded ids (T,) and of their text."""
    prefix = int(correct_prefix(ids, target_ids))
    text = text_quality(lm.decode(ids), lm.decode(target_ids))
    return {
        "token_accuracy": token_accuracy(ids, target_ids).item(),
        "exact": int(prefix == len(target_ids)),
        "correct_prefix": prefix,
        "bleu": text.bleu,
        "rouge_l": text.rougeL,
        "chrf": text.chrf,
    }
