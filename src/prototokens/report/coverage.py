"""What a store holds and what is missing from it; the settings and versions behind its rows. Pure functions of rows."""

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
        planned: cells that were laid out and not reached.
        errors: (error, how many cells), the most frequent first.
    """

    study: str
    done: int
    failed: int
    planned: int
    errors: tuple[tuple[str, int], ...]

    @property
    def complete(self) -> bool:
        """Something was run, and nothing is left or failed."""
        return self.done > 0 and not self.failed and not self.planned

    def __str__(self) -> str:
        """One sentence about what there is and what is missing."""
        if not self.done + self.failed + self.planned:
            return f"not run: prototokens study {self.study} --store STORE"
        parts = [f"{self.done} {'cell' if self.done == 1 else 'cells'} done"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self.planned:
            parts.append(f"{self.planned} not reached yet: the same command goes on")
        return ", ".join(parts)


def coverage(rows: Sequence[Row], counts: Sequence[Mapping[str, Any]], studies: Sequence[str]) -> list[Coverage]:
    """What there is of each study.

    Args:
        rows: done and failed cells.
        counts: for each study, model and scale, with `study` and `planned`, as `Store.counts` gives them.
        studies: names of the studies, in the report's order.
    """
    found = []
    for study in studies:
        own = [row for row in rows if row["study"] == study]
        errors = Counter(str(row.get("error")) for row in own if row["status"] == "failed")
        found.append(
            Coverage(
                study,
                done=sum(row["status"] == "done" for row in own),
                failed=sum(errors.values()),
                planned=sum(count["planned"] for count in counts if count["study"] == study),
                errors=tuple(sorted(errors.items(), key=lambda item: (-item[1], item[0]))),
            )
        )
    return found


PROVENANCE_HEADS = ("study", "model", "scale", "cells", "texts", "settings", "made with", "finished (UTC)")


def provenance(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """What made the rows: for each study, model, scale and set of versions one line, as PROVENANCE_HEADS names it."""
    lines: list[tuple[str, ...]] = []
    done = [row for row in rows if row["status"] == "done"]
    for own in by(done, "study", "model", "scale", "fingerprint", "dtype", "device", "threads", *LIBRARIES).values():
        first = own[0]
        texts = len({(row.get("source"), row.get("text")) for row in own})
        weights = f"weights {str(first['fingerprint'])[:12]}" if first.get("fingerprint") else ""
        made = [f"{name} {first[name]}" for name in LIBRARIES if first.get(name)]
        made += [str(first[name]) for name in ("dtype", "device") if first.get(name)]
        made += [f"{first['threads']} threads"] if first.get("threads") else []
        days = distinct(own, "finished")
        lines.append(
            (
                str(first["study"]),
                ", ".join(part for part in (str(first.get("model")), weights) if part),
                str(first.get("scale")),
                str(len(own)),
                f"{texts} ({', '.join(distinct(own, 'source'))}), {len(distinct(own, 'seed'))} seeds",
                _settings(own),
                ", ".join(made),
                " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "",
            )
        )
    return lines


def _settings(rows: Sequence[Row]) -> str:
    told = []
    for name, heading in (
        ("recipe", "recipe"),
        ("recipe_hash", "of hash"),
        ("max_steps", "at most steps"),
        ("tokens", "tokens"),
        ("corpus", "corpora"),
    ):
        values = [str(value) for value in distinct(rows, name)]
        told += [f"{heading} {', '.join(values)}"] if values else []
    return "; ".join(told)
