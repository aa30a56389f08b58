"""The rows of `make gpu` as Markdown for docs/results.md: one section for each device and model."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]

_LAW_NUMBERS = {
    "first losses": ("difference", "losses differ by {:.1e} of the CPU's"),
    "files travel": ("from device, other", "{:.0%} of the tokens on the other device"),
    "no waiting": ("steps", "{} steps"),
    "memory": ("measured_over_estimate", "{:.2f} of the estimate"),
}
"""The number that is told of each law."""


def sections(rows: list[Row]) -> list[str]:
    """Lines of Markdown; of a cell that was measured again, the last row counts."""
    lines: list[str] = []
    rows = list({_cell(row): row for row in rows}.values())
    for device, model in dict.fromkeys((row["device"], row["model"]) for row in rows):
        of_device = [row for row in rows if (row["device"], row["model"]) == (device, model)]
        lines += [f"### {device}, {model}", "", _circumstances(of_device), ""]
        for table in (laws, costs, table_4, figure_4, encoder, failures):
            lines += table(of_device)
    return lines


def _cell(row: Row) -> tuple[Any, ...]:
    """What tells a row's cell from all others; a law's size is its result, but for that of memory."""
    names = ["device", "model", "part", "what", "law", "dtype", "recipe", "arrangement", "text", "until"]
    if row.get("law") in (None, "memory"):
        names += ["texts", "tokens"]
    return tuple(row.get(name) for name in names)


def _circumstances(rows: list[Row]) -> str:
    def all_of(name: str) -> str:
        return ", ".join(dict.fromkeys(str(row[name]) for row in rows if row.get(name)))

    return (
        f"torch {all_of('torch')}, CUDA {all_of('cuda') or 'none'}, transformers {all_of('transformers')}, "
        f"commit {all_of('commit') or 'unknown'}, source {all_of('code')}, {all_of('date')}."
    )


def laws(rows: list[Row]) -> list[str]:
    """What must hold, and what was measured of it."""
    rows = [row for row in rows if row["part"] == "laws"]
    lines = []
    for row in rows:
        name, words = _LAW_NUMBERS[row["law"]]
        told = words.format(row[name]) if row["state"] == "done" else f"**{row['state']}**: {row['reason']}"
        shape = f"{row['texts']} x {row['tokens']}" if "texts" in row else ""
        lines.append(_line(row["law"], row["dtype"], shape, told))
    return _table(("law", "dtype", "texts x tokens", "measured"), lines)


def costs(rows: list[Row]) -> list[str]:
    """Steps, decodes and greedy generation, for each way to run the model."""
    ways = dict.fromkeys(row["part"] for row in rows if row.get("what") and row["part"] != "best-batch")
    lines = []
    for way in ways:
        of_way = [row for row in rows if row["part"] == way]
        for key in dict.fromkeys((row["dtype"], row["texts"], row["tokens"]) for row in of_way):
            by_what = {row["what"]: row for row in of_way if (row["dtype"], row["texts"], row["tokens"]) == key}
            step, decode, greedy = (by_what.get(what, {}) for what in ("step", "decode", "greedy"))
            ratio = "" if not greedy else greedy["state"]
            if decode.get("state") == greedy.get("state") == "done":
                ratio = f"{greedy['greedy_seconds'] / decode['decode_seconds']:.1f}"
            steps = _number(step, "step_seconds", 1e3), _number(step, "step_over_bare")
            decodes = _number(decode, "decode_seconds", 1e3), _number(decode, "decode_over_bare")
            lines.append(_line(way, key[0], f"{key[1]} x {key[2]}", *steps, *decodes, ratio))
    heading = ("model", "dtype", "texts x tokens", "step, ms", "/ bare", "decode, ms", "/ bare", "greedy / decode")
    return _table(heading, lines)


def table_4(rows: list[Row]) -> list[str]:
    """Seconds of fits: the median over texts, and how many are exact; what is capped counts with the cap."""
    rows = [row for row in rows if row["part"] == "table-4" and row["state"] == "done"]
    lines = []
    for key in dict.fromkeys((row["recipe"], row["arrangement"], row["tokens"]) for row in rows):
        of_key = [row for row in rows if (row["recipe"], row["arrangement"], row["tokens"]) == key]
        median = {
            name: statistics.median(row[name] for row in of_key) for name in ("seconds", "steps", "seconds_per_step")
        }
        caps = f"{of_key[0]['max_steps']} steps, {of_key[0]['max_seconds']:.0f} s"
        exact = f"{sum(row['exact'] for row in of_key)} of {len(of_key)}"
        right = f"{statistics.median(row['token_accuracy'] for row in of_key):.3f}"
        numbers = f"{median['seconds']:.2f}", f"{median['steps']:.0f}", f"{1e3 * median['seconds_per_step']:.1f}"
        lines.append(_line(f"`{key[0]}`", f"`{key[1]}`", key[2], *numbers, exact, right, caps))
    heading = ("recipe", "arrangement", "tokens", "seconds", "steps", "ms a step", "exact", "tokens right", "cap")
    return _table(heading, lines)


def figure_4(rows: list[Row]) -> list[str]:
    """Tokens a second of either way to decode, each at the batch that suits it best."""
    rows = [row for row in rows if row["state"] == "done" and "tokens_per_second" in row]
    lines = []
    for dtype, length in dict.fromkeys((row["dtype"], row["tokens"]) for row in rows):
        best = {}
        for what in ("decode", "greedy"):
            side = [row for row in rows if (row["what"], row["dtype"], row["tokens"]) == (what, dtype, length)]
            if side:
                best[what] = max(side, key=lambda row: row["tokens_per_second"])
        if len(best) == 2:
            told = [f"{row['tokens_per_second']:,.0f} ({row['texts']} texts, {row['part']})" for row in best.values()]
            ratio = best["decode"]["tokens_per_second"] / best["greedy"]["tokens_per_second"]
            lines.append(_line(dtype, length, *told, f"{ratio:.1f}"))
    return _table(("dtype", "tokens", "one pass, tokens/s at its best", "greedy, tokens/s at its best", "ratio"), lines)


def encoder(rows: list[Row]) -> list[str]:
    """What the encoder's training printed."""
    rows = [row for row in rows if row["part"] == "encoder" and row["state"] == "done"]
    told = [f"The encoder was trained for {row['minutes']:.1f} minutes: `{json.dumps(row['printed'])}`" for row in rows]
    return [line for text in told for line in (text, "")]


def failures(rows: list[Row]) -> list[str]:
    """Why cells have no number, and which."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["state"] != "done" and row["part"] != "laws":
            names = ("part", "what", "recipe", "arrangement", "dtype", "texts", "tokens")
            reasons.setdefault(row["reason"], []).append(" ".join(str(row[name]) for name in names if name in row))
    return _table(("without a number", "why"), [_line("<br>".join(cells), why) for why, cells in reasons.items()])


def _number(row: Row, name: str, factor: float = 1.0) -> str:
    return f"{factor * row[name]:.3f}" if name in row else row.get("state", "")


def _line(*cells: Any) -> str:
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def _table(heading: Iterable[str], lines: list[str]) -> list[str]:
    heading = tuple(heading)
    return [_line(*heading), "|" + len(heading) * "---|", *lines, ""] if lines else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path, help="the file that run.py wrote")
    path = parser.parse_args().rows
    try:
        rows = [json.loads(line) for line in path.read_text().split("\n")[:-1] if line]
        print("\n".join(sections(rows)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"error: {path} holds no rows of run.py ({type(error).__name__})")


if __name__ == "__main__":
    main()
