"""What the papers report, against a second transcription of a sample, and in its own shape."""

from __future__ import annotations

from itertools import pairwise

import pytest

from prototokens.study import published

LLAMA_1B, LLAMA_3B, LLAMA_8B = "Llama 3.2 1B", "Llama 3.2 3B", "Llama 3.1 8B"


def column(model: str) -> int:
    return list(published.MODELS).index(model)


def test_six_models_in_the_paper_s_order() -> None:
    assert [name.split()[-1] for name in published.MODELS] == ["160M", "410M", "1.4B", "1B", "3B", "8B"]
    assert len(set(published.MODELS.values())) == 6


def test_lengths_grow_by_the_square_root_of_two() -> None:
    lengths = published.LENGTHS
    assert (lengths[0], lengths[-1], len(lengths)) == (4, 1448, 18)
    assert all(1.2 < b / a < 1.65 for a, b in pairwise(lengths))


def test_table_1_sample() -> None:
    assert published.TABLE_1["e*n"][2] == (0.45, 0.31)
    assert published.TABLE_1["e*n/2,m*n/2"][4] == (0.12, 0.13)
    assert published.TABLE_1["(e,m)*n/2"][256] == (0.17, 0.34)
    assert published.TABLE_1["e,m*n"][256] == (0.97, 0.15)
    assert published.TABLE_1["e,m*(n-1)"][256] == (0.99, 0.10)
    assert {tuple(row) for row in published.TABLE_1.values()} == {(1, 2, 4, 256)}
    assert len(published.TABLE_1) == 5


def test_table_2_sample() -> None:
    assert published.TABLE_2["e"] == {1: (1.00, 0.98), 16: (0.99, 0.90), 256: (0.99, 0.86)}
    assert published.TABLE_2["m"][256] == (1.00, 0.83)


def test_table_3_sample_and_shape() -> None:
    tokens, nats = published.TABLE_3_TOKENS, published.TABLE_3_NATS
    assert set(tokens) == set(nats) == {(s, m) for s in ("random", "recent", "old", "generated") for m in (False, True)}
    assert {len(row) for row in (*tokens.values(), *nats.values())} == {6}
    assert set().union(*tokens.values()) - {131, 92, 167, 288} <= set(published.LENGTHS)
    assert tokens["random", True][column("Pythia 410M")] == 22
    assert tokens["old", False][column(LLAMA_8B)] == 724
    assert tokens["generated", True][column(LLAMA_3B)] == 362
    assert tokens["recent", True][column(LLAMA_3B)] == 288
    assert nats["random", False][column(LLAMA_8B)] == (2974.4, 298.3)
    assert nats["recent", True][column("Pythia 410M")] == (82.3, 28.1)
    assert nats["old", True][column(LLAMA_1B)] == (456.5, 56.5)
    assert nats["generated", False][column("Pythia 160M")] == (354.1, 72.0)


@pytest.mark.parametrize("source", ["random", "recent", "old", "generated"])
def test_an_m_of_its_own_holds_more_than_a_shared_one(source: str) -> None:
    for with_own_m, with_shared_m in (
        (published.TABLE_3_TOKENS[source, False], published.TABLE_3_TOKENS[source, True]),
        (published.TABLE_3_NATS[source, False], published.TABLE_3_NATS[source, True]),
    ):
        assert all(a > b for a, b in zip(with_own_m, with_shared_m, strict=True))


def test_table_4_and_figures() -> None:
    assert published.TABLE_4[LLAMA_3B] == (14, 18, 28, 78, 261)
    assert published.TABLE_4["Pythia 410M"] == (10, 21, 106)
    assert list(published.TABLE_4) == list(published.MODELS)
    assert published.TABLE_4_LENGTHS == (32, 64, 128, 256, 512)
    assert published.SPEED_UP == 279
    assert (published.FIGURE_7_TEXTS, published.FIGURE_7_SOLUTIONS) == (5, 10)
    assert (published.CURVE_ACCURACY, published.CURVE_LENGTH) == (1.0, 1.2)
    assert list(published.FIGURE_7) == ["segment", "bezier"]
    assert list(published.TEACHING) == ["anchor", "relational"]
    assert published.CRAMMED_TOKENS["old", 1][LLAMA_8B] == 1568
    assert published.CRAMMED_TOKENS["random", 1]["Pythia 1.4B"] == 139
    assert published.CRAMMED_TOKENS["old", 2] == {"Pythia 160M": 192, LLAMA_1B: 1024}
