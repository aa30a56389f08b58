"""Long texts in blocks: the whole table of what blocks are to reach, the baselines beside it, and the rate curve.

A part of the table is a length, a length of block, a method, texts and seeds; `--rows` chooses parts by name or by the
beginning of the name. Texts are speeches that nothing was trained on, half of them before 1919 and half of 2026. A text
that is not exact within the budget counts with all that was spent on it. Every text is a row of the file of rows, and
rows that stand there are not run again: an interrupted run resumes. Texts of fewer than 128 tokens are fitted two or
more at once, since a small batch is bound by memory. Parts that other benchmarks measure are run as commands, and their
last line is the row. `--dry-run` says what is missing and how long it takes at most. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import bench_fit
from block_methods import STORES, recipe, run
from interleaved import circumstances, print_json
from kept_rows import add_rows, load_rows, subject
from prototokens import FitConfig, FrozenLM, load_lm
from prototokens.arrangements import blocks
from prototokens.fitting.starter import Starter, load_starter, shipped_starter
from prototokens.lm.identity import hash_ids, library_versions

FILE = Path(__file__).parent / "rows" / "blocks.jsonl"
TOKENS_AT_ONCE = 128
SECONDS_OF_A_POSITION = 0.008
"""Of the built-in model on one thread, forward and backward."""


@dataclass(frozen=True)
class Part:
    """Some texts, fitted by one method at some seeds."""

    tokens: int
    block: int = 8
    method: str = "blocks"
    budget: int = 250
    per_source: int = 4
    sources: str = bench_fit.SOURCES
    seeds: tuple[int, ...] = (0, 1)
    goal: str = ""

    @property
    def n_texts(self) -> int:
        return self.per_source * len(self.sources.split(","))


@dataclass(frozen=True)
class Command:
    """A part that another benchmark measures."""

    argv: tuple[str, ...]
    goal: str = ""


CURVE = {
    f"curve-{block}": Part(192, block, budget=240, per_source=2, seeds=(0,))
    for block in (4, 6, 8, 12, 16, 24, 32, 48, 64)
}
PARTS: dict[str, Part | Command] = {
    "64-in-8": Part(64, 8, budget=120, goal="all exact, median at most 20 steps and 42 positions a token"),
    "128-in-16": Part(128, 16, goal="all exact, median at most 45 steps"),
    "256-in-8": Part(256, 8, budget=120, goal="all exact, median at most 35 steps"),
    "256-in-16": Part(256, 16, budget=120, goal="15 of 16 exact within 120 steps"),
    "512-in-8": Part(512, 8, budget=120, per_source=2, seeds=(0,), goal="all exact, median at most 40 steps"),
    "1024-in-8": Part(1024, 8, budget=120, per_source=1, sources="recent", seeds=(0,), goal="exact"),
    "two-vectors": Part(64, 64, "two-vectors", budget=600, seeds=(0,), goal="all exact within 600 steps"),
    "cramming": Part(64, 8, "cramming", budget=120, seeds=(0,)),
    "windows-8": Part(64, 8, "windows", budget=120, seeds=(0,)),
    "windows-16": Part(64, 16, "windows", budget=120, seeds=(0,)),  # about as many vectors as blocks of 8 have
    **CURVE,
    "prefix": Command(
        ("bench_prefix.py", "--methods", "one-step", "--work", "600000", "--steps", "1500", "--first", "32"),
        goal="two of four texts hold 128 tokens in two vectors",
    ),
    "pack-fast": Command(("bench_pack.py", "--threads", "1", "--effort", "fast"), goal="a third of the positions"),
    "pack-balanced": Command(("bench_pack.py", "--threads", "1"), goal="at most 10 bytes per character"),
    "decode": Command(
        ("bench_decode.py", "--tokens", "256", "--batches", "1,4,16", "--repeats", "5"),
        goal="greedy takes 20 times as long, one text, two threads",
    ),
}


@dataclass(frozen=True)
class Job:
    """Texts of one part that are fitted side by side, and what their rows have in common."""

    part: Part
    config: FitConfig
    texts: tuple[int, ...]
    common: dict[str, Any] = field(hash=False)

    def kept(self, path: Path) -> list[dict[str, Any]]:
        """The rows of these texts, in order, or nothing if one is missing; a repeated one counts once."""
        by_text = {row["text"]: row for row in load_rows(path, **self.common) if row["text"] in self.texts}
        return [by_text[text] for text in self.texts] if len(by_text) == len(self.texts) else []

    @property
    def seconds(self) -> float:
        """Time at most, the whole budget spent."""
        return self.part.budget * len(self.texts) * (self.part.tokens + 1) * SECONDS_OF_A_POSITION


def jobs(lm: FrozenLM, name: str, part: Part, start: Starter | None, texts: Sequence[int] | None) -> Iterator[Job]:
    for seed in part.seeds:
        config = recipe(part.method, part.tokens, part.block, seed, part.budget, nearer(lm, part, start))
        common = {
            **subject(lm, config.at(part.tokens)),
            "part": name,
            "method": part.method,
            "tokens": part.tokens,
            "block": part.block,
            "seed": seed,
            "budget": part.budget,
            "sources": part.sources,
            "per_source": part.per_source,
        }
        numbers = [n for n in range(part.n_texts) if texts is None or n in texts]
        at_once = max(1, TOKENS_AT_ONCE // part.tokens)
        for first in range(0, len(numbers), at_once):
            yield Job(part, config, tuple(numbers[first : first + at_once]), common)


def nearer(lm: FrozenLM, part: Part, start: Starter | None) -> Starter | None:
    """The start that was given, for blocks unless a shipped one was trained for blocks of a nearer length."""
    if start is None or part.method != "blocks":
        return None
    shipped = shipped_starter(lm.identity, blocks(part.block))
    lengths = [s.arrangement.block_length or 1 for s in (start, shipped) if s is not None]
    ratios = [max(length, part.block) / min(length, part.block) for length in lengths]
    return start if ratios[0] == min(ratios) else None


def measure(lm: FrozenLM, job: Job) -> list[dict[str, Any]]:
    """Fit the texts of a job; one row for each."""
    part, sources = job.part, job.part.sources.split(",")
    target_ids = bench_fit.texts(lm, part.sources, part.tokens, part.per_source)[list(job.texts)]
    columns = run(lm, part.method, target_ids, job.config, part.block)
    return [
        {
            **job.common,
            "text": text,
            "text_hash": hash_ids(ids)[:12],
            "source": sources[text // part.per_source],
            "batch": len(job.texts),
            **values,
            "work_per_token": round(values["work"] / part.tokens, 1),
            "versions": library_versions(),
            **circumstances(),
        }
        for text, ids, values in zip(job.texts, target_ids, columns, strict=True)
    ]


def run_command(name: str, command: Command, options: argparse.Namespace) -> None:
    """Run another benchmark unless its row is kept; its last line is the row."""
    script, *arguments = command.argv
    common = {"part": name, "argv": [*command.argv, "--model", options.model]}
    if load_rows(options.file, **common):
        return
    argv = [sys.executable, str(Path(__file__).parent / script), *arguments, "--model", options.model]
    last = ""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            last = line
            if not line.startswith("{"):
                print(" ", line, end="", flush=True)
    if process.returncode:
        raise SystemExit(f"error: {name}: {' '.join(command.argv)} ended with {process.returncode}")
    add_rows(options.file, [{**common, "result": json.loads(last), "versions": library_versions(), **circumstances()}])


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One line about the rows of one part."""
    steps = [row["steps"] for row in rows]
    first = rows[0]
    line = {
        "part": first["part"],
        "method": first["method"],
        "tokens": first["tokens"],
        "block": first["block"],
        "runs": len(rows),
        "exact": sum(row["exact"] for row in rows),
        "median_steps": statistics.median(steps),
        "steps_from": min(steps),
        "steps_to": max(steps),
        "work_per_token": statistics.median(row["work_per_token"] for row in rows),
        "vectors": first["vectors"],
        "token_accuracy": round(statistics.mean(row["token_accuracy"] for row in rows), 4),
    }
    for store in STORES:
        line[f"bytes_per_token_{store}"] = first[f"bytes_per_token_{store}"]
        line[f"accuracy_{store}"] = round(statistics.mean(row[f"accuracy_{store}"] for row in rows), 4)
        line[f"exact_{store}"] = sum(row[f"accuracy_{store}"] == 1 for row in rows)
    return line


