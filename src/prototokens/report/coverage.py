"""What a store has, what it lacks, and what made its rows. These are pure functions of rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .conditions import by, distinct
from .summary import Row

LIBRARIES = ("prototokens", "torch", "transformers")


@dataclass(frozen=True)
class Coverage:
    """How much of a study there is.

    Attributes:
        study: its name.
        done: cells with a result, solved or not.
        failed: cells that ended in an error.
        planned: cells that are still to be run.
        errors: (error, how many cells), the most frequent first.
    """

    study: str
    done: int
    failed: int
    planned: int
    errors: tuple[tuple[str, int], ...]

    @property
    def complete(self) -> bool:
        """Whether cells were run, and none is left or failed."""
        return self.done > 0 and not self.failed and not self.planned

    def in_words(self, options: str = "--store STORE") -> str:
        """How many cells are done, failed and left, and the command with these options that measures the rest."""
        command = f"prototokens study {self.study} {options}"
        if not self.done + self.failed + self.planned:
            return f"not run: {command}"
        parts = [f"{self.done} {'cell' if self.done == 1 else 'cells'} done"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self.planned:
            parts.append(f"{self.planned} left to run: {command}")
        return ", ".join(parts)


def coverage(rows: Sequence[Row], counts: Sequence[Mapping[str, Any]], studies: Sequence[str]) -> list[Coverage]:
    """How much of each study there is.

    Args:
        rows: done and failed cells.
        counts: for each study, model and scale, with `study` and `planned`, as `Store.counts` gives them.
        studies: names of the studies, in the report's order.
    """
    coverages = []
    for study in studies:
        study_rows = [row for row in rows if row["study"] == study]
        errors = Counter(str(row.get("error")) for row in study_rows if row["status"] == "failed")
        coverages.append(
            Coverage(
                study,
                done=sum(row["status"] == "done" for row in study_rows),
                failed=sum(errors.values()),
                planned=sum(count["planned"] for count in counts if count["study"] == study),
                errors=tuple(sorted(errors.items(), key=lambda item: (-item[1], item[0]))),
            )
        )
    return coverages


PROVENANCE_HEADS = ("study", "model", "scale", "cells", "texts", "settings", "made with", "finished (UTC)")


def provenance(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """How the rows were made: a line for each study, model, scale and set of versions, with PROVENANCE_HEADS."""
    lines: list[tuple[str, ...]] = []
    done = [row for row in rows if row["status"] == "done"]
    for cells in by(done, "study", "model", "scale", "fingerprint", "dtype", "device", "threads", *LIBRARIES).values():
        first = cells[0]
        texts = len({(row.get("source"), row.get("text")) for row in cells})
        weights = f"weights {str(first['fingerprint'])[:12]}" if first.get("fingerprint") else ""
        versions = [f"{name} {first[name]}" for name in LIBRARIES if first.get(name)]
        versions += [str(first[name]) for name in ("dtype", "device") if first.get(name)]
        versions += [f"{first['threads']} threads"] if first.get("threads") else []
        days = distinct(cells, "finished")
        lines.append(
            (
                str(first["study"]),
                ", ".join(part for part in (str(first.get("model")), weights) if part),
                str(first.get("scale")),
                str(len(cells)),
                f"{texts} ({', '.join(distinct(cells, 'source'))}), {len(distinct(cells, 'seed'))} seeds",
                _settings(cells),
                ", ".join(versions),
                " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "",
            )
        )
    return lines


def _settings(rows: Sequence[Row]) -> str:
    parts = []
    for name, heading in (
        ("recipe", "recipe"),
        ("recipe_hash", "of hash"),
        ("max_steps", "at most steps"),
        ("tokens", "tokens"),
        ("corpus", "corpora"),
    ):
        values = [str(value) for value in distinct(rows, name)]
        parts += [f"{heading} {', '.join(values)}"] if values else []
    return "; ".join(parts)
