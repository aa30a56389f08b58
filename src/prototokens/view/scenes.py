"""Scenes: tokens in their colours, frame by frame, as plain values that a page can show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

MOST_CELLS = 200_000
"""Tokens of all frames of a scene together, at most; beyond that, frames are left out."""

LEVELS = (1.0, 4.0)
"""Leads in logits at which the colour changes."""


@dataclass(frozen=True)
class Mark:
    """A colour of tokens, and what it means.

    Attributes:
        words: what it says of a token, for the legend and for tables.
        colour: name of a colour of the style sheet.
        pattern: what tells it from the others without colour: none, wave, dash, double, dots.
    """

    words: str
    colour: str
    pattern: str = "none"


RIGHT = {
    "A": Mark("right, leads by less than 1 logit", "blue-1"),
    "B": Mark("right, leads by 1 to 4 logits", "blue-2"),
    "C": Mark("right, leads by more than 4 logits", "blue-3"),
}
WRONG = {
    "X": Mark("wrong, behind by less than 1 logit", "orange-1", "wave"),
    "Y": Mark("wrong, behind by 1 to 4 logits", "orange-2", "wave"),
    "Z": Mark("wrong, behind by more than 4 logits", "orange-3", "wave"),
}


def level(size: float, bounds: Sequence[float] = LEVELS) -> int:
    """How many of the bounds a size reaches; 0 for NaN."""
    return sum(size >= bound for bound in bounds)


@dataclass(frozen=True)
class Lane:
    """One row of tokens through all frames.

    Attributes:
        title: its heading; empty where there is one lane alone.
        texts: of each frame the text of every token, or of all frames once, if `shown` says how many are seen.
        marks: of each of them the mark of every token, one letter each.
        shown: of each frame how many tokens are seen; None: all.
    """

    title: str
    texts: Sequence[Sequence[str]]
    marks: Sequence[str]
    shown: Sequence[int] | None = None

    def frame(self, number: int) -> tuple[Sequence[str], str]:
        """Texts and marks of the tokens that are seen in a frame; negative numbers count from the end."""
        if self.shown is None:
            return self.texts[number], self.marks[number]
        return self.texts[0][: self.shown[number]], self.marks[0][: self.shown[number]]

    def to_json(self) -> dict[str, Any]:
        """The lane for the page's script: texts by number, and of later frames only what changes."""
        numbers: dict[str, int] = {}
        rows = [[numbers.setdefault(text, len(numbers)) for text in texts] for texts in self.texts]
        changes = [
            [x for place, (a, b) in enumerate(zip(before, row, strict=True)) if a != b for x in (place, b)]
            for before, row in pairwise(rows)
        ]
        return {
            "words": list(numbers),
            "first": rows[0],
            "changes": changes,
            "marks": list(self.marks),
            "shown": None if self.shown is None else list(self.shown),
        }


@dataclass(frozen=True)
class Curve:
    """A number that changes from frame to frame, drawn beside the frames.

    Attributes:
        title: what it is, with its unit.
        values: one for each frame.
        most: the value at the right border.
    """

    title: str
    values: Sequence[float]
    most: float


@dataclass(frozen=True)
class Film:
    """Frames that a slider goes through.

    Attributes:
        name: what tells it from the other films of its scene, such as the restart.
        lanes: rows of tokens, each with as many frames.
        status: of each frame a sentence.
        slider: what the slider moves, such as `step`.
        ticks: of each frame what stands on that scale.
        seconds: how long playing it takes.
        curves: numbers beside the frames; a film with curves also has a map of all frames.
        ends: positions after which a block ends, rising.
        scale: what the curves measure, with its unit.
        wanted: the text of every token of the target, where there is one.
    """

    name: str
    lanes: Sequence[Lane]
    status: Sequence[str]
    slider: str
    ticks: Sequence[str]
    seconds: float
    curves: Sequence[Curve] = ()
    ends: Sequence[int] = ()
    scale: str = ""
    wanted: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """The film for the page's script."""
        return {
            "name": self.name,
            "lanes": [lane.to_json() for lane in self.lanes],
            "status": list(self.status),
            "ticks": list(self.ticks),
            "seconds": self.seconds,
            "curves": [{"values": [_finite(v) for v in c.values], "most": c.most} for c in self.curves],
            "ends": list(self.ends),
            "wanted": list(self.wanted),
        }


@dataclass(frozen=True)
class Table:
    """Numbers under a scene.

    Attributes:
        caption: what they are, with units.
        heads: headings of the columns.
        rows: cells, of which the first names the row.
        total: a last row, or empty.
    """

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    total: Sequence[str] = ()


@dataclass(frozen=True)
class Scene:
    """A part of a page: what one file, or a pair of them, holds.

    Attributes:
        kind: a word for it: fit, decode, path, archive or encoder.
        title: its heading.
        words: sentences under the heading.
        films: what can be played, of which the first is shown; a film of one frame stands still.
        marks: the marks that occur, by their letters.
        caption: what the map of all frames shows.
        tables: numbers under it.
        warning: what a reader must know first, or nothing.
    """

    kind: str
    title: str
    words: Sequence[str]
    films: Sequence[Film]
    marks: Mapping[str, Mark]
    caption: str = ""
    tables: Sequence[Table] = field(default_factory=tuple)
    warning: str = ""

    @property
    def is_still(self) -> bool:
        """Whether there is nothing to play."""
        return len(self.films) == 1 and len(self.films[0].status) == 1

    def legend(self) -> list[tuple[str, Mark]]:
        """The marks that occur in a frame, in their order."""
        seen = set("".join(marks for film in self.films for lane in film.lanes for marks in lane.marks))
        return [(letter, mark) for letter, mark in self.marks.items() if letter in seen]

    def to_json(self) -> dict[str, Any]:
        """The scene for the page's script."""
        return {
            "films": [film.to_json() for film in self.films],
            "marks": {
                letter: {"words": mark.words, "colour": mark.colour, "pattern": mark.pattern}
                for letter, mark in self.marks.items()
            },
        }


def block_ends(length: int, block_length: int | None) -> list[int]:
    """Positions after which a block of a text of `length` tokens ends; none where there are no blocks."""
    return [] if block_length is None else [*range(block_length, length, block_length), length]


def thinned(count: int, most: int) -> list[int]:
    """At most `most` of `count` numbers from 0, evenly spaced, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def counted(number: int, noun: str) -> str:
    """A number of things: `1 token`, `2 tokens`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
