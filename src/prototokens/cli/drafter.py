"""The command `drafter train`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .exits import DONE
from .options import Json, ModelOptions, numbers
from .spread import add_command
from .terminal import interrupts, print_json, progress_line, say

if TYPE_CHECKING:
    from torch import Tensor

    from ..drafting.drafter import Drafter
    from ..drafting.train_drafter import DrafterProgress, DrafterTraining

_ABOUT = "Drafters, with which a model generates several tokens a pass."
drafter_app = typer.Typer(name="drafter", help=_ABOUT, short_help=_ABOUT)
TRAINING_PANEL = "Training"
_SAVE_EVERY = 20  # steps


@dataclass(frozen=True)
class DrafterOptions:
    """What is trained, and on what."""

    source: Annotated[
        str,
        typer.Option(
            help="Where prompts come from: speeches, old, random, a .txt, .jsonl, .csv or .parquet file, or a folder "
            "of files.",
            rich_help_panel=TRAINING_PANEL,
        ),
    ] = "speeches"
    prompt_lengths: Annotated[
        str,
        typer.Option(help="Prompt lengths to draw from, in tokens, comma-separated.", rich_help_panel=TRAINING_PANEL),
    ] = "16,32,64"
    new_tokens: Annotated[
        int, typer.Option(help="Tokens that the model writes behind each prompt.", rich_help_panel=TRAINING_PANEL)
    ] = 96
    texts: Annotated[
        int,
        typer.Option(help="Texts that the model writes at a time; each is used twice.", rich_help_panel=TRAINING_PANEL),
    ] = 128
    batch_texts: Annotated[
        int, typer.Option(help="Texts of a step; must divide --texts.", rich_help_panel=TRAINING_PANEL)
    ] = 4
    places: Annotated[
        int, typer.Option(help="Places in each text at which a step drafts.", rich_help_panel=TRAINING_PANEL)
    ] = 48
    steps: Annotated[int, typer.Option(help="Number of optimiser steps.", rich_help_panel=TRAINING_PANEL)] = 600
    lr: Annotated[float, typer.Option(help="Learning rate.", rich_help_panel=TRAINING_PANEL)] = 1e-3
    masks: Annotated[
        int, typer.Option(help="Learned inputs behind a token, at most.", rich_help_panel=TRAINING_PANEL)
    ] = 2
    drafts: Annotated[
        int, typer.Option(help="Tokens that are drafted behind the next one.", rich_help_panel=TRAINING_PANEL)
    ] = 4
    input_width: Annotated[
        int,
        typer.Option(
            help="Width of the network that adds the context to the learned inputs; 0: the same inputs always.",
            rich_help_panel=TRAINING_PANEL,
        ),
    ] = 256
    reader_width: Annotated[
        int,
        typer.Option(
            help="Width of the network that reads the drafts; 0: the model's head reads them as they are.",
            rich_help_panel=TRAINING_PANEL,
        ),
    ] = 768
    vocabulary: Annotated[
        int,
        typer.Option(
            help="Tokens that can be drafted: the most frequent in the texts of the training; 0: all.",
            rich_help_panel=TRAINING_PANEL,
        ),
    ] = 8192
    seed: Annotated[int, typer.Option(help="Seed of all random draws.", rich_help_panel=TRAINING_PANEL)] = 0

    def config(self) -> DrafterTraining:
        """How the drafter is trained.

        Raises:
            InputError: a setting is out of bounds.
        """
        from ..drafting.network import DrafterConfig
        from ..drafting.train_drafter import DrafterTraining

        return DrafterTraining(
            drafter=DrafterConfig(self.masks, self.drafts, self.input_width, self.reader_width, self.vocabulary),
            source=self.source,
            prompt_lengths=numbers("--prompt-lengths", self.prompt_lengths, "16,32,64"),
            new_tokens=self.new_tokens,
            round_texts=self.texts,
            batch_texts=self.batch_texts,
            places=self.places,
            steps=self.steps,
            lr=self.lr,
            seed=self.seed,
        )


@add_command(drafter_app, "train")
def train_command(
    output: Annotated[Path, typer.Option("--output", "-o", help=f"Where to save; updated every {_SAVE_EVERY} steps.")],
    model: ModelOptions,
    options: DrafterOptions,
    force: Annotated[bool, typer.Option("--force", help="Start over, and overwrite the file.")] = False,
    as_json: Json = False,
) -> int:
    """Train a drafter for a model on what it writes itself.

    The same command resumes after an interruption, Ctrl-C included.

    Only texts of the train split are prompts: speeches of years that 5 does not divide, before 2026.

    Example: prototokens drafter train --model ./my-model -o my-model.drafter --source ./my-texts
    """
    from ..drafting.drafter import read_drafter, save_drafter
    from ..drafting.train_drafter import train_drafter
    from ..files.atomic import check_new_file
    from ..texts.sampling import sample

    config = options.config()
    resume = read_drafter(output) if output.exists() and not force else None
    check_new_file(output, overwrite=True)
    lm = model.load()
    first = resume[0].training.get("step", 0) if resume else 0
    last: DrafterProgress | None = None

    def draw(length: int, count: int, seed: int) -> Tensor:
        return sample(config.source, lm, length, count, seed=seed, split="train")

    with interrupts() as signals, progress_line() as line:

        def keep(drafter: Drafter, unfinished: dict[str, Tensor], p: DrafterProgress) -> None:
            nonlocal last
            last = p
            is_last, stops = p.step == p.steps, signals.should_stop()
            if is_last or stops or p.step % _SAVE_EVERY == 0:
                save_drafter(output, drafter, overwrite=True, unfinished=unfinished)
            if stops and not is_last:
                raise KeyboardInterrupt
            line(_progress(p, first))

        drafter = train_drafter(lm, draw, config, resume, keep)
    _report(output, drafter, last, as_json)
    return DONE


def _progress(p: DrafterProgress, first: int) -> str:
    left = p.seconds / (p.step - first) * (p.steps - p.step)
    return f"step {p.step} of {p.steps}  loss {p.loss_nats:.2f} nats  right {_shares(p.right)}  {left:.0f} s left"


def _shares(shares: tuple[float, ...]) -> str:
    return " ".join(f"{share:.2f}" for share in shares)


def _report(output: Path, drafter: Drafter, last: DrafterProgress | None, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "file": str(output),
                "model": drafter.model.name,
                "drafter": drafter.name,
                "weights": drafter.n_weights,
                "steps": drafter.training["step"],
                "samples": drafter.training["samples"],
                "loss_nats": last.loss_nats if last else None,
                "acceptance": [list(row) for row in drafter.acceptance],
                "seconds": last.seconds if last else 0.0,
            }
        )
        return
    best = max(drafter.acceptance, key=sum)
    say(f"drafts accepted on unseen texts: {_shares(best)}, about {1 + sum(best):.2f} tokens a pass without a tree")
    say(f"saved: {output} ({drafter.n_weights:,} weights)")
