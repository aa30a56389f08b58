"""The report's table and figures on the basin: rows written by hand, means worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from prototokens.report.geometry import basin
from prototokens.report.summary import Summary
from study_rows import Row, row, value


def change(amount: float, right: str, **columns: Any) -> Row:
    made = {
        "kind": "noise", "vectors": "e", "draw": 0, "margin": 2.0, "fit_exact": 1, "moved": amount,
        "exact": int("0" not in right), "token_accuracy": right.count("1") / len(right), "lost_margin_rank": None,
    }  # fmt: skip
    return row("basin", method="change", amount=amount, right=right, **made | columns)


CHANGES = [
    *(row("basin", method="fit", margin=2.0, text=text, exact=int(text < 2)) for text in range(4)),
    # Text 0 holds 0.1 and 0.2; text 1 loses a token at 0.1, so that what it holds at 0.2 does not count.
    change(0.1, "1111"), change(0.2, "1111"), change(0.4, "0111", lost_margin_rank=0.25),
    change(0.8, "0001", lost_margin_rank=0.5), change(0.1, "1110", text=1, lost_margin_rank=0.75),
    change(0.2, "1111", text=1), change(0.4, "0110", text=1, lost_margin_rank=1.0), change(0.8, "0000", text=1),
    change(0.1, "0000", text=2, fit_exact=0),
]  # fmt: skip


def test_basin_by_hand() -> None:
    entries = basin.basin(CHANGES)
    noise = basin.CHANGE_NAMES["noise"]
    assert value(entries, basin.NO_CHANGE, "none", "share exact", "margin 2").value == 0.5
    means = {a: value(entries, noise, "e", a, "margin 2").value for a in ("0.1", "0.2", "0.4", "0.8")}
    assert means == {"0.1": 0.875, "0.2": 1.0, "0.4": 0.625, "0.8": 0.125}
    assert value(entries, noise, "e", basin.LARGEST, "margin 2").value == pytest.approx(0.1)  # of 0.2 and 0
    assert value(entries, noise, "e", basin.RANK, "margin 2").value == 0.5  # of 0.25 and 0.75
    assert value(entries, noise, "e", basin.POSITION, "margin 2").value == 0.5  # the first of one, the last of one
    assert value(entries, noise, "e", basin.SMALLEST, "margin 2") is None  # noise goes one way
    assert "margin 2, e: 0.100" in basin.tell_basin(CHANGES)


@pytest.mark.parametrize(
    ("kind", "held", "expected"),
    [
        # Amounts by text, each with what it leaves right.
        ("scaling", [{-0.5: 0, -0.25: 1, 0.5: 1, 1.0: 1, 3.0: 0}, {-0.5: 1, -0.25: 0, 0.5: 1, 1.0: 0, 3.0: 1}],
         {basin.LARGEST: (2.0 + 1.5) / 2, basin.SMALLEST: (0.75 + 1.0) / 2}),
        ("scaling", [{0.5: 1, 1.0: 0}], {basin.LARGEST: 1.5, basin.SMALLEST: None}),
        ("rounding", [{16: 1, 24: 1, 28: 0}, {16: 0, 24: 1, 28: 1}], {basin.SMALLEST: (8 + 32) / 2}),
        ("projection", [{0.1: 1, 0.25: 1, 0.5: 0, 0.9: 0}, {0.1: 1, 0.25: 0, 0.5: 1, 0.9: 0}],
         {basin.SMALLEST: (0.75 + 0.9) / 2}),
    ],
)  # fmt: skip
def test_how_far_each_kind_of_change_may_go_by_hand(
    kind: str, held: list[dict[float, int]], expected: dict[str, float | None]
) -> None:
    rows = [
        change(amount, "11" if right else "01", kind=kind, text=text)
        for text, amounts in enumerate(held)
        for amount, right in amounts.items()
    ]
    entries = basin.basin(rows)
    for side in (basin.LARGEST, basin.SMALLEST):
        result = value(entries, basin.CHANGE_NAMES[kind], "e", side, "margin 2")
        if expected.get(side) is None:
            assert result is None
        else:
            assert (result.value, result.n) == (pytest.approx(expected[side]), len(held))


def test_every_accuracy_stands_beside_how_far_the_vectors_were_moved_mean_over_draws() -> None:
    kind = "random projection"
    rows = [change(0.5, right, kind=kind, draw=draw, moved=moved)
            for draw, (right, moved) in enumerate([("1111", 0.5), ("1100", 0.75), ("0000", 1.0)])]  # fmt: skip
    entries = basin.basin([*rows, change(0.9, "0000", kind=kind, moved=1.25)])
    head = (basin.CHANGE_NAMES[kind], "e")
    assert value(entries, *head, "0.5", "margin 2") == Summary(0.5, 3, 0.5)
    assert value(entries, *head, "0.5", "margin 2, moved") == Summary(0.75, 3, 0.25)
    assert value(entries, *head, "0.1", "margin 2, moved").value == 1.25
    # Draw 0 holds a half, the others nothing: what they lose is told of each draw.
    assert value(entries, *head, basin.SMALLEST, "margin 2").value == pytest.approx((0.5 + 1 + 1) / 3)


@pytest.mark.parametrize(("right", "place"), [("01111", 0.0), ("11110", 1.0), ("11011", 0.5), ("11001", 0.625)])
def test_which_positions_go_first_is_told_from_0_to_1(right: str, place: float) -> None:
    # All are lost after the larger change, and with them the place of any.
    rows = [change(0.1, right, lost_margin_rank=0.25), change(0.2, "00000")]
    result = value(basin.basin(rows), basin.CHANGE_NAMES["noise"], "e", basin.POSITION, "margin 2")
    assert result == Summary(place, 1)


def test_positions_that_go_first_by_hand() -> None:
    noisy = [change(0.1, "1101"), change(0.1, "1100", text=1), change(0.4, "0000"), change(0.4, "1000", text=1)]
    words = basin.tell_positions(noisy)
    assert "margin 2, e: 2 (0.00 right), 3 (0.25 right), 1 (0.50 right)" in words


@pytest.mark.parametrize(
    ("kind", "amount", "shown"),
    [("noise", 0.4, 0.4), ("scaling", -0.75, 0.25), ("scaling", 3, 4), ("rounding", 28, 4), ("projection", 0.9, 0.1)],
)
def test_amounts_as_a_reader_wants_them(kind: str, amount: float, shown: float) -> None:
    assert basin.shown_amount(kind, amount) == shown
