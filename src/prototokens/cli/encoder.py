"""The commands `encoder train` and `encoder eval`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from .exits import DONE, INTERRUPTED
from .options import SHIPPED, EncoderName, Json, ModelOptions, Seed, encoder_for, load_encoder, numbers
from .spread import add_command
from .terminal import interrupts, print_json, progress_line, say

if TYPE_CHECKING:
    from ..encoder.config import EncoderConfig
    from ..encoder.encoding import Encoder
    from ..encoder.recipes import EncoderTraining
    from ..encoder.training.loop import StepReport
    from ..fitting.starter import Starter

_ABOUT = "Train and score encoders, which replace the fit by one pass."
encoder_app = typer.Typer(name="encoder", help=_ABOUT, short_help=_ABOUT)
TRAINING_PANEL = "Training"
_MOST_TEXTS = 100_000  # of each source, beginning and length


@dataclass(frozen=True)
class TrainingOptions:
    """What is trained, and how."""

    block_length: Annotated[
        int,
        typer.Option(help="Tokens per e-token: the encoder writes one for each block.", rich_help_panel=TRAINING_PANEL),
    ] = 4
    lengths: Annotated[
        str,
        typer.Option(
            help="Text lengths to train on, in tokens, comma-separated. Other lengths are encoded too.",
            rich_help_panel=TRAINING_PANEL,
        ),
    ] = "4,8,16,32,64"
    start: Annotated[
        str,
        typer.Option(
            help="Where training starts: auto (as in fit), or a file of a learned start.",
            rich_help_panel=TRAINING_PANEL,
        ),
    ] = "auto"
    begin: Annotated[
        str | None,
        typer.Option(
            help="Start from this encoder instead: a folder, a Hub id, or shipped. Its size is kept; other settings "
            "may differ.",
            rich_help_panel=TRAINING_PANEL,
        ),
    ] = None
    steps: Annotated[int, typer.Option(help="Number of optimiser steps.", rich_help_panel=TRAINING_PANEL)] = 20_000
    batch_positions: Annotated[int, typer.Option(help="Input positions per step.", rich_help_panel=TRAINING_PANEL)] = (
        512
    )
    optimiser: Annotated[
        str,
        typer.Option(help="adamw, or muon for the network's matrices.", rich_help_panel=TRAINING_PANEL),
    ] = "adamw"
    lr: Annotated[float, typer.Option(help="Learning rate.", rich_help_panel=TRAINING_PANEL)] = 1e-3
    source: Annotated[
        str,
        typer.Option(
            help="Where texts come from: speeches, old, a .txt, .jsonl, .csv or .parquet file, or a folder of files.",
            rich_help_panel=TRAINING_PANEL,
        ),
    ] = "speeches"
    texts: Annotated[
        int | None,
        typer.Option(
            help="Train on N texts only, to check that the encoder learns at all.",
            metavar="N",
            rich_help_panel=TRAINING_PANEL,
        ),
    ] = None
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Any other setting, such as encoder.neighbours=8; may be given several times.",
            metavar="NAME=VALUE",
            rich_help_panel=TRAINING_PANEL,
        ),
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of all random draws.", rich_help_panel=TRAINING_PANEL)] = 0

    def configs(self) -> tuple[EncoderConfig, EncoderTraining]:
        """How the encoder is built, and how it is trained.

        Raises:
            InputError: a setting is unknown, or out of bounds.
        """
        from ..encoder.config import EncoderConfig
        from ..encoder.recipes import EncoderTraining, read_setting, with_setting

        config, training = EncoderConfig(block_length=self.block_length), EncoderTraining()
        given: dict[str, Any] = {"steps": self.steps, "batch_positions": self.batch_positions, "seed": self.seed}
        given |= {"lengths": numbers("--lengths", self.lengths, "4,16,64")}
        given |= {"schedule.optimiser": self.optimiser, "schedule.lr": self.lr}
        given |= {"texts.source": self.source, "texts.texts": self.texts}
        for name, value in [*given.items(), *map(read_setting, self.settings or [])]:
            if name.startswith("encoder."):
                config = with_setting(config, name.removeprefix("encoder."), value)
            else:
                training = with_setting(training, name, value)
        return config, training

    def beginning(self) -> tuple[Starter | None, Encoder | None]:
        """The learned start or the encoder that the training begins at, where one is named.

        Raises:
            InputError: both are named, or a file cannot be read.
        """
        from ..fitting.starter import load_starter

        if self.begin is not None and self.start != "auto":
            raise InputError("give --start or --begin, not both")
        return None if self.start == "auto" else load_starter(self.start), load_encoder(self.begin)


@add_command(encoder_app, "train")
def train_command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the encoder, its checkpoint and curve.")],
    model: ModelOptions,
    options: TrainingOptions,
    save_every: Annotated[int, typer.Option(help="Steps between two checkpoints.")] = 100,
    minutes: Annotated[float | None, typer.Option(help="Stop after so long; the same command resumes.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Start over, and overwrite the checkpoint.")] = False,
    as_json: Json = False,
) -> int:
    """Train an encoder for a model.

    The same command resumes after an interruption, Ctrl-C included.

    Only texts of the train split are used: speeches before 2026, of years that 5 does not divide. Every twentieth of
    them is for validation. Several GPUs: accelerate launch $(command -v prototokens) encoder train ...

    Example: prototokens encoder train -o my-encoder --model ./my-model --block-length 4 --minutes 60
    """
    from ..encoder.encoding import Encoder
    from ..encoder.training.distributed import running_processes
    from ..encoder.training.loop import train_encoder

    config, training = options.configs()
    if minutes is not None and not minutes > 0:
        raise InputError(f"--minutes is {minutes:g}; it must be above 0")
    starter, encoder_before = options.beginning()
    processes = running_processes()
    device = model.loading.device or processes.device
    lm = replace(model, loading=replace(model.loading, device=device)).load()
    if options.begin == SHIPPED:
        encoder_before = encoder_for(lm, None)
    with interrupts() as signals, _training_progress() as show:
        encoder = train_encoder(
            lm,
            output,
            encoder_before or Encoder.untrained(lm, config, starter, seed=options.seed),
            training,
            anew=force,
            save_every=save_every,
            max_seconds=math.inf if minutes is None else 60 * minutes,
            processes=processes,
            report=show if processes.rank == 0 else None,
            seconds_between_reports=0.5,
            should_stop=signals.should_stop,
        )
    if processes.rank == 0:
        _print_training(encoder, output, as_json)
    return INTERRUPTED if signals.received else DONE


@add_command(encoder_app, "eval")
def eval_command(
    model: ModelOptions,
    encoder: EncoderName = None,
    lengths: Annotated[
        str,
        typer.Option(help="Text lengths in tokens, comma-separated."),
    ] = "4,16,64",
    sources: Annotated[str, typer.Option(help="Where texts come from, comma-separated. Their test split is used.")] = (
        "old,recent"
    ),
    starts: Annotated[
        str,
        typer.Option(help="How texts begin: anywhere (windows), sentence (whole sentences), document."),
    ] = "anywhere,sentence",
    controls: Annotated[
        str, typer.Option(help="What is scored, comma-separated: encoder, start (untrained), shuffled, constant.")
    ] = "encoder,start,shuffled,constant",
    texts: Annotated[int, typer.Option(help="Number of texts for each source, beginning and length.")] = 64,
    seed: Seed = 0,
    as_json: Json = False,
) -> int:
    """Score an encoder on texts that it was not trained on.

    Texts of each length are encoded without a fit step, and scored beside controls.

    Example: prototokens encoder eval --encoder ./my-encoder --model ./my-model --lengths 2,4
    """
    from ..encoder.evaluate import CONTROLS, evaluate

    sizes = numbers("--lengths", lengths, "4,16,64")
    scored = controls.split(",")
    if unknown := sorted(set(scored) - set(CONTROLS)):
        raise InputError(f"unknown control {unknown[0]!r}; choose one of: {' '.join(CONTROLS)}")
    if not 2 <= texts <= _MOST_TEXTS:
        raise InputError(f"--texts is {texts}; it must be at least 2 and at most {_MOST_TEXTS}")
    named = load_encoder(encoder)
    lm = model.load()
    scored_encoder = encoder_for(lm, named)
    rows: list[dict[str, Any]] = []
    for row in evaluate(lm, scored_encoder, sizes, sources.split(","), starts.split(","), scored, texts, seed):
        rows.append(row)
        if not as_json:
            place = "{source:10} {start:10} {control:10} {length:4} tokens".format(**row)
            spread = "{token_accuracy:.3f} ± {token_accuracy_se:.3f}".format(**row)
            say(f"{place}  accuracy {spread}  exact {row['exact_match']:.3f}  {row['loss']:.2f} nats", flush=True)
    if as_json:
        step = scored_encoder.training["step"]
        print_json({"encoder": scored_encoder.name, "step": step, "model": lm.identity.name, "scores": rows})
    return DONE


@contextmanager
def _training_progress() -> Iterator[Callable[[StepReport], None]]:
    """The progress of a training: loss, accuracy, and the time that is left."""
    with progress_line() as line:

        def show(r: StepReport) -> None:
            line(
                f"step {r.step} of {r.steps}  {r.length} tokens  loss {r.loss_nats:.2f} nats  "
                f"accuracy {r.token_accuracy:.3f}  {r.seconds_left:.0f} s left"
            )

        yield show


def _print_training(encoder: Encoder, output: Path, as_json: bool) -> None:
    training = encoder.training
    if as_json:
        record = {
            "file": str(output),
            "model": encoder.model.name,
            "encoder": encoder.name,
            "weights": encoder.n_weights,
        }
        fields = ("step", "tokens", "positions", "seconds", "validation")
        print_json(record | {name: training.get(name) for name in fields})
        return
    validation = training.get("validation") or {}
    for kind in ("windows", "own"):
        for length, scores in validation.get(kind, {}).items():
            accuracy, exact = scores["token_accuracy"], scores["exact_match"]
            say(f"{kind:8} {length:>4} tokens  accuracy {accuracy:.3f}  exact {exact:.3f}")
    say(f"saved: {output} (step {training['step']}, {encoder.n_weights:,} weights)")
