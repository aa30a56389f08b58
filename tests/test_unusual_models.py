"""Laws of models that are unlike most: they are used as they are meant to be, or refused before any fit."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from families import (
    _COMMON,
    _GROUPED,
    _LAYERS,
    FAMILIES,
    VOCABULARY,
    WIDTH,
    AnalyticLM,
    build,
    counted,
    family,
    tokenizer,
)
from prototokens import FrozenLM, InputError, Stop, decode, fit, preset
from prototokens.texts.sampling import continuations

PER_LAYER = {
    "head_dim": 12,
    "sliding_window": 16,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
    "layer_types": ["sliding_attention", "full_attention"],
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 12, "mamba_d_state": 8, "mamba_n_groups": 1}

BUILD: dict[str, Callable[[], Any]] = {
    "gemma3n": lambda: transformers.Gemma3nForCausalLM(
        transformers.Gemma3nTextConfig(
            **(_COMMON | _LAYERS | _GROUPED | PER_LAYER | {"intermediate_size": [96, 96]}),
            laurel_rank=4, activation_sparsity_pattern=[0.0, 0.0], altup_num_inputs=2,
        )
    ),
    "gemma4": lambda: transformers.Gemma4ForCausalLM(
        transformers.Gemma4TextConfig(**_COMMON, **_LAYERS, **_GROUPED, **PER_LAYER, global_head_dim=12)
    ),
    "bamba": lambda: transformers.BambaForCausalLM(
        transformers.BambaConfig(**_COMMON, **_LAYERS, **_GROUPED, **MAMBA, attn_layer_indices=[1])
    ),
    "falcon_h1": lambda: transformers.FalconH1ForCausalLM(
        transformers.FalconH1Config(**_COMMON, **_LAYERS, **_GROUPED, **MAMBA, head_dim=12, mamba_d_ssm=96)
    ),
    "nemotron_h": lambda: transformers.NemotronHForCausalLM(
        transformers.NemotronHConfig(
            **{k: v for k, v in (_COMMON | _LAYERS | _GROUPED).items() if k != "num_hidden_layers"},
            head_dim=12, layers_block_type=["mamba", "attention"], mamba_num_heads=8, mamba_head_dim=12,
            ssm_state_size=8, n_groups=1,
        )
    ),
    "roberta decoder": lambda: transformers.RobertaForCausalLM(
        transformers.RobertaConfig(**(_COMMON | _LAYERS | {"pad_token_id": 1}), is_decoder=True)
    ),
    "mpt": lambda: transformers.MptForCausalLM(
        transformers.MptConfig(
            vocab_size=VOCABULARY, d_model=WIDTH, n_heads=4, n_layers=2, max_seq_len=16, initializer_range=0.3
        )
    ),
    "rwkv": lambda: transformers.RwkvForCausalLM(
        transformers.RwkvConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, intermediate_size=96, rescale_every=0
        )
    ),
    "bert": lambda: transformers.BertLMHeadModel(transformers.BertConfig(**_COMMON, **_LAYERS)),
    "roberta": lambda: transformers.RobertaForCausalLM(
        transformers.RobertaConfig(**(_COMMON | _LAYERS | {"pad_token_id": 1}))
    ),
}  # fmt: skip


def unusual(name: str) -> Any:
    """A fresh tiny model; its random weights are the same every time, and none is zero or one throughout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BUILD[name]()
        for weight in model.parameters():
            weight.data.add_(0.1 * torch.randn(weight.shape))
    assert model.num_parameters() < 120_000
    return model


def vectors(*shape: int) -> Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(1))


# Per-layer embeddings.


