"""Swaps and attention: e of one text with m of another, and the attention that e gets."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from families import analytic, build, family, tokenizer
from prototokens import FrozenLM, InputError, ProtoTokens, decode
from prototokens.geometry.attention import attention_to, attention_to_vectors, e_positions, even_attention
from prototokens.geometry.swaps import bag_overlap, swapped
from solutions import random, solution

WITH_ATTENTION = ["llama", "mistral", "qwen3", "gemma3", "gpt_neox", "gpt2", "opt"]
some_ids = st.lists(st.integers(0, 4), min_size=1, max_size=8).map(torch.tensor)


def test_a_swap_with_itself_is_itself_and_two_swaps_change_positions(llama):
    a, b = solution(llama), solution(llama, "xyz", seed=5)
    same = swapped(a, a)
    assert torch.equal(same.e, a.e)
    assert torch.equal(same.m, a.m)
    ab, ba = swapped(a, b), swapped(b, a)
    assert torch.equal(ab.e, a.e)
    assert torch.equal(ab.m, b.m)
    assert (ab.length, ba.length) == (a.length, b.length)
    back = swapped(ab, ba)
    assert torch.equal(back.m, a.m)
    assert back.provenance == a.provenance


def test_on_a_known_model_e_writes_the_first_token_and_m_the_others(known):
    def writing(text: str) -> ProtoTokens:
        rows = known.embed(known.encode(text))
        return solution(known, text, "e,m*(n-1)", e=rows[:1], m=rows[1])

    a, b = writing("abbb"), writing("xyyyyy")
    assert [decode(known, tokens).exact for tokens in (a, b)] == [True, True]
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
def test_attention_over_all_positions_sums_to_1_and_is_0_to_later_ones(name):
    lm = family(name)
    inputs = random(3, 6, lm.width)
    for layer in lm.attentions(inputs):
        assert torch.allclose(layer.sum(-1), torch.ones(3, 4, 6), atol=1e-5)
        assert (layer >= 0).all()
        assert (layer.triu(1) == 0).all()


@pytest.mark.parametrize("name", WITH_ATTENTION)
@pytest.mark.parametrize("positions", [[0], [2], [1, 3], [0, 1, 2, 3, 4]])
def test_attention_to_positions_is_the_mean_over_the_later_ones(name, positions):
    lm = family(name)
    inputs = random(2, 5, lm.width)
    layers = lm.attentions(inputs)
    measured = attention_to(lm, inputs, positions)
    assert len(measured) == len(layers)
    for heads, layer in zip(measured, layers, strict=True):
        behind = range(min(positions) + 1, 5)
        by_position = [layer[:, :, i, [p for p in positions if p < i]].sum(-1).mean(0) for i in behind]
        assert torch.allclose(heads, torch.stack(by_position).mean(0), atol=1e-6)
        assert ((heads >= 0) & (heads <= 1 + 1e-6)).all()


@pytest.mark.parametrize("positions", [[0], [3], [1, 2], [0, 2, 4], [5, 1]])
def test_where_attention_is_uniform_it_is_the_even_one(positions):
    model = build("llama")
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data.zero_()
    lm = FrozenLM(model, tokenizer())
    expected = even_attention(7, positions)
    for heads in attention_to(lm, random(2, 7, lm.width), positions):
        assert torch.allclose(heads, torch.full((4,), expected))


def test_even_attention_that_is_known():
    assert even_attention(3, [0]) == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert even_attention(4, [1]) == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert even_attention(4, [0, 2]) == pytest.approx((1 / 2 + 1 / 3 + 2 / 4) / 3)


@pytest.mark.parametrize(
    ("arrangement", "e_tokens", "positions"),
    [("m,e,m*(n-1)", 1, [1]), ("m,e,m*(n-1)", 2, [1, 2]), ("(e,m)*n/2", 1, [0, 2]), ("bos,e,m*n", 1, [1])],
)
def test_attention_to_e_is_that_to_its_positions(llama, arrangement, e_tokens, positions):
    tokens = [solution(llama, text, arrangement, seed, e_tokens) for seed, text in enumerate(("abcd", "xyz."))]
    assert e_positions(tokens[0].arrangement.layout(4, e_tokens), e_tokens) == positions
    inputs = torch.cat([text.inputs_embeds() for text in tokens])
    for chosen, measured in (
        (positions, attention_to_vectors(llama, tokens)),
        ([0], attention_to_vectors(llama, tokens, 0)),
    ):
        for heads, expected in zip(measured, attention_to(llama, inputs, chosen), strict=True):
            assert torch.equal(heads, expected)
    alone = [attention_to_vectors(llama, [text]) for text in tokens]
    for heads, *by_text in zip(attention_to_vectors(llama, tokens), *alone, strict=True):
        assert torch.allclose(heads, torch.stack(by_text).mean(0), atol=1e-6)


def test_attention_that_is_not_there_is_refused(llama):
    for lm in (family("mamba"), analytic()):
        with pytest.raises(InputError, match="gives no attention weights: choose a model with softmax attention"):
            attention_to_vectors(lm, [solution(lm)])
    inputs = random(1, 5, llama.width)
    with pytest.raises(InputError, match=r"^5 positions: none of them is behind position 4$"):
        attention_to(llama, inputs, [4])
    for position in (5, -1):
        with pytest.raises(InputError, match=rf"^positions are \[{position}\]; they must be from 0 to 4$"):
            attention_to(llama, inputs, [position])
    with pytest.raises(InputError, match="these proto-tokens belong to"):
        attention_to_vectors(llama, [solution(family("gpt2"))])
    for tokens, count in (([solution(llama), solution(llama, "ab")], "2 texts of 2"), ([], "0 texts of 0")):
        with pytest.raises(InputError, match=f"^{count} layouts: give texts of one length and arrangement$"):
            attention_to_vectors(llama, tokens)
