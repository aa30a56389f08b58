"""The tables of one-step decoding beside autoregressive and other decoding: figures 3 and 4 in numbers, and quality."""

from __future__ import annotations

from collections.abc import Sequence

from ...study import published
from ..conditions import by, distinct, ordered, series
from ..exhibit import PAPER, Entry, entry
from ..summary import Row, Summary, mean, share
from .tables import SHARED_M, SOURCE_LABELS, work

ONE_STEP, AUTOREGRESSIVE = "one-step", "autoregressive"
ONE_STEP_BATCHED, AUTOREGRESSIVE_BATCHED = f"{ONE_STEP}-batched", f"{AUTOREGRESSIVE}-batched"
METHOD_ORDER = (ONE_STEP, ONE_STEP_BATCHED, "one-vector", "jacobi", AUTOREGRESSIVE, AUTOREGRESSIVE_BATCHED)
RATIO = "one-step / autoregressive"
_BASE = {ONE_STEP: AUTOREGRESSIVE, ONE_STEP_BATCHED: AUTOREGRESSIVE_BATCHED}
"""The method that each way to decode in one step is compared with."""

SPEED, VERIFIED, GAIN = "tokens per second", "share verified", "times autoregressive"

QUALITY = {
    "exact": ("share exact", 2),
    "token_accuracy": ("token accuracy", 3),
    "teacher_forced_accuracy": ("teacher-forced accuracy", 3),
    "greedy_accuracy": ("greedy accuracy", 3),
    "correct_prefix": ("correct prefix, tokens", 1),
    "bleu": ("BLEU", 1),
    "rouge_l": ("ROUGE-L", 3),
    "chrf": ("chrF", 1),
    "passes": ("forward passes", 1),
    "work": ("work, positions", 0),
}
"""Column of a row -> its heading and decimals."""


def information(rows: Sequence[Row]) -> list[Entry]:
    """Figure 3: H_LM and tokens that were reconstructed in one step and autoregressively, with equally many vectors."""
    entries = []
    rows = [row for row in rows if row.get("method") != SHARED_M]
    for label, series_rows in series(rows, ("source", "vectors", "method", "text", "seed")).items():
        for source in ordered(distinct(series_rows, "source"), SOURCE_LABELS):
            for vectors in distinct(series_rows, "vectors"):
                chosen = [row for row in series_rows if (row["source"], row["vectors"]) == (source, vectors)]
                head = (SOURCE_LABELS.get(source, source), str(vectors))
                for method in ordered(distinct(chosen, "method"), METHOD_ORDER):
                    cell = [row for row in chosen if row["method"] == method]
                    summary = mean(row.get("capacity_tokens") for row in cell)
                    entries += entry((*head, method), label, "tokens", summary, 1)
                    entries += entry((*head, method), label, "H_LM, nats", mean(row["h_lm_nats"] for row in cell), 1)
                ratio = _ratio(paired_nats(chosen))
                entries += entry((*head, RATIO), label, "H_LM, nats", ratio, 2)
    for (source, vectors), tokens_of_model in published.CRAMMED_TOKENS.items():
        for model in published.MODELS:
            if model in tokens_of_model:
                crammed = (SOURCE_LABELS[source], str(vectors), AUTOREGRESSIVE)
                entries += entry(crammed, "cramming paper, tokens", model, Summary(tokens_of_model[model]), 0, True)
    return entries


def paired_nats(rows: Sequence[Row]) -> list[tuple[Row, float, float]]:
    """H_LM of the same text by both methods with equally many vectors, means over seeds.

    Returns:
        For each text that both methods were run on: one of its rows, nats in one step, nats autoregressively.
    """
    pairs = []
    for texts in by(rows, "source", "vectors", "text").values():
        means = {
            method: mean(row["h_lm_nats"] for row in method_rows)
            for (method,), method_rows in by(texts, "method").items()
        }
        one_step, autoregressive = means.get(ONE_STEP), means.get(AUTOREGRESSIVE)
        if one_step and autoregressive:
            pairs.append((texts[0], one_step.value, autoregressive.value))
    return pairs


def throughput(rows: Sequence[Row]) -> list[Entry]:
    """Figure 4: tokens per second of each way to decode, of verified output, and the gain over autoregressive decoding.

    Single texts are compared with single texts, and batches with batches of the same size.
    """
    entries = []
    for label, series_rows in series(rows, ("method", "batch", "tokens"), more=("threads",)).items():
        cells = by(series_rows, "method", "batch", "tokens")
        speeds = {where: mean(row["tokens_per_second"] for row in cell) for where, cell in cells.items()}
        for name in ordered(distinct(series_rows, "method"), METHOD_ORDER):
            for (method, batch, length), cell in cells.items():
                head, column, speed = way(method, batch), f"N = {length}", speeds[method, batch, length]
                if method == name:
                    entries += entry((head, SPEED), label, column, speed, 1)
                    entries += entry((head, VERIFIED), label, column, share(_verified(cell)), 2)
                base = speeds.get((_BASE.get(method), batch, length))
                if method == name and speed and base:
                    gain = Summary(speed.value / base.value, min(speed.n or 0, base.n or 0))
                    entries += entry((head, GAIN), label, column, gain, 1)
    return [*entries, *entry((ONE_STEP, GAIN), PAPER, "average", Summary(published.SPEED_UP), 0, True)]


def _verified(rows: Sequence[Row]) -> list[int]:
    """A one for each text that was decoded exactly, a zero for each that was not."""
    counts = [(row.get("exact_texts", row["exact"]), row["batch"] if "exact_texts" in row else 1) for row in rows]
    return [int(number < exact) for exact, texts in counts for number in range(texts)]


def way(method: str, batch: int | None) -> str:
    """A way to decode: the method, with the number of texts in a batch."""
    return f"{method}, {batch} texts" if batch and batch > 1 else method


def quality(rows: Sequence[Row]) -> list[Entry]:
    """Every score of every way to reconstruct, on the same texts with the same budget."""
    entries = []
    for label, series_rows in series(rows, ("source", "tokens", "method")).items():
        for source in ordered(distinct(series_rows, "source"), SOURCE_LABELS):
            for (length,), texts in by([row for row in series_rows if row["source"] == source], "tokens").items():
                for method in ordered(distinct(texts, "method"), METHOD_ORDER):
                    cell = [row for row in texts if row["method"] == method]
                    for column, (heading, decimals) in QUALITY.items():
                        values = [work(row) if column == "work" else row.get(column) for row in cell]
                        summary = share(values) if column == "exact" else mean(values)
                        head = (SOURCE_LABELS.get(source, source), str(length), method)
                        entries += entry(head, label, heading, summary, decimals)
    return entries


def _ratio(pairs: Sequence[tuple[Row, float, float]]) -> Summary | None:
    one_step, autoregressive = sum(x for _, x, _ in pairs), sum(y for _, _, y in pairs)
    return Summary(one_step / autoregressive, len(pairs)) if autoregressive else None
