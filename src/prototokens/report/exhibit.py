"""Tables and figures of the report: what they are made of, how a table is laid out, and how it is written as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .summary import Row, Summary


@dataclass(frozen=True)
class Entry:
    """One number of a table.

    Attributes:
        row: the head of its row, one text for each of the table's `row_heads`.
        group: whose number it is: a model and its conditions, or a paper.
        column: the heading of its column, within the group.
        summary: the number, its spread and its count.
        decimals: number of decimals to show.
        published: whether it is a paper's, not the store's.
    """

    row: tuple[str, ...]
    group: str
    column: str
    summary: Summary
    decimals: int = 3
    published: bool = False


PAPER = "paper"
"""The group of the published numbers."""


def entry(
    row: tuple[str, ...],
    group: str,
    column: str,
    summary: Summary | None,
    decimals: int = 3,
    from_paper: bool = False,
) -> list[Entry]:
    """A list of one entry, or of none where nothing was measured."""
    return [] if summary is None else [Entry(row, group, column, summary, decimals, from_paper)]


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
        name: a word for files and links, e.g. `table-1`.
        title: its heading.
        caption: what is in a cell, over what, with units.
        study: the study whose rows it is made of.
        row_heads: headings of the columns that name a row.
        make: the study's finished rows -> the table's numbers, published ones included, in reading order.
        comparable: whether the paper has rows of the same kind. Those that were not measured are then named.
        order: first row heads, in the order of their rows. Others follow in the order of their entries.
    """

    name: str
    title: str
    caption: str
    study: str
    row_heads: tuple[str, ...]
    make: Callable[[Sequence[Row]], list[Entry]]
    comparable: bool = True
    order: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    """A figure of the report.

    Attributes:
        name: a word for files and links, e.g. `figure-1`.
        title: its heading.
        caption: what is drawn, with units.
        study: the study whose rows it is made of.
        draw: the study's finished rows -> a matplotlib figure; None where there is nothing to draw.
        tell: the same rows -> what the figure shows, in words, for readers who do not see it.
    """

    name: str
    title: str
    caption: str
    study: str
    draw: Callable[[Sequence[Row]], Any]
    tell: Callable[[Sequence[Row]], str]


@dataclass(frozen=True)
class TableLayout:
    """A table laid out: rows and columns in the order in which their entries came.

    Attributes:
        groups: (group, published, number of its columns), from left to right.
        columns: (group, column), from left to right.
        rows: (row head, one entry or None for each column).
    """

    groups: list[tuple[str, bool, int]]
    columns: list[tuple[str, str]]
    rows: list[tuple[tuple[str, ...], list[Entry | None]]]


def lay_out(entries: Sequence[Entry], order: Sequence[str] = ()) -> TableLayout:
    """Rows, columns and groups of columns of a table's numbers; `order` as in `Table`."""
    groups = dict.fromkeys(entry.group for entry in entries)
    papers = {group: all(entry.published for entry in entries if entry.group == group) for group in groups}
    published = {group: papers[group] for group in sorted(groups, key=lambda group: papers[group])}
    columns = [
        (group, column)
        for group in published
        for column in dict.fromkeys(entry.column for entry in entries if entry.group == group)
    ]
    cells = {(entry.row, entry.group, entry.column): entry for entry in entries}
    assert len(cells) == len(entries), "two numbers for one cell"
    rank = {head: i for i, head in enumerate(order)}
    heads = sorted(_grouped([e.row for e in entries]), key=lambda head: rank.get(head[0], len(rank)))
    return TableLayout(
        groups=[(group, published[group], sum(g == group for g, _ in columns)) for group in published],
        columns=columns,
        rows=[(head, [cells.get((head, *column)) for column in columns]) for head in heads],
    )


def _grouped(heads: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Row heads, each once, in their order, but with those that begin alike next to each other."""
    first: dict[tuple[str, ...], int] = {}
    for head in heads:
        for end in range(1, len(head) + 1):
            first.setdefault(head[:end], len(first))
    return sorted(dict.fromkeys(heads), key=lambda head: [first[head[:end]] for end in range(1, len(head) + 1)])


def to_csv(table: Table, entries: Sequence[Entry]) -> str:
    """A table as CSV, one line for each number, unrounded.

    Columns: `numbers` (measured or published), the table's row heads, `of`, `column`, `value`, `sd`, `low`, `high` (a
    share's 95 % interval) and `n`. What does not apply is empty.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["numbers", *table.row_heads, "of", "column", "value", "sd", "low", "high", "n"])
    for entry in entries:
        s = entry.summary
        numbers = "published" if entry.published else "measured"
        writer.writerow([numbers, *entry.row, entry.group, entry.column, s.value, s.sd, *(s.interval or ("", "")), s.n])
    return out.getvalue()


def unmeasured(entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """Rows of a table that have published numbers only."""
    measured = {entry.row for entry in entries if not entry.published}
    return list(dict.fromkeys(entry.row for entry in entries if entry.published and entry.row not in measured))


def listed(parts: Sequence[str]) -> str:
    """Parts of what a figure shows, as one sentence."""
    return "; ".join(parts) + "." if parts else "Nothing was measured."
