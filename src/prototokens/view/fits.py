"""A fit as a scene: what is decoded at every evaluation of a trace."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite

from torch import Tensor

from ..fitting.trace import NOT_EVALUATED, Trace
from .scenes import MOST_CELLS, RIGHT, WRONG, Curve, Film, Lane, Scene, Table, block_ends, counted, level, thinned

_FEWEST_FRAMES, _MOST_FRAMES = 24, 400
_SECONDS_OF_A_FRAME, _LONGEST_SECONDS = 0.25, 20.0
_LATE = 3  # tokens that are named because they come right last
_ENDINGS = {
    "accuracy": "It ended because the stopping rule was met.",
    "steps": "It ended because the maximum number of steps was taken.",
    "nonfinite": "It ended because a number was not finite.",
    "interrupted": "It was interrupted.",
}


def scene_of_fit(trace: Trace) -> Scene:
    """The scene of a fit: a film for each restart, the kept one first."""
    restarts = [trace.kept, *(r for r in range(trace.loss_nats.shape[1]) if r != trace.kept)]
    most = MOST_CELLS // (len(trace.target_ids) * len(restarts))
    most = min(_MOST_FRAMES, max(_FEWEST_FRAMES, most))
    films = [_film(trace, restart, len(restarts), most) for restart in restarts]
    length, kept = len(trace.target_ids), _rows(trace, trace.kept)
    best = int(trace.right[kept, trace.kept].sum(-1).max())
    end = f"all right after {counted(_first_exact(trace), 'step')}" if best == length else f"{best} of {length} right"
    words = [
        f"{trace.model.name}, arrangement {trace.arrangement}.",
        _ENDINGS.get(trace.stop_reason, f"It ended by: {trace.stop_reason}."),
        *_latest(trace, kept),
    ]
    n_drawn = len(films[0].status)
    if n_drawn < len(kept):
        words.append(f"{n_drawn:,} of {len(kept):,} evaluations are drawn.")
    caption = (
        "All evaluations: steps run down, the positions of the text across. Orange cells are wrong, and carry a dot "
        "or a line where there is room. The curve beside them is the loss."
        + (" The strip below shows where each block ends." if films[0].ends else "")
    )
    tables = [_blocks(trace, kept)] if films[0].ends else []
    return Scene("fit", f"A fit of {counted(length, 'token')}: {end}", words, films, RIGHT | WRONG, caption, tables)


def _rows(trace: Trace, restart: int) -> list[int]:
    """The evaluations of a restart."""
    return (trace.ids[:, restart, 0] != NOT_EVALUATED).nonzero().squeeze(1).tolist()


def _first_exact(trace: Trace) -> int:
    exact = trace.right[:, trace.kept].all(-1).nonzero()
    return int(trace.steps[exact[0]])


def _film(trace: Trace, restart: int, n_restarts: int, most: int) -> Film:
    rows = _rows(trace, restart)
    rows = [rows[i] for i in thinned(len(rows), most)]
    right, last, length = trace.right[rows, restart], int(trace.steps[rows[-1]]), len(trace.target_ids)
    losses = trace.loss_nats[rows, restart].tolist()
    steps = trace.steps[rows].tolist()
    status = [
        f"Step {step} of {last}: {n_right} of {length} tokens right, loss {loss:.3f} nats per token."
        for step, n_right, loss in zip(steps, right.sum(-1).tolist(), losses, strict=True)
    ]
    texts = [
        [
            trace.pieces[t] if is_right else trace.words[token]
            for t, (token, is_right) in enumerate(zip(*row, strict=True))
        ]
        for row in zip(trace.ids[rows, restart].tolist(), right.tolist(), strict=True)
    ]
    finite = [loss for loss in losses if isfinite(loss)]
    return Film(
        name=f"restart {restart + 1}" + (" (kept)" if restart == trace.kept else "") if n_restarts > 1 else "",
        lanes=[Lane("", texts, _marks(right, trace.margins[rows, restart]))],
        status=status,
        slider="step",
        ticks=[str(step) for step in steps],
        seconds=min(_LONGEST_SECONDS, _SECONDS_OF_A_FRAME * len(rows)),
        curves=[Curve("loss, nats per token", losses, max(finite, default=0.0) or 1.0)],
        ends=block_ends(length, trace.block_length),
        scale="loss, nats per token",
        wanted=trace.pieces,
    )


def _marks(right: Tensor, margins: Tensor) -> list[str]:
    """A letter for each token of each evaluation, from bool (n, T) and leads (n, T)."""
    letters = ("".join(WRONG), "".join(RIGHT))
    return [
        "".join(letters[is_right][level(abs(lead))] for is_right, lead in zip(*row, strict=True))
        for row in zip(right.tolist(), margins.tolist(), strict=True)
    ]


def _right_from(right: Iterable[bool]) -> int | None:
    """The first evaluation from which on all are right, or None if the last is not."""
    first = None
    for number, is_right in enumerate(right):
        first = (number if first is None else first) if is_right else None
    return first


def _latest(trace: Trace, rows: list[int]) -> list[str]:
    """A sentence about the tokens that came right last."""
    right = trace.right[rows, trace.kept]  # (n, T)
    came = [_right_from(right[:, t].tolist()) for t in range(right.shape[1])]
    late = sorted(((row, t) for t, row in enumerate(came) if row), reverse=True)[:_LATE]
    if not late:
        return []
    named = [
        f"“{trace.pieces[t].strip() or '…'}” (position {t + 1}) at step {trace.steps[rows[row]]}" for row, t in late
    ]
    return [f"The last to come right: {', '.join(named)}."]


def _blocks(trace: Trace, rows: list[int]) -> Table:
    right, table, begin = trace.right[rows, trace.kept], [], 0
    for number, end in enumerate(block_ends(len(trace.target_ids), trace.block_length), start=1):
        block = right[:, begin:end]
        first = _right_from(block.all(-1).tolist())
        came = "not at the end" if first is None else str(int(trace.steps[rows[first]]))
        text = " ".join("".join(trace.pieces[begin:end]).split())
        table.append((str(number), f"{begin + 1} to {end}", f"{int(block[-1].sum())} of {end - begin}", came, text))
        begin = end
    caption = "Blocks: each has an e-token of its own. The step is the one from which on all its tokens are right."
    return Table(caption, ("block", "positions", "right at the end", "right from step", "text"), table)
