"""How a command ends: its exit code, one line for every error, and what signals and closed streams do to it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from ..errors import MEMORY_RAN_OUT, InputError, memory_ran_out
from .terminal import flush_output, note

DONE, NOT_EXACT, MISTAKE, SOME_FAILED, BUG, INTERRUPTED = 0, 1, 2, 3, 70, 130
EXIT_CODES = (
    "Exit codes: 0 done; 1 not reproduced exactly; 2 an error that you can mend, in one line on stderr; 3 some of many "
    "failed; 70 a bug, with a traceback; 130 interrupted (Ctrl-C or SIGTERM)."
)

# Typer brings its own copy of click in some releases: its public BadParameter leads to the right base class.
UsageError: Any = typer.BadParameter.__base__


def exit_code(command: Callable[[], int | None]) -> int:
    """Run a command; every error that a user can mend is one line on stderr."""
    try:
        with _signals():
            if _fill_closed_streams():
                raise InputError("stdout is closed; redirect it to a file, or to /dev/null")
            code = command() or DONE
            flush_output()
    except typer.Exit as end:  # after --help and --version, or where shell completion cannot be installed
        code = MISTAKE if end.exit_code else _flushed()
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        code = _complain(error)
    if code == INTERRUPTED:
        note("interrupted")
    return code


def _flushed() -> int:
    try:
        flush_output()
    except InputError as error:
        return _complain(error)
    return DONE


def _complain(error: Exception) -> int:
    message = _message(error)
    if message is None:
        note("".join(traceback.format_exception(error)).rstrip())
        note("error: this is a bug in prototokens; please report it with the lines above")
        return BUG
    note(f"error: {printable(' '.join(message.split()))}")
    return MISTAKE


def _message(error: Exception) -> str | None:
    """What to tell the user of an error, or None for a bug."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, UsageError):
        context = getattr(error, "ctx", None)
        where = f" (see: {context.command_path} --help)" if context else ""
        return f"{error.format_message()}{where}"
    if memory_ran_out(error):
        return MEMORY_RAN_OUT
    if isinstance(error, OSError):
        reason = error.strerror or type(error).__name__
        return f"{os.fsdecode(error.filename)}: {reason}" if isinstance(error.filename, (str, bytes)) else reason
    return None


def printable(message: str) -> str:
    """A message without control characters: what a file of someone else holds must not steer the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)


@contextmanager
def _signals() -> Iterator[None]:
    """Take SIGTERM like Ctrl-C: what is half written is removed, and work that can resume is kept."""
    if threading.current_thread() is not threading.main_thread():  # only there can handlers be set
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fill_closed_streams() -> bool:
    """Put /dev/null where a standard stream is closed, so that no file opened later takes its number.

    Returns:
        Whether stdout was closed.
    """
    if None not in (sys.stdin, sys.stdout, sys.stderr):
        return False
    for number in range(3):  # os.open takes the lowest number that is free
        if not _is_open(number):
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:  # print(file=None) would write errors to stdout
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    return sys.stdout is None


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
