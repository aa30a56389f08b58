"""The commands for one text: fit, encode, decode, inspect."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from .exits import DONE, INTERRUPTED, NOT_EXACT
from .file_model import load_file_model
from .options import (
    RECIPE_PANEL,
    EncoderName,
    FileModelOptions,
    Force,
    Json,
    ModelOptions,
    Preset,
    RecipeOptions,
    TextOptions,
    encoder_for,
    load_encoder,
)
from .spread import add_command
from .terminal import encoded, fit_progress, interrupts, note, print_json, say

if TYPE_CHECKING:
    from torch import Tensor

    from ..fitting.fit import FitResult
    from ..fitting.recipes import FitConfig
    from ..lm.frozen import FrozenLM

PANEL = "One text"
one_text_app = typer.Typer()

Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Where to save; default: proto-HASH.safetensors here.")
]
VectorFile = Annotated[Path, typer.Argument(help="A file that fit or encode wrote.")]


@add_command(one_text_app, "fit", PANEL)
def fit_command(
    source: TextOptions,
    model: ModelOptions,
    recipe: RecipeOptions,
    output: Output = None,
    force: Force = False,
    keep: Annotated[bool, typer.Option("--keep", help="On Ctrl-C, save the best vectors so far.")] = False,
    trace: Annotated[
        Path | None, typer.Option(help="Also keep what is decoded at every evaluation, in this file, for view.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Fit the proto-tokens of a text and save them.

    Exit code 0: the text is reproduced exactly. 1: it is not; the best vectors are saved all the same.

    Example: prototokens fit "The only way to have a friend is to be one." -o friend.safetensors
    """
    from ..fitting.fit import fit
    from ..fitting.trace import TraceRecorder, save_trace

    content = source.read()
    _check_output(output, force)
    _check_output(trace, force)
    if trace is not None and trace == output:
        raise InputError(f"--trace and --output are both {trace}; give them two names")
    config = recipe.config()
    lm = model.load()
    ids, output = _target(lm, content, source.n_tokens, output, force)
    if config.e_tokens > len(ids):
        note(f"note: {config.e_tokens} e-tokens for {len(ids)} tokens: more than one a token (--e-tokens)")
    recorder = None if trace is None else TraceRecorder()
    with fit_progress() as show, interrupts() as signals:
        result = fit(lm, ids, config, progress=show, should_stop=signals.should_stop, trace=recorder)
    if signals.received and not keep:
        raise KeyboardInterrupt
    if trace is not None and recorder is not None:
        save_trace(trace, recorder.trace(lm), overwrite=force)
    code = _save(lm, ids, result, config, output, force, as_json)
    if trace is not None and not as_json:
        say(f"trace: {trace} (prototokens view {trace} -o page.html draws it)")
    return INTERRUPTED if signals.received else code


