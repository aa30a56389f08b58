"""The commands around learned starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .exits import DONE
from .options import Json, ModelOptions, Seed, numbers
from .spread import add_command
from .terminal import print_json, progress_line, say

if TYPE_CHECKING:
    from ..fitting.train_starter import StarterProgress, StarterTraining

_ABOUT = "Learned starts, from which fits need fewer steps."
starter_app = typer.Typer(name="starter", help=_ABOUT, short_help=_ABOUT)


@add_command(starter_app, "train")
def train_command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to save; updated after every step.")],
    model: ModelOptions,
    steps: Annotated[int, typer.Option(help="Number of training steps.")] = 200,
    inner_steps: Annotated[int, typer.Option(help="Steps of each short fit.")] = 16,
    lengths: Annotated[str, typer.Option(help="Text lengths to draw from, in tokens, comma-separated.")] = "8,16,16,32",
    block_lengths: Annotated[
        str | None,
        typer.Option(help="For long texts: block lengths to draw from. Each block has its own e-token."),
    ] = None,
    batch_tokens: Annotated[int, typer.Option(help="Tokens per batch.")] = 128,
    arrangement: Annotated[str, typer.Option(help="Arrangement of the fits.")] = "m,e,m*(n-1)",
    source: Annotated[
        str, typer.Option(help="speeches, old, random, a .txt, .jsonl, .csv or .parquet file, or a folder of files.")
    ] = "speeches",
    learn: Annotated[
        str, typer.Option(help="What to learn, comma-separated; the rest stays as --begin has it.")
    ] = "start,axes,rates",
    seed: Seed = 0,
    begin: Annotated[
        Path | None, typer.Option(help="Start from this learned start instead of the mean embeddings.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Start over, and overwrite the file.")] = False,
    as_json: Json = False,
) -> int:
    """Train a learned start for a model and save it.

    The same command resumes after an interruption.

    Only texts of the train split are used: speeches of years that 5 does not divide, before 2026.

    Example: prototokens starter train --model ./my-model -o my-model.starter
    """
    from ..files.atomic import check_new_file
    from ..fitting.starter import load_starter
    from ..fitting.train_starter import StarterConfig, load_training, save_training, train_starter
    from ..texts.sampling import sample

    config = StarterConfig(
        arrangement=arrangement,
        lengths=numbers("--lengths", lengths, "8,16,32"),
        block_lengths=numbers("--block-lengths", block_lengths, "8,16") if block_lengths else (),
        batch_tokens=batch_tokens,
        inner_steps=inner_steps,
        steps=steps,
        source=source,
        learn=tuple(learn.split(",")),
        seed=seed,
    )
    resume = load_training(output) if output.exists() and not force else None
    begun = load_starter(begin) if begin else None
    check_new_file(output, overwrite=True)
    lm = model.load()
    last: StarterProgress | None = None

    def keep(training: StarterTraining, p: StarterProgress) -> None:
        nonlocal last
        last = p
        save_training(output, training, overwrite=True)
        left = p.seconds / (p.step - first) * (p.steps - p.step)
        line(
            f"step {p.step} of {p.steps}  {p.length} tokens  loss {p.first_loss:.2f} to {p.last_loss:.2f} nats  "
            f"accuracy {p.token_accuracy:.3f}  {left:.0f} s left"
        )

    first = resume.step if resume else 0
    with progress_line() as line:
        train_starter(lm, lambda t, b, s: sample(source, lm, t, b, seed=s, split="train"), config, resume, begun, keep)
    _report(output, lm.identity.name, steps, last, as_json)
    return DONE


def _report(output: Path, model: str, steps: int, last: StarterProgress | None, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "file": str(output),
                "model": model,
                "steps": steps,
                "loss": last.last_loss if last else None,
                "token_positions": last.token_positions if last else 0,
                "backward_positions": last.backward_positions if last else 0,
                "seconds": last.seconds if last else 0.0,
            }
        )
    else:
        say(f"saved: {output}")
