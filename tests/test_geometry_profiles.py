"""Profiles: scores along a path, against values worked out from known logits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from families import analytic, tokenizer
from prototokens import FrozenLM, InputError, decode
from prototokens.geometry.paths import segment
from prototokens.geometry.profiles import even_taus, profile
from ring import RingLM, on_the_ring
from solutions import solution

TEXT = "abc"


@pytest.fixture(scope="module")
def ring() -> FrozenLM:
    return FrozenLM(RingLM(), tokenizer())


def test_the_segment_s_losses_are_those_of_the_formula(ring):
    path = replace(segment(on_the_ring(ring, 0), on_the_ring(ring, 180)), target_ids=torch.tensor([3, 5]))
    scores = profile(ring, path, even_taus(5))
    radii = (1 - 2 * scores.taus).abs()
    logits = torch.tensor([4.0] + 7 * [0.0], dtype=torch.float64).repeat(5, 1)
    logits[:, 3] = 8 * radii**2
    first = F.cross_entropy(logits, torch.full((5,), 3), reduction="none")
    second = F.cross_entropy(torch.tensor([[4.0, 0, 0, 0, 0, 8, 0, 0]]), torch.tensor([5]))
    assert torch.allclose(scores.loss_nats.double(), (first + second) / 2, atol=1e-5)
    assert scores.token_accuracy.tolist() == [1, 0.5, 0.5, 0.5, 1]
    assert scores.lowest_accuracy == 0.5
    assert scores.barrier == pytest.approx(((first[2] - first[0]) / 2).item(), abs=1e-5)


def test_a_profile_says_what_it_needs(llama):
    lm, path = llama, segment(solution(llama, TEXT), solution(llama, TEXT, seed=2))
    with pytest.raises(InputError, match="this path has no target_ids of its own"):
        profile(lm, path)
    ids = decode(lm, solution(lm, TEXT)).ids
    with pytest.raises(InputError, match=r"target_ids is \(4,\); it must be \(T,\) with T from 1 to 3"):
        profile(lm, path, target_ids=lm.encode("abcd"))
    with pytest.raises(InputError, match=r"a barrier needs taus from 0 to 1; these run from 0 to 0\.5"):
        _ = profile(lm, path, even_taus(3, 0, 0.5), ids).barrier
    with pytest.raises(InputError, match="these proto-tokens belong to"):
        profile(analytic(), path, target_ids=ids)
    whole, prefix = profile(lm, path, target_ids=ids), profile(lm, path, target_ids=ids[:2])
    assert torch.equal(whole.ids, prefix.ids)
    assert prefix.token_accuracy[0] == 1


def test_a_profile_does_not_depend_on_how_it_is_cut(llama, monkeypatch):
    lm, ids = llama, llama.encode(TEXT)
    path = replace(segment(solution(lm, TEXT), solution(lm, TEXT, seed=2)), target_ids=ids)
    whole = profile(lm, path)
    monkeypatch.setattr("prototokens.geometry.profiles.POSITIONS_AT_ONCE", 1)
    cut = profile(lm, path)
    assert cut.loss_nats.allclose(whole.loss_nats, atol=1e-5)
    assert torch.equal(cut.ids, whole.ids)
    assert whole.barrier >= 0
