"""The command line: thin commands over the library's functions."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from .archive import archive_app
from .bulk import bulk_app
from .encoder import encode_app, encoder_app
from .path import path_app
from .printed import fit_record, print_fit
from .report import report_app
from .starter import starter_app
from .study import study_app
from .terminal import (
    Device,
    DeviceMap,
    Dtype,
    Json,
    Model,
    Revision,
    TrustRemoteCode,
    encoded,
    interrupts,
    load_model,
    load_needed,
    print_json,
    read_text,
    show_progress,
    start_named,
)

if TYPE_CHECKING:
    from ..fitting.fit import FitResult
    from ..fitting.recipes import FitConfig
    from ..lm.frozen import FrozenLM

# Typer brings its own copy of click in some releases: its public BadParameter leads to the right base class.
UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    name="prototokens",
    help="Text in two vectors: a frozen language model writes it back in one forward pass.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

app.add_typer(archive_app)
app.add_typer(bulk_app)
app.add_typer(encode_app)
app.add_typer(encoder_app)
app.add_typer(path_app)
app.add_typer(starter_app)
app.add_typer(study_app)
app.add_typer(report_app)


@app.command("fit")
def fit_command(
    text: Annotated[str | None, typer.Argument(help="The text; - reads it from stdin.")] = None,
    file: Annotated[Path | None, typer.Option(help="Read the text from this UTF-8 file.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Keep only the text's first N tokens.", metavar="N")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to save; default: proto-HASH.safetensors here.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output file.")] = False,
    model: Model = "smollm2-135m",
    preset: Annotated[str, typer.Option(help="The recipe: fast, tuned or paper.")] = "fast",
    start: Annotated[
        str | None,
        typer.Option(
            help="auto, normal, vocabulary, text-e, text-m, or a file of a learned start; default: the preset's."
        ),
    ] = None,
    arrangement: Annotated[
        str | None,
        typer.Option(
            help="How e and m fill the input: e*n  e*n/2,m*n/2  (e,m)*n/2  e,m*n  e,m*(n-1)  m,e,m*(n-1)  "
            "bos,e,m*(n-1)  bos,e,m*n; default: the preset's."
        ),
    ] = None,
    e_tokens: Annotated[int, typer.Option(help="How many e-tokens.")] = 1,
    restarts: Annotated[int, typer.Option(help="Starts fitted side by side; the best is kept.")] = 1,
    max_steps: Annotated[int | None, typer.Option(help="Step budget; default: the preset's.")] = None,
    margin: Annotated[
        float | None, typer.Option(help="Go on until every token leads by this many logits; default: the preset's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="What random draws are made from.")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="On Ctrl-C, save the best so far (exit code 130).")] = False,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> int:
    """Fit the proto-tokens of a text and save them.

    Exit code 0: the text is reconstructed exactly. 1: it is not; the best attempt is saved all the same.

    Example: prototokens fit "The only way to have a friend is to be one." -o friend.safetensors
    """
    from ..files.atomic import check_new_file
    from ..lm.identity import hash_ids
    from ..proto_tokens import save

    content = read_text(text, file)
    if tokens is not None and tokens < 1:
        raise InputError(f"--tokens is {tokens}; it must be at least 1")
    if output is not None:
        check_new_file(output, overwrite=force)
    config = _config(preset, start, arrangement, e_tokens, restarts, max_steps, margin, seed)
    lm = load_model(model, revision, dtype, device, device_map, trust_remote_code)
    ids = encoded(lm, content)[:tokens]
    if output is None:
        output = Path(f"proto-{hash_ids(ids)[:8]}.safetensors")
        check_new_file(output, overwrite=force)
    result, interrupted = _fit(lm, ids, config, keep)
    save(output, result.tokens, overwrite=force)
    record = fit_record(result, lm.decode(ids), config) | {"file": str(output), "model": lm.identity.name}
    if as_json:
        print_json(record)
    else:
        print_fit(record)
    return 130 if interrupted else 0 if result.exact else 1


@app.command("decode")
def decode_command(
    file: Annotated[Path, typer.Argument(help="A file that fit wrote.")],
    model: Annotated[
        str | None, typer.Option(help="Where the model lies, if not where the file says.", metavar="MODEL")
    ] = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> int:
    """Turn proto-tokens back into their text, in one forward pass.

    Example: prototokens decode friend.safetensors
    """
    from ..decoding import decode
    from ..proto_tokens import load

    tokens = load(file)
    needed = tokens.provenance.model
    lm, _, _ = load_needed(needed, file, model, revision, dtype, device, device_map, trust_remote_code)
    decoded = decode(lm, tokens)
    if as_json:
        print_json(
            {
                "text": decoded.text,
                "ids": decoded.ids.tolist(),
                "exact": decoded.exact,
                "forward_passes": 1,
                "seconds": decoded.seconds,
                "model": lm.identity.name,
            }
        )
        return 0
    sys.stdout.write(decoded.text + ("\n" if sys.stdout.isatty() else ""))
    if not decoded.exact:
        own, here = tokens.provenance.dtype, str(lm.dtype).removeprefix("torch.")
        remedy = f"it was fitted in {own} and decoded in {here}: try --dtype {own}"
        remedy = remedy if own != here else f"see: prototokens inspect {file}"
        print(f"note: not the text that was fitted, token for token ({remedy})", file=sys.stderr)
    return 0


@app.command("inspect")
def inspect_command(file: Annotated[Path, typer.Argument(help="A file that fit wrote.")], as_json: Json = False) -> int:
    """Show what a file holds, which model it needs, and how well it was seen to decode. Loads no model."""
    from dataclasses import asdict

    from ..proto_tokens import load

    tokens = load(file)
    record: dict[str, Any] = {
        "file": str(file),
        "length": tokens.length,
        "exact": tokens.provenance.token_accuracy == 1,
        "arrangement": tokens.arrangement.name,
        "e_tokens": tokens.e.shape[0],
        "width": tokens.m.shape[0],
        "e_norm": tokens.e.norm(dim=-1).tolist(),
        "m_norm": tokens.m.norm().item(),
        **asdict(tokens.provenance),
    }
    if as_json:
        print_json(record)
        return 0
    for name, value in record.items():
        entries = value.items() if isinstance(value, dict) else [("", value)]
        for key, entry in entries:
            print(f"{f'{name}.{key}'.rstrip('.'):26}{entry}")
    return 0


@app.command("models")
def models_command(as_json: Json = False) -> int:
    """List the models that can be loaded here without a network."""
    from ..lm.sources import available

    found = available()
    if as_json:
        print_json({"models": [{"name": name, "note": note} for name, note in found]})
        return 0
    for name, note in found:
        print(f"{name:40}{note}")
    print("Any Hub id, folder with safetensors weights, or .gguf file of a causal LM can be given as --model.")
    return 0


@app.command("demo")
def demo_command(
    model: Model = "smollm2-135m",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files.")] = Path("demo-output"),
    as_json: Json = False,
) -> int:
    """Fit three sentences, decode them in one pass, and time that beside greedy generation.

    Exit code 0: all sentences came back exactly. 1: not all did, within three minutes of fitting.
    """
    from .demo import print_demo, run_demo

    lm = load_model(model, None, "auto", None, None, False)
    if not as_json:
        print(f"Fitting three sentences on {lm.identity.name} ...", flush=True)
    with show_progress() as show:
        record = run_demo(lm, output, show)
    if as_json:
        print_json(record)
    else:
        print_demo(record)
    return 0 if all(s["exact"] for s in record["sentences"]) else 1


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(version("prototokens"))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Text in two vectors: a frozen language model writes it back in one forward pass."""


