"""Training an encoder through the frozen LM: the loop, and the files in its folder.

The folder holds the encoder (`config.json`, `model.safetensors`, `README.md`, and `start.safetensors` if it was trained
from a learned start) and `checkpoint.safetensors`, from which the same training resumes bit for bit. `curve.jsonl` is
the training curve. `texts.safetensors`, the tokenized texts, can be deleted. `lock` keeps other trainings out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import InputError
from ...files.atomic import make_folder, sync
from ...fitting.checks import check_room
from ...lm.frozen import FrozenLM
from ..encoding import Encoder
from ..recipes import EncoderTraining
from .checkpoint import FILE, save_checkpoint
from .curve import Curve
from .distributed import Processes, running_processes
from .trainer import Trainer

CURVE = "curve.jsonl"
TEXTS = "texts.safetensors"
LOCK = "lock"
_STEPS_BETWEEN_ROWS = 10  # of the curve


@dataclass(frozen=True)
class StepReport:
    """One step of training.

    Attributes:
        step: steps taken, over all runs.
        steps: steps in all.
        length: length of the texts of the step's last batch, in tokens.
        loss_nats: their mean cross-entropy, in nats per token.
        token_accuracy: their share of right tokens.
        seconds: wall time of this run.
        seconds_left: estimated wall time of the remaining steps, at the speed of this run.
    """

    step: int
    steps: int
    length: int
    loss_nats: float
    token_accuracy: float
    seconds: float
    seconds_left: float


def train_encoder(
    lm: FrozenLM,
    folder: str | os.PathLike[str],
    initial: Encoder | None = None,
    training: EncoderTraining | None = None,
    *,
    anew: bool = False,
    save_every: int = 100,
    max_seconds: float = float("inf"),
    processes: Processes | None = None,
    report: Callable[[StepReport], None] | None = None,
    seconds_between_reports: float = 0.0,
    should_stop: Callable[[], bool] | None = None,
) -> Encoder:
    """Train an encoder, or resume its training.

    Each step minimises `Objective` over a batch of texts of one length, which is drawn for it. All random draws depend
    on the seed and the step alone. So a training that is stopped at any step and resumed ends with the same bits on one
    machine.

    Args:
        lm: the frozen model; its weights do not change.
        folder: where the encoder, its checkpoint and its curve lie. A training with a checkpoint there is resumed.
        initial: the encoder to train from; if None, `Encoder.untrained(lm)`.
        training: how to train.
        anew: drop an existing checkpoint and its curve, and begin anew.
        save_every: steps between two checkpoints.
        max_seconds: wall time after which this run saves and ends.
        processes: the processes that train together; if None, those of the launcher (`running_processes`).
        report: called after a step, which synchronises with the device.
        seconds_between_reports: of wall time, at least; 0: every step is reported.
        should_stop: asked after every step; if it returns True, this run saves and ends.

    Returns:
        The encoder as trained so far.

    Raises:
        InputError: another process trains in the folder, its checkpoint is of another training, or the texts, the
            folder or the settings cannot be used.
    """
    training = training or EncoderTraining()
    initial = initial or Encoder.untrained(lm, seed=training.seed)
    initial.check(lm.identity)
    check_room(lm, initial.config.arrangement.layout(max(training.lengths)), "choose shorter texts (--lengths)")
    if save_every < 1:
        raise InputError(f"save_every is {save_every}; it must be at least 1")
    processes = processes or running_processes()
    folder = make_folder(folder)
    with _locked(folder, processes):
        trainer = Trainer(lm, initial, training, processes)
        if (folder / FILE).exists() and not anew:
            trainer.resume(folder / FILE)
        if trainer.progress.step < training.steps:
            trainer.prepare(folder / TEXTS)
            told = report and _Reports(trainer, report, seconds_between_reports)
            _train(trainer, _TrainingFolder(trainer, folder), save_every, max_seconds, told, should_stop)
        return trainer.encoder()


def _train(
    trainer: Trainer,
    files: _TrainingFolder,
    save_every: int,
    max_seconds: float,
    reports: _Reports | None,
    should_stop: Callable[[], bool] | None,
) -> None:
    run_start, steps = time.perf_counter(), trainer.training.steps
    if trainer.progress.step == 0:
        files.add_row(trainer.validate())
    ends = False
    while not ends:
        step_start = time.perf_counter()
        numbers = trainer.step()
        step = trainer.progress.step
        if step % trainer.training.validate_every == 0 or step == steps:
            files.add_row(trainer.validate())
        now = time.perf_counter()
        trainer.progress.seconds += now - step_start
        seconds = now - run_start
        # Asked before the step is reported: until it is asked, a signal raises, and the step would be lost.
        ends = trainer.any_process(step == steps or seconds >= max_seconds or bool(should_stop and should_stop()))
        if reports:
            reports.add(numbers, seconds)
        if step % _STEPS_BETWEEN_ROWS == 0:
            files.add_row(trainer.row(numbers))
        if ends or step % save_every == 0:
            files.save()


@contextmanager
def _locked(folder: Path, processes: Processes) -> Iterator[None]:
    """Keep other trainings out of the folder; process 0 holds the lock for all of them."""
    from filelock import FileLock, Timeout

    if processes.rank > 0:
        yield
        return
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"{folder}: another process trains an encoder here; wait for it, or choose another folder"
        ) from None
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None
    try:
        yield
    finally:
        lock.release()


class _TrainingFolder:
    """The files of a training. Process 0 writes them, the others write nothing.

    A training that begins anew drops the checkpoint of the former one before its curve.
    """

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        self.trainer, self.folder = trainer, folder
        self.curve: Curve | None = None
        if trainer.processes.rank == 0:
            if trainer.progress.step == 0:
                (folder / FILE).unlink(missing_ok=True)
                sync(folder)
            self.curve = Curve(folder / CURVE, trainer.progress.step)

    def add_row(self, row: dict[str, Any]) -> None:
        if self.curve:
            self.curve.add(row)

    def save(self) -> None:
        if self.curve:
            t = self.trainer
            save_checkpoint(self.folder / FILE, t.network, t.optimisers, t.progress, t.settings)
            t.encoder().save_pretrained(self.folder)


class _Reports:
    """The reports of this run, which are not too many: each waits for the device."""

    def __init__(self, trainer: Trainer, report: Callable[[StepReport], None], seconds_between: float) -> None:
        self.trainer, self.report, self.seconds_between = trainer, report, seconds_between
        self.first_step, self.last_seconds = trainer.progress.step, -float("inf")

    def add(self, numbers: dict[str, Tensor | float], seconds: float) -> None:
        """Report a step, `seconds` after the run began, if it is time to, or the last one."""
        step, steps = self.trainer.progress.step, self.trainer.training.steps
        if step < steps and seconds < self.last_seconds + self.seconds_between:
            return
        self.last_seconds = seconds
        self.report(
            StepReport(
                step=step,
                steps=steps,
                length=int(numbers["length"]),
                loss_nats=float(numbers["loss"]),
                token_accuracy=float(numbers["token_accuracy"]),
                seconds=seconds,
                seconds_left=seconds / (step - self.first_step) * (steps - step),
            )
        )
