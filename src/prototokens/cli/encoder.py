"""The commands around encoders: `encode`, `encoder train`, `encoder eval`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from .printed import fit_record, print_fit
from .terminal import (
    Device,
    DeviceMap,
    Dtype,
    Json,
    Model,
    Revision,
    TrustRemoteCode,
    encoded,
    encoder_for,
    interrupts,
    load_encoder,
    load_model,
    print_json,
    read_text,
)

if TYPE_CHECKING:
    from ..encoder.config import EncoderConfig
    from ..encoder.encoding import Encoder
    from ..encoder.recipes import EncoderTraining
    from ..encoder.training.loop import StepReport
    from ..fitting.starter import Starter
    from ..lm.frozen import FrozenLM

encode_app = typer.Typer()
encoder_app = typer.Typer(name="encoder", help="Encoders: a text's proto-tokens in one pass, without a fit.")

EncoderPath = Annotated[
    str | None,
    typer.Option("--encoder", help="Folder or Hub id of an encoder; default: the one that comes with the package."),
]


@encode_app.command("encode")
def encode_command(
    text: Annotated[str | None, typer.Argument(help="The text; - reads it from stdin.")] = None,
    file: Annotated[Path | None, typer.Option(help="Read the text from this UTF-8 file.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Keep only the text's first N tokens.", metavar="N")] = None,
    encoder: EncoderPath = None,
    refine: Annotated[int, typer.Option(help="At most so many fit steps after the encoder's pass.", metavar="K")] = 0,
    preset: Annotated[str, typer.Option(help="The recipe of these steps: fast, tuned or paper.")] = "fast",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to save; default: proto-HASH.safetensors here.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output file.")] = False,
    model: Model = "smollm2-135m",
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> int:
    """Write the proto-tokens of a text in one pass of an encoder, and save them with the score of decoding them.

    Exit code 0: the text is reconstructed exactly. 1: it is not; the vectors are saved all the same.

    Example: prototokens encode "A friend." --encoder ./my-encoder --refine 20 -o friend.safetensors
    """
    from ..encoder.encoding import encode, refinement
    from ..files.atomic import check_new_file
    from ..fitting.recipes import preset as preset_named
    from ..lm.identity import hash_ids
    from ..proto_tokens import save

    content = read_text(text, file)
    if tokens is not None and tokens < 1:
        raise InputError(f"--tokens is {tokens}; it must be at least 1")
    if refine < 0:
        raise InputError(f"--refine is {refine}; it must be at least 0 fit steps")
    if output is not None:
        check_new_file(output, overwrite=force)
    recipe = preset_named(preset)
    loaded = load_encoder(encoder)
    lm = load_model(model, revision, dtype, device, device_map, trust_remote_code)
    own = encoder_for(lm, loaded)
    ids = encoded(lm, content)[:tokens]
    if output is None:
        output = Path(f"proto-{hash_ids(ids)[:8]}.safetensors")
        check_new_file(output, overwrite=force)
    result = encode(lm, own, ids.unsqueeze(0), refine=refine, recipe=recipe)[0]
    save(output, result.tokens, overwrite=force)
    record = fit_record(result, lm.decode(ids), refinement(own, refine, recipe))
    record |= {"file": str(output), "model": lm.identity.name}
    if as_json:
        print_json(record)
    else:
        print_fit(record)
    return 0 if result.exact else 1


@encoder_app.command("train")
def train_command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the encoder, its checkpoint and curve.")],
    model: Model = "smollm2-135m",
    size: Annotated[str, typer.Option(help="tiny, small or large.")] = "tiny",
    max_tokens: Annotated[int, typer.Option(help="The longest text that it is to take, in tokens.")] = 16,
    start: Annotated[
        str, typer.Option(help="Where it sets out: auto (see fit), or a file of a learned start.")
    ] = "auto",
    begin: Annotated[
        str | None, typer.Option(help="Set out from this encoder instead, of its size, with other settings.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps in all.")] = 20_000,
    batch_positions: Annotated[int, typer.Option(help="Input positions of a step.")] = 512,
    lr: Annotated[float, typer.Option(help="Learning rate of AdamW.")] = 1e-3,
    source: Annotated[str, typer.Option(help="speeches, old, or a .txt, .jsonl, .csv or .parquet file.")] = "speeches",
    texts: Annotated[
        int | None, typer.Option(help="Overfit this many texts: a check that it learns at all.", metavar="N")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting, e.g. curriculum.threshold=0.8; again for more.", metavar="K=V"),
    ] = None,
    save_every: Annotated[int, typer.Option(help="Steps between two checkpoints.")] = 100,
    minutes: Annotated[float | None, typer.Option(help="End this run after so many; the same command goes on.")] = None,
    viewer: Annotated[str, typer.Option(help="Also show the curve: none, tensorboard or trackio.")] = "none",
    seed: Annotated[int, typer.Option(help="What weights, texts, lengths and noise are drawn from.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Begin anew, over a checkpoint that is there.")] = False,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> int:
    """Train an encoder through the frozen model. The same command goes on where it was stopped, Ctrl-C included.

    Only texts of the train split are used: speeches of years that 5 does not divide, before 2026; every twentieth of
    them validates. Several GPUs: accelerate launch $(command -v prototokens) encoder train ...

    Example: prototokens encoder train -o my-encoder --model ./my-model --max-tokens 16 --minutes 60
    """
    from ..encoder.training.distributed import running_processes
    from ..encoder.training.loop import train_encoder

    given: dict[str, Any] = {"steps": steps, "batch_positions": batch_positions, "seed": seed, "schedule.lr": lr}
    given |= {"texts.source": source, "texts.texts": texts}
    config, training = _training(size, max_tokens, given, settings or [])
    if minutes is not None and minutes <= 0:
        raise InputError(f"--minutes is {minutes:g}; it must be above 0")
    starter, begun = _beginning(start, begin)
    processes = running_processes()
    lm = load_model(model, revision, dtype, device or processes.device, device_map, trust_remote_code)
    with interrupts() as asked:
        encoder = train_encoder(
            lm,
            output,
            begun or _untrained(lm, config, starter, seed),
            training,
            anew=force,
            save_every=save_every,
            max_seconds=float("inf") if minutes is None else 60 * minutes,
            viewer=viewer,
            processes=processes,
            report=_reporter() if processes.rank == 0 else None,
            should_stop=lambda: bool(asked),
        )
    if processes.rank == 0:
        _print_training(encoder, output, as_json)
    return 130 if asked else 0


@encoder_app.command("eval")
def eval_command(
    encoder: EncoderPath = None,
    model: Model = "smollm2-135m",
    lengths: Annotated[
        str | None,
        typer.Option(help="Text lengths, in tokens, comma-separated; default: of 2,4,8,16 those that it takes."),
    ] = None,
    sources: Annotated[
        str, typer.Option(help="Where texts come from, comma-separated; of the test split.")
    ] = "old,recent",
    starts: Annotated[
        str,
        typer.Option(
            help="How they begin, comma-separated: anywhere (windows), sentence (texts of their own), document."
        ),
    ] = "anywhere,sentence",
    controls: Annotated[
        str, typer.Option(help="What is scored: encoder, start (the untrained one), shuffled, constant.")
    ] = "encoder,start,shuffled,constant",
    texts: Annotated[int, typer.Option(help="Texts of each source, kind and length.")] = 64,
    seed: Annotated[int, typer.Option(help="What texts are drawn from.")] = 0,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> int:
    """Score an encoder with no fit step on texts that it was not trained on, by length, beside its controls.

    Example: prototokens encoder eval --encoder ./my-encoder --model ./my-model --lengths 2,4
    """
    from ..encoder.evaluate import CONTROLS, evaluate

    try:
        sizes = None if lengths is None else [int(x) for x in lengths.split(",")]
    except ValueError:
        raise InputError(f"--lengths is {lengths!r}; it must be numbers of tokens such as 2,4,8,16") from None
    asked = controls.split(",")
    if unknown := sorted(set(asked) - set(CONTROLS)):
        raise InputError(f"unknown control {unknown[0]!r}; choose one of: {' '.join(CONTROLS)}")
    if texts < 2:
        raise InputError(f"--texts is {texts}; it must be at least 2")
    loaded = load_encoder(encoder)
    lm = load_model(model, revision, dtype, device, device_map, trust_remote_code)
    own = encoder_for(lm, loaded)
    sizes = sizes or [n for n in (2, 4, 8, 16) if n <= own.config.max_tokens] or [own.config.max_tokens]
    rows: list[dict[str, Any]] = []
    for row in evaluate(lm, own, sizes, sources.split(","), starts.split(","), asked, texts, seed):
        rows.append(row)
        if not as_json:
            place = "{source:10} {start:10} {control:10} {length:4} tokens".format(**row)
            spread = "{token_accuracy:.3f} ± {token_accuracy_se:.3f}".format(**row)
            print(f"{place}  accuracy {spread}  exact {row['exact_match']:.3f}  {row['loss']:.2f} nats", flush=True)
    if as_json:
        print_json({"encoder": own.name, "step": own.training["step"], "model": lm.identity.name, "scores": rows})
    return 0


def _training(
    size: str, max_tokens: int, given: dict[str, Any], settings: list[str]
) -> tuple[EncoderConfig, EncoderTraining]:
    from ..encoder.config import encoder_size
    from ..encoder.recipes import EncoderTraining, read_setting, with_setting

    config, training = encoder_size(size, max_tokens=max_tokens), EncoderTraining()
    for name, value in given.items():
        training = with_setting(training, name, value)
    for name, value in map(read_setting, settings):
        if name.startswith("encoder."):
            config = with_setting(config, name.removeprefix("encoder."), value)
        else:
            training = with_setting(training, name, value)
    return config, training


def _beginning(start: str, begin: str | None) -> tuple[Starter | None, Encoder | None]:
    from ..fitting.starter import load_starter

    if begin is not None and start != "auto":
        raise InputError("give --start or --begin, not both")
    return None if start == "auto" else load_starter(start), load_encoder(begin)


def _untrained(lm: FrozenLM, config: EncoderConfig, starter: Starter | None, seed: int) -> Encoder:
    from ..encoder.encoding import Encoder

    return Encoder.untrained(lm, config, starter, seed=seed)


def _reporter() -> Callable[[StepReport], None]:
    """A line on stderr: renewed in a terminal, else every ten seconds."""
    live, shown = sys.stderr.isatty(), 0.0

    def report(r: StepReport) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown < (0.2 if live else 10.0) and r.step < r.steps:
            return
        shown = now
        line = (
            f"step {r.step} of {r.steps}  frontier {r.frontier}  {r.length} tokens  loss {r.loss:.2f} nats  "
            f"accuracy {r.token_accuracy:.3f}  {r.seconds_left:.0f} s left"
        )
        ends = r.step == r.steps or not live
        print(f"\r\x1b[K{line}" if live else line, end="\n" if ends else "", file=sys.stderr, flush=True)

    return report


def _print_training(encoder: Encoder, output: Path, as_json: bool) -> None:
    record = encoder.training
    if as_json:
        fields = ("step", "tokens", "positions", "seconds", "frontier", "validation")
        own = {"file": str(output), "model": encoder.model.name, "encoder": encoder.name, "weights": encoder.weights}
        print_json(own | {name: record.get(name) for name in fields})
        return
    validation = record.get("validation") or {}
    for kind in ("windows", "own"):
        for length, seen in validation.get(kind, {}).items():
            print(
                f"{kind:8} {length:>4} tokens  accuracy {seen['token_accuracy']:.3f}  exact {seen['exact_match']:.3f}"
            )
    print(f"saved: {output} (step {record['step']}, {encoder.weights:,} weights)")
