"""Token accuracy against the work of a fit, from the rows of bench_fit.py, as SVG."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib

from bench_fit import RECIPES, ROWS, SOURCES
from figures import save_figure
from kept_rows import load_rows

matplotlib.use("svg")
from matplotlib import pyplot

COLOURS = dict(zip(RECIPES, ("#b45309", "#6b7280", "#1d4ed8"), strict=True))


def accuracy_at(row: dict[str, Any], work: float) -> float:
    """Best token accuracy of one run by then; each step costs the same, and the curve holds its rises."""
    each = row["work"] / max(1, row["steps"])
    return max((accuracy for step, accuracy in row["curve"] if step * each <= work), default=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="whose rows are drawn")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/figures/accuracy-against-work.svg"))
    options = parser.parse_args()
    rows = load_rows(options.rows, sources=SOURCES, model=options.model)
    lengths = sorted({r["tokens"] for r in rows})
    figure, panels = pyplot.subplots(1, len(lengths), figsize=(4.5 * len(lengths), 3.4), sharey=True, squeeze=False)
    for panel, length in zip(panels[0], lengths, strict=True):
        for recipe in RECIPES:
            of_recipe = [r for r in rows if (r["tokens"], r["recipe"]) == (length, recipe)]
            if not of_recipe:
                continue
            work = [10 ** (2 + i / 40) for i in range(150) if 10 ** (2 + i / 40) <= max(r["work"] for r in of_recipe)]
            curves = [sorted(accuracy_at(r, w) for r in of_recipe) for w in work]
            middle = [sum(c) / len(c) for c in curves]
            panel.plot(work, middle, color=COLOURS[recipe], label=f"{recipe} ({len(of_recipe)} runs)")
            panel.fill_between(work, [c[0] for c in curves], [c[-1] for c in curves], color=COLOURS[recipe], alpha=0.15)
        panel.set(xscale="log", title=f"{length} tokens", xlabel="positions forward + backward", ylim=(0, 1.02))
        panel.legend(loc="upper left", fontsize=8, frameon=False)
    panels[0][0].set_ylabel("token accuracy (mean, range)")
    save_figure(figure, options.output)


if __name__ == "__main__":
    main()
