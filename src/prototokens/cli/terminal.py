"""What commands read from and write to the terminal: texts, lines, JSON, progress, Ctrl-C."""

from __future__ import annotations

import codecs
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import InputError
from ..files.atomic import file_bytes, utf8

if TYPE_CHECKING:
    from torch import Tensor

    from ..fitting.descent import FitProgress
    from ..lm.frozen import FrozenLM

_SECONDS_BETWEEN_LINES = 10.0


def say(text: str = "", end: str = "\n", *, flush: bool = False) -> None:
    """Write to stdout.

    Raises:
        InputError: stdout cannot be written. That its reader has gone, as `head` does, is no error.
    """
    _write(lambda: print(text, end=end, flush=flush))


def say_bytes(raw: bytes) -> None:
    """Write bytes to stdout, as they are."""
    flush_output()
    _write(lambda: sys.stdout.buffer.write(raw))


def flush_output() -> None:
    """Write what is still buffered for stdout."""
    _write(sys.stdout.flush)


def print_json(record: dict[str, Any]) -> None:
    """One JSON object on stdout; a number that is not finite becomes null."""
    say(json.dumps(_finite(record), ensure_ascii=False))


def note(line: str) -> None:
    """Write a line to stderr. The work goes on where nobody can read it."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        _silence(sys.stderr)


def _write(write: Callable[[], Any]) -> None:
    try:
        write()
    except BrokenPipeError:
        _silence(sys.stdout)
    except OSError as error:
        _silence(sys.stdout)
        raise InputError(f"stdout cannot be written ({error.strerror})") from None


def _silence(stream: TextIO) -> None:
    """Send what a stream still holds to /dev/null: the interpreter flushes it once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def stdin_bytes() -> bytes:
    """All of stdin.

    Raises:
        InputError: it is closed, or cannot be read.
    """
    if sys.stdin is None:
        raise InputError("stdin is closed: there is nothing to read")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise InputError(f"stdin cannot be read ({error.strerror or error})") from None


def read_document(file: Path) -> str:
    """The text of a file, or of stdin for -, exactly as its bytes have it."""
    return utf8(stdin_bytes(), "stdin") if str(file) == "-" else utf8(file_bytes(file), str(file))


def read_text(text: str | None, file: Path | None) -> str:
    """The text that the user gave in one of three ways: as an argument, in a file, on stdin.

    A byte order mark at the beginning of a file or of stdin is no text, as in a list of texts.

    Raises:
        InputError: there is none, or more than one; it is empty, or not UTF-8.
    """
    if (text is None) == (file is None):
        raise InputError("give one text: as an argument, with --file, or - for stdin")
    if file is not None:
        raw, where = file_bytes(file), str(file)
    elif text == "-":
        raw, where = stdin_bytes(), "stdin"
    else:
        assert text is not None
        raw, where = os.fsencode(text), "the argument"
    if where != "the argument":
        raw = raw.removeprefix(codecs.BOM_UTF8)
    if not raw:
        raise InputError(f"{where} is empty: it holds no text")
    return utf8(raw, where)


def encoded(lm: FrozenLM, text: str) -> Tensor:
    """The ids of a text, (T,), with a note on stderr if the tokenizer does not keep all of it."""
    ids = lm.encode(text)
    if lm.decode(ids) != text:
        note(f"note: the tokenizer of {lm.identity.name} does not keep this text as it is")
    return ids


class Interrupts:
    """Whether Ctrl-C or SIGTERM has come, for a loop that asks between its steps.

    A loop that asks notices every signal, and ends with what it has. An exception would be lost where it is raised
    inside a callback or a destructor. Until the loop asks for the first time, a signal raises as usual.
    """

    def __init__(self) -> None:
        self.received = False
        self._is_asked = False

    def should_stop(self) -> bool:
        """What the loop asks."""
        self._is_asked = True
        return self.received

    def receive(self) -> None:
        """Take a signal."""
        self.received = True
        if not self._is_asked:
            raise KeyboardInterrupt


@contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Take the first Ctrl-C or SIGTERM as `Interrupts` says; a second one ends the program at once."""
    signals = Interrupts()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def receive(number: int, frame: Any) -> None:
        restore()
        signals.receive()

    for number in before:
        signal.signal(number, receive)
    try:
        yield signals
    finally:
        restore()


@contextmanager
def progress_line(seconds: float = _SECONDS_BETWEEN_LINES) -> Iterator[Callable[[str], None]]:
    """A line on stderr that says how far the work has come.

    In a terminal the line is renewed in place. Elsewhere a new one is written every so many seconds.
    """
    if not sys.stderr.isatty():
        yield _spaced(seconds)
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    # stdout stays as it is: only the result of a command goes there.
    console = Console(stderr=True)
    with Live(console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as live:
        yield lambda line: live.update(Text(line, no_wrap=True, overflow="ellipsis"))


def _spaced(seconds: float) -> Callable[[str], None]:
    last = -math.inf

    def show(line: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= seconds:
            last = now
            note(line)

    return show


@contextmanager
def fit_progress() -> Iterator[Callable[[FitProgress], None]]:
    """The progress of a fit: loss, accuracy and speed. Nobody knows beforehand how many steps a text takes."""
    with progress_line() as line:

        def show(p: FitProgress) -> None:
            line(
                f"step {p.step} of at most {p.max_steps}  loss {p.loss:.3f} nats  accuracy {p.token_accuracy:.3f}  "
                f"{p.token_positions / max(p.seconds, 1e-9):.0f} positions/s"
            )

        yield show
