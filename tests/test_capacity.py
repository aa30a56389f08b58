"""The search for the longest prefix: it finds a capacity that is known, and keeps to its budget."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from families import RECIPE, family
from prototokens import FrozenLM, InputError, Stop, decode, fit
from prototokens.baselines.cramming import CRAMMING, reconstruct
from prototokens.fitting.given import Given
from prototokens.study import prefix_search
from prototokens.study.prefix_search import Trial, autoregressive, bisect, grow, one_step, prefix_h_lm_nats
from prototokens.study.published import LENGTHS

STOP = Stop(max_steps=200, margin=0.01)


class Known:
    """Fits of texts whose capacities are known; a text's first id is its number."""

    def __init__(self, capacities: list[int]) -> None:
        self.capacities = capacities
        self.calls: list[tuple[int, list[Any]]] = []

    def __call__(self, target_ids: Tensor, begin: list[Any], max_steps: int) -> list[Trial]:
        self.calls.append((target_ids.shape[1], begin))
        length = target_ids.shape[1]
        cost = 2 * length * (max_steps + 1)
        numbers = target_ids[:, 0].tolist()
        return [Trial(length, length <= self.capacities[n], 1.0, max_steps, cost, (n, length)) for n in numbers]


def texts(count: int, length: int) -> Tensor:
    return torch.arange(count)[:, None].expand(count, length)


@given(
    capacities=st.lists(st.integers(0, 70), min_size=1, max_size=5),
    length=st.integers(1, 60),
    first=st.integers(1, 20),
    factor=st.floats(1.01, 3),
)
@settings(max_examples=60)
def test_growth_finds_every_capacity(capacities: list[int], length: int, first: int, factor: float) -> None:
    known = Known(capacities)
    for capacity, measured in zip(
        capacities, grow(known, texts(len(capacities), length), 10, first=first, factor=factor), strict=True
    ):
        assert measured.n_tokens == min(capacity, length)
        assert measured.stop_reason == ("text" if capacity >= length else "bound")
        assert measured.bound == (None if capacity >= length else capacity + 1)
        assert measured.work == sum(t.work for t in measured.trials)
        tried = [t.n_tokens for t in measured.trials]
        assert len(set(tried)) == len(tried)
    for _, begin in known.calls:
        assert all(b is None for b in begin) or all(b is not None for b in begin)


def test_growth_continues_from_the_longest_prefix_that_held() -> None:
    known = Known([11])
    measured = grow(known, texts(1, 40), 10, first=8, factor=1.5)[0]
    assert [call for call, _ in known.calls] == [8, 12, 10, 11]
    assert [begin[0] for _, begin in known.calls] == [None, (0, 8), (0, 8), (0, 10)]
    assert measured.vectors == (0, 11)


@given(capacities=st.lists(st.integers(0, 2000), min_size=1, max_size=4), length=st.integers(4, 1500))
@settings(max_examples=60)
def test_bisection_finds_the_longest_length_of_the_grid(capacities: list[int], length: int) -> None:
    for capacity, measured in zip(
        capacities, bisect(Known(capacities), texts(len(capacities), length), 10), strict=True
    ):
        assert measured.n_tokens == max((n for n in LENGTHS if n <= min(capacity, length)), default=0)
        assert len(measured.trials) <= 5


@given(work=st.integers(0, 3000), capacity=st.integers(0, 60))
@settings(max_examples=60)
def test_the_budget_is_never_overspent(work: int, capacity: int) -> None:
    measured = grow(Known([capacity]), texts(1, 60), 10, work=work)[0]
    assert measured.work <= work
    if measured.stop_reason == "work":
        assert measured.n_tokens <= min(capacity, 60)


def test_a_real_search_keeps_to_its_budget() -> None:
    lm = family("llama")
    ids = torch.stack([lm.encode("abcdefgh"), lm.encode("hgfedcba")])
    recipe = replace(RECIPE, restarts=1, stop=STOP)
    for fit_prefixes in (one_step(lm, recipe), autoregressive(lm, replace(CRAMMING, stop=STOP))):
        for measured in grow(fit_prefixes, ids, 200, first=2, work=900):
            assert measured.work <= 900


