"""Changes and robustness: what a change does to vectors, what a known model then decodes, which tokens are lost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from families import analytic, batch, family
from prototokens import FrozenLM, InputError, ProtoTokens, decode
from prototokens.geometry import robustness
from prototokens.geometry.changes import (
    CHANGE_KINDS,
    Change,
    Directions,
    changed,
    distance_moved,
    principal_directions,
    random_directions,
)
from prototokens.geometry.paths import VECTORS
from prototokens.geometry.robustness import decode_changed, lost_margin_rank
from solutions import random, solution

AMOUNTS = {"noise": 0.7, "scaling": -0.4, "rounding": 28.0, "projection": 0.5}


def written(lm: FrozenLM, text: str) -> ProtoTokens:
    """Vectors of the analytic model for a text whose tokens are all the same but for the first."""
    ids = lm.encode(text)
    assert (ids[1:] == ids[1]).all()
    return solution(lm, text, "e,m*(n-1)", e=lm.embed(ids[:1]), m=lm.embed(ids[1]))


def same(a: ProtoTokens, b: ProtoTokens) -> bool:
    return torch.equal(a.e, b.e) and torch.equal(a.m, b.m)


def stacked(tokens: ProtoTokens) -> Tensor:
    return torch.cat([tokens.e, tokens.m.unsqueeze(0)])


@pytest.mark.parametrize("vectors", VECTORS)
@pytest.mark.parametrize("kind", CHANGE_KINDS)
def test_an_amount_of_zero_changes_nothing(llama, kind, vectors):
    tokens = solution(llama)
    after = changed(tokens, Change(kind, 0, vectors))
    assert same(after, tokens)
    assert distance_moved(tokens, after, vectors) == 0


@pytest.mark.parametrize("kind", CHANGE_KINDS)
def test_only_the_vectors_that_are_named_move_and_both_are_e_and_m(llama, kind):
    tokens, directions = solution(llama), random_directions(llama)
    all_moved, e_moved, m_moved = (
        changed(tokens, Change(kind, AMOUNTS[kind], vectors), directions) for vectors in VECTORS
    )
    assert torch.equal(e_moved.m, tokens.m)
    assert torch.equal(m_moved.e, tokens.e)
    assert torch.equal(all_moved.e, e_moved.e)
    assert torch.equal(all_moved.m, m_moved.m)
    assert not (all_moved.e == tokens.e).all()
    assert not (all_moved.m == tokens.m).all()
    assert e_moved.provenance == m_moved.provenance == tokens.provenance


@pytest.mark.parametrize("vectors", VECTORS)
@pytest.mark.parametrize("amount", [0.05, 1.0, 3.5])
def test_noise_has_the_length_that_is_asked_for(llama, amount, vectors):
    tokens = solution(llama, e_tokens=2)
    after = changed(tokens, Change("noise", amount, vectors))
    added = (stacked(after) - stacked(tokens)).norm(dim=-1) / stacked(tokens).norm(dim=-1)  # (K+1,)
    moves = torch.tensor([vectors != "m"] * 2 + [vectors != "e"])
    assert torch.allclose(added, amount * moves.float(), rtol=1e-5)
    assert distance_moved(tokens, after, vectors) == pytest.approx(amount, rel=1e-5)


def test_a_direction_of_noise_is_that_of_its_text_and_draw(llama):
    def direction(tokens: ProtoTokens, draw: int, amount: float = 1.0) -> Tensor:
        added = stacked(changed(tokens, Change("noise", amount, draw=draw))) - stacked(tokens)
        return torch.nn.functional.normalize(added, dim=-1)

    tokens, other = solution(llama), solution(llama, "xyz")
    before = torch.get_rng_state()
    assert torch.allclose(direction(tokens, 0), direction(tokens, 0, 5.0), atol=1e-5)
    assert not torch.allclose(direction(tokens, 0), direction(tokens, 1), atol=0.1)
    assert not torch.allclose(direction(tokens, 0), direction(other, 0), atol=0.1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("amount", [-2.0, -1.0, -0.5, 0.25, 3.0])
def test_scaling_multiplies(llama, amount):
    tokens = solution(llama)
    after = changed(tokens, Change("scaling", amount))
    assert torch.allclose(stacked(after), stacked(tokens) * (1 + amount))
    assert distance_moved(tokens, after, "both") == pytest.approx(abs(amount), rel=1e-5)


@pytest.mark.parametrize(("dropped", "steps"), [(24, 127), (28, 7)])
def test_rounding_to_integers_is_off_by_half_a_step_at_most_and_done_once(llama, dropped, steps):
    tokens = solution(llama)
    after = changed(tokens, Change("rounding", dropped))
    most = stacked(tokens).abs().amax(-1, keepdim=True)
    assert ((stacked(after) - stacked(tokens)).abs() <= most / steps * 0.5001).all()
    assert all(len(row.abs().unique()) <= steps + 1 for row in stacked(after))
    assert torch.allclose(stacked(changed(after, Change("rounding", dropped))), stacked(after), rtol=1e-6)


def test_fewer_bits_are_no_nearer(llama):
    tokens = solution(llama)
    moved = [distance_moved(tokens, changed(tokens, Change("rounding", bits)), "both") for bits in (0, 16, 24, 28)]
    assert moved == sorted(moved)
    half = changed(tokens, Change("rounding", 16))
    assert torch.equal(stacked(half), stacked(tokens).half().float())


def test_directions_are_orthogonal_unit_vectors_on_every_family(lm):
    for directions in (principal_directions(lm), random_directions(lm)):
        assert directions.rows.shape == (lm.width, lm.width)
        assert torch.allclose(directions.rows @ directions.rows.T, torch.eye(lm.width), atol=1e-4)
        assert torch.equal(directions.centre, lm.embedding_statistics.mean)


def test_principal_directions_are_the_widest_first(llama):
    directions = principal_directions(llama)
    rows = llama.embed(torch.arange(llama.vocabulary)) - directions.centre
    spread = (rows @ directions.rows.T).square().mean(0)  # (D,)
    assert (spread.diff() <= 1e-6).all()
    for draw in range(3):
        chosen = random_directions(llama, draw).rows
        for kept in (1, 7, 30):
            assert spread[:kept].sum() >= (rows @ chosen[:kept].T).square().mean(0).sum()
    assert not torch.equal(random_directions(llama, 0).rows, random_directions(llama, 1).rows)
    assert torch.equal(random_directions(llama, 1).rows, random_directions(llama, 1).rows)


@pytest.mark.parametrize("make", [principal_directions, random_directions])
def test_a_projection_goes_to_the_nearest_point_and_stays_there(llama, make):
    directions, vectors = make(llama), random(5, llama.width)
    assert torch.allclose(directions.project(vectors, llama.width), vectors, atol=1e-4)
    assert torch.allclose(directions.project(vectors, 0), directions.centre.expand(5, -1))
    for kept in (1, 20, 47):
        projected = directions.project(vectors, kept)
        assert torch.allclose(directions.project(projected, kept), projected, atol=1e-4)
        assert torch.allclose((vectors - projected) @ directions.rows[:kept].T, torch.zeros(5, kept), atol=1e-4)
        further = directions.project(vectors, kept - 1)
        assert ((vectors - further).norm(dim=-1) >= (vectors - projected).norm(dim=-1) - 1e-4).all()


def test_the_share_of_a_projection_is_what_is_dropped(llama):
    tokens, directions = solution(llama), random_directions(llama)
    for share, kept in ((1e-9, 48), (0.25, 36), (0.5, 24), (1.0, 0)):
        after = changed(tokens, Change("projection", share), directions)
        assert torch.allclose(stacked(after), directions.project(stacked(tokens), kept), atol=1e-5)


def test_what_a_known_model_decodes_after_a_change(known):
    tokens = written(known, "abbb")
    ids = known.encode("abbb")
    changes = [
        Change("scaling", 4.0),  # the largest stays the largest
        Change("scaling", -1.5),  # all are turned round
        Change("scaling", -1.5, "e"),
        Change("scaling", -1.5, "m"),
        Change("rounding", 28),  # ones and zeros
        Change("noise", 0.0),
    ]
    held = decode_changed(known, [tokens] * len(changes), ids.expand(len(changes), -1), changes)
    assert [one.token_accuracy for one in held] == [1, 0, 0.75, 0.25, 1, 1]
    assert [one.moved for one in held] == pytest.approx([4, 1.5, 1.5, 1.5, 0, 0], abs=1e-6)
    assert [one.right.tolist() for one in held[2:4]] == [[False, True, True, True], [True, False, False, False]]
    axes, needed = Directions(torch.zeros(known.width), torch.eye(known.width)), ids.max().item() + 1
    for kept, share in ((needed, 1.0), (needed - 1, 0.25)):  # b, the larger id, lies on the last axis that is needed
        change = Change("projection", 1 - kept / known.width)
        assert decode_changed(known, [tokens], ids.unsqueeze(0), [change], [axes])[0].token_accuracy == share


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_changed_texts_of_a_batch_are_decoded_as_each_alone(name, monkeypatch):
    lm = family(name)
    texts = batch(lm, "abc", "xyz", "Yes")
    tokens = [solution(lm, "abc"), solution(lm, "xyz", seed=5), solution(lm, "Yes", seed=9)]
    targets = torch.stack([decode(lm, one).ids for one in tokens])
    assert all(one.token_accuracy == 1 for one in decode_changed(lm, tokens, targets, [Change("noise", 0)] * 3))
    all_directions = [None, random_directions(lm), None]
    changes = [Change("noise", 0.2), Change("projection", 0.3), Change("rounding", 28, "m")]
    monkeypatch.setattr(robustness, "POSITIONS_AT_ONCE", 8)  # two texts at once
    results = decode_changed(lm, tokens, texts, changes, all_directions)
    for result, before, change, directions, ids in zip(results, tokens, changes, all_directions, texts, strict=True):
        after = changed(before, change, directions)
        assert torch.equal(result.right, decode(lm, after).ids == ids)
        assert result.token_accuracy == pytest.approx((decode(lm, after).ids == ids).float().mean().item())
        assert result.moved == distance_moved(before, after, change.vectors)


def test_ranks_of_lost_margins():
    margins = torch.tensor([3.0, 0.5, 2.0, 9.0, 1.0])

    def rank(*lost: int) -> float | None:
        return lost_margin_rank(margins, ~torch.isin(torch.arange(5), torch.tensor(lost)))

    assert [rank(i) for i in margins.argsort().tolist()] == [0, 0.25, 0.5, 0.75, 1]
    assert rank(1, 4) == pytest.approx(0.125)
    assert rank(1, 3) == pytest.approx(0.5)
    assert rank() is None
    assert rank(0, 1, 2, 3, 4) is None
    assert lost_margin_rank(margins[:1], torch.tensor([False])) is None


def test_margins_that_do_not_matter_rank_in_the_middle_and_only_order_counts():
    margins, ranks = random(6).abs(), []
    for code in range(1, 63):
        right = torch.tensor([bool(code >> i & 1) for i in range(6)])
        rank = lost_margin_rank(margins, right)
        assert rank is not None
        assert 0 <= rank <= 1
        assert rank == lost_margin_rank(margins**3, right)
        ranks.append(rank)
    assert sum(ranks) / len(ranks) == pytest.approx(0.5)  # every set of tokens once


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"kind": "push", "amount": 1}, f"unknown kind of change 'push'; choose one of: {' '.join(CHANGE_KINDS)}"),
    "vectors": ({"kind": "noise", "amount": 1, "vectors": "f"}, "vectors is 'f'; it must be one of: both e m"),
    "bits": ({"kind": "rounding", "amount": 8}, "bits dropped is 8; it must be one of: 0 16 24 28"),
    "noise": ({"kind": "noise", "amount": -1}, "amount of noise is -1; it must be at least 0"),
    "share": ({"kind": "projection", "amount": 1.5}, "share of directions is 1.5; it must be from 0 to 1"),
}


@pytest.mark.parametrize(("fields", "message"), WRONG.values(), ids=WRONG)
def test_changes_that_cannot_be_are_refused(fields, message):
    with pytest.raises(InputError) as error:
        Change(**fields)
    assert str(error.value) == message


def test_what_cannot_be_changed_is_refused(llama):
    tokens = solution(llama)
    with pytest.raises(InputError, match="a projection needs directions: give those of principal_directions or random"):
        changed(tokens, Change("projection", 0.5))
    with pytest.raises(InputError, match="m holds values that are not finite"):
        changed(replace(tokens, m=tokens.m * 1e6), Change("rounding", 16))
    with pytest.raises(InputError, match="these proto-tokens belong to"):
        decode_changed(analytic(), [tokens], llama.encode("abc").unsqueeze(0), [Change("noise", 0.1)])
