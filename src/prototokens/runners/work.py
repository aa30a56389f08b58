"""Work: what a runner has done with a loaded model. Every unit takes JSON values and can run in any process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import InputError

if TYPE_CHECKING:
    from ..lm.frozen import FrozenLM

Work = Callable[["FrozenLM", Any], Any]
"""A function of a loaded model and JSON values; of a module's top level, so that another process finds it."""


@dataclass(frozen=True, eq=False)
class Done:
    """A unit of work that has ended.

    Attributes:
        number: its place among the jobs.
        value: what the work returned, or None.
        error: why it failed, on one line, or None.
    """

    number: int
    value: Any = None
    error: str | None = None


class Runner(Protocol):
    """Runs one kind of work on many inputs, wherever its models are."""

    def run(self, work: Work, jobs: Sequence[Any]) -> Iterator[Done]:
        """Run the work on each input; results come as they are ready, and a failing one does not stop the others."""
        ...

    def close(self) -> None:
        """Let go of models and processes."""
        ...


def one(runner: Runner, work: Work, job: Any) -> Any:
    """The value of a single unit of work.

    Raises:
        InputError: it failed.
    """
    (done,) = runner.run(work, [job])
    if done.error is not None:
        raise InputError(done.error.removeprefix("InputError: "))
    return done.value


def attempt(work: Work, lm: FrozenLM, number: int, job: Any) -> Done:
    """Run one unit; what it raises becomes its result."""
    try:
        return Done(number, work(lm, job))
    except Exception as error:  # any of its own faults: the next unit may do better
        return Done(number, error=one_line(error))


def one_line(error: BaseException) -> str:
    """An exception in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:1000].removesuffix(": ")
