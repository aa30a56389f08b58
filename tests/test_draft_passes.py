"""Laws of passes of several drafts behind a cache: each output is that of an ordinary pass of what leads to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from drafters import VERIFIERS
from families import VOCABULARY, build, counted, family, spoiled, tokenizer
from prototokens import Drafter, FrozenLM, InputError, generate
from prototokens.drafting.passes import Reading, check_verifies
from prototokens.drafting.tree import Tree
from test_unusual_models import BUILD, unusual

# Trees that branch, with masks behind inner nodes and leaves.
TREE = Tree(
    tokens=(70, 71, 72, 71, 73, 74, 75, 74),
    parents=(-1, 0, 0, 1, 1, 2, 3, 5),
    depths=(0, 1, 1, 2, 2, 2, 3, 3),
    chances=(1.0,) * 8,
    n_masks=(2, 0, 1, 3, 0, 2, 1, 0),
)
LENGTHS = [1, 5, 30]  # the last is more than the windows of mistral and gemma3


@pytest.fixture(scope="module", params=VERIFIERS)
def verifier(request: pytest.FixtureRequest) -> FrozenLM:
    """Each family that can verify drafts, in turn."""
    return family(request.param)


def text_of(length: int) -> Tensor:
    return torch.randint(256, (length,), generator=torch.Generator().manual_seed(length))


def path(tree: Tree, node: int) -> list[int]:
    """The nodes that lead to a node, itself included."""
    return [] if node < 0 else [*path(tree, tree.parents[node]), node]


def mask_vectors(lm: FrozenLM, tree: Tree) -> list[Tensor]:
    """Vectors for the masks behind each node, (M, D), about as long as embeddings."""
    statistics = lm.embedding_statistics
    noise = torch.randn(sum(tree.n_masks), lm.width, generator=torch.Generator().manual_seed(3))
    return list((statistics.mean + statistics.std * noise).split(list(tree.n_masks)))


def extend(reading: Reading, tree: Tree) -> tuple[Tensor, Tensor]:
    lm = reading.lm
    inputs = torch.cat([lm.embed(torch.tensor(tree.tokens)), *mask_vectors(lm, tree)])
    return reading.extend(inputs, tree.places(), tree.visible())


def state_of(lm: FrozenLM, ids: Tensor) -> Tensor:
    """What the head reads behind the last of some ids, (H,)."""
    kept: list[Tensor] = []
    handle = lm.model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    with torch.no_grad():
        lm.model(input_ids=ids[None])
    handle.remove()
    return kept[0][0, -1]


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-4 * b.abs().max())


def check_pass(lm: FrozenLM, text: Tensor, tree: Tree, logits: Tensor, states: Tensor) -> None:
    """Compare every output with an ordinary pass of the text, the path to it, and the masks before it."""
    tokens, masks = torch.tensor(tree.tokens), mask_vectors(lm, tree)
    for node, first in enumerate(tree.first_masks()):
        ids = torch.cat([text, tokens[path(tree, node)]])
        assert close(logits[node], lm.next_token_logits(ids)[-1])
        assert close(states[node], state_of(lm, ids))
        n = tree.n_masks[node]
        whole = torch.cat([lm.embed(ids), masks[node]])
        assert n == 0 or close(logits[first : first + n], lm.logits(whole[None], range(len(ids), len(whole)))[0])


@pytest.mark.parametrize("length", LENGTHS)
def test_outputs_are_those_of_ordinary_passes(verifier: FrozenLM, length: int) -> None:
    text = text_of(length)
    with torch.no_grad():
        reading = Reading(verifier, text)
        assert close(reading.logits, verifier.next_token_logits(text)[-1])
        assert close(reading.state, state_of(verifier, text))
        check_pass(verifier, text, TREE, *extend(reading, TREE))


def test_logits_are_made_of_the_first_inputs_only_where_the_rest_are_masks(verifier: FrozenLM) -> None:
    inputs = verifier.embed(torch.tensor([65, 66, 67]))
    with torch.no_grad():
        readings = [Reading(verifier, text_of(5)) for _ in range(2)]
        visible = torch.ones(3, 3).tril().bool()
        whole, first = (r.extend(inputs, torch.arange(3), visible, n) for r, n in zip(readings, (None, 2), strict=True))
    assert first[0].shape == (2, verifier.vocabulary)
    assert close(first[0], whole[0][:2])
    assert torch.equal(first[1], whole[1])
    assert len(whole[0]) == len(whole[1]) == 3


@pytest.mark.parametrize("nodes", [(0,), (0, 1, 4), (0, 2, 5, 7), (0, 1, 3, 6)], ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_what_is_kept_is_read_and_the_rest_forgotten(verifier: FrozenLM, length: int, nodes: tuple[int, ...]) -> None:
    text = text_of(length)
    with torch.no_grad():
        reading = Reading(verifier, text)
        for _ in range(2):
            extend(reading, TREE)
            reading.keep(list(nodes), TREE.n_positions)
            text = torch.cat([text, torch.tensor(TREE.tokens)[list(nodes)]])
            assert reading.length == len(text) == reading.cache.get_seq_length()
        check_pass(verifier, text, TREE, *extend(reading, TREE))


def test_all_inputs_of_a_pass_can_be_kept_whatever_a_crop_of_nothing_does(
    llama: FrozenLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first versions of transformers 5, `crop(0)` cuts a cache back to a length of 0."""
    crop = transformers.DynamicCache.crop
    monkeypatch.setattr(transformers.DynamicCache, "crop", lambda cache, n: crop(cache, n or -cache.get_seq_length()))
    reading, ids = Reading(llama, text_of(5)), torch.tensor([65, 66])
    reading.extend(llama.embed(ids), torch.arange(2), torch.ones(2, 2).tril().bool())
    reading.keep([0, 1], 2)
    assert reading.cache.get_seq_length() == reading.length == 7


