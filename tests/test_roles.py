"""Roles and reading: vectors exchanged, attended to, and read as the beginning of ordinary generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from families import AnalyticLM, analytic, build, family, tokenizer
from prototokens import FrozenLM, InputError, ProtoTokens, decode
from prototokens.arrangements import ARRANGEMENTS
from prototokens.geometry.distances import PARTS
from prototokens.geometry.generation import prompt, read
from prototokens.geometry.swaps import (
    attention_to,
    attention_to_vectors,
    bag_overlap,
    e_places,
    even_attention,
    swapped,
)
from prototokens.lm.identity import hash_ids
from prototokens.proto_tokens import Provenance

WITH_ATTENTION = ["llama", "mistral", "qwen3", "gemma3", "gpt_neox", "gpt2", "opt"]
some_ids = st.lists(st.integers(0, 4), min_size=1, max_size=8).map(torch.tensor)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def solution(
    lm: FrozenLM, text: str = "abcd", arrangement: str = "m,e,m*(n-1)", seed: int = 0, e_tokens: int = 1, **own: Any
) -> ProtoTokens:
    """Vectors, random unless given, that say they hold a text."""
    ids, chosen = lm.encode(text), ARRANGEMENTS[arrangement]
    provenance = Provenance(lm.identity, hash_ids(ids), 1.0, 1.0, 0.0, "float32", None, "normal", seed, {})
    vectors = {
        "e": random(e_tokens, lm.width, seed=seed),
        "m": random(lm.width, seed=seed + 1),
        "fixed": lm.fixed_vectors(chosen.fixed),
    }
    return ProtoTokens(**vectors | own, length=len(ids), arrangement=chosen, provenance=provenance)


def without_bos() -> FrozenLM:
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer().backend_tokenizer)
    return FrozenLM(AnalyticLM(), plain)


def weights_of(lm: FrozenLM) -> list[Tensor]:
    return [value.clone() for value in lm.model.state_dict().values()]


def test_a_swap_with_itself_is_itself_and_two_swaps_change_places(llama):
    a, b = solution(llama), solution(llama, "xyz", seed=5)
    own = swapped(a, a)
    assert torch.equal(own.e, a.e)
    assert torch.equal(own.m, a.m)
    one, other = swapped(a, b), swapped(b, a)
    assert torch.equal(one.e, a.e)
    assert torch.equal(one.m, b.m)
    assert (one.length, other.length) == (a.length, b.length)
    back = swapped(one, other)
    assert torch.equal(back.m, a.m)
    assert back.provenance == a.provenance


def test_on_a_known_model_e_writes_the_first_token_and_m_the_others(known):
    def writing(text: str) -> ProtoTokens:
        rows = known.embed(known.encode(text))
        return solution(known, text, "e,m*(n-1)", e=rows[:1], m=rows[1])

    a, b = writing("abbb"), writing("xyyyyy")
    assert [decode(known, one).exact for one in (a, b)] == [True, True]
    assert decode(known, swapped(a, b)).text == "ayyy"
    assert decode(known, swapped(b, a)).text == "xbbbbb"


def test_vectors_that_do_not_fit_together_are_not_swapped(llama):
    a = solution(llama)
    for other in (solution(family("gpt2")), solution(llama, arrangement="e,m*n")):
        with pytest.raises(InputError, match=r"^e of LlamaForCausalLM in 'm,e,m\*\(n-1\)' and m of .*: a swap needs"):
            swapped(a, other)


@given(some_ids, some_ids)
def test_bags_overlap_by_what_they_share(one, other):
    share = bag_overlap(one, other)
    assert 0 <= share <= 1
    assert share == bag_overlap(other, one)
    assert bag_overlap(one, one.flip(0)) == 1
    assert bag_overlap(one, torch.cat([other, one])) == 1  # of the shorter
    assert bag_overlap(one, other + 5) == 0


def test_a_token_counts_as_often_as_both_have_it():
    assert bag_overlap(torch.tensor([1, 1, 1, 2]), torch.tensor([1, 3, 1, 4, 5])) == 0.5


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_attention_over_all_places_sums_to_1_and_looks_at_nothing_behind(name):
    lm = family(name)
    inputs = random(3, 6, lm.width)
    for layer in lm.attentions(inputs):
        assert torch.allclose(layer.sum(-1), torch.ones(3, 4, 6), atol=1e-5)
        assert (layer >= 0).all()
        assert (layer.triu(1) == 0).all()


@pytest.mark.parametrize("name", WITH_ATTENTION)
@pytest.mark.parametrize("places", [[0], [2], [1, 3], [0, 1, 2, 3, 4]])
def test_attention_to_places_is_the_mean_over_what_stands_behind_them(name, places):
    lm = family(name)
    inputs = random(2, 5, lm.width)
    layers = lm.attentions(inputs)
    found = attention_to(lm, inputs, places)
    assert len(found) == len(layers)
    for heads, layer in zip(found, layers, strict=True):
        behind = range(min(places) + 1, 5)
        own = [layer[:, :, i, [p for p in places if p < i]].sum(-1).mean(0) for i in behind]
        assert torch.allclose(heads, torch.stack(own).mean(0), atol=1e-6)
        assert ((heads >= 0) & (heads <= 1 + 1e-6)).all()


@pytest.mark.parametrize("places", [[0], [3], [1, 2], [0, 2, 4], [5, 1]])
def test_where_attention_is_uniform_it_is_the_even_one(places):
    model = build("llama")
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data.zero_()
    lm = FrozenLM(model, tokenizer())
    expected = even_attention(7, places)
    for heads in attention_to(lm, random(2, 7, lm.width), places):
        assert torch.allclose(heads, torch.full((4,), expected))


def test_even_attention_that_is_known():
    assert even_attention(3, [0]) == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert even_attention(4, [1]) == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert even_attention(4, [0, 2]) == pytest.approx((1 / 2 + 1 / 3 + 2 / 4) / 3)


@pytest.mark.parametrize(
    ("arrangement", "e_tokens", "places"),
    [("m,e,m*(n-1)", 1, [1]), ("m,e,m*(n-1)", 2, [1, 2]), ("(e,m)*n/2", 1, [0, 2]), ("bos,e,m*n", 1, [1])],
)
def test_attention_to_e_is_that_to_its_places(llama, arrangement, e_tokens, places):
    tokens = [solution(llama, text, arrangement, seed, e_tokens) for seed, text in enumerate(("abcd", "xyz."))]
    assert e_places(tokens[0].arrangement.layout(4, e_tokens), e_tokens) == places
    inputs = torch.cat([one.inputs_embeds() for one in tokens])
    for chosen, found in ((places, attention_to_vectors(llama, tokens)), ([0], attention_to_vectors(llama, tokens, 0))):
        for heads, expected in zip(found, attention_to(llama, inputs, chosen), strict=True):
            assert torch.equal(heads, expected)
    alone = [attention_to_vectors(llama, [one]) for one in tokens]
    for heads, *own in zip(attention_to_vectors(llama, tokens), *alone, strict=True):
        assert torch.allclose(heads, torch.stack(own).mean(0), atol=1e-6)


def test_attention_that_is_not_there_is_refused(llama):
    for lm in (family("mamba"), analytic()):
        with pytest.raises(InputError, match="gives no attention weights: choose a model with softmax attention"):
            attention_to_vectors(lm, [solution(lm)])
    inputs = random(1, 5, llama.width)
    with pytest.raises(InputError, match=r"^5 positions: none of them stands behind position 4$"):
        attention_to(llama, inputs, [4])
    for place in (5, -1):
        with pytest.raises(InputError, match=rf"^places are \[{place}\]; they must be from 0 to 4$"):
            attention_to(llama, inputs, [place])
    with pytest.raises(InputError, match="these proto-tokens belong to"):
        attention_to_vectors(llama, [solution(family("gpt2"))])
    for tokens, count in (([solution(llama), solution(llama, "ab")], "2 texts of 2"), ([], "0 texts of 0")):
        with pytest.raises(InputError, match=f"^{count} layouts: look at texts of one length and arrangement$"):
            attention_to_vectors(llama, tokens)


# Of e_1 (0), e_2 (1) and m (2).
ORDERS = {
    "m,e,m*(n-1)": [2, 0, 1],
    "e,m*(n-1)": [0, 1, 2],
    "(e,m)*n/2": [0, 2, 1],
    "bos,e,m*n": [0, 1, 2],
    "e*n": [0, 1, 2],  # it holds no m
}


@pytest.mark.parametrize(("arrangement", "order"), ORDERS.items())
def test_a_prompt_has_each_vector_once_in_the_order_of_the_arrangement(llama, arrangement, order):
    tokens = solution(llama, arrangement=arrangement, e_tokens=2)
    e, m = tokens.e, tokens.m.unsqueeze(0)
    for part, expected in (("both", torch.cat([e, m])[order]), ("e", e), ("m", m)):
        assert torch.equal(prompt(llama, tokens, part), expected)
    bos = llama.fixed_vector("bos").unsqueeze(0)
    for part in PARTS:
        with_bos = prompt(llama, tokens, part, bos=True)
        assert torch.equal(with_bos, torch.cat([bos, prompt(llama, tokens, part)]))


def test_where_e_comes_last_the_first_token_read_is_the_first_that_is_decoded(lm):
    """On every family: the prompt m, e is how the arrangement begins, and both passes see the same."""
    tokens = [solution(lm, seed=seed) for seed in range(3)]
    first = torch.stack([one.ids[0] for one in decode(lm, tokens)])
    assert torch.equal(read(lm, tokens, "both", 3)[:, 0], first)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba"])
def test_greedy_reading_is_the_same_again_and_a_batch_is_the_loop(name):
    lm = family(name)
    tokens = [solution(lm, seed=seed) for seed in range(3)]
    for part in PARTS:
        found = read(lm, tokens, part, 5, bos=True)
        assert found.shape == (3, 5)
        assert torch.equal(found, read(lm, tokens, part, 5, bos=True))
        assert torch.equal(found, torch.cat([read(lm, [one], part, 5, bos=True) for one in tokens]))
        assert torch.equal(found[:, :2], read(lm, tokens, part, 2, bos=True))
    assert read(lm, [], "e", 5).shape == (0, 5)


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama"])
def test_as_many_tokens_are_read_as_there_are_positions(name):
    lm = family(name)
    assert read(lm, [solution(lm)], "both", 63).shape == (1, 63)


def test_reading_leaves_the_model_and_random_states_alone(llama):
    tokens = [solution(llama, seed=seed) for seed in range(2)]
    weights, state = weights_of(llama), torch.get_rng_state()
    sampled = [read(llama, tokens, "both", 8, seed=seed) for seed in (0, 0, 1)]
    read(llama, tokens, "m", 8)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(weights, weights_of(llama), strict=True))
    assert not llama.model.training
    assert not any(parameter.requires_grad for parameter in llama.model.parameters())
    assert torch.equal(sampled[0], sampled[1])
    assert not torch.equal(sampled[0], sampled[2])
    assert all(((ids >= 0) & (ids < llama.vocabulary)).all() for ids in sampled)


def test_what_cannot_be_read_is_refused(llama):
    tokens = solution(llama)

    def refused(message: str, lm: FrozenLM, some: Sequence[ProtoTokens], part: str = "e", count: int = 2, **own: Any):
        with pytest.raises(InputError, match=message):
            read(lm, some, part, count, **own)

    refused(r"^unknown part 'f'; choose one of: e m both$", llama, [tokens], "f")
    refused(r"^count is 0; it must be at least 1$", llama, [tokens], count=0)
    refused(r"^count is 64; after this prompt LlamaForCausalLM has positions for 63", llama, [tokens], "both", 64)
    refused("these proto-tokens belong to", analytic(), [tokens])
    refused(r"^texts with 1 and 2 e-tokens: read them one by one$", llama, [tokens, solution(llama, e_tokens=2)])
    lm = without_bos()
    refused("has no BOS token: read without it$", lm, [solution(lm)], bos=True)
    foreign = replace(tokens.provenance.model, tokenizer_hash="0" * 64)
    other = replace(tokens, provenance=replace(tokens.provenance, model=foreign))
    refused("with another tokenizer vocabulary$", llama, [other])