@add_command(one_text_app, "encode", PANEL)
def encode_command(
    source: TextOptions,
    model: ModelOptions,
    encoder: EncoderName = None,
    refine: Annotated[
        int, typer.Option(help="Maximum number of fit steps after the encoder's pass.", rich_help_panel=RECIPE_PANEL)
    ] = 0,
    preset: Preset = "fast",
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> int:
    """Write the proto-tokens of a text in one pass of an encoder.

    Exit code 0: the text is reproduced exactly. 1: it is not; the vectors are saved all the same.

    Example: prototokens encode "A friend." --encoder ./my-encoder --refine 20 -o friend.safetensors
    """
    from ..encoder.encoding import encode, refinement
    from ..fitting.recipes import preset as preset_named

    content = source.read()
    if refine < 0:
        raise InputError(f"--refine is {refine}; it must be at least 0 fit steps")
    _check_output(output, force)
    recipe = preset_named(preset)
    named = load_encoder(encoder)
    lm = model.load()
    encoder_of_lm = encoder_for(lm, named)
    ids, output = _target(lm, content, source.n_tokens, output, force)
    result = encode(lm, encoder_of_lm, ids.unsqueeze(0), refine=refine, recipe=recipe)[0]
    return _save(lm, ids, result, refinement(encoder_of_lm, refine, recipe), output, force, as_json)


@add_command(one_text_app, "decode", PANEL)
def decode_command(file: VectorFile, model: FileModelOptions, as_json: Json = False) -> int:
    """Turn proto-tokens back into their text, in one forward pass.

    --json also tells for every token its margin, in logits, and its probability: how far to trust it.

    The text is written as it was fitted. A newline is added only in a terminal.

    A model that is not on this machine is fetched only with --model, or after a yes in the terminal.

    Example: prototokens decode friend.safetensors
    """
    from ..decoding import decode
    from ..proto_tokens import load

    tokens = load(file)
    lm, _ = load_file_model(model, tokens.provenance.model, file)
    decoded = decode(lm, tokens, scores=as_json)
    if as_json:
        print_json(
            {
                "text": decoded.text,
                "ids": decoded.ids.tolist(),
                "margins": _listed(decoded.margins),
                "probabilities": _listed(decoded.probabilities),
                "exact": decoded.exact,
                "forward_passes": 1,
                "seconds": decoded.seconds,
                "model": lm.identity.name,
            }
        )
    else:
        say(decoded.text, end="\n" if sys.stdout.isatty() else "")
    if not decoded.exact:
        fitted_in, decoded_in = tokens.provenance.dtype, lm.dtype_name
        remedy = f"it was fitted in {fitted_in} and decoded in {decoded_in}: try --dtype {fitted_in}"
        remedy = remedy if fitted_in != decoded_in else f"see: prototokens inspect {file}"
        note(f"note: not the text that was fitted, token for token ({remedy})")
    return DONE


@add_command(one_text_app, "inspect", PANEL)
def inspect_command(file: VectorFile, as_json: Json = False) -> int:
    """Show what a file of proto-tokens holds. Loads no model.

    This includes the model that it needs, and how well it decoded when it was saved.
    """
    from ..proto_tokens import load

    tokens = load(file)
    record: dict[str, Any] = {
        "file": str(file),
        "length": tokens.length,
        "exact": tokens.provenance.token_accuracy == 1,
        "arrangement": tokens.arrangement.name,
        "e_tokens": tokens.e.shape[0],
        "vectors": tokens.n_vectors,
        "width": tokens.m.shape[0],
        "bytes": tokens.n_bytes,
        "e_norm": tokens.e.norm(dim=-1).tolist(),
        "m_norm": tokens.m.norm().item(),
        **asdict(tokens.provenance),
    }
    if as_json:
        print_json(record)
        return DONE
    for name, value in record.items():
        value = _range(value) if isinstance(value, list) else value
        entries = value.items() if isinstance(value, dict) else [("", value)]
        for key, entry in entries:
            say(f"{f'{name}.{key}'.rstrip('.'):26}{entry}")
    return DONE


def _range(values: list[float]) -> str | float:
    """Several numbers by their smallest, median and largest; a single one as it is."""
    if len(values) == 1:
        return values[0]
    return f"{min(values):.4g} to {max(values):.4g}, median {median(values):.4g}"


def _listed(values: Tensor | None) -> list[float] | None:
    return None if values is None else values.tolist()


def _check_output(output: Path | None, force: bool) -> None:
    from ..files.atomic import check_new_file

    if output is not None:
        check_new_file(output, overwrite=force)


def _target(lm: FrozenLM, content: str, n_tokens: int | None, output: Path | None, force: bool) -> tuple[Tensor, Path]:
    """The ids that the text is cut to, (T,), and where their vectors are saved: by default a name made of the ids."""
    from ..lm.identity import hash_ids

    ids = encoded(lm, content)[:n_tokens]
    if output is None:
        output = Path(f"proto-{hash_ids(ids)[:8]}.safetensors")
        _check_output(output, force)
    return ids, output


def _save(
    lm: FrozenLM, ids: Tensor, result: FitResult, config: FitConfig, output: Path, force: bool, as_json: bool
) -> int:
    """Save the vectors, print what was reached, and give the exit code."""
    from ..proto_tokens import save

    save(output, result.tokens, overwrite=force)
    record = _fit_record(result, lm.decode(ids), config) | {"file": str(output), "model": lm.identity.name}
    if as_json:
        print_json(record)
    else:
        _print_fit(record)
    return DONE if result.exact else NOT_EXACT


def _fit_record(result: FitResult, text: str, config: FitConfig) -> dict[str, Any]:
    """The fields of `--json`, but for the file and the model."""
    return {
        "text": text,
        "length": result.tokens.length,
        "exact": result.exact,
        "token_accuracy": result.token_accuracy,
        "min_margin": result.min_margin,
        "loss": result.loss,
        "steps": result.steps,
        "steps_to_exact": result.steps_to_exact,
        "token_positions": result.token_positions,
        "backward_positions": result.backward_positions,
        "seconds": result.seconds,
        "stop_reason": result.stop_reason,
        "preset": config.preset,
        "arrangement": result.tokens.arrangement.name,
        "e_tokens": result.tokens.e.shape[0],
        "vectors": result.tokens.n_vectors,
        "bytes": result.tokens.n_bytes,
        "text_bytes": len(text.encode("utf-8", "surrogatepass")),
        "restarts": config.restarts,
        "seed": config.seed,
    }


def _print_fit(record: dict[str, Any]) -> None:
    n_right = round(record["token_accuracy"] * record["length"])
    word = "exact" if record["exact"] else "NOT exact"
    say(f"{word}: {n_right} of {record['length']} tokens come back in one forward pass")
    say(f"{record['steps']} steps, {record['seconds']:.1f} s, smallest margin {record['min_margin']:.3f} logits")
    if not record["exact"]:
        say(f"stopped by: {record['stop_reason']} (see --max-steps, --restarts and --tokens-per-vector)")
    say(f"{record['vectors']} vectors, {record['bytes']:,} bytes, for {record['text_bytes']:,} bytes of text")
    say(f"saved: {record['file']}")
