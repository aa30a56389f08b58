"""How far to trust a decoded token: the share of tokens that are right, by their margin, for vectors of an encoder.

A reader of latents does not know the text. What `decode` tells of every token, its margin, says how likely it is right.
Texts of the test split are encoded and decoded, in one pass each, and every token is counted in the bin of its margin.
One row for each source, length and bin; a figure of share against margin.

    python benchmarks/bench_confidence.py --encoder my-encoder --figure docs/figures/confidence.svg
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from interleaved import circumstances, print_json
from kept_rows import add_rows
from prototokens import Encoder, FrozenLM, InputError, decode, encode, load_lm
from prototokens.decoding import MarginBin, calibration
from prototokens.encoder.encoding import shipped_encoder
from prototokens.report import drawing
from prototokens.texts.sampling import sample

ROWS = Path(__file__).parent / "rows" / "confidence.jsonl"
LOWS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
"""The least margin of each bin, in logits."""


def scored(lm: FrozenLM, encoder: Encoder, ids: torch.Tensor, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Margins of the tokens of texts (B, T), and whether each is right."""
    margins, right = [], []
    for part in ids.split(batch):
        tokens = [result.tokens for result in encode(lm, encoder, part)]
        for decoded, target in zip(decode(lm, tokens), part, strict=True):
            margins.append(decoded.margins)
            right.append(decoded.ids == target)
    return torch.stack(margins), torch.stack(right)


def row_of(margin_bin: MarginBin) -> dict[str, Any]:
    """A bin as JSON values; the last has no bound above."""
    return {
        "low": margin_bin.low,
        "high": None if math.isinf(margin_bin.high) else margin_bin.high,
        "n_tokens": margin_bin.n_tokens,
        "n_right": margin_bin.n_right,
        "share_right": margin_bin.share_right if margin_bin.n_tokens else None,
    }


def pooled(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The bins of several sources and lengths together."""
    bins: dict[float, MarginBin] = {}
    for row in rows:
        known = bins.get(row["low"], MarginBin(row["low"], math.inf if row["high"] is None else row["high"], 0, 0))
        counts = known.n_tokens + row["n_tokens"], known.n_right + row["n_right"]
        bins[row["low"]] = MarginBin(known.low, known.high, *counts)
    return [row_of(bins[low]) for low in sorted(bins)]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Share right by the least margin of a bin, a line for each source, and the share of all tokens in each bin."""
    with drawing.style():
        figure, (right_panel, count_panel) = drawing.panels(1, 2, 3.2)
        for number, source in enumerate(sorted({row["source"] for row in rows})):
            bins = pooled(row for row in rows if row["source"] == source)
            look = {"color": drawing.PALETTE[number % 6], "marker": drawing.MARKERS[number % 6], "label": source}
            filled = [row for row in bins if row["n_tokens"]]
            right_panel.plot([row["low"] for row in filled], [row["share_right"] for row in filled], **look)
            n_tokens = sum(row["n_tokens"] for row in bins)
            count_panel.plot([row["low"] for row in bins], [row["n_tokens"] / n_tokens for row in bins], **look)
        right_panel.set(xlabel="margin of at least, logits", ylabel="share of tokens that are right", ylim=(0, 1.02))
        count_panel.set(xlabel="margin of at least, logits", ylabel="share of all tokens", ylim=(0, None))
        drawing.legend(figure, [right_panel, count_panel], columns=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(drawing.render(figure, path.stem)[1])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--encoder", help="folder or Hub id; the shipped one by default")
    parser.add_argument("--sources", default="old,recent", help="comma-separated")
    parser.add_argument("--lengths", default="16,64,256", help="tokens, comma-separated")
    parser.add_argument("--texts", type=int, default=64, help="texts of each source and length")
    parser.add_argument("--start", default="sentence", help="where texts begin: anywhere or sentence")
    parser.add_argument("--batch", type=int, default=8, help="texts that are encoded side by side")
    parser.add_argument("--rows", type=Path, default=ROWS, help="where rows are appended")
    parser.add_argument("--figure", type=Path, help="where the figure goes, SVG")
    parser.add_argument("--quick", action="store_true", help="few short texts; keeps no rows")
    options = parser.parse_args()
    if options.quick:
        options.sources, options.lengths, options.texts, options.rows = "recent", "8", 4, None
    return options


def main() -> None:
    options = arguments()
    lm = load_lm(options.model)
    try:
        encoder = Encoder.from_pretrained(options.encoder) if options.encoder else shipped_encoder(lm.identity)
    except InputError as error:
        if not options.quick:
            raise SystemExit(f"error: {error}") from None
        encoder = Encoder.untrained(lm)
    place = {"encoder": encoder.name, "trained_steps": encoder.training["step"], "start": options.start}
    place |= circumstances()
    rows: list[dict[str, Any]] = []
    for source in options.sources.split(","):
        for length in map(int, options.lengths.split(",")):
            ids = sample(source, lm, length, options.texts, seed=7, start=options.start)
            bins = calibration(*scored(lm, encoder, ids, options.batch), LOWS)
            rows += [{"source": source, "length": length, **row_of(margin_bin)} for margin_bin in bins]
            n_right = sum(margin_bin.n_right for margin_bin in bins)
            print(f"{source:8} {length:4} tokens  accuracy {n_right / ids.numel():.3f}", flush=True)
    lines = pooled(rows)
    for line in lines:
        share = "   -  " if line["share_right"] is None else f"{line['share_right']:.4f}"
        print(f"margin from {line['low']:5.2f}: {line['n_tokens']:7,} tokens, right {share}")
    if options.rows:
        add_rows(options.rows, [row | place for row in rows])
    if options.figure:
        draw(rows, options.figure)
    print_json(lines)


if __name__ == "__main__":
    main()
