"""Laws of generation with drafts: the text is the model's own, and drafts decide only how many passes it takes."""

from __future__ import annotations

from itertools import product
from math import ceil
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from drafters import VERIFIERS, oracle, random_drafter
from families import build, counted, family, tokenizer
from prototokens import Drafter, FrozenLM, InputError, generate
from prototokens.drafting.generating import DraftTree, Generation, Sampling, stop_tokens
from prototokens.drafting.network import DrafterConfig
from prototokens.drafting.passes import check_verifies, position_cost
from prototokens.lm.generation import without_own_settings

PROMPT = "To be"
FREE = DraftTree(width=4, max_nodes=24, position_cost=0)
CHAIN = DraftTree(width=1, lookup=False, position_cost=0)
SAMPLINGS = [Sampling(1.0, seed=1), Sampling(0.7, top_k=20, seed=4), Sampling(1.3, top_p=0.8, seed=3)]


@pytest.fixture(scope="module", params=VERIFIERS)
def verifier(request: pytest.FixtureRequest) -> FrozenLM:
    """Each family that can verify drafts, in turn."""
    return family(request.param)


def by_transformers(lm: FrozenLM, ids: Tensor, n_tokens: int, sampling: Sampling) -> list[int]:
    """What transformers' own loop writes behind ids."""
    options: dict[str, Any] = {"do_sample": sampling.temperature > 0}
    if options["do_sample"]:
        options |= {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    settings = GenerationConfig(max_new_tokens=n_tokens, eos_token_id=256, pad_token_id=0, **options)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(sampling.seed)
        mask = torch.ones(1, len(ids), dtype=torch.long)
        whole = without_own_settings(lm.model).generate(ids[None], attention_mask=mask, generation_config=settings)
    return whole[0, len(ids) :].tolist()


def drafters(lm: FrozenLM, n_tokens: int) -> list[tuple[Drafter, DraftTree]]:
    """Drafters that are never, sometimes, mostly and always right, and trees of several shapes."""
    return [
        (Drafter.untrained(lm, DrafterConfig(2, 2, 0, 0)), FREE),
        (random_drafter(lm), FREE),
        (random_drafter(lm, DrafterConfig(5, 5, 8, 0), seed=1), CHAIN),
        (random_drafter(lm, DrafterConfig(0, 2, 0, 8), seed=3), CHAIN),
        (random_drafter(lm, seed=2), DraftTree()),  # as dear as it is measured
        (oracle(lm, PROMPT, n_tokens), CHAIN),
        (oracle(lm, PROMPT, n_tokens, wrong_every=4), FREE),
        (
            oracle(lm, PROMPT, n_tokens, n_masks=4, wrong_every=3),
            DraftTree(width=2, max_nodes=9, lookup=False, position_cost=0.01),
        ),
    ]


def check_counts(generation: Generation, tree: DraftTree) -> None:
    assert len(generation.ids) == generation.passes + sum(generation.accepted)
    assert generation.passes - 1 == len(generation.verified) == len(generation.accepted)
    for verified, accepted in zip(generation.verified, generation.accepted, strict=True):
        assert 0 <= accepted <= verified < tree.max_nodes
    assert generation.tokens_per_pass == len(generation.ids) / generation.passes >= 1


# The text.


def test_greedy_text_is_that_without_drafts(verifier: FrozenLM) -> None:
    n_tokens = 24  # more than the windows of mistral and gemma3
    plain = by_transformers(verifier, verifier.encode(PROMPT), n_tokens, Sampling())
    assert generate(verifier, PROMPT, max_new_tokens=n_tokens).ids.tolist() == plain
    n_accepted = 0
    for drafter, tree in drafters(verifier, n_tokens):
        generation = generate(verifier, PROMPT, drafter=drafter, max_new_tokens=n_tokens, tree=tree)
        assert generation.ids.tolist() == plain
        assert generation.text == verifier.decode(torch.tensor([token for token in plain if token != 256]))
        check_counts(generation, tree)
        n_accepted += sum(generation.accepted)
    assert n_accepted > n_tokens  # drafts were followed, too


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda s: f"top_k={s.top_k} top_p={s.top_p}")
def test_sampled_text_is_that_of_the_same_seed_without_drafts(verifier: FrozenLM, sampling: Sampling) -> None:
    ids = verifier.encode(PROMPT)
    plain = by_transformers(verifier, ids, 16, sampling)
    assert generate(verifier, ids, max_new_tokens=16, sampling=sampling).ids.tolist() == plain
    text = torch.cat([ids, torch.tensor(plain)])
    knowing = oracle(verifier, text, 1)  # of what is drawn, not of what is likeliest
    tree, n_accepted = DraftTree(width=12, max_nodes=40, position_cost=0), 0
    for drafter in (random_drafter(verifier), knowing):
        generation = generate(verifier, ids, drafter=drafter, max_new_tokens=16, sampling=sampling, tree=tree)
        assert generation.ids.tolist() == plain
        check_counts(generation, tree)
        n_accepted += sum(generation.accepted)
    assert n_accepted > 0


