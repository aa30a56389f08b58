"""What commands share at the terminal: model options, reading text, progress, Ctrl-C, JSON."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from ..files.atomic import file_bytes, utf8

if TYPE_CHECKING:
    from torch import Tensor

    from ..encoder.encoding import Encoder
    from ..fitting.descent import FitProgress
    from ..fitting.starter import Starter
    from ..lm.frozen import FrozenLM
    from ..lm.identity import Identity

Model = Annotated[
    str, typer.Option(help="smollm2-135m (built in), a Hub id, a folder, or a .gguf file.", metavar="MODEL")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit, for a Hub id.")]
Dtype = Annotated[str, typer.Option(help="auto (the checkpoint's), float32, bfloat16 or float16.")]
Device = Annotated[str | None, typer.Option(help="Where the model runs: cpu, cuda, cuda:1, mps ...")]
DeviceMap = Annotated[str | None, typer.Option(help="Spread a large model over devices: auto, balanced ...")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the model repository's own code, if you trust it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]


def load_model(
    name: str, revision: str | None, dtype: str, device: str | None, device_map: str | None, trust: bool
) -> FrozenLM:
    """Load a model for a command, with a line on stderr, since it can take a while."""
    from ..lm.frozen import load_lm, quiet_libraries

    quiet_libraries()
    if sys.stderr.isatty():
        print(f"loading {name}", file=sys.stderr)
    return load_lm(name, revision=revision, dtype=dtype, device=device, device_map=device_map, trust_remote_code=trust)


def load_needed(
    needed: Identity,
    file: Path,
    model: str | None,
    revision: str | None,
    dtype: str,
    device: str | None,
    device_map: str | None,
    trust: bool,
) -> tuple[FrozenLM, str, str | None]:
    """Load the model that a file needs, or the one that the user names instead; with the name and revision taken."""
    name, revision = (needed.name, revision or needed.revision) if model is None else (model, revision)
    try:
        return load_model(name, revision, dtype, device, device_map, trust), name, revision
    except InputError as error:
        missing = model is None and str(error).startswith("unknown model")
        remedy = f"; {file} needs {needed.name}: say with --model where it lies now" if missing else ""
        raise InputError(f"{error}{remedy}") from None


def start_named(start: str) -> str | Starter:
    """A start by its name, or the learned start in a file.

    Raises:
        InputError: it is neither.
    """
    from ..fitting.recipes import NAMED_STARTS
    from ..fitting.starter import load_starter

    if start in NAMED_STARTS:
        return start
    if not Path(start).exists():
        raise InputError(f"unknown start {start!r}: no such file, and none of: {' '.join(NAMED_STARTS)}")
    return load_starter(start)


def load_encoder(name: str | None) -> Encoder | None:
    """The encoder in a folder or on the Hub, or None where none is named."""
    from ..encoder.encoding import Encoder

    return None if name is None else Encoder.from_pretrained(name)


def encoder_for(lm: FrozenLM, encoder: Encoder | None) -> Encoder:
    """The encoder that was named, or the shipped one; refused before work if it is another model's."""
    from ..encoder.encoding import shipped_encoder

    encoder = encoder or shipped_encoder(lm.identity)
    encoder.check(lm.identity)
    return encoder


def read_text(text: str | None, file: Path | None) -> str:
    """The text that the user gave in one of three ways: as an argument, in a file, on stdin."""
    if (text is None) == (file is None):
        raise InputError("give one text: as an argument, with --file, or - for stdin")
    if file is None and text != "-":
        assert text is not None
        raw, where = os.fsencode(text), "the argument"
    elif file is None:
        raw, where = b"" if sys.stdin is None else sys.stdin.buffer.read(), "stdin"
    else:
        raw, where = file_bytes(file), str(file)
    if not raw:
        raise InputError(f"{where} is empty: there is no text to fit")
    return utf8(raw, where)


def encoded(lm: FrozenLM, text: str) -> Tensor:
    """The ids of a text, (T,), with a note on stderr if the tokenizer does not keep all of it."""
    ids = lm.encode(text)
    if lm.decode(ids) != text:
        print(f"note: the tokenizer of {lm.identity.name} does not keep this text as it is", file=sys.stderr)
    return ids


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Note the first Ctrl-C in the list that this yields; a second one ends the program at once.

    A loop that asks for it between steps hears every Ctrl-C; an exception in place of it gets lost where it meets a
    callback or a destructor.
    """
    asked: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def show_progress() -> Iterator[Any]:
    """A line on stderr with loss, accuracy, speed and time left: renewed in a terminal, else every ten seconds."""
    live, shown = sys.stderr.isatty(), 0.0

    def show(p: FitProgress) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown < (0.2 if live else 10.0):
            return
        shown = now
        left = p.seconds / (p.step + 1) * (p.max_steps - p.step)
        line = (
            f"step {p.step} of at most {p.max_steps}  loss {p.loss:.3f} nats  accuracy {p.token_accuracy:.3f}  "
            f"{p.token_positions / max(p.seconds, 1e-9):.0f} positions/s  at most {left:.0f} s left"
        )
        print(f"\r\x1b[K{line}" if live else line, end="" if live else "\n", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if live and shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def print_json(record: dict[str, Any]) -> None:
    """One JSON object on stdout; a number that is not finite becomes null."""
    print(json.dumps(_finite(record), ensure_ascii=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
