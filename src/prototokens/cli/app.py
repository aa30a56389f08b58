"""The command line: thin commands over the library's functions."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated, Any

import typer

from .archive import archive_app
from .bulk import bulk_app
from .drafter import drafter_app
from .encode_all import encode_all_app
from .encoder import encoder_app
from .exits import EXIT_CODES, exit_code
from .first_steps import first_steps_app
from .generate import generate_app
from .one_text import one_text_app
from .path import path_app
from .report import report_app
from .starter import starter_app
from .study import study_app
from .terminal import say
from .view import view_app

_NAME = "prototokens"

app = typer.Typer(
    name=_NAME,
    help="Text in two vectors: a frozen language model writes it back in one forward pass.",
    epilog=EXIT_CODES,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for _part in (first_steps_app, view_app, one_text_app, generate_app, path_app, archive_app, bulk_app, encode_all_app):
    app.add_typer(_part)
for _part in (encoder_app, starter_app, drafter_app):
    app.add_typer(_part, rich_help_panel="Encoders, starts and drafters")
app.add_typer(study_app, rich_help_panel="Measuring")
app.add_typer(report_app)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        say(version(_NAME))
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
    sys.exit(exit_code(_run))


def _run() -> int | None:
    """Parse the arguments and run the command, without the exit codes and messages that click would choose."""
    if f"_{_NAME.upper()}_COMPLETE" in os.environ:  # a shell asks for completions
        app(prog_name=_NAME)
    command: Any = typer.main.get_command(app)
    try:
        with command.make_context(_NAME, sys.argv[1:] or ["--help"]) as context:
            return command.invoke(context)
    except SystemExit:  # rich raises it when the reader of a help text has gone, typer after installing completion
        return None


if __name__ == "__main__":
    main()
