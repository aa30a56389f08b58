"""The command that makes the report of a study's store."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..files.atomic import check_new_file
from .exits import DONE
from .spread import add_command
from .terminal import say

report_app = typer.Typer()


@add_command(report_app, "report", "Measuring")
def report_command(
    store: Annotated[Path, typer.Argument(help="The SQLite file that study wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("report.html"),
    figures: Annotated[
        Path | None, typer.Option(help="Also write each figure as SVG and PNG into this folder.", metavar="DIR")
    ] = None,
    tables: Annotated[
        Path | None, typer.Option(help="Also write each table as CSV into this folder.", metavar="DIR")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files.")] = False,
) -> int:
    """Write a study's results as one HTML page of tables and figures.

    The published numbers stand beside them, and the page says what has not been measured. It loads nothing from the
    network. No model is loaded, and a store in use can be read.

    Example: prototokens report study.sqlite -o report.html
    """
    from ..report.page import build_report, write_report
    from ..study.store import Store

    check_new_file(output, overwrite=force)
    with Store.open(store) as opened:
        rows, counts = opened.rows(), opened.counts()
    report = build_report(rows, counts)
    for path in write_report(report, output, figures=figures, tables=tables, overwrite=force):
        say(f"saved: {path}")
    scales = {str(count["scale"]) for count in counts}
    options = f"--store {shlex.quote(str(store))}" + (f" --scale {scales.pop()}" if len(scales) == 1 else "")
    for study in report.missing:
        say(f"missing: {study.study}: {study.in_words(options)}")
    return DONE
