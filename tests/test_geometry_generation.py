"""Generation that begins with vectors: what the prompt is, and that generation is the model's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from families import AnalyticLM, analytic, family, tokenizer
from prototokens import FrozenLM, InputError, ProtoTokens, decode
from prototokens.geometry.distances import PARTS
from prototokens.geometry.generation import generate_from, prompt
from solutions import solution


def without_bos() -> FrozenLM:
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer().backend_tokenizer)
    return FrozenLM(AnalyticLM(), plain)


def weights_of(lm: FrozenLM) -> list[Tensor]:
    return [value.clone() for value in lm.model.state_dict().values()]


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


def test_where_e_comes_last_the_first_token_generated_is_the_first_decoded(lm):
    """On every family: the prompt m, e is how the arrangement begins, and both passes see the same."""
    tokens = [solution(lm, seed=seed) for seed in range(3)]
    first = torch.stack([one.ids[0] for one in decode(lm, tokens)])
    assert torch.equal(generate_from(lm, tokens, "both", 3)[:, 0], first)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba"])
def test_greedy_generation_is_deterministic_and_a_batch_is_the_loop(name):
    lm = family(name)
    tokens = [solution(lm, seed=seed) for seed in range(3)]
    for part in PARTS:
        generated = generate_from(lm, tokens, part, 5, bos=True)
        assert generated.shape == (3, 5)
        assert torch.equal(generated, generate_from(lm, tokens, part, 5, bos=True))
        assert torch.equal(generated, torch.cat([generate_from(lm, [one], part, 5, bos=True) for one in tokens]))
        assert torch.equal(generated[:, :2], generate_from(lm, tokens, part, 2, bos=True))
    assert generate_from(lm, [], "e", 5).shape == (0, 5)


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama"])
def test_as_many_tokens_are_generated_as_there_are_positions(name):
    lm = family(name)
    assert generate_from(lm, [solution(lm)], "both", 63).shape == (1, 63)


def test_generation_leaves_the_model_and_random_states_alone(llama):
    tokens = [solution(llama, seed=seed) for seed in range(2)]
    weights, state = weights_of(llama), torch.get_rng_state()
    sampled = [generate_from(llama, tokens, "both", 8, seed=seed) for seed in (0, 0, 1)]
    generate_from(llama, tokens, "m", 8)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(weights, weights_of(llama), strict=True))
    assert not llama.model.training
    assert not any(parameter.requires_grad for parameter in llama.model.parameters())
    assert torch.equal(sampled[0], sampled[1])
    assert not torch.equal(sampled[0], sampled[2])
    assert all(((ids >= 0) & (ids < llama.vocabulary)).all() for ids in sampled)


def test_what_cannot_be_generated_is_refused(llama):
    tokens = solution(llama)

    def refused(
        message: str, lm: FrozenLM, texts: Sequence[ProtoTokens], part: str = "e", n_tokens: int = 2, **options: Any
    ):
        with pytest.raises(InputError, match=message):
            generate_from(lm, texts, part, n_tokens, **options)

    refused(r"^unknown part 'f'; choose one of: e m both$", llama, [tokens], "f")
    refused(r"^n_tokens is 0; it must be at least 1$", llama, [tokens], n_tokens=0)
    refused(r"^n_tokens is 64; after this prompt LlamaForCausalLM has positions for 63", llama, [tokens], "both", 64)
    refused("these proto-tokens belong to", analytic(), [tokens])
    refused(
        r"^texts with 1 and 2 e-tokens: generate from them one by one$", llama, [tokens, solution(llama, e_tokens=2)]
    )
    lm = without_bos()
    refused("has no BOS token: generate without it$", lm, [solution(lm)], bos=True)
    foreign = replace(tokens.provenance.model, tokenizer_hash="0" * 64)
    other = replace(tokens, provenance=replace(tokens.provenance, model=foreign))
    refused("with another tokenizer vocabulary$", llama, [other])
