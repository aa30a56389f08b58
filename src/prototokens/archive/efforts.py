"""Efforts: how hard a packer tries to get a chunk out of its vectors before it keeps a residual."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True)
class Attempt:
    """One fit of a chunk.

    Attributes:
        own_m: whether the chunk gets an m-token of its own, or holds the archive's fixed.
        steps: the step budget.
    """

    own_m: bool
    steps: int


@dataclass(frozen=True)
class Effort:
    """What is tried for every chunk.

    Attributes:
        lengths: chunk lengths in tokens, rising, of which a trial takes the longest that comes out.
        attempts: fits of a chunk, one after another until one comes out.
        spare: a chunk has come out if at most this share of its tokens is missed.
        floor_tokens: a chunk that does not come out is cut in half while it is longer than this.
        margin: in logits; fits go on until every token leads by that much. A token whose vectors, as stored, give it
            less than half of that goes into the residual.
    """

    lengths: tuple[int, ...]
    attempts: tuple[Attempt, ...]
    spare: float
    floor_tokens: int
    margin: float = 0.5

    def __post_init__(self) -> None:
        if not self.lengths or list(self.lengths) != sorted(set(self.lengths)) or self.lengths[0] < 1:
            raise InputError(f"lengths are {self.lengths}; they must be numbers of tokens from 1, rising")
        if not self.attempts or self.floor_tokens < 1 or not 0 <= self.spare <= 1:
            raise InputError("an effort needs an attempt, a floor of at least 1 token and a spare from 0 to 1")


EFFORTS: dict[str, Effort] = {
    "fast": Effort((8,), (Attempt(False, 80), Attempt(True, 80)), spare=0.25, floor_tokens=8, margin=1.0),
    "balanced": Effort((8, 16), (Attempt(False, 160), Attempt(True, 200)), spare=0.0, floor_tokens=4, margin=3.0),
    "thorough": Effort(
        (8, 16, 24),
        (Attempt(False, 300), Attempt(True, 400), Attempt(True, 1000)),
        spare=0.0,
        floor_tokens=1,
        margin=5.0,
    ),
}
"""The margins come from how much leads were seen to change on the built-in model, with chunks of 8 tokens: by 0.0003
logits between batch sizes and numbers of threads in float32, by 0.02 with vectors in float16 and 0.8 in int8, and in
bfloat16 by 1 on average and 4.5 at most: 5 of 16 chunks fitted with margin 0.5 lost a token there, 1 of 8 with 3."""


def effort_named(name: str | Effort) -> Effort:
    """The effort of that name; an `Effort` is passed through."""
    if isinstance(name, Effort):
        return name
    if name not in EFFORTS:
        raise InputError(f"unknown effort {name!r}; choose one of: {' '.join(EFFORTS)}")
    return EFFORTS[name]


@dataclass(frozen=True, order=True)
class Task:
    """A fit to be made.

    Attributes:
        start: the chunk's first token, counted through the document.
        stop: the first token after it.
        attempt: number of the attempt in `Effort.attempts`.
    """

    start: int
    stop: int
    attempt: int

    @property
    def length(self) -> int:
        """Tokens of the chunk."""
        return self.stop - self.start


@dataclass(frozen=True, eq=False)
class ChunkFit:
    """What a task came to.

    Attributes:
        task: the task.
        missed: tokens that the vectors do not give with the margin that is kept.
        e: e-token, float32, (D,).
        m: the chunk's own m-token, float32, (D,), or None.
    """

    task: Task
    missed: int
    e: Tensor
    m: Tensor | None


def settle(
    chunks: Iterable[tuple[int, int]], fits: Mapping[Task, ChunkFit], effort: Effort, first_attempt: int = 0
) -> tuple[list[Task], list[ChunkFit]]:
    """What is still to be fitted, and what is chosen for the chunks that are settled.

    Follows from the fits alone, so that a packer that was stopped goes on where it was, whatever it did last.

    Args:
        chunks: first token and end of every chunk as it was cut.
        fits: all fits so far.
        effort: what to try.
        first_attempt: the attempt to begin with.

    Returns:
        The next task of every chunk that is not settled, and a fit of every one that is, in order; when there are no
        tasks, the fits cover the document.
    """
    tasks: list[Task] = []
    chosen: list[ChunkFit] = []
    waiting = list(chunks)[::-1]
    while waiting:
        start, stop = waiting.pop()
        found = _settled(Task(start, stop, first_attempt), fits, effort)
        if isinstance(found, Task):
            tasks.append(found)
        elif found.missed > effort.spare * (stop - start) and stop - start > effort.floor_tokens:
            middle = (start + stop) // 2
            waiting += [(middle, stop), (start, middle)]
        else:
            chosen.append(found)
    return tasks, chosen


def next_wave(tasks: Iterable[Task]) -> list[Task]:
    """The tasks to do first: of the longest chunks those at their earliest attempt.

    Shorter chunks can still become more, by halving, and so can later attempts. Taken in this order, tasks meet in the
    same batches whether a packer was stopped in between or not.
    """
    waiting = list(tasks)
    longest = max((task.length for task in waiting), default=0)
    earliest = min((task.attempt for task in waiting if task.length == longest), default=0)
    return [task for task in waiting if (task.length, task.attempt) == (longest, earliest)]


def _settled(first: Task, fits: Mapping[Task, ChunkFit], effort: Effort) -> Task | ChunkFit:
    """The next task of a chunk, or its first fit that came out, or else its best."""
    tried: list[ChunkFit] = []
    for attempt in range(first.attempt, len(effort.attempts)):
        task = replace(first, attempt=attempt)
        if task not in fits:
            return task
        tried.append(fits[task])
        if tried[-1].missed <= effort.spare * task.length:
            return tried[-1]
    return min(tried, key=lambda fit: fit.missed)
