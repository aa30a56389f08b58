"""An encoder's held-out token accuracy against the tokens that it was trained on, by length, as SVG.

It reads the `curve.jsonl` that `prototokens encoder train` keeps in its folder.
"""

from __future__ import annotations

import argparse
from itertools import cycle
from pathlib import Path

import matplotlib

from bench_fit import load_rows
from figures import save_figure

matplotlib.use("svg")
from matplotlib import pyplot

CURVE = Path(__file__).parent / "rows" / "encoder-curve.jsonl"
COLOURS = ("#1d4ed8", "#047857", "#b45309", "#6b7280", "#7c3aed", "#be123c")
KINDS = {"windows": "-", "own": ":"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curve", type=Path, default=CURVE)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/figures/encoder-curve.svg"))
    options = parser.parse_args()
    rows = [row for row in load_rows(options.curve) if row["kind"] == "validation"]
    figure, panel = pyplot.subplots(figsize=(6, 3.6))
    lengths = sorted({length for row in rows for kind in KINDS for length in row.get(kind, {})}, key=int)
    for length, colour in zip(lengths, cycle(COLOURS), strict=False):
        for kind, line in KINDS.items():
            seen = [(row["tokens"], row[kind][length]["token_accuracy"]) for row in rows if length in row.get(kind, {})]
            label = f"{length} tokens" if kind == "windows" else None
            panel.plot(*zip(*seen, strict=True), line, color=colour, label=label)
    panel.set(xlabel="tokens trained on", ylabel="token accuracy, zero steps", ylim=(0, 1.02))
    panel.legend(fontsize=8, frameon=False, title="— windows   ··· own texts", title_fontsize=8)
    save_figure(figure, options.output)


if __name__ == "__main__":
    main()
