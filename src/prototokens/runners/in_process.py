"""The runner in this process: one model, one unit of work after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .work import Done, Work, run_unit

if TYPE_CHECKING:
    from ..lm.frozen import FrozenLM


class InProcess:
    """Runs work here, in order; the model is loaded when the first unit needs it.

    Args:
        load: loads the model.
    """

    def __init__(self, load: Callable[[], FrozenLM]) -> None:
        self._load = load
        self._lm: FrozenLM | None = None

    def run(self, work: Work, jobs: Sequence[Any]) -> Iterator[Done]:
        """Run the work on each input, in order.

        Raises:
            InputError: the model cannot be loaded.
        """
        for number, job in enumerate(jobs):
            if self._lm is None:
                self._lm = self._load()
            yield run_unit(work, self._lm, number, job)

    def close(self) -> None:
        """Release the model."""
        self._lm = None
