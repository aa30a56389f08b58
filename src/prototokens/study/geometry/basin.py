"""Basin: how far e and m may be moved before tokens go wrong, and which tokens go first.

Texts are fitted from text-independent starts, with more and with less margin; then e alone, m alone and both are moved
by noise, scaling, rounding and projection, and decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...decoding import decode
from ...fitting.fit import FitResult, fit_batch
from ...geometry.changes import Change, Directions, principal_directions, random_directions
from ...geometry.paths import VECTORS
from ...geometry.robustness import AfterChange, decode_changed, lost_margin_rank
from ...lm.frozen import FrozenLM
from ..cells import Batch, Settings, cell_settings, chunked
from ..fits import measured, recipe
from ..jobs import Measurement

RANDOM = "random projection"


@dataclass(frozen=True)
class BasinGrid:
    """What is measured at a scale.

    Attributes:
        length: in tokens, of every text.
        texts: how many.
        margins: that a fit must reach, in logits.
        amounts: by kind of change, see `geometry.changes.CHANGE_KINDS`; `random projection` is onto random directions.
        draws: directions of noise, and sets of random directions to project on.
        recipe: name of a preset.
        max_steps: step budget of a fit.
        rows: texts fitted side by side.
    """

    length: int
    texts: int
    margins: tuple[float, ...]
    amounts: dict[str, tuple[float, ...]]
    draws: int
    recipe: str
    max_steps: int
    rows: int


_DROPPED = (0.002, 0.01, 0.05, 0.1, 0.25, 0.5, 0.9)
"""Shares of directions. A share s at random moves a vector by about sqrt(s), and radii are a few hundredths."""

_DRAWN = ("noise", RANDOM)

_AMOUNTS: dict[str, tuple[float, ...]] = {
    "noise": (0.01, 0.02, 0.05, 0.1, 0.2, 0.4),
    "scaling": (-0.75, -0.5, -0.25, -0.1, -0.05, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0),
    "rounding": (16, 24, 28),
    "projection": _DROPPED,
    RANDOM: _DROPPED,
}
_FEW: dict[str, tuple[float, ...]] = {
    "noise": (0.1, 1.0),
    "scaling": (1.0,),
    "rounding": (28,),
    "projection": (0.5,),
    RANDOM: (0.5,),
}

GRIDS = {
    "smoke": BasinGrid(4, 2, (0.01,), _FEW, 1, "fast", 12, 2),
    "laptop": BasinGrid(8, 8, (0.01, 2.0), _AMOUNTS, 3, "fast", 200, 8),
    "paper": BasinGrid(256, 50, (0.01, 2.0), _AMOUNTS, 3, "fast", 5000, 10),
}


def lay_out(scale: str) -> list[Batch]:
    """One batch per margin and run of texts: their fits, then every change of each."""
    grid = GRIDS[scale]
    changes: list[Settings] = [
        {"method": "change", "kind": kind, "amount": amount, "vectors": vectors, "draw": draw}
        for kind, amounts in grid.amounts.items()
        for amount in amounts
        for vectors in VECTORS
        for draw in range(grid.draws if kind in _DRAWN else 1)
    ]
    return [
        Batch(
            study="basin",
            label=f"margin {margin:g} from text {texts[0]}",
            cells=tuple(
                cell_settings(
                    scale, "old", text, grid.length, 0, grid.recipe, grid.max_steps,
                    start="vocabulary", margin=margin, **change,
                )
                for change in ({"method": "fit"}, *changes)
                for text in texts
            ),
            steps=grid.max_steps + 1 + len(changes) // 2,
            positions=len(texts) * (grid.length + 1),
        )
        for margin in grid.margins
        for texts in chunked(range(grid.texts), grid.rows)
    ]  # fmt: skip


def run(lm: FrozenLM, cells: list[Settings], target_ids: Tensor) -> list[Measurement]:
    """Fit the texts and decode their vectors after every change; target_ids (N, T) holds a text once for each."""
    config = recipe(cells[0], start=cells[0]["start"])
    texts = sum(cell["method"] == "fit" for cell in cells)
    assert all(cell["text"] == cells[n % texts]["text"] for n, cell in enumerate(cells))
    fits = fit_batch(lm, target_ids[:texts], config)
    fitted = measured(lm, target_ids[:texts], fits)
    margins = [_margins(lm, fit) for fit in fits]
    changes, changed_fits = cells[texts:], [fits[n % texts] for n in range(texts, len(cells))]
    ways = _directions(lm, changes)
    held = decode_changed(
        lm,
        [fit.tokens for fit in changed_fits],
        target_ids[texts:],
        [_change(cell) for cell in changes],
        [ways.get((cell["kind"], cell["draw"])) for cell in changes],
    )
    return fitted + [
        Measurement(_fate(one, fit, margins[n % texts]))
        for n, (one, fit) in enumerate(zip(held, changed_fits, strict=True))
    ]


def _margins(lm: FrozenLM, fit: FitResult) -> Tensor:
    margins = decode(lm, fit.tokens, scores=True).margins
    assert margins is not None
    return margins.cpu()


def _directions(lm: FrozenLM, changes: list[Settings]) -> dict[tuple[str, int], Directions]:
    """What the projections among the changes are onto, by kind and draw."""
    named = {(cell["kind"], cell["draw"]) for cell in changes}
    principal = {key: principal_directions(lm) for key in named if key[0] == "projection"}
    return principal | {key: random_directions(lm, key[1]) for key in named if key[0] == RANDOM}


def _change(cell: Settings) -> Change:
    kind = "projection" if cell["kind"] == RANDOM else cell["kind"]
    return Change(kind, cell["amount"], cell["vectors"], cell["draw"])


def _fate(held: AfterChange, fit: FitResult, margins: Tensor) -> dict[str, Any]:
    """Which tokens are right, a digit for each, how far the vectors were moved, and what stood before."""
    return {
        "token_accuracy": held.token_accuracy,
        "exact": int(held.right.all()),
        "right": "".join(str(int(one)) for one in held.right),
        "moved": held.moved,
        "lost_margin_rank": lost_margin_rank(margins, held.right) if fit.exact else None,
        "fit_exact": int(fit.exact),
        "fit_accuracy": fit.token_accuracy,
    }