def at_the_work_of(rows: list[dict[str, Any]], in_blocks: list[dict[str, Any]]) -> float | None:
    """Mean best accuracy that the descents of `rows` had reached at the work that blocks took for the same text."""
    spent = {(row["text"], row["seed"]): row["work"] for row in in_blocks if row["exact"]}
    reached = []
    for row in rows:
        work = spent.get((row["text"], row["seed"]))
        if work is not None and row.get("rises"):
            steps = work / (row["work"] / max(1, row["steps"]))
            reached.append(max((accuracy for step, accuracy in row["rises"] if step <= steps), default=0.0))
    return round(statistics.mean(reached), 4) if reached else None


def chosen(names: str) -> list[str]:
    """Parts by name or by the beginning of it, comma-separated, in the order of the table."""
    wanted = names.split(",")
    for want in wanted:
        if not any(name.startswith(want) for name in PARTS):
            raise SystemExit(f"error: no part {want!r}; choose of: {' '.join(PARTS)}")
    return [name for name in PARTS if any(name == w or (w not in PARTS and name.startswith(w)) for w in wanted)]


def _at_seeds(part: Part | Command, seeds: tuple[int, ...]) -> Part | Command:
    return replace(part, seeds=seeds) if isinstance(part, Part) else part


def show_missing(lm: FrozenLM, names: list[str], start: Starter | None, options: argparse.Namespace) -> None:
    for name in names:
        part = PARTS[name]
        if isinstance(part, Command):
            print(f"{name:14} {' '.join(part.argv)}")
            continue
        waiting = [j for j in jobs(lm, name, part, start, options.texts) if not j.kept(options.file)]
        n_missing, minutes = sum(len(job.texts) for job in waiting), sum(job.seconds for job in waiting) / 60
        print(f"{name:14} {n_missing:2} of {part.n_texts * len(part.seeds):2} runs missing, at most {minutes:4.0f} min")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", default=",".join(PARTS), help="parts to run, comma-separated; `curve`: all of them")
    parser.add_argument("--start", type=Path, help="file of a learned start, for the blocks that it is nearest to")
    parser.add_argument("--seeds", help="instead of the parts' seeds, comma-separated")
    parser.add_argument("--texts", help="only these texts of each part, numbers, comma-separated")
    parser.add_argument("--file", type=Path, default=FILE, help="where rows are kept")
    parser.add_argument("--dry-run", action="store_true", help="say what is missing, and run nothing")
    parser.add_argument("--quick", action="store_true", help="two texts of 64-in-8, one seed, nothing kept")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.seeds, options.texts, options.file = "64-in-8", "0", "0,4", Path("/dev/null")
    options.texts = [int(x) for x in options.texts.split(",")] if options.texts else None
    names, start = chosen(options.rows), load_starter(options.start) if options.start else None
    if options.seeds:
        seeds = tuple(int(x) for x in options.seeds.split(","))
        PARTS.update({n: _at_seeds(PARTS[n], seeds) for n in names})
    lm = load_lm(options.model)
    if options.dry_run:
        show_missing(lm, names, start, options)
        return
    lines: list[dict[str, Any]] = []
    for name in names:
        part = PARTS[name]
        print(f"{name}: goal: {part.goal or 'none'}", flush=True)
        if isinstance(part, Command):
            run_command(name, part, options)
            continue
        rows: list[dict[str, Any]] = []
        for job in jobs(lm, name, part, start, options.texts):
            kept = job.kept(options.file)
            rows += kept or add_rows(options.file, measure(lm, job))
            for row in rows[-len(job.texts) :]:
                print("  text {text} ({source}), seed {seed}: exact {exact}, {steps} steps, {work_per_token} positions "
                      "a token, {seconds:.0f} s".format(**row), flush=True)  # fmt: skip
        if rows:
            lines.append(summary(rows))
            if part.method == "cramming":
                in_blocks = load_rows(options.file, tokens=part.tokens, block=part.block, method="blocks")
                lines[-1]["teacher_forced_accuracy_at_the_work_of_blocks"] = at_the_work_of(rows, in_blocks)
            print("  " + "  ".join(f"{k} {v}" for k, v in lines[-1].items()), flush=True)
    print_json(lines)


if __name__ == "__main__":
    main()