def test_the_vectors_hold_the_prefix_that_is_reported() -> None:
    lm = family("llama")
    ids = torch.stack([lm.encode("abcdef"), lm.encode("qwerty")])
    for text, measured in zip(ids, grow(one_step(lm, replace(RECIPE, stop=STOP)), ids, 200, first=2), strict=True):
        assert measured.n_tokens >= 2
        e, m = measured.vectors
        tokens = replace(fit(lm, text[: measured.n_tokens], replace(RECIPE, stop=Stop(max_steps=0))).tokens, e=e, m=m)
        assert decode(lm, tokens).ids.tolist() == text[: measured.n_tokens].tolist()
    for text, measured in zip(
        ids, grow(autoregressive(lm, replace(CRAMMING, stop=STOP)), ids, 200, first=2), strict=True
    ):
        assert measured.n_tokens >= 2
        prompt = torch.cat([lm.fixed_vectors(["bos"]), measured.vectors])
        assert reconstruct(lm, prompt[None], measured.n_tokens)[0].tolist() == text[: measured.n_tokens].tolist()


@pytest.mark.parametrize("accuracy", [0.5, 0.99])
def test_a_prefix_is_held_where_the_recipe_s_accuracy_is_reached(accuracy: float, monkeypatch: Any) -> None:
    """Of one step the accuracy of the pass counts, of cramming that of greedy generation."""
    lm = family("llama")
    ids, stop = lm.encode("abcd")[None], Stop(max_steps=2, accuracy=accuracy)
    for name, fitter, field, other in (
        ("fit_batch", one_step(lm, replace(RECIPE, restarts=1, stop=stop)), "token_accuracy", {}),
        ("cram_batch", autoregressive(lm, replace(CRAMMING, stop=stop)), "greedy_accuracy",
         {"teacher_forced_accuracy": 0.75}),
    ):  # fmt: skip
        original = getattr(prefix_search, name)
        for seen in (0.25, 0.5, 0.75, 1.0):
            changes = {field: seen} | dict.fromkeys(other, 1 - seen)
            monkeypatch.setattr(prefix_search, name, lambda *a, f=original, c=changes: [replace(r, **c) for r in f(*a)])
            (trial,) = fitter(ids, [None], 2)
            assert (trial.reached, trial.token_accuracy) == (seen >= accuracy, seen)
            assert (trial.n_tokens, trial.steps) == (4, 2)
        monkeypatch.setattr(prefix_search, name, original)


def test_a_held_m_stays_as_it_is() -> None:
    lm = family("llama")
    m = lm.embedding_statistics.mean
    measured = grow(one_step(lm, replace(RECIPE, stop=STOP), Given(m=m)), lm.encode("abcd")[None], 200, first=1)[0]
    assert measured.n_tokens >= 1
    assert torch.equal(measured.vectors[1], m)


def test_h_lm_of_a_prefix() -> None:
    lm: FrozenLM = family("llama")
    ids = lm.encode("abcdef")
    log_p = lm.next_token_logits(ids[:4]).log_softmax(-1)
    by_hand = -sum(log_p[i, ids[i + 1]].item() for i in range(3))
    assert prefix_h_lm_nats(lm, ids, 4) == pytest.approx(by_hand, rel=1e-5)
    assert prefix_h_lm_nats(lm, ids, 1) == prefix_h_lm_nats(lm, ids, 0) == 0


def test_refusals() -> None:
    known, ids = Known([3]), texts(1, 10)
    with pytest.raises(InputError, match="first is 0; it must be at least 1"):
        grow(known, ids, 10, first=0)
    with pytest.raises(InputError, match="factor is 1; it must be above 1"):
        grow(known, ids, 10, factor=1)
    with pytest.raises(InputError, match="none of the lengths is from 1 to 10"):
        bisect(known, ids, 10, lengths=(16, 32))
    with pytest.raises(InputError, match="shares no vector"):
        one_step(family("llama"), RECIPE, Given(share="m"))
