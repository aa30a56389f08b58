"""The report's tables and figures on where solutions lie and what they say, in their order."""

from __future__ import annotations

from ...study import published
from ..exhibit import Figure, Table
from . import basin, connectivity, interpolation, locality, reading, roles, structure

GEOMETRY: tuple[Table | Figure, ...] = (
    Figure(
        "figure-5",
        "Figure 5: distance of vectors and distance of texts",
        "Cosine distance of the vectors of two solutions against the distance of their texts, token by token (TF-IDF) "
        "and in meaning (all-MiniLM-L6-v2), each pair of exact solutions a point. The paper: at equal text distance, "
        "pairs of the same context lie slightly closer.",
        "locality",
        locality.draw_likeness,
        locality.tell_likeness,
    ),
    Table(
        "table-figure-5",
        "Figure 5 in numbers",
        "Correlation of the cosine distance of the vectors with the distance of the texts; and by how much pairs of "
        "the same context lie closer at equal text distance (least squares, one slope for both kinds). With 95 % "
        "intervals over resampled contexts; n counts pairs of exact solutions.",
        "locality",
        ("start", "text distance", "quantity"),
        locality.likeness,
        comparable=False,
    ),
    Figure(
        "figure-6",
        "Figure 6: locality",
        "Density of the cosine distance of two solutions of one text, of two continuations of one context, and of "
        "different contexts, exact solutions only; each tick is a pair. AUC: the probability that a pair of the same "
        "text lies closer than one of the same context, with the 95 % interval over resampled contexts; 0.5: nothing "
        "tells them apart. A start that is learned or made from the text puts solutions of one text together by "
        "itself; random ones (normal, vocabulary) do not.",
        "locality",
        locality.draw_locality,
        locality.tell_locality,
    ),
    Table(
        "table-figure-6",
        "Figure 6 in numbers",
        "Mean distance of two solutions by kind of pair, with standard deviation, and how well each kind is told from "
        "the next: AUC of distances with the 95 % interval over resampled contexts. Before the fit: the same of the "
        "starts of those pairs. Labels shuffled: the mean over 1,000 shuffles of which pair is of which kind, and "
        "where 95 % of them lie; pairs share solutions, so that this interval, which takes them as independent, is too "
        "narrow. n counts pairs of exact solutions.",
        "locality",
        ("start", "distance", "quantity"),
        locality.locality,
        comparable=False,
    ),
    Figure(
        "figure-7",
        "Figure 7: connectivity",
        "Token accuracy and loss along the straight segment between two solutions of one text, from different seeds, "
        "and along a curve that is fitted between them: thin lines are pairs of exact solutions, thick ones their "
        "means, bands one standard deviation over pairs. The segment is the control: nothing is fitted on it. In the "
        f"paper the segment {published.FIGURE_7['segment']}, and a quadratic Bezier curve "
        f"{published.FIGURE_7['bezier']}.",
        "connectivity",
        connectivity.draw_connectivity,
        connectivity.tell_connectivity,
    ),
    Table(
        "table-figure-7",
        "Figure 7 in numbers",
        "The lowest token accuracy on each way, of all places that were looked at; the mean accuracy between the ends, "
        "of those places without both ends; the share of pairs whose way is whole, every place of it right; the "
        "barrier, the highest loss on the way less the mean of both ends; the length over the segment's, mean and "
        "longest; and steps of the curve's fit. Means and standard deviations over pairs of exact solutions, n counts "
        "them. Pairs share solutions, so that intervals, which take them as independent, are too narrow. The paper: "
        f"all pairs of {published.FIGURE_7_SOLUTIONS} solutions of each of {published.FIGURE_7_TEXTS} texts.",
        "connectivity",
        ("way",),
        connectivity.connectivity,
        order=(connectivity.SOLUTIONS, *connectivity.WAYS.values()),
    ),
    Figure(
        "figure-interpolation",
        "Interpolation: between and beyond the vectors of two texts",
        "What decodes where the vectors of one text, at tau 0, are moved on a straight line towards those of another, "
        "at tau 1, and beyond either: both vectors, e alone or m alone, the other staying the first text's. Share of "
        "tokens, position by position, that are the first text's, the last's and, as a control, those of the other "
        "texts of the grid, mean of them: means over pairs of exactly fitted texts, bands one standard deviation. "
        "Dotted: the two ends. The paper has no such figure.",
        "interpolation",
        interpolation.draw_interpolation,
        interpolation.tell_interpolation,
    ),
    Table(
        "table-interpolation",
        "Interpolation in numbers",
        "The same at some places tau; the share of pairs in which a text is wholly right at its own end, the first at "
        "tau 0, the last at tau 1, with its 95 % interval; and of those the lowest and the highest tau to which it "
        "stays so without a gap, of the places that were looked at: below 0 and above 1 beyond the ends. Means and "
        "standard deviations over pairs of exact texts, n counts them. Pairs share texts, so that intervals, which "
        "take them as independent, are too narrow. Nothing moved: the share of fits that are exact.",
        "interpolation",
        ("moved", "compared with"),
        interpolation.interpolation,
        comparable=False,
        order=(interpolation.NOT_MOVED, *interpolation.VECTORS.values()),
    ),
    Figure(
        "basin",
        "The basin: how far vectors may be moved",
        "Mean token accuracy, over texts that were exact and over draws, where e alone, m alone or both are "
        "changed: by noise of some share of a vector's own length, a factor, fewer bits, or a projection onto the "
        "first principal directions of the model's embeddings. Random directions are the control of the last; they and "
        "noise are drawn several times. A line style for each margin, in logits, that the fit was to reach; dotted: "
        "accuracy 0.99. The paper has no such figure.",
        "basin",
        basin.draw_basin,
        basin.tell_basin,
    ),
    Figure(
        "basin-positions",
        "The basin in detail: what goes first",
        "Share of texts and directions in which a token is still right, by its position and by the amount of noise, "
        "in lengths of the vector. Texts that were exact without it. The paper has no such figure.",
        "basin",
        basin.draw_positions,
        basin.tell_positions,
    ),
    Table(
        "table-basin",
        "The basin in numbers",
        "Mean token accuracy after a change, over texts that were exact and over draws of noise and of random "
        "directions; beside it how far that moved the changed vectors, over their own length. Largest and smallest "
        "still exact: the mean of the amounts furthest from no change that leave a text exact, as all nearer ones that "
        "were tried do; no change itself (noise 0, factor 1, 32 bits, all directions) where none does. Which tokens go "
        "first, of those changes that lose some and not all the one that moves least: the mean rank of the lost tokens "
        "by their lead before it, 0 the smallest, 1 the largest; and by their position, 0 the first, 1 the last; 0.5 "
        "by chance. None: the share of fits that are exact, with its 95 % interval. The paper has no such table.",
        "basin",
        ("change", "vectors", "amount"),
        basin.basin,
        comparable=False,
        order=(basin.NO_CHANGE, *basin.KINDS.values()),
    ),
    Table(
        "swaps",
        "Roles: e of one text, m of another",
        "What e of one text decodes to with the m of another of the same length, both exact before, compared token by "
        "token with either text and, as a control, with the mean of others of the same kinds; beside it, each e with "
        "its own m. "
        "Tokens in common: whatever their places. Tokens that differ: the share of distinct tokens in what is decoded. "
        f"Means and standard deviations over pairs. Bondarenko et al. (2026) find that {published.ROLES}.",
        "roles",
        ("m from", "compared with"),
        roles.swaps,
        comparable=False,
    ),
    Figure(
        "figure-swaps",
        "Roles: whose text comes back",
        "Accuracy and tokens in common with the text of e, with that of m, and with others of the same kinds (the "
        "control): mean and standard deviation over pairs of two exactly fitted texts.",
        "roles",
        roles.draw_swaps,
        roles.tell_swaps,
    ),
    Table(
        "probes",
        "Roles: what a linear probe reads",
        "Score of a linear probe on texts that it was not fitted on, n counts chunks of text, exact or not. Controls: "
        "the same probe on shuffled labels, mean and standard deviation over shuffles, with the share of them that the "
        "probe beats; the score of knowing nothing (chance); and the mean embedding of the text in the vectors' place. "
        f"Bondarenko et al. (2026) find that {published.ROLES}.",
        "roles",
        ("read out", "from"),
        roles.probes,
        comparable=False,
        order=tuple(roles.TARGETS.values()),
    ),
    Figure(
        "figure-probes",
        "Roles: probes beside their controls",
        "Score of a linear probe by what it reads from, and of the same probe on shuffled labels, mean and standard "
        "deviation over shuffles.",
        "roles",
        roles.draw_probes,
        roles.tell_probes,
    ),
    Figure(
        "attention",
        "Roles: attention",
        "Share of the attention of later positions that goes to where e stands, and to position 0, by attention layer "
        "and head, both counted from 0 (layers without attention weights are left out), mean over texts and "
        "positions. The control is ordinary text, which has a token of its own there. The paper has no such figure.",
        "roles",
        roles.draw_attention,
        roles.tell_attention,
    ),
    Table(
        "table-attention",
        "Attention in numbers",
        "The same over all heads: their mean, the head with most and its layer, and the share that a place would have "
        "if each position attended evenly to itself and all before it. n counts texts.",
        "roles",
        ("attention to", "inputs"),
        roles.attention,
        comparable=False,
        order=tuple(roles.PLACES.values()),
    ),
    Table(
        "reading",
        "Reading without decoding",
        "Ordinary generation from the vectors of exactly fitted texts: cosine distance of what comes after its first "
        "token to the own text or context and, mean, to the others of the batch; AUC: the share of those others that "
        "lie farther, 0.5 by chance. Means and standard deviations over texts. First token right: where e stands last "
        "it was fitted to be. The control begins with the text's first token instead of vectors. The paper finds "
        "text unrelated to the original.",
        "reading",
        ("begins with", "generation", "compared with"),
        reading.reading,
        comparable=False,
    ),
    Figure(
        "figure-reading",
        "Reading without decoding: what is told apart",
        "AUC of the distance to the own text, or context, against that to the others, by what generation begins with, "
        "without and with BOS before it: mean and standard deviation over texts, greedy and sampled; dotted: chance. "
        "The control begins with the text's first token.",
        "reading",
        reading.draw_reading,
        reading.tell_reading,
    ),
    Figure(
        "structure",
        "Structure: following a teacher",
        "Mean token accuracy against how far e or m follows a teacher's sentence embeddings, for each weight of the "
        "further loss, which stands at its point; 0: no such loss, the control. Left the cosine with an anchor, a "
        "fixed projection of the embedding; right the correlation, over pairs of texts, of the vectors' cosines with "
        "the teacher's. Bondarenko et al. (2026) find, for e, that the anchor "
        f"{published.TEACHING['anchor']} and relational distillation {published.TEACHING['relational']}.",
        "structure",
        structure.draw_trade,
        structure.tell_trade,
    ),
    Table(
        "table-structure",
        "Structure in numbers",
        "What a further loss costs and what it reaches, means and standard deviations over chunks of text; the share "
        "that is exact with its 95 % interval. Error of cosines: root mean square difference between a chunk's cosines "
        "to the others and the teacher's. The correlation is one number of all chunks; with the teacher shuffled, mean "
        "and standard deviation over shuffles. All fits take the same least number of steps; the rows without a loss "
        "are the control.",
        "structure",
        ("loss", "vector", "weight"),
        structure.trade,
        comparable=False,
        order=(structure.PLAIN, *structure.LOSSES.values()),
    ),
    Table(
        "neighbours",
        "Structure: finding the neighbour",
        "Share of chunks whose nearest chunk, by the cosine of e, m or both, is their neighbour in the text, with its "
        "95 % interval. Controls: the mean embedding of the chunk, the teacher itself, and chance. n counts chunks. "
        "The paper has no such table.",
        "structure",
        ("loss", "vector", "weight"),
        structure.retrieval,
        comparable=False,
        order=(structure.PLAIN, *structure.LOSSES.values()),
    ),
    Figure(
        "figure-neighbours",
        "Structure: finding the neighbour, by weight",
        "The same for the vector that the further loss is about, against its weight; 0: no such loss. Dotted: chance.",
        "structure",
        structure.draw_retrieval,
        structure.tell_retrieval,
    ),
)
