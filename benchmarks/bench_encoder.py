"""What an encoder is worth on texts that it was not trained on: with no fit step, and as a place to fit from.

Zero steps: mean token accuracy with its standard error over texts, and exact match, by length, for windows of speeches
and for texts that begin at a sentence and are tokenized on their own, from before 1919 and of 2026. Beside it stand the
untrained encoder, its vectors each given to another text, and the mean of its vectors given to all.

Steps saved: fits of the default recipe from the encoder, from the learned start, and as `fit` begins them (the learned
start, perturbed), on the same texts. A fit that is not exact within the budget counts with the budget, and is told.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from interleaved import circumstances, print_json
from kept_rows import add_rows
from prototokens import Encoder, FitResult, FrozenLM, Given, InputError, fit_batch, load_lm, preset
from prototokens.encoder.encoding import refinement, shipped_encoder
from prototokens.encoder.evaluate import CONTROLS, encoder_vectors, evaluate
from prototokens.texts.sampling import sample

ROWS = Path(__file__).parent / "rows" / "encoder.jsonl"
BEGINNINGS = ("encoder", "learned", "default")


def fits(lm: FrozenLM, encoder: Encoder, beginning: str, ids: torch.Tensor, seed: int, budget: int) -> list[FitResult]:
    """Fits of a batch of texts (B, T) from one of `BEGINNINGS`."""
    config = replace(preset(seed=seed), arrangement=encoder.config.arrangement, tokens_per_vector=None)
    config = replace(config, stop=replace(config.stop, max_steps=budget))
    if beginning == "encoder":
        e, m = encoder_vectors(encoder, lm, ids)
        return fit_batch(lm, ids, refinement(encoder, budget, config), Given(e_start=e, m_start=m))
    return fit_batch(lm, ids, config if beginning == "default" else replace(config, perturbation=0.0))


def fit_rows(
    lm: FrozenLM, encoder: Encoder, source: str, start: str, length: int, seed: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row for every text and beginning; the seed draws the texts and the perturbations."""
    ids = sample(source, lm, length, options.fit_texts, seed=100 + seed, start=start)
    return [
        {
            "kind": "fit",
            "source": source,
            "start": start,
            "tokens": length,
            "block_length": encoder.config.block_length,
            "seed": seed,
            "text": number,
            "beginning": beginning,
            "exact": result.exact,
            "steps": result.steps,
            "work": result.token_positions + result.backward_positions,
            "first_accuracy": result.accuracy_history[0].item(),
            "budget": options.budget,
        }
        for beginning in BEGINNINGS
        for number, result in enumerate(fits(lm, encoder, beginning, ids, seed, options.budget))
    ]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By length and beginning: fits, exact ones, quartiles of steps, and the share of steps saved against `default`.

    The share is taken text by text; its quartiles are the spread.
    """
    lines = []
    fitted = [row for row in rows if row["kind"] == "fit"]
    for length in sorted({row["tokens"] for row in fitted}):
        of_length = [row for row in fitted if row["tokens"] == length]
        default = {_text(row): row["steps"] for row in of_length if row["beginning"] == "default"}
        for beginning in BEGINNINGS:
            begun_so = [row for row in of_length if row["beginning"] == beginning]
            saved = [1 - row["steps"] / max(1, default[_text(row)]) for row in begun_so]
            lines.append(
                {
                    "tokens": length,
                    "beginning": beginning,
                    "fits": len(begun_so),
                    "exact": sum(row["exact"] for row in begun_so),
                    "steps": _quartiles([row["steps"] for row in begun_so]),
                    "median_work": statistics.median(row["work"] for row in begun_so),
                    "share_of_steps_saved": _quartiles(saved),
                }
            )
    return lines


def _text(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["source"], row["start"], row["seed"], row["text"]


def _quartiles(values: list[float]) -> list[float]:
    if len(values) == 1:
        return [values[0]] * 3
    return [round(x, 3) for x in statistics.quantiles(values, n=4, method="inclusive")]


def encoder_of(lm: FrozenLM, options: argparse.Namespace) -> Encoder:
    """The encoder that was named, or the shipped one; the quick form does with an untrained one."""
    if options.encoder:
        return Encoder.from_pretrained(options.encoder)
    try:
        return shipped_encoder(lm.identity)
    except InputError as error:
        if not options.quick:
            raise SystemExit(f"error: {error}") from None
        print("no encoder: the untrained one, which gives the learned start, stands in")
        return Encoder.untrained(lm)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--encoder", help="folder or Hub id; the shipped one by default")
    parser.add_argument("--lengths", default="16,64,256", help="tokens, comma-separated")
    parser.add_argument("--sources", default="old,recent")
    parser.add_argument("--texts", type=int, default=64, help="texts of each source, kind and length, with no fit step")
    parser.add_argument("--fit-lengths", default="16,64", help="tokens of the texts that are fitted")
    parser.add_argument("--fit-texts", type=int, default=4, help="texts of each source, kind, length and seed")
    parser.add_argument("--seeds", default="0,1", help="of the fits")
    parser.add_argument("--budget", type=int, default=500, help="fit steps")
    parser.add_argument("--rows", type=Path, default=ROWS, help="where rows are appended")
    parser.add_argument("--quick", action="store_true", help="few texts of two tokens; keeps no rows")
    options = parser.parse_args()
    if options.quick:
        options.lengths, options.texts, options.fit_lengths, options.fit_texts = "2", 4, "2", 2
        options.sources, options.seeds, options.budget, options.rows = "recent", "0", 40, Path("/dev/null")
    return options


def main() -> None:
    options = arguments()
    lm = load_lm(options.model)
    encoder = encoder_of(lm, options)
    encoder.check(lm.identity)
    place = {"encoder": encoder.name, "trained_steps": encoder.training["step"], **circumstances()}
    sources, kinds = options.sources.split(","), ("anywhere", "sentence")
    rows: list[dict[str, Any]] = []
    lengths = [int(n) for n in options.lengths.split(",")]
    for row in evaluate(lm, encoder, lengths, sources, kinds, CONTROLS, options.texts, seed=7):
        rows.append({"kind": "zero steps"} | row)
        print(
            "{source:8} {start:9} {control:9} {length:3} tokens  accuracy {token_accuracy:.3f} ± "
            "{token_accuracy_se:.3f}  exact {exact_match:.3f}".format(**row)
        )
    for length in (int(n) for n in options.fit_lengths.split(",")):
        for source in sources:
            for kind in kinds:
                for seed in map(int, options.seeds.split(",")):
                    rows += fit_rows(lm, encoder, source, kind, length, seed, options)
    add_rows(options.rows, [row | place for row in rows])
    lines = summary(rows)
    for line in lines:
        print("  ".join(f"{k} {v}" for k, v in line.items()))
    print_json([row for row in rows if row["kind"] == "zero steps"] + lines)


if __name__ == "__main__":
    main()
