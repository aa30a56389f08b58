"""The numbers of the report: means, shares and both definitions of capacity, from rows written by hand."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prototokens.report.conditions import by, distinct, ordered, series
from prototokens.report.summary import best_capacity, longest_by_text, mean, mean_capacity, share
from study_rows import row

values = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20)


def grid(*cells: tuple[int, int, int, float]) -> list[dict]:
    """Rows of (text, seed, tokens, accuracy)."""
    return [row("capacity", text=x, seed=s, tokens=t, token_accuracy=a, h_lm_nats=3.0 * t) for x, s, t, a in cells]


@given(values)
def test_mean_and_spread_are_those_of_the_standard_library(result: list[float]) -> None:
    summary = mean(result)
    assert summary is not None
    assert summary.n == len(result)
    assert summary.value == pytest.approx(statistics.fmean(result), abs=1e-6)
    assert summary.sd == pytest.approx(statistics.stdev(result), rel=1e-6, abs=1e-6)


def test_what_is_missing_or_not_finite_does_not_count() -> None:
    assert mean([1.0, None, float("nan"), float("inf"), 3.0]) == mean([1.0, 3.0])
    assert mean([None]) is None
    assert share([]) is None
    alone = mean([5])
    assert (alone.value, alone.n, alone.sd) == (5.0, 1, None)


def test_interval_of_a_share() -> None:
    # Wilson's interval for 9 of 16, worked out by hand from its formula.
    result = share([1] * 9 + [0] * 7)
    assert (result.value, result.n, result.sd) == (0.5625, 16, None)
    assert result.interval == pytest.approx((0.3318, 0.7690), abs=1e-3)
    assert share([0, 0]).interval[0] == 0
    assert share([1, 1]).interval[1] == 1


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_a_share_lies_in_its_interval(result: list[bool]) -> None:
    summary = share(result)
    low, high = summary.interval
    assert 0 <= low <= summary.value <= high <= 1
    other = share([not x for x in result])
    assert other.interval == pytest.approx((1 - high, 1 - low))


def test_both_definitions_of_capacity_by_hand() -> None:
    rows = grid(
        (0, 0, 4, 1.0), (1, 0, 4, 1.0),
        (0, 0, 8, 1.0), (1, 0, 8, 0.985),  # mean 0.9925
        (0, 0, 16, 0.99), (1, 0, 16, 0.9),
        (0, 0, 32, 0.98), (1, 0, 32, 0.2),
    )  # fmt: skip
    assert best_capacity(rows) == 16
    assert mean_capacity(rows) == 8
    longest = longest_by_text(rows)
    assert [result["tokens"] for result in longest] == [16, 4]


def test_capacity_of_what_never_comes_back_is_0() -> None:
    rows = grid((0, 0, 4, 0.5), (1, 0, 4, 0.98))
    assert (best_capacity(rows), mean_capacity(rows), longest_by_text(rows)) == (0, 0, [None, None])
    assert (best_capacity([]), mean_capacity([]), longest_by_text([])) == (0, 0, [])


def test_a_length_that_is_half_done_is_no_capacity_by_the_mean() -> None:
    done = grid((0, 0, 4, 1.0), (1, 0, 4, 1.0), (0, 0, 8, 1.0), (1, 0, 8, 1.0))
    assert mean_capacity(done) == 8
    assert mean_capacity(done[:-1]) == 4
    assert mean_capacity([*done, *grid((0, 0, 16, 1.0))]) == 8
    assert mean_capacity(grid((0, 0, 4, 0.99), (1, 0, 4, 0.99), (2, 0, 4, 0.99))) == 4


cells = st.tuples(st.integers(0, 3), st.integers(0, 1), st.sampled_from((4, 8, 16)), st.sampled_from((0.5, 0.99, 1.0)))


@given(st.lists(cells, max_size=24, unique_by=lambda cell: cell[:3]))
def test_the_best_is_never_shorter_than_the_mean(result: list[tuple[int, int, int, float]]) -> None:
    rows = grid(*result)
    best = best_capacity(rows)
    assert mean_capacity(rows) <= best
    assert max([0, *(x["tokens"] for x in longest_by_text(rows) if x)]) == best
    assert best_capacity(rows[::-1]) == best
    assert mean_capacity(rows[::-1]) == mean_capacity(rows)


def test_rows_of_different_conditions_are_never_averaged() -> None:
    laid_out = ("arrangement", "tokens")
    same = [row("arrangements", arrangement="e*n", text=text) for text in range(2)]
    assert list(series(same, laid_out)) == ["tiny (laptop)"]
    longer = row("arrangements", arrangement="e*n", max_steps=800)
    assert {label: len(result) for label, result in series([*same, longer], laid_out).items()} == {
        "tiny (laptop, max_steps 400)": 2,
        "tiny (laptop, max_steps 800)": 1,
    }
    # A setting that only tells cells of the table apart splits nothing.
    assert len(series([*same, row("arrangements", arrangement="e*n", tokens=9, max_steps=800)], laid_out)) == 1
    # A model, a scale and other weights of the same name always do.
    other_rows = [row("arrangements", arrangement="e*n", **x) for x in ({"model": "b"}, {"scale": "smoke"})]
    assert len(series([*same, *other_rows], laid_out)) == 3
    assert len(series([*same, row("arrangements", arrangement="e*n", fingerprint="0" * 64)], laid_out)) == 2
    assert len(series([*same, row("arrangements", arrangement="e*n", threads=1)], laid_out)) == 1
    assert len(series([*same, row("arrangements", arrangement="e*n", threads=1)], laid_out, more=("threads",))) == 2


def test_order_of_values() -> None:
    rows = [{"x": x} for x in ("b", 16, 4, "a", 8, 4)]
    assert distinct([*rows, {"x": None}, {}], "x") == [4, 8, 16, "a", "b"]
    assert [(value, len(result)) for (value,), result in by(rows, "x").items()] == [
        (4, 2), (8, 1), (16, 1), ("a", 1), ("b", 1),
    ]  # fmt: skip
    assert ordered({"c", "a", "old", "random"}, ("random", "old")) == ["random", "old", "a", "c"]
