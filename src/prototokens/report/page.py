"""The page: one HTML file that contains its style and figures, has no script and fetches nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files.atomic import check_new_file, new_file
from ..pages.rendering import render as render_page
from ..study import STUDIES, published
from .coverage import PROVENANCE_HEADS, Coverage, coverage, provenance
from .drawing import render, style
from .exhibit import Entry, Figure, Table, lay_out, to_csv, unmeasured
from .exhibits import EXHIBITS
from .summary import Row


@dataclass(frozen=True)
class Report:
    """A report in memory.

    Attributes:
        page: HTML.
        figures: file name -> bytes: an SVG and a PNG for each figure with something to draw.
        tables: file name -> CSV, one for each table.
        missing: the studies that are not complete.
    """

    page: str
    figures: dict[str, bytes]
    tables: dict[str, str]
    missing: tuple[Coverage, ...]


def build_report(rows: Sequence[Row], counts: Sequence[Mapping[str, Any]] = ()) -> Report:
    """Build the report of a store's rows. The same rows, in any order, give the same bytes.

    Args:
        rows: done and failed cells, as `Store.rows` gives them.
        counts: how many cells of each study are still planned, as `Store.counts` gives them.

    Raises:
        InputError: matplotlib or jinja2 is not installed.
    """
    rows = sorted(rows, key=lambda row: str(row["key"]))
    coverages = coverage(rows, counts, tuple(STUDIES))
    state = {c.study: c for c in coverages}
    sections: list[dict[str, Any]] = []
    drawings: dict[str, bytes] = {}
    csvs: dict[str, str] = {}
    for exhibit in EXHIBITS:
        finished = [row for row in rows if row["study"] == exhibit.study and row["status"] == "done"]
        if isinstance(exhibit, Table):
            entries = exhibit.make(finished)
            csvs[f"{exhibit.name}.csv"] = to_csv(exhibit, entries)
            content = _table(exhibit, entries, bool(finished))
        else:
            svg, files = _draw(exhibit, finished)
            drawings |= files
            content = {"svg": svg, "words": exhibit.tell(finished)}
        sections.append({"exhibit": exhibit, "state": state[exhibit.study], **content})
    page = _render(
        sections=sections,
        coverages=coverages,
        models=sorted({f"{row['model']} ({row['scale']})" for row in rows if row["status"] == "done"}),
        provenance_heads=PROVENANCE_HEADS,
        provenance=provenance(rows),
        sources=(published.ONE_STEP_PAPER, published.CRAMMING_PAPER, published.ENCODED_PAPER),
    )
    return Report(page, drawings, csvs, tuple(c for c in coverages if not c.complete))


def write_report(
    report: Report,
    output: str | os.PathLike[str],
    *,
    figures: str | os.PathLike[str] | None = None,
    tables: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write a report's page, and its figures and tables into folders. Missing folders are made.

    Returns:
        The files written.

    Raises:
        InputError: a file exists (and `overwrite` is not set) or cannot be written. Then no file is written.
    """
    contents = {Path(output): report.page.encode()}
    for folder, folder_files in ((figures, report.figures), (tables, report.tables)):
        if folder is not None:
            _make_folder(Path(folder))
            for name, content in folder_files.items():
                contents[Path(folder) / name] = content.encode() if isinstance(content, str) else content
    for path in contents:
        check_new_file(path, overwrite=overwrite)
    for path, content in contents.items():
        with new_file(path, overwrite=overwrite) as temporary:
            Path(temporary).write_bytes(content)
    return list(contents)


def number(value: float, decimals: int) -> str:
    """A number with some decimals, or more where these would hide that it is not 0, or not quite 1.

    A number within 5e-10 of 0 or 1 counts as equal to it: the difference is rounding.
    """
    value = round(value, 9) + 0.0  # -0.0 becomes 0.0
    text = f"{value:,.{decimals}f}"
    if value and not float(text.replace(",", "")):
        return f"{value:.2g}"
    if value < 1 and decimals and float(text.replace(",", "")) == 1:
        return f"{value:.6f}".rstrip("0") if value < 0.9999995 else f"{value:.9f}"
    return text


def _table(table: Table, entries: list[Entry], measured: bool) -> dict[str, Any]:
    grid = lay_out(entries, table.order)
    heads = [head for head, _ in grid.rows]
    return {
        "grid": grid,
        "spans": [[_span(heads, r, i) for i in range(len(table.row_heads))] for r in range(len(heads))],
        "unmeasured": unmeasured(entries) if measured and table.comparable else [],
    }


def _span(heads: list[tuple[str, ...]], row: int, column: int) -> int:
    """Number of rows that a head spans from this row on; 0 if it begins above."""
    prefix = heads[row][: column + 1]
    if row and heads[row - 1][: column + 1] == prefix:
        return 0
    span = 1
    while row + span < len(heads) and heads[row + span][: column + 1] == prefix:
        span += 1
    return span


def _draw(figure: Figure, rows: Sequence[Row]) -> tuple[str, dict[str, bytes]]:
    """A figure as SVG for the page, and as files; both empty where there is nothing to draw."""
    with style():
        drawing = figure.draw(rows)
    if drawing is None:
        return "", {}
    inside, svg, png = render(drawing, figure.name)
    return inside, {f"{figure.name}.svg": svg.encode(), f"{figure.name}.png": png}


def _render(**values: Any) -> str:
    return render_page(
        "report",
        "page.html.jinja",
        styles=("page.css",),
        filters={"number": number},
        tests={"table": lambda exhibit: isinstance(exhibit, Table)},
        **values,
    )


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: this folder cannot be made ({error.strerror})") from None
