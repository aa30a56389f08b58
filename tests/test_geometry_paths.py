"""Paths: what holds for every curve between two points, whatever a model makes of it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from prototokens import InputError, ProtoTokens
from prototokens.arrangements import ARRANGEMENTS
from prototokens.geometry.paths import PATH_KINDS, Path, curve_weights, segment, straight
from prototokens.lm.identity import Identity
from prototokens.proto_tokens import Provenance
from solutions import random

MODEL = Identity("tiny", None, "f" * 64, "t" * 64)
TAUS = torch.linspace(0, 1, 13, dtype=torch.float64)
CURVES = [("segment", 2), ("bezier", 2), ("bezier", 3), ("bezier", 6), ("chain", 2), ("chain", 5)]


def curve(kind: Any, points: int, seed: int = 0) -> Path:
    layout = ARRANGEMENTS["m,e,m*(n-1)"].layout(3, 2)
    return Path(
        kind, random(points, 2, 5, seed=seed), random(points, 5, seed=seed + 1), layout, torch.empty(0, 5), MODEL
    )


def solution(seed: int = 0, **changes: Any) -> ProtoTokens:
    provenance = Provenance(MODEL, "h" * 64, 1.0, 0.5, 0.1, "float32", None, "normal", seed, {})
    arrangement = ARRANGEMENTS["m,e,m*(n-1)"]
    fields = {"e": random(1, 5, seed=seed), "m": random(5, seed=seed + 100), "length": 3, "arrangement": arrangement}
    return ProtoTokens(**{**fields, "provenance": provenance, **changes})


def close(a: Path, taus: Tensor, b: Path, other_taus: Tensor) -> bool:
    pairs = zip(a.points(taus), b.points(other_taus), strict=True)
    return all(torch.allclose(x, y, atol=1e-5) for x, y in pairs)


@pytest.mark.parametrize(("kind", "points"), CURVES)
def test_a_path_begins_and_ends_at_its_ends_bit_for_bit(kind, points):
    path = curve(kind, points)
    for tau, end in ((0, 0), (1, -1)):
        e, m = path.point(tau)
        assert torch.equal(e, path.e[end])
        assert torch.equal(m, path.m[end])


@pytest.mark.parametrize(("kind", "points"), CURVES)
def test_exchanged_ends_give_the_same_curve_the_other_way_round(kind, points):
    path = curve(kind, points)
    back = path.reversed()
    assert close(path, TAUS, back, 1 - TAUS)
    assert back.length() == pytest.approx(path.length(), rel=1e-9)
    assert close(back.reversed(), TAUS, path, TAUS)


@pytest.mark.parametrize(("kind", "points"), CURVES)
def test_weights_sum_to_one_outside_of_the_ends_too(kind, points):
    taus = torch.linspace(-2, 3, 41, dtype=torch.float64).view(1, 41)
    weights = curve_weights(kind, points, taus)
    assert weights.shape == (1, 41, points)
    assert torch.allclose(weights.sum(-1), torch.ones(1, 41, dtype=torch.float64))
    if kind != "segment":
        inside = (taus >= 0) & (taus <= 1)
        assert (weights[inside] >= 0).all()


@pytest.mark.parametrize(("kind", "points"), CURVES)
def test_evenly_spaced_control_points_make_the_segment(kind, points):
    line = curve("segment", 2)
    same = straight(line, kind, points)
    assert close(same, TAUS, line, TAUS)
    assert same.length() == pytest.approx(line.length(), rel=1e-6)
    assert same.ratio == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_a_bezier_with_its_control_point_on_the_segment_is_the_segment(share):
    line = curve("segment", 2)
    e, m = line.point(share)
    bent = replace(
        line, kind="bezier", e=torch.stack([line.e[0], e, line.e[1]]), m=torch.stack([line.m[0], m, line.m[1]])
    )
    assert close(bent, TAUS, line, 2 * TAUS * (1 - TAUS) * share + TAUS**2)
    assert bent.ratio == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("shares", [(0.1,), (0.2, 0.3, 0.9)])
def test_a_chain_through_collinear_points_is_the_segment(shares):
    line = curve("segment", 2)
    e, m = line.points(torch.tensor([0.0, *shares, 1.0]))
    chain = replace(line, kind="chain", e=e, m=m)
    assert chain.ratio == pytest.approx(1, rel=1e-6)
    corners = torch.linspace(0, 1, len(shares) + 2, dtype=torch.float64)
    assert close(chain, corners, line, torch.tensor([0.0, *shares, 1.0], dtype=torch.float64))


@pytest.mark.parametrize(("kind", "points"), CURVES)
def test_length_is_that_of_many_short_chords_and_no_shorter_than_the_segment(kind, points):
    path = curve(kind, points)
    e, m = path.points(torch.linspace(0, 1, 20 * 1000 + 1))
    chords = torch.cat([e.flatten(1), m], dim=1).double().diff(dim=0).norm(dim=-1).sum().item()
    assert path.length() == pytest.approx(chords, rel=1e-4)
    assert path.ratio >= 1 - 1e-9


def test_lengths_that_are_known():
    layout, fixed = ARRANGEMENTS["e,m*(n-1)"].layout(2), torch.empty(0, 1)
    corner = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]])
    chain = Path("chain", corner[:, :1, None], corner[:, 1:], layout, fixed, MODEL)
    assert chain.length() == pytest.approx(7)
    assert chain.ratio == pytest.approx(7 / 5)
    # The parabola (2 tau, 4 tau (1 - tau)), from (0, 0) over (1, 1) to (2, 0).
    arch = torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, 0.0]])
    bezier = Path("bezier", arch[:, :1, None], arch[:, 1:], layout, fixed, MODEL)
    assert bezier.length() == pytest.approx(math.sqrt(5) + math.asinh(2) / 2, rel=1e-5)
    still = replace(bezier, e=torch.zeros(3, 1, 1), m=torch.zeros(3, 1))
    assert still.length() == 0
    assert math.isnan(still.ratio)


def test_paths_continue_outside_of_the_ends():
    a, b = solution(1), solution(2)
    e, m = segment(a, b).point(-0.5)
    assert torch.allclose(e, a.e - 0.5 * (b.e - a.e), atol=1e-6)
    assert torch.allclose(m, a.m - 0.5 * (b.m - a.m), atol=1e-6)
    chain = curve("chain", 3)
    assert torch.allclose(chain.point(1.5)[1], chain.m[2] + (chain.m[2] - chain.m[1]), atol=1e-6)


@pytest.mark.parametrize("vectors", ["both", "e", "m"])
def test_only_the_vectors_that_are_named_move(vectors):
    a, b = solution(1), solution(2)
    e, m = segment(a, b, vectors).point(1)
    assert torch.equal(e, a.e if vectors == "m" else b.e)
    assert torch.equal(m, a.m if vectors == "e" else b.m)


def test_texts_of_different_lengths_are_read_at_the_longer_one():
    path = segment(solution(1), solution(2, length=5))
    assert path.layout.length == 5
    assert path.inputs_embeds(TAUS).shape == (13, 6, 5)


def test_an_input_along_the_path_is_the_arrangement_s():
    a, b = solution(1), solution(2)
    inputs = segment(a, b).inputs_embeds(torch.tensor([0.0, 1.0]))
    assert torch.equal(inputs, torch.cat([a.inputs_embeds(), b.inputs_embeds()]))


OTHERS = {
    "model": (
        {"provenance": replace(solution().provenance, model=replace(MODEL, fingerprint="0" * 64))},
        "a path needs proto-tokens of one model; these belong to tiny (weights ffffffffffff) and tiny (weights 00000",
    ),
    "vocabulary": (
        {"provenance": replace(solution().provenance, model=replace(MODEL, tokenizer_hash="0"))},
        "a path needs proto-tokens of one model",
    ),
    "arrangement": (
        {"arrangement": ARRANGEMENTS["e,m*n"]},
        "a path needs proto-tokens of one arrangement; these have 'm,e,m*(n-1)' and 'e,m*n'",
    ),
    "e-tokens": ({"e": torch.ones(2, 5)}, "a path needs proto-tokens of one number of e-tokens; these have 1 and 2"),
    "namesake": (
        {"arrangement": replace(ARRANGEMENTS["e,m*n"], name="m,e,m*(n-1)")},
        "a path needs proto-tokens of one arrangement; these have two by the name of 'm,e,m*(n-1)'",
    ),
}


@pytest.mark.parametrize(("changes", "message"), OTHERS.values(), ids=OTHERS)
def test_what_no_path_can_join_is_refused(changes, message):
    with pytest.raises(InputError) as error:
        segment(solution(), solution(**changes))
    assert str(error.value).startswith(message)


def test_other_fixed_vectors_and_blocks_of_other_lengths_are_refused():
    arrangement = ARRANGEMENTS["bos,e,m*n"]
    a, b = (solution(arrangement=arrangement, fixed=torch.full((1, 5), value)) for value in (0.0, 1.0))
    with pytest.raises(InputError, match="or other fixed vectors"):
        segment(a, b)
    blocks = [solution(arrangement=ARRANGEMENTS["e*n/2,m*n/2"], length=length) for length in (3, 4)]
    with pytest.raises(InputError, match="texts of 3 and 4 tokens stand at other places"):
        segment(*blocks)
    with pytest.raises(InputError, match="vectors is 'f'; it must be one of: both e m"):
        segment(a, a, "f")  # type: ignore[arg-type]


def test_paths_that_cannot_be_are_refused():
    path = curve("bezier", 3)
    with pytest.raises(InputError, match=f"unknown kind of path 'spline'; choose one of: {' '.join(PATH_KINDS)}"):
        replace(path, kind="spline")
    with pytest.raises(InputError, match="a segment of 3 control points; it needs 2"):
        replace(path, kind="segment")
    with pytest.raises(InputError, match="a chain of 1 control points; it needs at least 2"):
        replace(path, kind="chain", e=path.e[:1], m=path.m[:1])
    with pytest.raises(InputError, match=r"they must be \(P, K, D\) and \(P, D\)"):
        replace(path, m=path.m[:2])
