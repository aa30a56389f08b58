"""Work: what a runner has done with a loaded model. Every unit takes JSON values and can run in any process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import InputError
from . import study_module

if TYPE_CHECKING:
    from torch import Tensor

    from ..lm import FrozenLM
    from ..tokens import ProtoTokens

Work = Callable[["FrozenLM", Any], Any]
"""A function of a loaded model and JSON values; of a module's top level, so that another process finds it."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """What was measured for one cell.

    Attributes:
        columns: results by column name, JSON scalars.
        vectors: what was scored: proto-tokens, or (K, D) [mem] vectors of the autoregressive baseline; None where there
            is nothing to keep.
    """

    columns: dict[str, Any]
    vectors: ProtoTokens | Tensor | None = None


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


def describe(lm: FrozenLM, _: Any) -> dict[str, Any]:
    """Work: what a result must say about the model and the machine behind it."""
    import torch

    from ..tokens import library_versions

    device = lm.device
    return {
        "name": lm.identity.name,
        "origin": {
            "fingerprint": lm.identity.fingerprint,
            "revision": lm.identity.revision,
            "dtype": str(lm.dtype).removeprefix("torch."),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "threads": torch.get_num_threads(),
            "versions": library_versions(),
        },
        "max_positions": lm.max_positions,
    }


def draw_texts(lm: FrozenLM, job: dict[str, Any]) -> list[list[int]]:
    """Work: the ids of texts; a job has the arguments of `texts.sample`, but for the model."""
    from ..texts import sample

    return sample(lm=lm, **job).tolist()


def measure(lm: FrozenLM, job: dict[str, Any]) -> list[Measurement]:
    """Work: one batch of a study, `{"study": name, "cells": [settings ...], "ids": [[id ...] ...]}`."""
    import torch

    for settings, ids in zip(job["cells"], job["ids"], strict=True):
        if len(ids) != settings["tokens"]:
            raise InputError(
                f"a text of {settings['tokens']} tokens is asked for, and {lm.identity.name} has {lm.max_positions} "
                f"positions: texts are drawn at {len(ids)} tokens"
            )
    found: list[Measurement] = study_module(job["study"]).run(lm, job["cells"], torch.tensor(job["ids"]))
    assert len(found) == len(job["cells"]), job["study"]
    return found
