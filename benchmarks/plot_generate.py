"""Tokens a pass against the samples that a drafter was trained on, as SVG, from the rows of bench_generate.py."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

from bench_generate import ROWS
from figures import save_figure
from kept_rows import load_rows

matplotlib.use("svg")
from matplotlib import pyplot

COLOURS = {"chain": "#1d4ed8", "tree": "#b45309"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--cost", default="0.01", help="the cost of a position at which the rows were measured")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/figures/generate-samples.svg"))
    options = parser.parse_args()
    figure, panel = pyplot.subplots(figsize=(6, 3.6))
    for method, colour in COLOURS.items():
        rows = load_rows(options.rows, method=f"{method}@{options.cost}")
        points = []
        for samples in sorted({row["samples"] for row in rows if row["samples"]}):
            of_drafter = {row["prompt"]: row for row in rows if row["samples"] == samples}  # the newest of each prompt
            n_tokens, passes = (sum(row[name] for row in of_drafter.values()) for name in ("n_tokens", "passes"))
            points.append((samples, n_tokens / passes))
        if points:
            panel.plot(*zip(*points, strict=True), "o-", color=colour, label=method)
    panel.set(xlabel="places in texts that the drafter was trained on", ylabel="tokens a pass", xscale="log")
    panel.set_ylim(bottom=1)
    panel.legend(frameon=False)
    save_figure(figure, options.output)


if __name__ == "__main__":
    main()
