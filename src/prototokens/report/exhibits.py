"""Every table and figure of the report, in its order. Those on where solutions lie are in `geometry/exhibits.py`."""

from __future__ import annotations

from ..study import published
from .exhibit import Figure, Table
from .geometry.exhibits import GEOMETRY
from .reconstruction import comparisons, figures, tables

EXHIBITS: tuple[Table | Figure, ...] = (
    Table(
        "table-1",
        "Table 1: arrangements",
        "Token accuracy by arrangement of e and m and by length N in tokens: mean and standard deviation over texts "
        "and seeds. The paper's numbers are of 50 PG-19 texts.",
        "arrangements",
        ("arrangement",),
        tables.arrangements,
        order=tuple(published.TABLE_1),
    ),
    Table(
        "table-2",
        "Table 2: sharing a vector",
        "Mean token accuracy where the texts of a group share e or m. Best seed: the seed with the highest mean of "
        "each group, then mean and standard deviation over groups. Average: over groups and seeds. The paper's "
        f"numbers are of {published.TABLE_2_TEXTS} PG-19 texts and {published.TABLE_2_SEEDS} seeds.",
        "sharing",
        ("shared", "seeds"),
        tables.sharing,
    ),
    Table(
        "table-3",
        "Table 3: capacity",
        "C is the length of the longest reconstructed text, in tokens. Best: the longest that any text and seed "
        "reached, at token accuracy 0.99 (the one-step paper's definition). Mean: the longest length at which the "
        "mean accuracy over texts and seeds is 0.99 (the cramming paper's), of the lengths measured for every text. "
        "By text: the longest length of each text over its seeds, 0 for a text that was never reconstructed; H_LM "
        "is that of the same prefix. n counts texts and seeds for the first two, texts for the others.",
        "capacity",
        ("source", "m", "quantity"),
        tables.capacity,
    ),
    Table(
        "table-3-search",
        "Capacity by search",
        "The longest prefix with token accuracy 0.99 that a search finds: growth lengthens a text as long as it is "
        "reconstructed, bisection halves the interval of lengths. Means are over texts and seeds. The paper has no "
        "such table.",
        "capacity",
        ("source", "m", "method"),
        tables.searched_capacity,
        order=tuple(tables.SOURCE_LABELS.values()),
    ),
    Figure(
        "figure-1",
        "Figure 1: capacity",
        "Table 3 drawn, our numbers in colour beside the paper's six models. Left: the best length in tokens. "
        "Right: H_LM in nats. Axes are logarithmic. Points at 0 are left out.",
        "capacity",
        figures.draw_capacity,
        figures.tell_capacity,
    ),
    Figure(
        "figure-1-accuracy",
        "Figure 1 in detail: accuracy by length",
        "Mean token accuracy over texts and seeds against length. Bars are standard deviations.",
        "capacity",
        figures.draw_accuracy,
        figures.tell_accuracy,
    ),
    Figure(
        "figure-3",
        "Figure 3: information in one step and autoregressively",
        "H_LM of what is reconstructed, in nats, with equally many vectors. Each point is a text. One step with one "
        "vector uses an m that the texts share. The paper finds in one step, relative to autoregressive cramming, "
        f"{published.H_LM_SHARE['natural']} on natural text and {published.H_LM_SHARE['random']} on random words.",
        "information",
        figures.draw_information,
        figures.tell_information,
    ),
    Table(
        "table-figure-3",
        "Figure 3 in numbers",
        "What is reconstructed in one step and autoregressively: means and standard deviations over texts and "
        "seeds. The ratio is that of the sums over the texts that both have. Cramming paper: tokens at mean "
        "accuracy 0.99.",
        "information",
        ("source", "vectors", "method"),
        comparisons.information,
    ),
    Figure(
        "figure-4",
        "Figure 4: throughput",
        "Tokens per second of decoding, verified output only: mean and standard deviation. Both ways have the same "
        "number of vectors, and long texts are fitted in blocks. Fitting is not counted, "
        f"as in the paper, which finds one-step decoding {published.SPEED_UP} times as fast on average.",
        "throughput",
        figures.draw_throughput,
        figures.tell_throughput,
    ),
    Table(
        "table-figure-4",
        "Figure 4 in numbers",
        "Tokens per second by length N: mean and standard deviation over verified outputs. Share verified: of all "
        "outputs, with its 95 % interval. Times autoregressive: how many times as fast as autoregressive decoding "
        "with a KV cache, where both have verified outputs. n counts texts.",
        "throughput",
        ("decoding", "quantity"),
        comparisons.throughput,
        comparable=False,
        order=comparisons.METHOD_ORDER[:1],
    ),
    Table(
        "table-4",
        "Table 4: the cost of fitting",
        "Seconds, steps and work (positions passed forward and backward) of a fit by length N: mean and standard "
        "deviation over texts and seeds, exact or not. Share exact: of all fits, with its 95 % interval. The "
        "paper's seconds are of one A100 or H100.",
        "cost",
        ("model", "recipe", "quantity"),
        tables.cost,
        comparable=False,
    ),
    Table(
        "quality",
        "Quality of reconstruction",
        "Scores of one-step reconstruction, autoregressive cramming and other parallel decoding, on the same texts "
        "with the same budget: means and standard deviations over texts and seeds. Share exact: with its 95 % "
        "interval. BLEU and chrF run from 0 to 100. Accuracies include the first token. The paper has no such "
        "table.",
        "quality",
        ("source", "tokens", "method"),
        comparisons.quality,
    ),
    *GEOMETRY,
)