@pytest.mark.parametrize("name", ["gemma3n", "gemma4"])
def test_ids_give_every_layer_its_own_embedding(name: str) -> None:
    lm = FrozenLM(unusual(name), tokenizer())
    ids = torch.randint(256, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        reference = lm.model(input_ids=ids)
        states = lm.model(input_ids=ids, output_hidden_states=True).hidden_states
    assert torch.equal(lm.next_token_logits(ids), reference.logits)
    assert torch.equal(lm.hidden_states(ids, 1), states[1])
    assert not torch.allclose(lm.logits(lm.embed(ids), range(7)), reference.logits, atol=0.01)


@pytest.mark.parametrize("name", ["gemma3n", "gemma4"])
def test_vectors_give_every_layer_the_padding_tokens_embedding(name: str) -> None:
    lm = FrozenLM(unusual(name), tokenizer())
    padding = torch.zeros(1, 5, dtype=torch.long)
    with torch.no_grad():
        reference = lm.model(input_ids=padding).logits
    assert torch.allclose(lm.logits(lm.embed(padding), range(5)), reference, rtol=1e-5, atol=1e-5)
    result = fit(lm, lm.encode("ab"), preset(stop=Stop(max_steps=2)))
    assert decode(lm, result.tokens).ids.shape == (2,)


# Generation.


@pytest.mark.parametrize(
    "name", ["gemma3n", "gemma4", "bamba", "falcon_h1", "nemotron_h", "roberta decoder", "mpt", "rwkv"]
)
def test_cached_generation_is_the_uncached_one(name: str) -> None:
    lm = FrozenLM(unusual(name), tokenizer())
    inputs_embeds = vectors(3, 5)
    ids = lm.generate(inputs_embeds, 4)
    inputs = lm.inputs_of_vectors(inputs_embeds)
    for step in range(4):
        with torch.no_grad():
            assert torch.equal(ids[:, step], lm.model(**inputs, use_cache=False).logits[:, -1].argmax(-1))
        inputs["inputs_embeds"] = torch.cat([inputs["inputs_embeds"], lm.embed(ids[:, step : step + 1])], dim=1)
        if lm.per_layer_row is not None:
            table = next(m for m in lm.model.modules() if hasattr(m, "embed_tokens_per_layer")).embed_tokens_per_layer
            row = table(ids[:, step : step + 1]).reshape(3, 1, *lm.per_layer_row.shape)
            inputs["per_layer_inputs"] = torch.cat([inputs["per_layer_inputs"], row], dim=1)


def test_texts_of_a_model_that_mixes_rows_are_its_own() -> None:
    lm = FrozenLM(unusual("rwkv"), tokenizer())
    lm.model.head.weight.data *= 1e4  # what is sampled is what is most likely
    ids = contexts = torch.randint(250, (3, 5), generator=torch.Generator().manual_seed(2))
    for _ in range(4):
        with torch.no_grad():
            logits = lm.model(input_ids=ids, use_cache=False).logits[:, -1, :256]  # no special tokens
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(continuations(lm, contexts, 4), ids[:, 5:])


def test_sampling_without_transformers_follows_its_seed() -> None:
    lm = FrozenLM(unusual("falcon_h1"), tokenizer())
    state = torch.get_rng_state()
    first, again, other = (lm.generate(vectors(4, 3), 6, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_model_without_a_cache_does_not_generate() -> None:
    class NoCache(AnalyticLM):
        def forward(self, inputs_embeds: Tensor, use_cache: bool) -> Any:
            return transformers.utils.ModelOutput(logits=10 * inputs_embeds @ self.head.T)

    lm = FrozenLM(NoCache(), tokenizer())
    with pytest.raises(InputError, match="NoCache keeps no cache: it cannot generate after vectors"):
        lm.generate(torch.eye(VOCABULARY)[None, :3], 2)


# Refused.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_bidirectional_model_is_refused(name: str, dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match=r"is no causal LM: its outputs depend on later inputs.*is_decoder=True"):
        FrozenLM(unusual(name).to(dtype), tokenizer())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_causal_model_passes_the_probe_in_every_dtype(name: str, dtype: torch.dtype) -> None:
    assert FrozenLM(build(name).to(dtype), tokenizer()).dtype == dtype


def test_a_model_that_adds_positions_is_refused() -> None:
    class PromptTuned(AnalyticLM):
        """What peft's prompt tuning does: learned positions in front, and their outputs too."""

        def forward(self, inputs_embeds: Tensor, use_cache: bool) -> SimpleNamespace:
            prompt = self.embedding.weight[:3].expand(inputs_embeds.shape[0], -1, -1)
            return super().forward(torch.cat([prompt, inputs_embeds], dim=1), use_cache)

    with pytest.raises(InputError, match="PromptTuned gives 8 outputs for 5 input positions: it adds positions"):
        FrozenLM(PromptTuned(), tokenizer())


def test_a_model_that_takes_no_vectors_is_refused() -> None:
    class IdsOnly(AnalyticLM):
        def forward(self, input_ids: Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=self.embedding(input_ids))

    with pytest.raises(InputError, match=r"IdsOnly cannot be run from input embeddings: .*inputs_embeds"):
        FrozenLM(IdsOnly(), tokenizer())


def test_the_probe_is_one_small_pass_for_each_model() -> None:
    model = AnalyticLM()
    with counted(SimpleNamespace(model=model)) as calls:  # type: ignore[arg-type]
        FrozenLM(model, tokenizer())
        FrozenLM(model, tokenizer())
    assert calls.forward == [(2, 5)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((AnalyticLM(), None), "FrozenLM takes the model's tokenizer, not NoneType"),
        (("gpt2", None), r"FrozenLM takes a causal LM in memory, not str; load_lm\(name\) loads one by its name"),
        ((nn.Linear(2, 2), tokenizer()), "FrozenLM takes a causal LM in memory, not Linear"),
    ],
)
def test_what_is_no_model_or_tokenizer_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        FrozenLM(*arguments)


# Bounds and modes.


@pytest.mark.parametrize(("name", "bound"), [("mpt", 16), ("roberta decoder", 62)])
def test_a_bound_by_another_name_is_found_before_the_fit(name: str, bound: int) -> None:
    lm = FrozenLM(unusual(name), tokenizer())
    assert lm.max_positions == bound
    assert lm.logits(vectors(1, bound), range(bound)).shape[1] == bound
    with pytest.raises(InputError, match=f"{bound + 1} input positions are asked for, and .* has {bound}"):
        lm.logits(vectors(1, bound + 1), range(bound))
    with counted(lm) as calls, pytest.raises(InputError, match=f"has {bound}"):
        fit(lm, lm.encode("a" * (bound + 1)), preset(stop=Stop(max_steps=1)))
    assert calls.forward == []


def test_a_model_in_training_mode_is_noticed() -> None:
    lm = FrozenLM(build("gpt2"), tokenizer())
    ids = lm.encode("ab")
    result = fit(lm, ids, preset(stop=Stop(max_steps=0)))
    calls = (
        lambda: decode(lm, result.tokens),
        lambda: lm.next_token_logits(ids),
        lambda: lm.generate(vectors(1, 2), 2),
        lambda: continuations(lm, ids[None], 2),
        lambda: fit(lm, ids, preset(stop=Stop(max_steps=0))),
    )
    for module in (lm.model, lm.model.transformer.h[1].attn):
        module.train()
        for call in calls:
            with pytest.raises(InputError, match=r"GPT2LMHeadModel was put back into training mode.*lm.model.eval\(\)"):
                call()
        lm.model.eval()
    assert decode(lm, result.tokens).ids.shape == (2,)


def test_autocast_is_noticed() -> None:
    lm = family("gpt2")
    ids = lm.encode("ab")
    calls = (
        lambda: lm.next_token_logits(ids),
        lambda: lm.generate(vectors(1, 2), 2),
        lambda: continuations(lm, ids[None], 2),
    )
    for call in calls:
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(InputError, match="leave the autocast block"):
            call()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_generation_stays_within_the_positions(name: str) -> None:
    lm = family(name)
    assert lm.generate(vectors(1, 60), 5).shape == (1, 5)  # the fifth token is no input
    with pytest.raises(InputError, match=r"65 input positions are asked for, and .* has 64"):
        lm.generate(vectors(1, 60), 6)


# Compiled models.


def test_a_compiled_model_is_the_model_that_was_compiled() -> None:
    model = unusual("gemma3n")
    plain = FrozenLM(model, tokenizer())
    compiled = FrozenLM(torch.compile(model, backend="eager"), tokenizer())
    assert compiled.identity == plain.identity
    ids = torch.randint(256, (2, 7), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(compiled.next_token_logits(ids), plain.next_token_logits(ids), atol=1e-5)
    assert torch.equal(compiled.generate(vectors(2, 3), 4), plain.generate(vectors(2, 3), 4))


def test_generation_from_a_compiled_model_leaves_its_settings() -> None:
    model = build("llama")
    settings = model.generation_config
    compiled = FrozenLM(torch.compile(model, backend="eager"), tokenizer())
    assert torch.equal(compiled.generate(vectors(2, 3), 4), family("llama").generate(vectors(2, 3), 4))
    assert model.generation_config is settings


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "mamba"])
def test_gradient_checkpointing_works_in_evaluation_mode(name: str) -> None:
    lm = FrozenLM(build(name), tokenizer())
    lm.model.gradient_checkpointing_enable()
    forwards = [dict(module.__dict__) for module in lm.model.modules()]

    def descend(frozen: FrozenLM) -> tuple[int, Tensor, Tensor]:
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        inputs_embeds = vectors(1, 32).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = frozen.logits(inputs_embeds, range(30, 32))
        logits.logsumexp(-1).sum().backward()
        assert inputs_embeds.grad is not None
        return sum(kept.values()), logits, inputs_embeds.grad

    saving, logits, gradient = descend(lm)
    all_kept, plain_logits, plain_gradient = descend(family(name))
    assert saving < 0.8 * all_kept
    assert torch.allclose(logits, plain_logits, rtol=1e-5, atol=1e-5)
    assert torch.allclose(gradient, plain_gradient, rtol=1e-4, atol=1e-5)
    assert [module.__dict__.keys() for module in lm.model.modules()] == [before.keys() for before in forwards]
    assert not lm.embed(lm.encode("ab")).requires_grad
