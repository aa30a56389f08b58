"""The command that makes the report of a study's store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..files.atomic import check_new_file

report_app = typer.Typer()


@report_app.command("report")
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
    """Write the paper's tables and figures from a store's rows, beside the published numbers. Loads no model.

    One page with nothing to fetch; what has not been measured is said on it. A store that is still written to will do.

    Example: prototokens report study.sqlite -o report.html
    """
    from ..report.page import build_report, write_report
    from ..study.store import Store

    check_new_file(output, overwrite=force)
    with Store.open(store) as opened:
        rows, counts = opened.rows(), opened.counts()
    report = build_report(rows, counts)
    for path in write_report(report, output, figures=figures, tables=tables, overwrite=force):
        print(f"saved: {path}")
    for sentence in report.missing:
        print(f"missing: {sentence}")
    return 0
