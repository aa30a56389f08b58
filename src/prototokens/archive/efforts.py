"""Efforts: how long a packer fits a chunk before it stores tokens beside the vectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True)
class FitRound:
    """One fit of a chunk, among the several that an effort allows.

    Attributes:
        own_m: whether the chunk gets an m-token of its own; if not, the archive's m-token is used and held fixed.
        steps: the step budget.
    """

    own_m: bool
    steps: int


@dataclass(frozen=True)
class Effort:
    """How every chunk is fitted.

    A chunk succeeds when at most `tolerated_share` of its tokens are missed. Its rounds are fitted one after another
    until one succeeds. If none does, the chunk is cut in half and both halves are fitted, unless it has `floor_tokens`
    tokens or fewer. Missed tokens are stored in the residual.

    Attributes:
        lengths: chunk lengths in tokens, rising; a trial takes the longest at which chunks succeed.
        rounds: the fits of a chunk, in order.
        tolerated_share: share of a chunk's tokens, 0 to 1, that may be missed.
        floor_tokens: chunks of at most so many tokens are not cut in half.
        margin: in logits. A fit continues until every token leads by that much. A token is missed if its vectors, as
            stored, give it a lead of less than half of that.
    """

    lengths: tuple[int, ...]
    rounds: tuple[FitRound, ...]
    tolerated_share: float
    floor_tokens: int
    margin: float = 0.5

    def __post_init__(self) -> None:
        if not self.lengths or list(self.lengths) != sorted(set(self.lengths)) or self.lengths[0] < 1:
            raise InputError(f"lengths are {self.lengths}; they must be numbers of tokens from 1, rising")
        if not self.rounds or self.floor_tokens < 1 or not 0 <= self.tolerated_share <= 1:
            raise InputError("an effort needs a round, a floor of at least 1 token and a tolerated share from 0 to 1")

    def to_json(self) -> dict[str, Any]:
        """The effort as archives record it, with the names that the first archives used."""
        return {
            "lengths": list(self.lengths),
            "attempts": [asdict(fit_round) for fit_round in self.rounds],
            "spare": self.tolerated_share,
            "floor_tokens": self.floor_tokens,
            "margin": self.margin,
        }


EFFORTS: dict[str, Effort] = {
    "fast": Effort((8,), (FitRound(False, 80), FitRound(True, 80)), tolerated_share=0.25, floor_tokens=8, margin=1.0),
    "balanced": Effort(
        (8, 16), (FitRound(False, 160), FitRound(True, 200)), tolerated_share=0.0, floor_tokens=4, margin=3.0
    ),
    "thorough": Effort(
        (8, 16, 24),
        (FitRound(False, 300), FitRound(True, 400), FitRound(True, 1000)),
        tolerated_share=0.0,
        floor_tokens=1,
        margin=5.0,
    ),
}
"""The margins come from how much leads were seen to change on the built-in model, with chunks of 8 tokens.

Between batch sizes and numbers of threads in float32 they changed by 0.0003 logits. With vectors in float16 they
changed by 0.02, and with vectors in int8 by 0.8. In bfloat16 they changed by 1 on average and by 4.5 at most: of 16
chunks fitted with a margin of 0.5, 5 lost a token there, and of 8 with a margin of 3, 1 did.
"""


def effort_named(name: str | Effort) -> Effort:
    """The effort of that name; an `Effort` is passed through."""
    if isinstance(name, Effort):
        return name
    if name not in EFFORTS:
        raise InputError(f"unknown effort {name!r}; choose one of: {' '.join(EFFORTS)}")
    return EFFORTS[name]


@dataclass(frozen=True, order=True)
class Task:
    """A fit to be made: a chunk, and the round.

    Attributes:
        start: the chunk's first token, counted through the document.
        stop: the first token after it.
        round: number of the round in `Effort.rounds`, from 0.
    """

    start: int
    stop: int
    round: int

    @property
    def length(self) -> int:
        """Tokens of the chunk."""
        return self.stop - self.start


@dataclass(frozen=True, eq=False)
class ChunkFit:
    """The result of a task.

    Attributes:
        task: the task.
        missed: number of tokens that the vectors do not give with at least half the margin.
        e: e-token, float32, (D,).
        m: the chunk's own m-token, float32, (D,), or None.
    """

    task: Task
    missed: int
    e: Tensor
    m: Tensor | None


def settle(
    chunks: Iterable[tuple[int, int]], fits: Mapping[Task, ChunkFit], effort: Effort, first_round: int = 0
) -> tuple[list[Task], list[ChunkFit]]:
    """What is still to be fitted, and which fits are chosen for the chunks that are settled.

    The result follows from the fits alone, so that a packer resumes wherever it was interrupted.

    Args:
        chunks: first token and end of every chunk as it was cut.
        fits: all fits so far.
        effort: how chunks are fitted.
        first_round: the round to begin with.

    Returns:
        The next task of every chunk that is not settled, and a fit of every chunk that is, in order. When there are
        no tasks, the fits cover the document.
    """
    tasks: list[Task] = []
    chosen: list[ChunkFit] = []
    waiting = list(chunks)[::-1]
    while waiting:
        start, stop = waiting.pop()
        result = _settled(Task(start, stop, first_round), fits, effort)
        if isinstance(result, Task):
            tasks.append(result)
        elif result.missed > effort.tolerated_share * (stop - start) and stop - start > effort.floor_tokens:
            middle = (start + stop) // 2
            waiting += [(middle, stop), (start, middle)]
        else:
            chosen.append(result)
    return tasks, chosen


def next_wave(tasks: Iterable[Task]) -> list[Task]:
    """The tasks to do first: of the longest chunks, those in their earliest round.

    Halving can add shorter chunks later, and failures can add later rounds. In this order the same tasks share a batch,
    whether a packer was interrupted in between or not.
    """
    waiting = list(tasks)
    longest = max((task.length for task in waiting), default=0)
    earliest = min((task.round for task in waiting if task.length == longest), default=0)
    return [task for task in waiting if (task.length, task.round) == (longest, earliest)]


def _settled(first: Task, fits: Mapping[Task, ChunkFit], effort: Effort) -> Task | ChunkFit:
    """The next task of a chunk, or its first fit that succeeded, or else its best."""
    tried: list[ChunkFit] = []
    for number in range(first.round, len(effort.rounds)):
        task = replace(first, round=number)
        if task not in fits:
            return task
        tried.append(fits[task])
        if tried[-1].missed <= effort.tolerated_share * task.length:
            return tried[-1]
    return min(tried, key=lambda fit: fit.missed)
