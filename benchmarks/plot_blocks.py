"""The rate curve: what blocks of b tokens cost and take, from the rows of bench_blocks.py, as SVG or PNG.

Four panels over b: steps until exact, positions a token, bytes a token in each store, and the share of texts that are
still exact after the vectors are stored. A hollow point stands where not every text was exact within the budget.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

from bench_blocks import CURVE, FILE
from block_methods import STORES
from figures import save_figure
from kept_rows import load_rows

matplotlib.use("agg")
from matplotlib import pyplot, ticker

COLOURS = dict(zip(STORES, ("#1d4ed8", "#047857", "#b45309"), strict=True))
Rows = list[dict[str, Any]]


def latest(rows: Rows) -> Rows:
    """The rows of each text and seed by the recipe that ran last."""
    return list({(row["text"], row["seed"]): row for row in sorted(rows, key=lambda row: row["started"])}.values())


def band(panel: Any, by_length: dict[int, Rows], name: str) -> None:
    """Median and range of a column, with hollow points where a text was not exact."""
    lengths = list(by_length)
    values = [sorted(row[name] for row in by_length[b]) for b in lengths]
    panel.plot(lengths, [statistics.median(v) for v in values], color="#1d4ed8", zorder=1)
    panel.fill_between(lengths, [v[0] for v in values], [v[-1] for v in values], color="#1d4ed8", alpha=0.15)
    for b, v in zip(lengths, values, strict=True):
        every = all(row["exact"] for row in by_length[b])
        face = "#1d4ed8" if every else "white"
        panel.plot(b, statistics.median(v), "o", color="#1d4ed8", markerfacecolor=face, markersize=5, zorder=2)
    plain_log(panel)


def plain_log(panel: Any) -> None:
    """A logarithmic vertical axis with plain numbers at 1, 2 and 5 times the powers of ten."""
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(ticker.ScalarFormatter())
    panel.yaxis.set_minor_formatter(ticker.NullFormatter())


def by_store(panel: Any, by_length: dict[int, Rows], value: Callable[[Rows, str], float], *, dashed: bool) -> None:
    for store, colour in COLOURS.items():
        values = [value(rows, store) for rows in by_length.values()]
        panel.plot(list(by_length), values, "o-", color=colour, markersize=4, label=store)
    if dashed:
        exact = [statistics.mean(row["exact"] for row in rows) for rows in by_length.values()]
        panel.plot(list(by_length), exact, "k--", linewidth=1, label="as fitted, float32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="whose rows are drawn")
    parser.add_argument("--file", type=Path, default=FILE)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/figures/rate-curve.svg"))
    options = parser.parse_args()
    kept = {part.block: latest(load_rows(options.file, part=name, model=options.model)) for name, part in CURVE.items()}
    by_length = {b: rows for b, rows in kept.items() if rows}
    if not by_length:
        raise SystemExit(f"error: {options.file} holds no rows of the curve; run bench_blocks.py --rows curve")
    figure, panels = pyplot.subplots(2, 2, figsize=(9, 6), sharex=True)
    (steps, positions), (sizes, shares) = panels
    band(steps, by_length, "steps")
    band(positions, by_length, "work_per_token")
    by_store(sizes, by_length, lambda rows, store: rows[0][f"bytes_per_token_{store}"], dashed=False)
    by_store(shares, by_length, lambda rows, s: statistics.mean(row[f"accuracy_{s}"] == 1 for row in rows), dashed=True)
    plain_log(sizes)
    first = next(iter(by_length.values()))
    steps.set_title("steps (median, range)", fontsize=10)
    positions.set_title("positions a token, forward + backward", fontsize=10)
    sizes.set_title("bytes a token", fontsize=10)
    shares.set_title(f"share of {len(first)} texts of {first[0]['tokens']} tokens exact", fontsize=10)
    shares.set_ylim(-0.03, 1.03)
    for panel in (sizes, shares):
        panel.set(xscale="log", xlabel="b, tokens of a block")
        panel.set_xticks(list(by_length), [str(b) for b in by_length])
        panel.minorticks_off()
        panel.legend(fontsize=8, frameon=False)
    save_figure(figure, options.output)


if __name__ == "__main__":
    main()