@pytest.mark.parametrize("temperature", [2, 1e-6, 1e6])
def test_temperatures_may_be_whole_numbers_very_low_and_very_high(llama: FrozenLM, temperature: float) -> None:
    sampling = Sampling(temperature, seed=-(2**63))
    drafters = (None, random_drafter(llama))
    plain, drafted = (generate(llama, PROMPT, drafter=d, max_new_tokens=6, sampling=sampling).text for d in drafters)
    assert drafted == plain
    assert (plain == generate(llama, PROMPT, max_new_tokens=6).text) == (temperature < 1)


def few_words() -> FrozenLM:
    """A model of four tokens, whose distributions can be written out."""
    config = LlamaConfig(
        vocab_size=4, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, initializer_range=0.3, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FrozenLM(LlamaForCausalLM(config), tokenizer())


def test_sampled_tokens_have_the_models_own_distribution() -> None:
    """Pearson's test of the second to fourth new tokens against the product of the model's own chances."""
    lm, ids, n_seeds = few_words(), torch.tensor([1, 2, 3]), 150
    texts = torch.tensor(list(product(range(4), repeat=4)))  # all of four tokens
    logits = lm.next_token_logits(torch.cat([ids.expand(len(texts), -1), texts], 1))
    log_chances = (logits / 2).log_softmax(-1)
    chances = log_chances[:, 2:6].gather(-1, texts.unsqueeze(-1)).sum((1, 2)).exp()
    assert chances.sum().item() == pytest.approx(1, abs=1e-4)
    drafter = random_drafter(lm, DrafterConfig(2, 3, 8, 8))
    drawn, n_accepted, n_verified = [], 0, 0
    for seed in range(n_seeds):
        tree = DraftTree(width=1 + seed % 2, lookup=seed % 3 == 0, position_cost=0)
        generation = generate(lm, ids, drafter=drafter, max_new_tokens=4, sampling=Sampling(2.0, seed=seed), tree=tree)
        drawn.append(generation.ids)
        n_accepted += sum(generation.accepted)
        n_verified += sum(map(bool, generation.verified))
    assert 0.2 < n_accepted / n_verified < 0.7  # both ways are taken often
    code = torch.tensor([64, 16, 4, 1])
    counts = torch.bincount((torch.stack(drawn) * code).sum(1), minlength=256).double()
    for kept in ([1], [2], [3], [2, 3]):
        cell = (texts[:, kept] * torch.tensor([4, 1])[-len(kept) :]).sum(1)
        expected = torch.zeros(4 ** len(kept), dtype=torch.float64).index_add_(0, cell, chances.double()) * n_seeds
        counted_cells = torch.zeros_like(expected).index_add_(0, cell, counts)
        assert expected.min() > 2
        square = ((counted_cells - expected) ** 2 / expected).sum()
        degrees = torch.tensor(len(expected) - 1.0, dtype=torch.float64)
        assert torch.special.gammaincc(degrees / 2, square / 2) > 0.005, kept


def test_in_half_precision_every_token_is_the_likeliest_up_to_rounding() -> None:
    lm = FrozenLM(build("llama").to(torch.bfloat16), tokenizer())
    generation = generate(lm, PROMPT, drafter=random_drafter(lm), max_new_tokens=30, tree=FREE)
    check_counts(generation, FREE)
    text = torch.cat([lm.encode(PROMPT), generation.ids])
    logits = lm.next_token_logits(text)[len(text) - 1 - len(generation.ids) : -1]
    missing = logits.amax(-1) - logits.gather(-1, generation.ids.unsqueeze(-1))[:, 0]
    assert missing.max() <= 16 * torch.finfo(torch.bfloat16).eps * logits.abs().amax()


# Passes.


@pytest.mark.parametrize("n_masks", [1, 3, 7])
def test_a_drafter_that_is_always_right_is_followed_to_its_end(verifier: FrozenLM, n_masks: int) -> None:
    """The prompt's pass gives a token, the next one another and the first drafts; then M + 1 tokens come in each."""
    n_tokens = 23
    drafter = oracle(verifier, PROMPT, n_tokens, n_masks)
    n_tokens = len(generate(verifier, PROMPT, max_new_tokens=n_tokens).ids)  # some end early
    generation = generate(verifier, PROMPT, drafter=drafter, max_new_tokens=n_tokens, tree=CHAIN)
    assert generation.passes == 2 + ceil((n_tokens - 2) / (n_masks + 1))
    assert generation.accepted[1:-1] == (n_masks,) * (generation.passes - 3)
    check_counts(generation, CHAIN)


def test_a_tree_holds_the_right_drafts_that_come_second(llama: FrozenLM) -> None:
    """What is not the likeliest draft is found by a tree that is wide enough, and not by a chain."""
    ids = llama.encode(PROMPT)
    drafter = random_drafter(llama, DrafterConfig(2, 2, 16, 0))
    trees = [DraftTree(width=width, max_nodes=300, lookup=False, position_cost=0) for width in (1, 16)]
    chain, tree = (generate(llama, ids, drafter=drafter, max_new_tokens=30, tree=tree).passes for tree in trees)
    assert chain > tree


def test_passes_are_the_models_calls(verifier: FrozenLM) -> None:
    check_verifies(verifier)
    drafter = oracle(verifier, PROMPT, 12, wrong_every=3)
    with counted(verifier) as calls:
        generation = generate(verifier, PROMPT, drafter=drafter, max_new_tokens=12, tree=FREE)
    assert len(calls.forward) == generation.passes < len(generation.ids)
    assert [shape[0] for shape in calls.forward] == [1] * generation.passes
    assert all(
        length >= 1 + verified for (_, length), verified in zip(calls.forward[1:], generation.verified, strict=True)
    )
    with counted(verifier) as calls:
        generation = generate(verifier, PROMPT, max_new_tokens=12)
    assert len(calls.forward) == generation.passes == len(generation.ids)
    assert generation.verified == generation.accepted == ()


def test_without_drafts_a_pass_reads_one_token(llama: FrozenLM) -> None:
    """Also where the checkpoint says that its model keeps no cache, as many do after training."""
    lm = FrozenLM(build("llama"), tokenizer())
    lm.model.config.use_cache = False
    check_verifies(lm)
    for drafter in (None, oracle(llama, PROMPT, 6)):
        with counted(lm) as calls:
            written = generate(lm, PROMPT, drafter=drafter, max_new_tokens=6, tree=DraftTree(position_cost=2.0))
        assert calls.forward == [(1, len(lm.encode(PROMPT))), *[(1, 1)] * 5]
        assert torch.equal(written.ids, generate(llama, PROMPT, max_new_tokens=6).ids)


def test_drafts_that_cost_too_much_are_not_verified(llama: FrozenLM) -> None:
    for cost in (2.0, float("inf")):
        tree = DraftTree(position_cost=cost)
        generation = generate(llama, PROMPT, drafter=oracle(llama, PROMPT, 8), max_new_tokens=8, tree=tree)
        assert torch.equal(generation.ids, generate(llama, PROMPT, max_new_tokens=8).ids)
        assert generation.passes == len(generation.ids)
        assert set(generation.verified) == {0}


def test_what_a_position_costs_is_measured_once(verifier: FrozenLM) -> None:
    cost = position_cost(verifier)
    assert 0 <= cost < float("inf")
    with counted(verifier) as calls:
        assert position_cost(verifier) == cost
    assert calls.forward == []


def test_what_a_position_costs_is_measured_within_a_models_positions() -> None:
    lm = few_words()
    with counted(lm) as calls:
        assert 0 <= position_cost(lm) < float("inf")
    lengths = [length for _, length in calls.forward]
    assert max(lengths[1:]) > 1
    assert lengths[0] + max(lengths[1:]) <= 16


# Ends.


@pytest.mark.parametrize("name", ["llama", "mistral", "opt"])
def test_a_stop_token_ends_the_text_wherever_it_stands(name: str) -> None:
    lm = FrozenLM(build(name), tokenizer())
    lm.model.generation_config.eos_token_id = None
    lm.tokenizer = type("NoStop", (), {"eos_token_id": None, "decode": tokenizer().decode})()
    ids = torch.tensor(list(b"To be"))
    assert stop_tokens(lm) == []
    whole = generate(lm, ids, max_new_tokens=20)
    assert not whole.stopped
    drafter = oracle(lm, ids, 20)
    tokens = whole.ids.tolist()
    for place in range(20):
        lm.model.generation_config.eos_token_id = [tokens[place], 263]
        end = tokens.index(tokens[place]) + 1
        generation = generate(lm, ids, drafter=drafter, max_new_tokens=20, tree=CHAIN)
        assert generation.ids.tolist() == tokens[:end]
        assert generation.stopped
        assert generate(lm, ids, max_new_tokens=20).ids.tolist() == tokens[:end]
        check_counts(generation, CHAIN)
        assert generation.passes <= 2 + ceil(max(0, end - 2) / 4)


@pytest.mark.parametrize("drafted", [False, True])
def test_a_text_has_exactly_the_tokens_asked_for(llama: FrozenLM, drafted: bool) -> None:
    longest = generate(llama, PROMPT, max_new_tokens=12).ids
    assert len(longest) == 12
    drafter = oracle(llama, PROMPT, 12) if drafted else None
    for n_tokens in range(1, 12):
        generation = generate(llama, PROMPT, drafter=drafter, max_new_tokens=n_tokens, tree=FREE)
        assert torch.equal(generation.ids, longest[:n_tokens])
        assert (generation.ids.dtype, generation.stopped) == (torch.long, False)


@pytest.mark.parametrize("tree", [FREE, CHAIN], ids=["tree", "chain"])
def test_all_positions_are_used_and_not_one_more(verifier: FrozenLM, tree: DraftTree) -> None:
    prompt = "a" * 52
    plain = generate(verifier, prompt, max_new_tokens=13)  # the last token is no input
    for drafter in (random_drafter(verifier), oracle(verifier, prompt, 13, n_masks=6)):
        generation = generate(verifier, prompt, drafter=drafter, max_new_tokens=13, tree=tree)
        assert torch.equal(generation.ids, plain.ids)
        with pytest.raises(InputError, match=r"52 tokens and 14 new ones are too long: .* at most 13 new tokens fit"):
            generate(verifier, prompt, drafter=drafter, max_new_tokens=14)


def test_a_prompt_of_one_token_is_enough(verifier: FrozenLM) -> None:
    ids = verifier.encode("A")
    assert len(ids) == 1
    plain = generate(verifier, ids, max_new_tokens=8)
    for drafter in (random_drafter(verifier), oracle(verifier, ids, 8)):
        assert torch.equal(generate(verifier, "A", drafter=drafter, max_new_tokens=8, tree=FREE).ids, plain.ids)


# Around it.


class Told:
    """A streamer that keeps what it is told."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.ids: list[int] = []
        self.ends = 0

    def put(self, ids: Tensor) -> None:
        self.shapes.append(tuple(ids.shape))
        self.ids += ids.flatten().tolist()

    def end(self) -> None:
        self.ends += 1


def test_a_streamer_is_told_the_same_with_and_without_drafts(llama: FrozenLM) -> None:
    plain, drafted = Told(), Told()
    generation = generate(llama, PROMPT, max_new_tokens=12, streamer=plain)
    generate(llama, PROMPT, drafter=oracle(llama, PROMPT, 12), max_new_tokens=12, tree=FREE, streamer=drafted)
    assert vars(drafted) == vars(plain)
    assert plain.ids == [*llama.encode(PROMPT).tolist(), *generation.ids.tolist()]
    assert plain.ends == 1


def test_generation_leaves_no_trace(verifier: FrozenLM) -> None:
    weights = {name: weight.clone() for name, weight in verifier.model.state_dict().items()}
    settings = verifier.model.generation_config.to_dict()
    state = torch.get_rng_state()
    drafter = random_drafter(verifier)
    for sampling in (None, SAMPLINGS[0]):
        generate(verifier, PROMPT, drafter=drafter, max_new_tokens=6, sampling=sampling, tree=FREE)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weights[name], weight) for name, weight in verifier.model.state_dict().items())
    assert verifier.model.generation_config.to_dict() == settings
    assert not any(module.training for module in verifier.model.modules())
    parameters = [*verifier.model.parameters(), *drafter.network.parameters()]
    assert all(weight.grad is None for weight in parameters)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ""}, "the text is empty"),
        ({"prompt": torch.zeros(0, dtype=torch.long)}, r"ids have the shape \(0,\); it must be \(L,\), L at least 1"),
        ({"prompt": torch.zeros(1, 3, dtype=torch.long)}, r"ids have the shape \(1, 3\); it must be \(L,\)"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_written_is_refused(llama: FrozenLM, options: dict, message: str) -> None:
    for drafter in (None, Drafter.untrained(llama)):
        with pytest.raises(InputError, match=message):
            generate(llama, **({"prompt": PROMPT, "drafter": drafter} | options))


def test_a_drafter_of_another_model_is_refused(llama: FrozenLM) -> None:
    drafter = Drafter.untrained(family("gpt2"))
    with pytest.raises(InputError, match=r"this drafter belongs to .*GPT2LMHeadModel"):
        generate(llama, PROMPT, drafter=drafter, max_new_tokens=9)


def test_a_model_of_another_library_is_refused(known: FrozenLM) -> None:
    with pytest.raises(InputError, match="AnalyticLM cannot generate: it is no model of transformers"):
        generate(known, PROMPT)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sampling(-0.1), r"temperature is -0.1; it must be 0 \(greedy\), or from 1e-6 to 1e6"),
        (lambda: Sampling(1e-40), "temperature is 1e-40"),
        (lambda: Sampling(1e40), "temperature is 1e\\+40"),
        (lambda: Sampling(float("nan")), "temperature is nan"),
        (lambda: Sampling(float("inf")), "temperature is inf"),
        (lambda: Sampling(1, top_k=-1), "top_k is -1"),
        (lambda: Sampling(1, top_p=0), "top_p is 0; it must be above 0, and at most 1"),
        (lambda: Sampling(1, top_p=1.1), "top_p is 1.1"),
        (lambda: Sampling(1, seed=2**64), "seed is 18446744073709551616; it must be a number of 64 bits"),
        (lambda: Sampling(1, seed=-(2**63) - 1), "seed is -9223372036854775809"),
        (lambda: DraftTree(width=0), "width is 0 and max_nodes 64; both must be at least 1"),
        (lambda: DraftTree(max_nodes=0), "max_nodes 0"),
        (lambda: DraftTree(position_cost=-1), "position_cost is -1; it must be at least 0"),
        (lambda: DraftTree(position_cost=float("nan")), "position_cost is nan"),
    ],
)
def test_settings_are_checked(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
