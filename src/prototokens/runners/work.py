"""Work: a function that a runner calls with a loaded model. It takes JSON values and can run in any process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import MEMORY_RAN_OUT, InputError, memory_ran_out

if TYPE_CHECKING:
    from ..lm.frozen import FrozenLM

Work = Callable[["FrozenLM", Any], Any]
"""A function of a loaded model and JSON values, defined at a module's top level so that other processes find it."""


@dataclass(frozen=True, eq=False)
class Done:
    """A unit of work that has ended.

    Attributes:
        number: its place among the jobs, from 0.
        value: what the work returned, or None.
        error: why it failed, on one line, or None.
        mendable: whether the user can mend the failure, as with an `InputError` or where memory ran out; else the line
            names the exception.
    """

    number: int
    value: Any = None
    error: str | None = None
    mendable: bool = False

    @classmethod
    def failed(cls, number: int, error: BaseException) -> Done:
        """A unit that an exception has ended."""
        said = " ".join(str(error).split())
        if memory_ran_out(error):
            return cls(number, error=f"{MEMORY_RAN_OUT} ({said})"[:1000], mendable=True)
        mendable, name = isinstance(error, InputError), type(error).__name__
        line = said if mendable and said else f"{name}: {said}" if said else name
        return cls(number, error=line[:1000], mendable=mendable)


class Runner(Protocol):
    """Runs one kind of work on many inputs, wherever its models are."""

    def run(self, work: Work, jobs: Sequence[Any]) -> Iterator[Done]:
        """Run the work on each input. Results come as they are ready; a failure does not stop the rest."""
        ...

    def close(self) -> None:
        """Release models and processes."""
        ...


def one(runner: Runner, work: Work, job: Any) -> Any:
    """The value of a single unit of work.

    Raises:
        InputError: it failed, and the user can mend it.
        RuntimeError: it failed otherwise.
    """
    (done,) = runner.run(work, [job])
    if done.error is not None:
        raise (InputError if done.mendable else RuntimeError)(done.error)
    return done.value


def run_unit(work: Work, lm: FrozenLM, number: int, job: Any) -> Done:
    """Run one unit; an exception becomes its result."""
    try:
        return Done(number, work(lm, job))
    except Exception as error:  # the next unit may succeed
        return Done.failed(number, error)
