"""The study of interpolation: its grid, and the laws of its lines through the vectors of two texts."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations
from statistics import fmean
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from families import family
from prototokens import decode
from prototokens.geometry.paths import VECTORS
from prototokens.geometry.swaps import swapped
from prototokens.metrics import token_accuracy
from prototokens.study.geometry import interpolation
from prototokens.study.geometry.interpolation import exact_stretch
from prototokens.study.scales import SCALES
from study_batches import Row, ids_of, measure, of

NAMES = ("first", "last", "other")
TAUS = [-0.5, 0.0, 0.5, 1.0, 1.5]
"""Places of the smallest scale."""


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """The smallest scale, every text exact, with all pairs of three texts in both orders."""
    measured = measure(interpolation, max_steps=300)
    assert all(row["exact"] for row in of(measured, "fit")), "the tiny model solves two tokens"
    return measured


def kept(rows: list[Row]) -> dict[int, Any]:
    return {row["text"]: vectors for row, vectors in rows if row["method"] == "fit"}


def texts(rows: list[Row]) -> dict[int, torch.Tensor]:
    fits = of(rows, "fit")
    return {row["text"]: ids for row, ids in zip(fits, ids_of(fits), strict=True)}


def accuracies(row: dict[str, Any]) -> dict[str, list[float]]:
    return {name: json.loads(row[f"{name}_accuracies"]) for name in NAMES}


@pytest.mark.parametrize("scale", SCALES)
def test_every_text_is_joined_with_those_after_it_once_for_each_way_of_moving(scale):
    grid = interpolation.GRIDS[scale]
    (batch,) = interpolation.lay_out(scale)
    fits = [cell for cell in batch.cells if cell["method"] == "fit"]
    assert [cell["text"] for cell in fits] == list(range(grid.texts))
    for vectors in VECTORS:
        pairs = [(c["text"], c["other_text"]) for c in batch.cells if c.get("vectors") == vectors]
        assert sorted(pairs) == sorted(
            (text, (text + step) % grid.texts) for text in range(grid.texts) for step in range(1, grid.partners + 1)
        )
        assert all(first != last for first, last in pairs)
    assert len(batch.cells) == grid.texts * (1 + grid.partners * len(VECTORS))
    places = interpolation.even_taus(grid.taus, grid.tau_from, grid.tau_to).tolist()
    assert {0.0, 0.5, 1.0} <= set(places)


def test_a_line_begins_at_what_the_first_decodes_to_and_with_both_ends_at_the_last_s(rows):
    lm, vectors = family("llama"), kept(rows)
    for row in of(rows, "segment"):
        shares, ids = accuracies(row), texts(rows)
        ends = [(0.0, row["text"])] + [(1.0, row["other_text"])] * (row["vectors"] == "both")
        for tau, held in ends:
            decoded = decode(lm, vectors[held]).ids
            for name, text in (("first", row["text"]), ("last", row["other_text"])):
                expected = token_accuracy(decoded, ids[text]).item()
                assert shares[name][TAUS.index(tau)] == pytest.approx(expected, abs=1e-6)
        assert row["both_exact"] == 1
        assert row["first_from"] <= 0 <= row["first_to"]
        if row["vectors"] == "both":
            assert row["last_from"] <= 1 <= row["last_to"]


def test_a_line_of_both_the_other_way_round_is_the_mirror_image(rows):
    row_of = {(r["text"], r["other_text"]): r for r in of(rows, "segment") if r["vectors"] == "both"}
    assert set(row_of) == set(permutations(range(3), 2))
    for (first, last), row in row_of.items():
        shares, mirror_shares = accuracies(row), accuracies(row_of[last, first])
        for one, mirrored in (("first", "last"), ("last", "first"), ("other", "other")):
            assert shares[one] == mirror_shares[mirrored][::-1]
        for side, opposite in (("from", "to"), ("to", "from")):
            assert row[f"first_{side}"] == 1 - row_of[last, first][f"last_{opposite}"]


def test_one_vector_moved_all_the_way_is_the_swap_of_roles(rows):
    lm, vectors, ids = family("llama"), kept(rows), texts(rows)
    for row in of(rows, "segment"):
        first, last = row["text"], row["other_text"]
        if row["vectors"] == "both":
            continue
        of_e, of_m = (last, first) if row["vectors"] == "e" else (first, last)
        decoded = decode(lm, swapped(vectors[of_e], vectors[of_m])).ids
        for name, text in (("first", first), ("last", last)):
            expected = token_accuracy(decoded, ids[text]).item()
            assert accuracies(row)[name][TAUS.index(1.0)] == pytest.approx(expected, abs=1e-6)


def test_the_control_at_an_exact_end_is_what_its_text_shares_with_the_others(rows):
    ids = texts(rows)
    for row in of(rows, "segment"):
        shares = [
            token_accuracy(text_ids, ids[row["text"]]).item()
            for text, text_ids in ids.items()
            if text not in (row["text"], row["other_text"])
        ]
        assert accuracies(row)["other"][TAUS.index(0.0)] == pytest.approx(fmean(shares), abs=1e-6)


@pytest.mark.parametrize("shared", [False, True])
def test_the_control_is_0_for_texts_with_no_token_in_common_and_1_for_the_same_ones(shared):
    cells = [{**cell, "max_steps": 300} for cell in interpolation.lay_out("smoke")[0].cells]
    ids = torch.tensor([[10 + 2 * (0 if shared else cell["text"]), 11 + 2 * (0 if shared else cell["text"])]
                        for cell in cells])  # fmt: skip
    for cell, one in zip(cells, interpolation.run(family("llama"), cells, ids), strict=True):
        assert one.columns.get("exact", 1), "the tiny model solves two tokens"
        if cell["method"] == "segment":
            shares = accuracies(one.columns)
            assert shares["other"][TAUS.index(0.0)] == float(shared)
            if shared:
                assert shares["first"] == shares["last"] == shares["other"]


def test_two_texts_have_no_control():
    cells = [c for c in interpolation.lay_out("smoke")[0].cells if 2 not in (c["text"], c.get("other_text"))]
    measurements = interpolation.run(family("llama"), cells, ids_of(cells))
    assert all(one.columns["other_accuracies"] is None for one in measurements[2:])


def test_texts_are_exact_in_whatever_portions_they_are_fitted(rows, monkeypatch):
    monkeypatch.setitem(interpolation.GRIDS, "smoke", replace(interpolation.GRIDS["smoke"], texts_at_once=2))
    again = measure(interpolation, max_steps=300)
    assert [row["text"] for row in of(again, "fit")] == [0, 1, 2]
    for row, other in zip(of(again, "segment"), of(rows, "segment"), strict=True):
        assert row["both_exact"] == other["both_exact"] == 1
        assert accuracies(row)["first"][TAUS.index(0.0)] == 1


def test_inexact_texts_are_scored_and_marked():
    rows = measure(interpolation, max_steps=0)
    assert not any(row["exact"] for row in of(rows, "fit"))
    solved = {row["text"]: row["token_accuracy"] for row in of(rows, "fit")}
    for row in of(rows, "segment"):
        assert row["both_exact"] == 0
        assert row["first_from"] is row["first_to"] is None
        assert accuracies(row)["first"][TAUS.index(0.0)] == pytest.approx(solved[row["text"]])


@pytest.mark.parametrize(
    ("right", "around_0", "around_1"),
    [
        ("01000", (0.0, 0.0), (None, None)),
        ("11100", (-0.5, 0.5), (None, None)),
        ("11011", (-0.5, 0.0), (1.0, 1.5)),
        ("10110", (None, None), (0.5, 1.0)),
        ("11111", (-0.5, 1.5), (-0.5, 1.5)),
    ],
)
def test_a_stretch_goes_as_far_as_all_is_right_without_a_gap(right, around_0, around_1):
    shares = [1.0 if digit == "1" else 0.75 for digit in right]
    assert exact_stretch(TAUS, shares, 0.0) == around_0
    assert exact_stretch(TAUS, shares, 1.0) == around_1


def test_an_end_that_was_not_looked_at_has_no_stretch():
    assert exact_stretch([-0.5, 0.25, 1.0], [1.0, 1.0, 1.0], 0.0) == (None, None)


@given(st.lists(st.booleans(), min_size=5, max_size=5))
def test_a_stretch_around_the_other_end_is_that_of_the_mirror_image(right):
    shares = [float(one) for one in right]
    low, high = exact_stretch(TAUS, shares, 0.0)
    mirrored = exact_stretch(TAUS, shares[::-1], 1.0)
    assert mirrored == ((None, None) if low is None else (1 - high, 1 - low))
