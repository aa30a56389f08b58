"""The commands around learned starts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from .terminal import Device, DeviceMap, Dtype, Json, Model, Revision, TrustRemoteCode, load_model, print_json

if TYPE_CHECKING:
    from ..fitting.train_starter import StarterProgress, StarterTraining

starter_app = typer.Typer(
    name="starter", help="Learned starts: fits of a model begin near its solutions.", no_args_is_help=False
)


@starter_app.command("train")
def train_command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to save; renewed after every step.")],
    model: Model = "smollm2-135m",
    steps: Annotated[int, typer.Option(help="How many times the start moves.")] = 200,
    inner_steps: Annotated[int, typer.Option(help="Steps of each short fit.")] = 16,
    lengths: Annotated[str, typer.Option(help="Text lengths to draw from, in tokens, comma-separated.")] = "8,16,16,32",
    batch_tokens: Annotated[int, typer.Option(help="Tokens fitted side by side in a step.")] = 128,
    arrangement: Annotated[str, typer.Option(help="The arrangement that the start is for.")] = "m,e,m*(n-1)",
    source: Annotated[
        str, typer.Option(help="speeches, old, random, or a .txt, .jsonl, .csv or .parquet file.")
    ] = "speeches",
    seed: Annotated[int, typer.Option(help="What texts and lengths are drawn from.")] = 0,
    begin: Annotated[
        Path | None, typer.Option(help="A learned start of another training to begin at, instead of the means.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Begin anew, over a file that is there.")] = False,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> int:
    """Train a learned start for a model and save it. The same command goes on where it was stopped.

    Only texts of the train split are used: speeches of years that 5 does not divide, before 2026.

    Example: prototokens starter train --model ./my-model -o my-model.starter
    """
    from ..files.atomic import check_new_file
    from ..fitting.starter import load_starter
    from ..fitting.train_starter import StarterConfig, load_training, save_training, train_starter
    from ..texts.sampling import sample

    try:
        sizes = tuple(int(x) for x in lengths.split(","))
    except ValueError:
        raise InputError(f"--lengths is {lengths!r}; it must be numbers of tokens such as 8,16,32") from None
    config = StarterConfig(
        arrangement=arrangement,
        lengths=sizes,
        batch_tokens=batch_tokens,
        inner_steps=inner_steps,
        steps=steps,
        source=source,
        seed=seed,
    )
    resume = load_training(output) if output.exists() and not force else None
    begun = load_starter(begin) if begin else None
    check_new_file(output, overwrite=True)
    lm = load_model(model, revision, dtype, device, device_map, trust_remote_code)
    last: StarterProgress | None = None

    def keep(training: StarterTraining, p: StarterProgress) -> None:
        nonlocal last
        last = p
        save_training(output, training, overwrite=True)
        left = p.seconds / (p.step - first) * (p.steps - p.step)
        print(
            f"step {p.step} of {p.steps}  {p.length} tokens  loss {p.first_loss:.2f} to {p.last_loss:.2f} nats  "
            f"accuracy {p.token_accuracy:.3f}  {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    first = resume.step if resume else 0
    train_starter(lm, lambda t, b, s: sample(source, lm, t, b, seed=s, split="train"), config, resume, begun, keep)
    _report(output, lm.identity.name, steps, last, as_json)
    return 0


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
        print(f"saved: {output}")
