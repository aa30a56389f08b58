"""The report's tables and figures on where solutions lie and what they know, in their order."""

from __future__ import annotations

from ...study import published
from ..exhibit import Figure, Table
from . import basin, connectivity, interpolation, locality, reading, roles, structure

GEOMETRY: tuple[Table | Figure, ...] = (
    Figure(
        "figure-5",
        "Figure 5: distance of vectors and distance of texts",
        "Cosine distance of the vectors of two solutions against the distance of their texts, token by token "
        "(TF-IDF) and in meaning (all-MiniLM-L6-v2). Each point is a pair of exact solutions. The paper: at equal "
        "text distance, pairs of the same context lie slightly closer.",
        "locality",
        locality.draw_likeness,
        locality.tell_likeness,
    ),
    Table(
        "table-figure-5",
        "Figure 5 in numbers",
        "Correlation of the cosine distance of the vectors with the distance of the texts. Closer by: how much "
        "closer pairs of the same context lie at equal text distance (least squares, one slope for both kinds). 95 "
        "% intervals are over resampled contexts. n counts pairs of exact solutions.",
        "locality",
        ("start", "text distance", "quantity"),
        locality.likeness,
        comparable=False,
    ),
    Figure(
        "figure-6",
        "Figure 6: locality",
        "Density of the cosine distance of two solutions: of one text, of two continuations of one context, and of "
        "different contexts. Each tick is a pair of exact solutions. AUC: the probability that a pair of the same "
        "text lies closer than a pair of the same context, with the 95 % interval over resampled contexts; 0.5 is "
        "chance. A start that is learned or made from the text brings solutions of one text together by itself. "
        "Random starts (normal, vocabulary) do not.",
        "locality",
        locality.draw_locality,
        locality.tell_locality,
    ),
    Table(
        "table-figure-6",
        "Figure 6 in numbers",
        "Distance: mean and standard deviation by kind of pair. AUC: how well distances tell a kind of pair from "
        "another, with the 95 % interval over resampled contexts. Before the fit: the same for the starts of these "
        "pairs. Labels shuffled: the control, the mean AUC over 1,000 shuffles of which pair is of which kind, and "
        "the bounds of 95 % of them. Pairs share solutions and this interval ignores it, so it is too narrow. n "
        "counts pairs of exact solutions.",
        "locality",
        ("start", "distance", "quantity"),
        locality.locality,
        comparable=False,
    ),
    Figure(
        "figure-7",
        "Figure 7: connectivity",
        "Token accuracy and loss on the way between two solutions of one text from different seeds: along the "
        "straight segment, and along a fitted curve. Thin lines are pairs of exact solutions, thick lines their "
        "means, bands one standard deviation over pairs. The segment is the control: nothing is fitted on it. In "
        f"the paper the segment {published.FIGURE_7['segment']}, and a quadratic Bezier curve "
        f"{published.FIGURE_7['bezier']}.",
        "connectivity",
        connectivity.draw_connectivity,
        connectivity.tell_connectivity,
    ),
    Table(
        "table-figure-7",
        "Figure 7 in numbers",
        "Lowest accuracy: the lowest token accuracy of all places scored on a way. Mean accuracy between the ends: "
        "of those places without both ends. Share whole: of the pairs, those whose way is right at every place. "
        "Barrier: the highest loss on the way less the mean of both ends. Length: over the segment's, mean and "
        "longest. Steps: of the curve's fit. Means and standard deviations are over pairs of exact solutions, and n "
        "counts them. Pairs share solutions and intervals ignore it, so these are too narrow. The paper: all pairs "
        f"of {published.FIGURE_7_SOLUTIONS} solutions of each of {published.FIGURE_7_TEXTS} texts.",
        "connectivity",
        ("way",),
        connectivity.connectivity,
        order=(connectivity.SOLUTIONS, *connectivity.WAYS.values()),
    ),
    Figure(
        "figure-interpolation",
        "Interpolation: between and beyond the vectors of two texts",
        "What is decoded where the vectors of a first text, at tau 0, are moved on a straight line to those of a "
        "last one, at tau 1, and beyond. Moved are both vectors, e alone or m alone; the other vector stays the "
        "first text's. The share of tokens, position by position, that agree with the first text, with the last "
        "and, as a control, with the grid's other texts on average. Lines are means over pairs of exact texts, "
        "bands one standard deviation. Dotted: the two ends. The paper has no such figure.",
        "interpolation",
        interpolation.draw_interpolation,
        interpolation.tell_interpolation,
    ),
    Table(
        "table-interpolation",
        "Interpolation in numbers",
        "The same at some places tau. Share whole at its end: of the pairs, those in which all tokens of a text are "
        "right at its own end (the first at tau 0, the last at tau 1), with its 95 % interval. Whole from and to: "
        "for these pairs, the lowest and highest tau up to which the text stays whole without a gap, of the places "
        "scored; below 0 and above 1 is beyond the ends. Means and standard deviations are over pairs of exact "
        "texts, and n counts them. Pairs share texts and intervals ignore it, so these are too narrow. Nothing "
        "moved: the share of exact fits.",
        "interpolation",
        ("moved", "compared with"),
        interpolation.interpolation,
        comparable=False,
        order=(interpolation.NOT_MOVED, *interpolation.VECTOR_LABELS.values()),
    ),
    Figure(
        "basin",
        "The basin: how far vectors may be moved",
        "Mean token accuracy after a change of e alone, m alone or both, over texts that were exact and over draws. "
        "Changes are noise of some share of a vector's own length, a factor, fewer bits, and a projection onto the "
        "first principal directions of the model's embeddings. Random directions are the projection's control. They "
        "and noise are drawn several times. Line styles are the margins, in logits, that fits were to reach. "
        "Dotted: accuracy 0.99. The paper has no such figure.",
        "basin",
        basin.draw_basin,
        basin.tell_basin,
    ),
    Figure(
        "basin-positions",
        "The basin in detail: which tokens are lost first",
        "The share of texts and draws in which a token is still right, by its position and by the amount of noise, "
        "in lengths of the vector. Only texts that were exact without noise count. The paper has no such figure.",
        "basin",
        basin.draw_positions,
        basin.tell_positions,
    ),
    Table(
        "table-basin",
        "The basin in numbers",
        "Mean token accuracy after a change, over texts that were exact and over draws. Moved: how far the change "
        "moved the vectors, in their own length. Largest and smallest still exact: for each text and draw the "
        "amount furthest from no change at which it and all nearer amounts leave the text exact; no change itself "
        "(noise 0, factor 1, 32 bits, all directions) where the nearest does not. The mean of these is shown. What "
        "goes first: of the changes that lose some tokens and not all, the one that moves least. Margin rank is the "
        "mean rank of the lost tokens by their margin before it: 0 is the smallest, 1 the largest. Position is "
        "their mean position: 0 is the first, 1 the last. Both are 0.5 on average if tokens are lost at random. "
        "None: the share of exact fits, with its 95 % interval. The paper has no such table.",
        "basin",
        ("change", "vectors", "amount"),
        basin.basin,
        comparable=False,
        order=(basin.NO_CHANGE, *basin.CHANGE_NAMES.values()),
    ),
    Table(
        "swaps",
        "Roles: e of one text, m of another",
        "What e of one text decodes to with m of another text of the same length, both exact before. It is compared "
        "token by token with both texts and, as a control, with the mean of other texts of the same kinds. Beside "
        "it stands each e with the m of the same text. Tokens in common: at whatever positions. Tokens that differ: "
        "the share of distinct tokens in what is decoded. Means and standard deviations are over pairs. Bondarenko "
        f"et al. (2026) find that {published.ROLES}.",
        "roles",
        ("m from", "compared with"),
        roles.swaps,
        comparable=False,
    ),
    Figure(
        "figure-swaps",
        "Roles: whose text is decoded",
        "Accuracy and tokens in common with the text of e, with the text of m, and with others of the same kinds "
        "(the control): mean and standard deviation over pairs of two exact texts.",
        "roles",
        roles.draw_swaps,
        roles.tell_swaps,
    ),
    Table(
        "probes",
        "Roles: what a linear probe reads",
        "Score of a linear probe on texts that it was not fitted on. n counts chunks of text, exact or not. "
        "Controls: the same probe on shuffled labels, mean and standard deviation over shuffles, and the share of "
        "shuffles that the probe beats; the score of knowing nothing (chance); and a probe of the text's mean "
        f"embedding. Bondarenko et al. (2026) find that {published.ROLES}.",
        "roles",
        ("read out", "from"),
        roles.probes,
        comparable=False,
        order=tuple(roles.TARGET_LABELS.values()),
    ),
    Figure(
        "figure-probes",
        "Roles: probes beside their controls",
        "Score of a linear probe by the vectors that it reads, and of the same probe on shuffled labels, mean and "
        "standard deviation over shuffles.",
        "roles",
        roles.draw_probes,
        roles.tell_probes,
    ),
    Figure(
        "attention",
        "Roles: attention",
        "The share of the attention of later positions that goes to where e stands, and to position 0, by attention "
        "layer and head: mean over texts and positions. Layers and heads are counted from 0, and layers without "
        "attention weights are left out. The control is ordinary text, with a token of its own at that position. "
        "The paper has no such figure.",
        "roles",
        roles.draw_attention,
        roles.tell_attention,
    ),
    Table(
        "table-attention",
        "Attention in numbers",
        "The same over all heads: their mean, the head with the most and its layer, and the share if each position "
        "attended evenly to itself and all before it. n counts texts.",
        "roles",
        ("attention to", "inputs"),
        roles.attention,
        comparable=False,
        order=tuple(roles.PLACE_LABELS.values()),
    ),
    Table(
        "reading",
        "Reading without decoding",
        "Ordinary generation from the vectors of exact texts, compared without its first token. Cosine distance to "
        "the text's own tokens or context, and the mean distance to those of the batch's other texts. AUC: the "
        "share of these others that lie farther; 0.5 is chance. Means and standard deviations are over texts. First "
        "token right: where e comes last, it was fitted to be. The control begins with the text's first token "
        "instead of vectors. The paper finds text unrelated to the original.",
        "reading",
        ("begins with", "generation", "compared with"),
        reading.reading,
        comparable=False,
    ),
    Figure(
        "figure-reading",
        "Reading without decoding: own and other texts",
        "AUC of the distance to the own text, or context, against the distance to the others, by what generation "
        "begins with, without and with BOS in front: mean and standard deviation over texts, greedy and sampled. "
        "Dotted: chance. The control begins with the text's first token.",
        "reading",
        reading.draw_reading,
        reading.tell_reading,
    ),
    Figure(
        "structure",
        "Structure: following a teacher",
        "Mean token accuracy against how closely e or m follows a teacher's sentence embeddings. Each point is a "
        "weight of the auxiliary loss, which is written beside it; 0 is the control without that loss. Left: the "
        "cosine with an anchor, a fixed projection of the embedding. Right: the correlation, over pairs of texts, "
        "of the vectors' cosines with the teacher's. Bondarenko et al. (2026) find, for e, that the anchor "
        f"{published.TEACHING['anchor']} and relational distillation {published.TEACHING['relational']}.",
        "structure",
        structure.draw_trade,
        structure.tell_trade,
    ),
    Table(
        "table-structure",
        "Structure in numbers",
        "What an auxiliary loss costs and what it achieves: means and standard deviations over chunks of text. "
        "Share exact: with its 95 % interval. Error of cosines: root mean square difference between a chunk's "
        "cosines to the others and the teacher's. The correlation is one number for all chunks. With the teacher "
        "shuffled: mean and standard deviation over shuffles. All fits take the same least number of steps. Rows "
        "without a loss are the control.",
        "structure",
        ("loss", "vector", "weight"),
        structure.trade,
        comparable=False,
        order=(structure.PLAIN, *structure.LOSS_LABELS.values()),
    ),
    Table(
        "neighbours",
        "Structure: finding the neighbour",
        "The share of chunks whose nearest chunk, by the cosine of e, m or both, is their neighbour in the text, "
        "with its 95 % interval. Controls: the mean embedding of the chunk, the teacher itself, and chance. n "
        "counts chunks. The paper has no such table.",
        "structure",
        ("loss", "vector", "weight"),
        structure.retrieval,
        comparable=False,
        order=(structure.PLAIN, *structure.LOSS_LABELS.values()),
    ),
    Figure(
        "figure-neighbours",
        "Structure: finding the neighbour, by weight",
        "The same for the vector that the auxiliary loss acts on, against its weight; 0 is without that loss. "
        "Dotted: chance.",
        "structure",
        structure.draw_retrieval,
        structure.tell_retrieval,
    ),
)
