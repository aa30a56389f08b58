"""Laws of the frozen model: text to ids and back, and logits by the model's own path."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from families import FAMILIES, SPECIAL, VOCABULARY, WIDTH, build, family, tokenizer
from prototokens import FrozenLM, InputError, fit, preset
from prototokens.arrangements import ARRANGEMENTS, _on_device
from prototokens.fitting.recipes import Stop
from prototokens.lm import frozen as lm_module


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def random_inputs(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed))


# Text and ids


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1))
def test_text_survives_encoding(text: str) -> None:
    lm = family("llama")
    ids = lm.encode(text)
    assert ids.dtype == torch.int64
    assert len(ids) == len(text.encode())
    assert lm.decode(ids) == text


@pytest.mark.parametrize("special", SPECIAL)
def test_a_special_token_in_a_text_is_text(llama: FrozenLM, special: str) -> None:
    text = f"say {special}, {special}{special} !"
    ids = llama.encode(text)
    assert len(ids) == len(text)
    assert ids.max() < 256
    assert llama.decode(ids) == text


def test_nothing_is_added_dropped_or_cleaned_up(llama: FrozenLM) -> None:
    for text in ("a", " a", "a ", " ' s , .  n't \n\t ", "\ufeffa\r\n"):
        assert llama.decode(llama.encode(text)) == text
        assert len(llama.encode(text)) == len(text.encode())
    assert llama.decode(torch.tensor([256, 257, *llama.encode("x").tolist(), 258])) == (
        "<|endoftext|><|im_start|>x<|im_end|>"
    )


def test_an_empty_text_is_refused(llama: FrozenLM) -> None:
    with pytest.raises(InputError, match="the text is empty: there is nothing to encode"):
        llama.encode("")


# Embeddings and logits


def test_the_families_are_tiny_and_complete(lm: FrozenLM) -> None:
    assert lm.model.num_parameters() < 120_000
    assert len(FAMILIES) == 8
    assert lm.width == WIDTH
    assert lm.max_positions == (None if "Mamba" in type(lm.model).__name__ else 64)
    assert lm.device == torch.device("cpu")


def test_embeddings_are_the_modules_outputs(lm: FrozenLM) -> None:
    ids = random_ids(2, 5)
    module = lm.model.get_input_embeddings()
    assert torch.equal(lm.embed(ids), module(ids))
    every = module(torch.arange(VOCABULARY))
    assert torch.allclose(lm.embedding_statistics.mean, every.mean(0), atol=1e-6)
    assert lm.embedding_statistics.std == pytest.approx((every - every.mean(0)).square().mean().sqrt().item(), rel=1e-5)


def test_embedding_statistics_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = family("gpt2").embedding_statistics
    monkeypatch.setattr(lm_module, "_EMBEDDING_ROWS_AT_ONCE", 100)
    chunked = FrozenLM(build("gpt2"), tokenizer()).embedding_statistics
    assert torch.allclose(chunked.mean, whole.mean, atol=1e-6)
    assert chunked.std == pytest.approx(whole.std, rel=1e-5)


def test_scaled_embeddings_are_taken_scaled() -> None:
    lm = family("gemma3")
    rows = lm.model.get_input_embeddings().weight
    assert torch.allclose(lm.embed(torch.arange(VOCABULARY)), rows * WIDTH**0.5)
    assert lm.model.config.final_logit_softcapping == 30
    assert lm.logits(random_inputs(1, 8), range(8)).abs().max() <= 30


def test_the_width_is_that_of_the_input_not_of_the_hidden_states() -> None:
    lm = family("opt")
    assert lm.model.config.hidden_size == 64
    assert lm.embed(random_ids(3)).shape == (3, lm.width) == (3, WIDTH)


@pytest.mark.parametrize("read", [range(6), range(5, 6), range(1), range(2, 5)])
def test_logits_read_are_a_slice_of_all(lm: FrozenLM, read: range) -> None:
    inputs_embeds = random_inputs(2, 6)
    everything = lm.model(inputs_embeds=inputs_embeds).logits
    assert everything.shape == (2, 6, VOCABULARY)
    logits = lm.logits(inputs_embeds, read)
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, everything[:, read.start : read.stop], rtol=1e-5, atol=1e-5)


def test_only_the_wanted_logits_are_made() -> None:
    lm, seen = FrozenLM(build("llama"), tokenizer()), []
    lm.model.lm_head.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    lm.logits(random_inputs(1, 6), range(4, 6))
    assert seen == [2]


def test_next_token_logits_are_the_models_own(lm: FrozenLM) -> None:
    ids = random_ids(2, 7)
    logits = lm.model(input_ids=ids).logits
    assert torch.allclose(lm.next_token_logits(ids), logits, rtol=1e-4, atol=1e-4)
    assert torch.allclose(lm.next_token_logits(ids[1]), logits[1], rtol=1e-4, atol=1e-4)
    assert not lm.next_token_logits(ids).requires_grad


def test_outputs_do_not_depend_on_later_inputs(lm: FrozenLM) -> None:
    inputs_embeds = random_inputs(2, 6)
    inputs_embeds[1, :4] = inputs_embeds[0, :4]
    early = lm.logits(inputs_embeds, range(4))
    assert torch.allclose(early[0], early[1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(*lm.logits(inputs_embeds, range(4, 6)))


def test_logits_have_a_gradient_in_the_inputs_only(lm: FrozenLM) -> None:
    inputs_embeds = random_inputs(1, 3).requires_grad_()
    lm.logits(inputs_embeds, range(3)).sum().backward()
    assert inputs_embeds.grad.abs().amin(-1).all()
    assert all(w.grad is None and not w.requires_grad for w in lm.model.parameters())


def test_generation_is_greedy_and_exact_in_length(lm: FrozenLM) -> None:
    inputs_embeds = random_inputs(3, 4, seed=1)
    ids = lm.generate(inputs_embeds, 5)
    assert ids.shape == (3, 5)
    sequence = inputs_embeds
    for step in range(5):
        last = lm.logits(sequence, range(3 + step, 4 + step))[:, 0]
        assert torch.equal(ids[:, step], last.argmax(-1))
        sequence = torch.cat([sequence, lm.embed(ids[:, step : step + 1])], dim=1)


@pytest.mark.parametrize("count", [1, 4])
def test_generation_goes_on_after_the_end_token(count: int) -> None:
    lm = FrozenLM(build("llama"), tokenizer())
    lm.model.generation_config.eos_token_id = list(range(VOCABULARY // 2))
    assert lm.generate(random_inputs(2, 3), count).shape == (2, count)


@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty`")
@pytest.mark.parametrize("settings", [{"repetition_penalty": 5.0}, {"eos_token_id": list(range(VOCABULARY // 2))}])
def test_generation_ignores_the_checkpoints_settings(settings: dict) -> None:
    lm = FrozenLM(build("llama"), tokenizer())
    inputs_embeds = random_inputs(4, 4, seed=1)
    ids = lm.generate(inputs_embeds, 8)
    vars(lm.model.generation_config).update(settings)
    assert torch.equal(ids, lm.generate(inputs_embeds, 8))


@pytest.fixture
def nothing_kept() -> Iterator[None]:
    """Start and end without the index tensors that are kept for the next step."""
    for kept in (_on_device, lm_module._index):
        kept.cache_clear()
    yield
    for kept in (_on_device, lm_module._index):
        kept.cache_clear()


@pytest.mark.usefixtures("nothing_kept")
def test_a_fit_may_follow_inference_mode() -> None:
    lm = FrozenLM(build("llama"), tokenizer())
    with torch.inference_mode():
        layout = ARRANGEMENTS["m,e,m*(n-1)"].layout(3)
        inputs_embeds = layout.inputs_embeds(random_inputs(1, 1), random_inputs(1), torch.empty(0, WIDTH))
        lm.logits(inputs_embeds, layout.read_positions())
        assert lm.embedding_statistics.std > 0
    assert fit(lm, lm.encode("abc"), preset(stop=Stop(max_steps=1))).steps == 1