def test_passes_leave_no_gradients_and_no_weights_changed(verifier: FrozenLM) -> None:
    weights = {name: weight.clone() for name, weight in verifier.model.state_dict().items()}
    inputs = torch.randn(2, verifier.width, generator=torch.Generator().manual_seed(0)).requires_grad_()
    reading = Reading(verifier, text_of(4))
    logits, _ = reading.extend(inputs, torch.arange(2), torch.ones(2, 2).tril().bool())
    (gradient,) = torch.autograd.grad(logits.logsumexp(-1).sum(), inputs)
    assert gradient.abs().amax(-1).min() > 0
    assert all(torch.equal(weights[name], weight) for name, weight in verifier.model.state_dict().items())
    assert all(weight.grad is None for weight in verifier.model.parameters())


# Which models can.


def test_families_with_attention_can_verify_and_are_probed_once(verifier: FrozenLM) -> None:
    check_verifies(verifier)
    with counted(verifier) as calls:
        check_verifies(verifier)
    assert calls.forward == []


REFUSED = {
    "mamba": "its layers are of the kind linear_attention",
    "bamba": "its layers are of the kind linear_attention",
    "nemotron_h": "its layers are of the kind linear_attention",
    "falcon_h1": "its layers are of the kind hybrid",
    "gemma3n": "its layers look tokens up by their ids, and learned inputs have none",
    "gemma4": "its layers look tokens up by their ids, and learned inputs have none",
    "roberta decoder": "behind a cache its outputs are not those of an ordinary pass",
    "mpt": "behind a cache its outputs are not those of an ordinary pass",
    "rwkv": "behind a cache its outputs are not those of an ordinary pass",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_verify_is_refused_and_generates_without(name: str) -> None:
    lm = FrozenLM(unusual(name) if name in BUILD else build(name), tokenizer())
    drafter = Drafter.untrained(lm)
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            generate(lm, "ab", drafter=drafter, max_new_tokens=3)
        assert f"cannot verify drafts: {REFUSED[name]}" in str(caught.value)
        assert str(caught.value).endswith("; generate without a drafter")
        assert "\n" not in str(caught.value)
    assert 1 <= len(generate(lm, "ab", max_new_tokens=3).ids) <= 3


@pytest.mark.parametrize("name", VERIFIERS)
@pytest.mark.parametrize("passed_over", ["attention_mask", "position_ids", "past_key_values"])
def test_a_model_that_passes_over_what_it_is_given_is_refused(name: str, passed_over: str) -> None:
    lm = FrozenLM(build(name), tokenizer())

    def drop(_: Any, arguments: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return arguments, {key: value for key, value in options.items() if key != passed_over}

    lm.model.register_forward_pre_hook(drop, with_kwargs=True)
    with pytest.raises(InputError, match="cannot verify drafts"):
        check_verifies(lm)


def test_a_model_whose_layers_hold_their_own_mask_is_refused() -> None:
    """GPT-Neo's windows are counted in the cache, in which the nodes of a tree lie side by side."""
    config = transformers.GPTNeoConfig(
        vocab_size=VOCABULARY, hidden_size=48, num_layers=2, attention_types=[[["global", "local"], 1]], num_heads=4,
        window_size=16, max_position_embeddings=64,
    )  # fmt: skip
    lm = FrozenLM(transformers.GPTNeoForCausalLM(config), tokenizer())
    with pytest.raises(InputError, match="GPTNeoForCausalLM cannot verify drafts: its layers hold a mask of their own"):
        check_verifies(lm)


def test_a_model_without_a_head_is_refused(known: FrozenLM) -> None:
    with pytest.raises(InputError, match="AnalyticLM names no output head, from which drafts are read"):
        check_verifies(known)


@pytest.mark.parametrize("call", [1, 2])
def test_a_model_whose_later_passes_are_no_numbers_is_refused(call: int) -> None:
    lm = FrozenLM(build("llama"), tokenizer())
    with spoiled(lm, call), pytest.raises(InputError, match="its outputs are not those of an ordinary pass"):
        check_verifies(lm)


def test_a_cache_that_is_not_cut_back_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.DynamicCache, "crop", lambda *_: None)
    with pytest.raises(InputError, match="LlamaForCausalLM cannot verify drafts"):
        check_verifies(FrozenLM(build("llama"), tokenizer()))


def test_what_is_wrong_for_the_moment_is_not_held_against_a_model() -> None:
    lm = FrozenLM(build("llama"), tokenizer())
    lm.model.train()
    with pytest.raises(InputError, match="training mode"):
        check_verifies(lm)
    lm.model.eval()
    check_verifies(lm)
