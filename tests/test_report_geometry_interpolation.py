"""The report's table and figure on interpolation: rows written by hand, means worked out by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prototokens.report.drawing import style
from prototokens.report.geometry import interpolation
from prototokens.report.geometry.profiles import even_taus, means
from prototokens.report.summary import Summary
from study_rows import Row, row, value

E_AND_M, E = interpolation.VECTOR_LABELS["both"], interpolation.VECTOR_LABELS["e"]
FIRST, LAST, OTHER = interpolation.TEXT_LABELS.values()


def line(first: list[float], last: list[float], other: list[float] | None, **columns: Any) -> Row:
    """A line through the vectors of two exact texts, looked at where tau is -0.5, 0, 0.5, 1 and 1.5."""
    made = {
        "vectors": "both", "other_text": 1, "taus": 5, "tau_from": -0.5, "tau_to": 1.5, "both_exact": 1,
        "first_accuracies": json.dumps(first), "last_accuracies": json.dumps(last),
        "other_accuracies": other and json.dumps(other), "first_from": 0.0, "first_to": 0.0, "last_from": 1.0,
        "last_to": 1.0,
    }  # fmt: skip
    return row("interpolation", method="segment", **made | columns)


LINES = [
    row("interpolation", method="fit", exact=1), row("interpolation", method="fit", text=1, exact=1),
    row("interpolation", method="fit", text=2, exact=0), row("interpolation", method="fit", text=3, exact=1),
    line([0.5, 1, 0.25, 0, 0], [0, 0, 0.25, 1, 0.5], [0, 0.125, 0, 0, 0]),
    line([1, 1, 0.75, 0, 0], [0, 0, 0.5, 1, 1], [0, 0.375, 0, 0, 0.5], other_text=3, first_from=-0.5, last_to=1.5,
         last_from=0.5),
    line([0, 0.5, 0, 0, 0], [0, 0, 0, 0.5, 0], [1, 1, 1, 1, 1], other_text=2, both_exact=0),
    line([1, 1, 1, 0.5, 0], [0, 0, 0, 0.25, 0], None, vectors="e", first_from=-0.5, first_to=0.5, last_from=None,
         last_to=None),
]  # fmt: skip


def test_means_are_over_pairs_whose_texts_are_both_exact() -> None:
    entries = interpolation.interpolation(LINES)
    assert value(entries, interpolation.NOT_MOVED, interpolation.ITSELF, "share exact").value == 0.75
    expected = {
        (FIRST, "tau -0.5"): 0.75, (FIRST, "tau 0"): 1, (FIRST, "tau 0.5"): 0.5, (FIRST, "tau 1"): 0,
        (LAST, "tau 0"): 0, (LAST, "tau 0.5"): 0.375, (LAST, "tau 1"): 1, (LAST, "tau 1.5"): 0.75,
        (OTHER, "tau 0"): 0.25, (OTHER, "tau 1.5"): 0.25,
        (FIRST, interpolation.AT_END): 1, (FIRST, interpolation.FROM): -0.25, (FIRST, interpolation.TO): 0,
        (LAST, interpolation.AT_END): 1, (LAST, interpolation.FROM): 0.75, (LAST, interpolation.TO): 1.25,
    }  # fmt: skip
    for where, mean in expected.items():
        result = value(entries, E_AND_M, *where)
        assert (result.value, result.n) == (pytest.approx(mean), 2), where
    assert value(entries, E_AND_M, FIRST, "tau 0.5").sd == pytest.approx(0.125**0.5)


def test_a_text_that_is_never_whole_reaches_nowhere_and_two_texts_have_no_control() -> None:
    entries = interpolation.interpolation(LINES)
    assert value(entries, E, LAST, "tau 1") == Summary(0.25, 1)
    assert value(entries, E, LAST, interpolation.AT_END).value == 0
    assert value(entries, E, LAST, interpolation.FROM) is None
    assert value(entries, E, FIRST, interpolation.TO) == Summary(0.5, 1)
    assert value(entries, E, OTHER, "tau 0") is None
    assert not [e for e in entries if e.row == (E, OTHER)]


def test_the_words_say_the_shares_and_how_far_a_text_is_whole() -> None:
    words = interpolation.tell_interpolation(LINES)
    assert (
        f"{E_AND_M}, 2 pairs, {FIRST}: 0.75 at tau -0.5, 1.00 at tau 0, 0.50 at tau 0.5, 0.00 at tau 1, "
        "0.00 at tau 1.5, whole from -0.25 to 0.00 on average over 2 pairs"
    ) in words
    assert f"{E_AND_M}, 2 pairs, {OTHER}: 0.00 at tau -0.5, 0.25 at tau 0" in words
    assert f"{E}, 1 pairs, {LAST}: 0.00 at tau -0.5" in words
    assert "0.25 at tau 1, 0.00 at tau 1.5, whole at its end in no pair" in words
    assert interpolation.tell_interpolation([]).endswith("Nothing was measured.")


def test_the_figure_has_a_panel_for_each_way_of_moving_with_the_means_on_it() -> None:
    with style():
        figure = interpolation.draw_interpolation(LINES)
    of_both, e = figure.axes
    assert [ax.get_title() for ax in (of_both, e)] == [E_AND_M, E]
    drawn = {line.get_label(): line for line in of_both.get_lines() if not line.get_label().startswith("_")}
    assert {name: list(one.get_ydata()) for name, one in drawn.items()} == {
        FIRST: [0.75, 1, 0.5, 0, 0],
        LAST: [0, 0, 0.375, 1, 0.75],
        OTHER: [0, 0.25, 0, 0, 0.25],
    }
    assert list(drawn[FIRST].get_xdata()) == [-0.5, 0, 0.5, 1, 1.5]
    assert OTHER not in {line.get_label() for line in e.get_lines()}


def test_pairs_of_inexact_texts_alone_give_nothing() -> None:
    rows = [made | {"both_exact": 0} for made in LINES if made["method"] == "segment"]
    assert interpolation.interpolation(rows) == []
    assert interpolation.draw_interpolation(rows) is None


def test_lines_of_other_places_or_margins_are_no_average() -> None:
    for change in ({"tau_to": 2.0}, {"margin": 0.01}):
        rows = [*LINES, LINES[4] | change]
        groups = {e.group for e in interpolation.interpolation(rows) if e.row[0] == E_AND_M}
        assert len(groups) == 2


def test_means_along_a_way_pass_over_what_is_not_a_number() -> None:
    rows = [{"x": "[1, null, null]"}, {"x": "[0, 0.5, null]"}, {"x": None}]
    assert {tau: result.value for tau, result in means(rows, "x", 0, 1).items()} == {0.0: 0.5, 0.5: 0.5}
    assert means([], "x") == {}
    assert even_taus(3, -1, 1) == [-1, 0, 1]
