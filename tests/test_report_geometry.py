"""The report's tables and figures on where solutions lie: rows written by hand, means worked out by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prototokens.report.drawing import style
from prototokens.report.exhibit import Entry, Figure, Table, lay_out
from prototokens.report.exhibits import EXHIBITS
from prototokens.report.geometry import connectivity, locality, reading, roles, structure
from prototokens.report.geometry.exhibits import GEOMETRY
from prototokens.report.summary import Summary
from prototokens.study import published
from study_rows import Row, row, solution_studies, value

FIGURES = [exhibit for exhibit in GEOMETRY if isinstance(exhibit, Figure)]
TABLES = [exhibit for exhibit in GEOMETRY if isinstance(exhibit, Table)]


def of_study(exhibit: Figure | Table, rows: list[Row]) -> list[Row]:
    return [made for made in rows if made["study"] == exhibit.study]


def pair(method: str, accuracies: list[float], losses: list[float | None], **columns: Any) -> Row:
    """A way between two solutions, its lowest accuracy and its barrier worked out from the profile."""
    known = [loss for loss in losses if loss is not None]
    made = {
        "fit_seed": 0, "other_seed": 1, "both_exact": 1, "steps": None if method == "segment" else 30,
        "length_ratio": 1.0, "lowest_accuracy": min(accuracies), "barrier_nats": max(known) - known[0],
    }  # fmt: skip
    return row(
        "connectivity",
        method=method,
        accuracies=json.dumps(accuracies),
        losses_nats=json.dumps(losses),
        **made | columns,
    )


WAYS = [
    row("connectivity", method="fit", fit_seed=0, exact=1),
    row("connectivity", method="fit", fit_seed=1, exact=0),
    pair("segment", [1, 0.25, 1], [0.5, 4.5, 0.5]),
    pair("segment", [1, 0.75, 1], [0.5, 2.5, 0.5], other_seed=2),
    pair("segment", [1, 0, 0.5], [0.5, 9.5, 3.5], other_seed=3, both_exact=0),
    pair("bezier", [1, 1, 1], [0.5, 0.75, 0.5], length_ratio=1.125),
    pair("bezier", [1, 0.5, 1], [0.5, None, 0.5], other_seed=2, length_ratio=1.375, steps=50),
    row("connectivity", method="bezier", other_seed=3, both_exact=0, accuracies=None, losses_nats=None),
]


def test_the_mean_accuracy_is_of_the_places_between_the_ends() -> None:
    def between(*ways: list[float]) -> Summary | None:
        rows = [pair("segment", way, [0.5] * len(way), other_seed=n + 1) for n, way in enumerate(ways)]
        return value(connectivity.connectivity(rows), connectivity.WAYS["segment"], connectivity.BETWEEN)

    result = between([1, 0.25, 0, 0.5, 1], [1, 0.75, 1, 0.5, 1])
    assert (result.value, result.n) == (pytest.approx((0.25 + 0.75) / 2), 2)  # with the ends it were 0.7
    assert between([1, 1]) is None  # the ends alone


def test_figure_7_takes_pairs_whose_ends_are_exact() -> None:
    entries = connectivity.connectivity(WAYS)
    segment, curve = connectivity.WAYS["segment"], connectivity.WAYS["bezier"]
    assert value(entries, connectivity.SOLUTIONS, "share exact").value == 0.5
    expected = {
        (segment, "lowest accuracy"): 0.5, (segment, connectivity.BETWEEN): 0.5, (curve, connectivity.BETWEEN): 0.75,
        (segment, "share whole"): 0.0, (segment, "barrier, nats per token"): 3.0,
        (segment, "length / segment's"): 1.0, (curve, "lowest accuracy"): 0.75, (curve, "share whole"): 0.5,
        (curve, "barrier, nats per token"): 0.125, (curve, "length / segment's"): 1.25, (curve, "longest"): 1.375,
        (curve, "steps"): 40.0,
    }  # fmt: skip
    for where, mean in expected.items():
        assert (value(entries, *where).value, value(entries, *where).n) == (pytest.approx(mean), 2), where
    assert value(entries, segment, "steps") is None  # nothing is fitted there
    papers = {(*e.row, e.column): e.summary for e in entries if e.published}
    assert papers == {
        (curve, "accuracy, about"): Summary(published.CURVE_ACCURACY, 5 * 45),
        (curve, "length, at most"): Summary(published.CURVE_LENGTH, 5 * 45),
    }


def test_figure_7_in_words_names_the_worst_place() -> None:
    words = connectivity.tell_connectivity(WAYS)
    assert (
        "straight segment, 2 pairs: lowest accuracy 0.50 at tau 0.50, highest loss 3.50 nats per token at 0.50" in words
    )
    assert "curve, 2 pairs: lowest accuracy 0.75 at tau 0.50, highest loss 0.75 nats per token at 0.50" in words
    assert connectivity.tell_connectivity([]).endswith("Nothing was measured.")


def test_curves_of_other_settings_are_no_average() -> None:
    entries = connectivity.connectivity([*WAYS, pair("bezier", [1, 0, 1], [0.5, 8, 0.5], curve_hash="other")])
    groups = {e.group for e in entries if e.row[0] == connectivity.WAYS["bezier"] and not e.published}
    assert len(groups) == 2


def test_swaps_by_hand() -> None:
    def swap(m_text: int, e: float, m: float, **columns: Any) -> Row:
        made = {"own": int(not m_text), "both_exact": 1, "e_accuracy": e, "m_accuracy": m, "other_accuracy": None}
        overlaps = {"e_overlap": e, "m_overlap": m, "other_overlap": 0.0, "distinct": 0.5}
        return row("roles", method="swap", m_source="old", m_text=m_text, **made | overlaps | columns)

    rows = [swap(0, 1.0, 1.0), swap(1, 0.25, 0.5), swap(2, 0.75, 0.0), swap(3, 0.0, 0.0, both_exact=0)]
    entries = roles.swaps(rows)
    assert value(entries, "the same text", "the text of e", "token accuracy").value == 1.0
    assert value(entries, "another text", "the text of e", "token accuracy").value == 0.5
    assert value(entries, "another text", "the text of m", "tokens in common").value == 0.25
    assert value(entries, "another text", "others of their kinds", "token accuracy") is None
    assert value(entries, "another text", "itself", "tokens that differ").n == 2
    words = roles.tell_swaps(rows)
    assert "0.50 with the text of e, 0.25 with the text of m, 0.00 with others of their kinds" in words


def test_probes_say_how_many_rows_and_shuffles_stand_behind_them() -> None:
    made = {"chance": 0.5, "shuffled": 0.48, "shuffled_sd": 0.04, "beaten": 0.9, "rows": 24, "rows_exact": 20}
    rows = [
        row("roles", method="probe", target="words", features="m", shuffles=20, score=0.625, **made),
        row("roles", method="probe", target="teacher", features="m", shuffles=20, score=None, missing="no teacher"),
    ]
    entries = roles.probes(rows)
    head = (roles.TARGET_LABELS["words"], "m")
    assert value(entries, *head, "score") == Summary(0.625, 24)
    assert value(entries, *head, "shuffled labels") == Summary(0.48, 20, 0.04)
    assert value(entries, *head, "shuffles beaten") == Summary(0.9, 20)
    assert value(entries, *head, "chance") == Summary(0.5)
    assert {e.row for e in entries} == {head}
    assert roles.tell_probes(rows).endswith("words, AUC from m: 0.62, shuffled 0.48.")


def test_attention_names_the_head_with_most_and_what_is_missing() -> None:
    made = {"place": "e", "attention": 0.35, "attention_top": 0.9, "layer_top": 1, "even": 0.2, "texts": 3}
    rows = [
        row("roles", method="attention", inputs="vectors", heads=json.dumps([[0.1, 0.3], [0.1, 0.9]]), **made),
        row("roles", method="attention", inputs="text", place="e", heads=None, missing="the model gives none"),
    ]
    words = roles.tell_attention(rows)
    assert "e and m, where e stands: 0.35 on average, most in attention layer 1, head 1 (0.90)" in words
    assert words.endswith("the model gives none.")
    entries = roles.attention(rows)
    assert value(entries, "where e stands", "e and m", "mean over heads") == Summary(0.35, 3)
    assert value(entries, "where e stands", "e and m", "if attention were even") == Summary(0.2)
    assert {e.row for e in entries} == {("where e stands", "e and m")}


def chunk(number: int, accuracy: float, correlation: float | None, rank: int, **columns: Any) -> Row:
    made = {"loss": "none", "vector": "none", "weight": 0.0, "chunk": number, "candidates": 4, "loss_nats": 0.5}
    followed = {"relation_correlation_e": correlation, "anchor_cosine_e": 0.1 * rank, "rank_e": rank,
                "relation_correlation_shuffled_e": 0.01, "relation_correlation_shuffled_sd_e": 0.1}  # fmt: skip
    return row("structure", token_accuracy=accuracy, exact=int(accuracy == 1), **made | followed | columns)


CHUNKS = [
    chunk(0, 1.0, 0.2, 1), chunk(1, 1.0, 0.2, 3),
    *(chunk(n, 0.5 + n / 4, 0.6, 1, loss="relational", vector="e", weight=10.0) for n in range(2)),
]  # fmt: skip


def test_structure_by_hand() -> None:
    entries, distilled = structure.trade(CHUNKS), (structure.LOSS_LABELS["relational"], "e", "10")
    assert value(entries, "none", "none", "0", "token accuracy") == Summary(1.0, 2, 0.0)
    assert value(entries, *distilled, "token accuracy").value == 0.625
    assert value(entries, *distilled, "share exact").value == 0
    # One number of the whole batch, which each of its rows repeats: no spread, and no count of rows.
    assert value(entries, *distilled, "correlation of cosines, e") == Summary(0.6)
    assert value(entries, *distilled, "the same, teacher shuffled, e") == Summary(0.01, sd=0.1)
    assert value(entries, "none", "none", "0", "cosine with the anchor, e").value == pytest.approx(0.2)
    result = structure.retrieval(CHUNKS)
    assert value(result, "none", "none", "0", "by e").value == 0.5
    assert value(result, *distilled, "by e").value == 1.0
    assert value(result, *distilled, "by chance") == Summary(0.25)
    assert "relational distillation of e: weight 0: 0.20 at accuracy 1.00, weight 10: 0.60 at accuracy 0.62" in (
        structure.tell_trade(CHUNKS)
    )


def test_retrieval_in_words_counts_first_ranks_by_weight() -> None:
    assert "relational distillation of e: 0.50 at weight 0, 1.00 at weight 10" in structure.tell_retrieval(CHUNKS)


def test_a_loss_that_was_not_followed_anywhere_is_not_drawn() -> None:
    rows = [made | {"relation_correlation_e": None} for made in CHUNKS]
    assert structure.draw_trade(rows) is None
    assert structure.tell_trade(rows).endswith("Nothing was measured.")


def solutions(kind: str, distance: float, context: int, other: int, **columns: Any) -> Row:
    names = [f"{start}{measure}_{part}" for start in ("", "start_") for measure in locality.MEASURES
             for part in locality.PARTS]  # fmt: skip
    made = {"both_exact": 1, "tfidf_distance": 0.5, "semantic_distance": 0.5, "fit_seed": 0, "other_seed": 0}
    where = {"start": "normal", "context": context, "other_context": other, "text": context, "other_text": other}
    return row("locality", method="pair", kind=kind, **dict.fromkeys(names, distance) | made | where | columns)


def test_locality_by_hand() -> None:
    rows = [
        solutions("same text", 0.1, 0, 0, other_seed=1), solutions("same text", 0.5, 1, 1, other_seed=1),
        solutions("same context", 0.3, 0, 0), solutions("same context", 0.7, 1, 1),
        solutions("different", 0.9, 0, 1), solutions("different", 0.0, 0, 1, other_text=7, both_exact=0),
    ]  # fmt: skip
    entries = locality.locality(rows)
    assert value(entries, "normal", "cosine", "distance, same text", "e").value == pytest.approx(0.3)
    # 0.1 lies below 0.3 and 0.7, 0.5 below 0.7 alone: three of four.
    near = value(entries, "normal", "cosine", "AUC, same text | same context", "m")
    assert (near.value, near.n) == (0.75, 4)
    far = value(entries, "normal", "cosine", "AUC, same context | different", "both")
    assert (far.value, far.n) == (1.0, 3)


@pytest.mark.parametrize("measure", locality.MEASURES)
def test_starts_stand_beside_the_solutions_in_either_distance(measure: str) -> None:
    distances = {"same text": (0.1, 0.9), "same context": (0.5, 0.7), "different": (0.9, 0.3)}
    rows = [solutions(kind, after, 0, int(kind == "different"), **{f"start_{measure}_m": before})
            for kind, (after, before) in distances.items()]  # fmt: skip
    entries = locality.locality(rows)
    for kind, (after, before) in distances.items():
        assert value(entries, "normal", measure, f"distance, {kind}", "m") == Summary(after, 1)
        assert value(entries, "normal", measure, f"distance, {kind}: {locality.BEFORE}", "m") == Summary(before, 1)
    for near, far in locality.COMPARED_KINDS:  # the descent turns round what lay closer
        assert value(entries, "normal", measure, f"AUC, {near} | {far}", "m").value == 1
        assert value(entries, "normal", measure, f"AUC, {near} | {far}: {locality.BEFORE}", "m").value == 0


def test_figure_5_is_drawn_of_e_of_m_and_of_both() -> None:
    rows = [solutions("different", 0.1, 0, 1, **{f"cosine_{part}": 0.2 + n / 10
                                                for n, part in enumerate(locality.PARTS)})]  # fmt: skip
    with style():
        axes = locality.draw_likeness(rows).axes
    drawn = {ax.get_ylabel().split("\n")[0]: ax.collections[0].get_offsets().tolist() for ax in axes[::2]}
    assert drawn == {
        "cosine distance, e": [[0.5, pytest.approx(0.2)]],
        "cosine distance, m": [[0.5, pytest.approx(0.3)]],
        "cosine distance, both": [[0.5, pytest.approx(0.4)]],
    }


def test_the_control_is_not_scored_for_what_it_was_given() -> None:
    rows = [row("reading", part=part, bos=0, sampled=0, reading="x", first_right=1, tfidf_own_text=0.5)
            for part in ("e", "first")]  # fmt: skip
    entries = reading.reading(rows)
    assert value(entries, "e", "greedy", "text", "first token right").value == 1
    assert value(entries, "first token (control)", "greedy", "text", "TF-IDF, own").value == 0.5
    assert value(entries, "first token (control)", "greedy", "text", "first token right") is None
    words = reading.tell_reading(
        [made | {"semantic_auc_text": auc} for made, auc in zip(rows, (0.75, 0.25), strict=True)]
    )
    assert "from e: own text 0.75" in words
    assert "from first token (control): own text 0.25" in words


def test_reading_is_drawn_apart_with_and_without_bos() -> None:
    auc = {"reading": "x", "part": "e", "sampled": 0, "semantic_auc_context": None}
    rows = [row("reading", bos=bos, semantic_auc_text=0.25 + bos / 2, **auc) for bos in (0, 1)]
    with style():
        panel = reading.draw_reading(rows).axes[0]
        places, names = panel.get_legend_handles_labels()
    assert {name: line[0].get_ydata().tolist() for name, line in zip(names, places, strict=True)} == {
        "semantic": [0.25],
        "semantic, BOS before": [0.75],
    }


def test_rows_that_begin_alike_stand_together() -> None:
    def one(group: str, *head: str) -> Entry:
        return Entry(head, group, "x", Summary(1.0))

    entries = [one("a", "e", "1"), one("a", "m", "1"), one("b", "e", "2"), one("b", "m", "1"), one("b", "m", "2")]
    heads = [head for head, _ in lay_out(entries).rows]
    assert heads == [("e", "1"), ("e", "2"), ("m", "1"), ("m", "2")]
    assert lay_out(entries, order=("m",)).rows[0][0] == ("m", "1")


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_nothing_two_series_and_one_row_are_drawn_too(figure: Figure) -> None:
    rows = of_study(figure, solution_studies())
    smoke_rows = [made | {"scale": "smoke"} for made in rows]
    with style():
        assert figure.draw([]) is None
        two_series = figure.draw([*rows, *smoke_rows])
        two_series.draw_without_rendering()  # lays it out: what does not fit is a warning
        titles = " ".join(ax.get_title() for ax in two_series.axes)
        assert titles.count("tiny (laptop)") == titles.count("tiny (smoke)") > 0
        single = next(drawing for made in rows if (drawing := figure.draw([made])) is not None)
        single.draw_without_rendering()
        assert "tiny" not in " ".join(ax.get_title() for ax in single.axes)  # the page says whose it is
    assert figure.tell([]).endswith("Nothing was measured.")


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_table_has_numbers_under_all_of_its_heads(table: Table) -> None:
    entries = table.make(of_study(table, solution_studies()))
    assert all(len(e.row) == len(table.row_heads) for e in entries)
    assert {e.group for e in entries if not e.published} == {"tiny (laptop)"}
    assert not [e for e in table.make([]) if not e.published]


def test_every_study_of_solutions_has_a_table_and_a_figure() -> None:
    assert set(GEOMETRY) <= set(EXHIBITS)
    studies = {made["study"] for made in solution_studies()}
    assert {table.study for table in TABLES} == studies
    assert {figure.study for figure in FIGURES} == studies
