"""Training an encoder through the frozen LM: the loop, and what it leaves in its folder.

The folder holds the encoder (`config.json`, `model.safetensors`, `README.md`), `checkpoint.safetensors`, from which the
same training goes on bit for bit, `curve.jsonl`, and `texts.safetensors`, the tokenized texts, which can be deleted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import InputError
from ...files.atomic import make_folder
from ...fitting.checks import check_room
from ...lm.frozen import FrozenLM
from ..encoding import Encoder
from ..recipes import EncoderTraining
from .checkpoint import FILE, save_checkpoint
from .curve import Curve
from .distributed import Processes
from .run import TrainingRun

CURVE = "curve.jsonl"
TEXTS = "texts.safetensors"
_ROW_EVERY = 10  # steps between two rows of the curve


@dataclass(frozen=True)
class StepReport:
    """One step of training.

    Attributes:
        step: steps taken, over all runs.
        steps: steps in all.
        frontier: the curriculum's longest length, in tokens.
        length: tokens of the texts of the step's last batch.
        loss: their mean cross-entropy, in nats per token.
        token_accuracy: their share of right tokens.
        seconds: wall time of this run.
        seconds_left: seconds that the rest takes at this run's speed.
    """

    step: int
    steps: int
    frontier: int
    length: int
    loss: float
    token_accuracy: float
    seconds: float
    seconds_left: float


def train_encoder(
    lm: FrozenLM,
    folder: str | os.PathLike[str],
    beginning: Encoder | None = None,
    training: EncoderTraining | None = None,
    *,
    anew: bool = False,
    save_every: int = 100,
    max_seconds: float = float("inf"),
    viewer: str = "none",
    processes: Processes | None = None,
    report: Callable[[StepReport], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Encoder:
    """Train an encoder, or go on with its training.

    Each step minimises `Objective` over a batch of texts of one length, drawn by the curriculum. All that is drawn
    depends on the seed and the step, so a training that is stopped at any step and gone on with ends with the same
    bits on one machine.

    Args:
        lm: the frozen model; its weights are not touched.
        folder: where the encoder, its checkpoint and its curve lie. Where there is a checkpoint, training goes on.
        beginning: the encoder to set out from; if None, `Encoder.untrained(lm)`.
        training: how to train.
        anew: begin anew where there is a checkpoint.
        save_every: steps between two checkpoints.
        max_seconds: wall time after which this run saves and ends.
        viewer: see `Curve`.
        processes: those that train together; this one alone if None.
        report: called after every step; reading its numbers waits for the device.
        should_stop: asked after every step; when it says yes, this run saves and ends.

    Returns:
        The encoder as far as it is trained.

    Raises:
        InputError: the checkpoint is of another training, or the texts, the folder or the settings will not do.
    """
    training = training or EncoderTraining()
    beginning = beginning or Encoder.untrained(lm, seed=training.seed)
    beginning.check(lm.identity)
    config = beginning.config
    check_room(lm, config.laid_out.layout(config.max_tokens, config.e_tokens), "choose a smaller --max-tokens")
    if save_every < 1:
        raise InputError(f"save_every is {save_every}; it must be at least 1")
    folder = make_folder(folder)
    run = TrainingRun(lm, beginning, training, processes or Processes())
    if (folder / FILE).exists() and not anew:
        run.go_on(folder / FILE)
    if run.progress.step < training.steps:
        run.prepare(folder / TEXTS)
        keeper = _Keeper(run, folder, viewer)
        try:
            _train(run, keeper, save_every, max_seconds, report, should_stop)
        finally:
            keeper.close()
    return run.encoder()


def _train(
    run: TrainingRun,
    keeper: _Keeper,
    save_every: int,
    max_seconds: float,
    report: Callable[[StepReport], None] | None,
    should_stop: Callable[[], bool] | None,
) -> None:
    began, first, steps = time.perf_counter(), run.progress.step, run.training.steps
    if first == 0:
        keeper.add(run.validate(advance=False))
    ends = False
    while not ends:
        step_began = time.perf_counter()
        seen = run.step()
        step = run.progress.step
        due = step % run.training.validate_every == 0
        if due or step == steps:
            keeper.add(run.validate(advance=due))
        now = time.perf_counter()
        run.progress.seconds += now - step_began
        if report:
            report(_report(run, seen, now - began, (now - began) / (step - first) * (steps - step)))
        if step % _ROW_EVERY == 0:
            keeper.add(run.row(seen))
        ends = run.agreed(step == steps or now - began >= max_seconds or bool(should_stop and should_stop()))
        if ends or step % save_every == 0:
            keeper.save()


class _Keeper:
    """What process 0 leaves in the folder; the others leave nothing there."""

    def __init__(self, run: TrainingRun, folder: Path, viewer: str) -> None:
        self.run, self.folder = run, folder
        self.curve = Curve(folder / CURVE, run.progress.step, viewer) if run.processes.rank == 0 else None

    def add(self, row: dict[str, Any]) -> None:
        if self.curve:
            self.curve.add(row)

    def save(self) -> None:
        if self.curve:
            run = self.run
            save_checkpoint(self.folder / FILE, run.network, run.optimiser, run.progress, run.settings)
            run.encoder().save_pretrained(self.folder)

    def close(self) -> None:
        if self.curve:
            self.curve.close()


def _report(run: TrainingRun, seen: dict[str, Tensor | float], seconds: float, left: float) -> StepReport:
    return StepReport(
        step=run.progress.step,
        steps=run.training.steps,
        frontier=run.progress.frontier,
        length=int(seen["length"]),
        loss=float(seen["loss"]),
        token_accuracy=float(seen["token_accuracy"]),
        seconds=seconds,
        seconds_left=left,
    )
