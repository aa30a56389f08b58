"""The study: the paper's tables and figures on any model, as grids of cells that a store keeps.

A *cell* is one measurement: a study's settings for one text of one model. Cells that are fitted side by side are a
*batch*, fixed by the grid in advance, since what shares a batch changes rounding and so long descents; a batch is the
unit of work. Each study is a module with two functions and knows neither store nor runner:

    lay_out(scale) -> batches, without a model
    run(lm, cells, target_ids) -> one measurement per cell
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..errors import InputError

STUDIES = {
    "arrangements": "Table 1: which order of e and m holds how long a text.",
    "sharing": "Table 2: one e or one m for a group of texts.",
    "capacity": "Table 3 and figure 1: the longest text that two vectors hold, in tokens and in H_LM.",
    "information": "Figure 3: H_LM that one or two vectors hold, in one step and autoregressively.",
    "throughput": "Figure 4: tokens per second of decoding, in one step and autoregressively.",
    "cost": "Table 4: steps and seconds of a fit, by length and recipe.",
    "quality": "Exact match, BLEU, ROUGE and chrF beside three other parallel and autoregressive schemes.",
    "locality": "Figures 5 and 6: how far apart the solutions of one text, one context and different contexts lie.",
    "connectivity": "Figure 7: accuracy and loss along the segment and a fitted curve between two solutions.",
    "interpolation": "What decodes on the line through the vectors of two texts, between them and beyond.",
    "basin": "How far e and m may be moved before tokens go wrong, and which tokens go first.",
    "roles": "What e and m each do: exchanged between texts, read by linear probes, attended to.",
    "reading": "What ordinary generation from e, m or both writes, beside the text and its context.",
    "structure": "What following a teacher's sentence embeddings costs a fit, and what neighbours it gives.",
}
"""The studies, in the order of the paper's tables and figures, each with a line about it."""

_OF_GEOMETRY = {"locality", "connectivity", "interpolation", "basin", "roles", "reading", "structure"}


def study_module(name: str) -> Any:
    """The module of a study, imported when it is asked for.

    Raises:
        InputError: there is no study of that name.
    """
    if name not in STUDIES:
        raise InputError(f"unknown study {name!r}; choose one of: {' '.join(STUDIES)}")
    room = "geometry" if name in _OF_GEOMETRY else "reconstruction"
    return import_module(f".{room}.{name}", __name__)