def main() -> None:
    """Run the command line; every error that a user can mend is one line on stderr, with exit code 2."""
    # The program's own output is what its users read; the libraries' bars and hints are not.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # any text can come back, whatever the terminal is set to
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False) or 0
        sys.stdout.flush()
    except InputError as error:
        code = _complain(str(error))
    except UsageError as error:
        where = f" (see: {error.ctx.command_path} --help)" if error.ctx else ""
        code = _complain(error.format_message() + where)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except (MemoryError, RuntimeError) as error:
        if not _memory_ran_out(error):
            raise
        code = _complain("memory ran out; ask for less at a time, such as fewer restarts, a shorter text or batch")
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered can go nowhere else
        code = 0 if isinstance(error, BrokenPipeError) else _complain(f"output cannot be written ({error.strerror})")
    if code == 130:
        print("interrupted", file=sys.stderr)
    sys.exit(code)


def _memory_ran_out(error: MemoryError | RuntimeError) -> bool:
    """Whether an error says that memory ran out, on a device (`torch.OutOfMemoryError`) or on the host."""
    host = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
    return host or type(error).__name__ == "OutOfMemoryError"


def _complain(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _config(
    name: str,
    start: str | None,
    arrangement: str | None,
    e_tokens: int,
    restarts: int,
    max_steps: int | None,
    margin: float | None,
    seed: int,
) -> FitConfig:
    from dataclasses import replace

    from ..fitting.recipes import preset

    config = preset(name, e_tokens=e_tokens, restarts=restarts, seed=seed)
    if start is not None:
        config = replace(config, start=start_named(start))
    stop = config.stop
    stop = stop if max_steps is None else replace(stop, max_steps=max_steps)
    stop = stop if margin is None else replace(stop, margin=margin)
    return replace(config, stop=stop, arrangement=arrangement or config.arrangement)


def _fit(lm: FrozenLM, ids: Any, config: FitConfig, keep: bool) -> tuple[FitResult, bool]:
    from ..fitting.fit import fit

    with show_progress() as show, interrupts() as asked:
        result = fit(lm, ids, config, progress=show, should_stop=lambda: bool(asked))
    if asked and not keep:
        raise KeyboardInterrupt
    return result, bool(asked)
