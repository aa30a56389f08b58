"""Tiny models, one per architecture family, a byte-level tokenizer, and a model whose logits are known."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from prototokens import AdamW, FitConfig, FitResult, FrozenLM, Stop

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 264  # 256 bytes, three special tokens, and a few rows that are no token, as real models have
WIDTH = 48
POSITIONS = 64

RECIPE = FitConfig(
    arrangement="m,e,m*(n-1)",
    start="text-e",
    perturbation=0.1,
    optimiser=AdamW(lr=0.22, relative=True),
    stop=Stop(max_steps=400, margin=0.01),
    restarts=4,
)
"""Solves texts of up to four tokens on every family, in a sixth of these steps."""

ONE = replace(RECIPE, restarts=1)

_COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": None}
_LAYERS = {
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.3,  # wide, so that a random model tells inputs apart
}
_GROUPED = {"num_key_value_heads": 2}

FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_COMMON, **_LAYERS, **_GROUPED)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**_COMMON, **_LAYERS, **_GROUPED, sliding_window=16)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_COMMON, **_LAYERS, **_GROUPED, head_dim=12)),
    # Its embedding module scales, and its logits are capped.
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**_COMMON, **_LAYERS, **_GROUPED, head_dim=12, query_pre_attn_scalar=12, sliding_window=16,
                         final_logit_softcapping=30.0)
    ),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_COMMON, **_LAYERS)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(**_COMMON, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=POSITIONS, initializer_range=0.3)
    ),
    # Its input embeddings are narrower than its hidden states.
    "opt": lambda: OPTForCausalLM(
        OPTConfig(**_COMMON, hidden_size=64, word_embed_proj_dim=WIDTH, ffn_dim=96, num_hidden_layers=2,
                  num_attention_heads=4, max_position_embeddings=POSITIONS, init_std=0.3)
    ),
    # No attention and no bound on positions.
    "mamba": lambda: MambaForCausalLM(
        MambaConfig(**_COMMON, hidden_size=WIDTH, state_size=8, num_hidden_layers=2, initializer_range=0.3)
    ),
}  # fmt: skip


def build(name: str, seed: int = 0) -> Any:
    """A fresh model of a family; its random weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(list(FAMILIES).index(name) + 100 * seed)
        model = FAMILIES[name]()
    assert model.num_parameters() < 120_000
    return model


def save_model(name: str, folder: str | os.PathLike[str]) -> None:
    """Write a family's model and tokenizer into a folder, as users keep theirs."""
    build(name).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


@cache
def family(name: str) -> FrozenLM:
    """The one frozen model of a family that all tests share."""
    return FrozenLM(build(name), tokenizer())


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and three special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(tokenizer_object=fast, bos_token=SPECIAL[0], eos_token=SPECIAL[0])


class AnalyticLM(nn.Module):
    """logits_i = 10 head x_i: the output at a position is known, and depends on the input at that position only.

    Embeddings are the unit vectors, so that the vector of an id is read as that id wherever it stands.
    """

    def __init__(self, head: Tensor | None = None) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(torch.eye(VOCABULARY))
        self.head = nn.Parameter(torch.eye(VOCABULARY) if head is None else head)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, inputs_embeds: Tensor, use_cache: bool) -> SimpleNamespace:
        assert not use_cache
        return SimpleNamespace(logits=10 * inputs_embeds @ self.head.T)


def analytic(head: Tensor | None = None) -> FrozenLM:
    """An analytic model with the shared tokenizer."""
    return FrozenLM(AnalyticLM(head), tokenizer())


def batch(lm: FrozenLM, *texts: str) -> Tensor:
    """Ids (B, T) of texts of equal length."""
    return torch.stack([lm.encode(text) for text in texts])


def budget(config: FitConfig, **changes: float) -> FitConfig:
    """The recipe with another stopping rule."""
    return replace(config, stop=replace(config.stop, **changes))


def same_vectors(a: FitResult, b: FitResult) -> bool:
    """Whether two fits found the same bits."""
    return torch.equal(a.tokens.e, b.tokens.e) and torch.equal(a.tokens.m, b.tokens.m)


@dataclass
class Calls:
    """What went through a model: shapes (B, L) of its inputs, forward and backward."""

    forward: list[tuple[int, int]] = field(default_factory=list)
    backward: list[tuple[int, int]] = field(default_factory=list)

    def positions(self) -> int:
        return sum(rows * length for rows, length in self.forward)

    def backward_positions(self) -> int:
        return sum(rows * length for rows, length in self.backward)


@contextmanager
def counted(lm: FrozenLM) -> Iterator[Calls]:
    """Count the model's calls while the block runs."""
    calls = Calls()

    def before(_: nn.Module, __: tuple, options: dict[str, Any]) -> None:
        inputs = options.get("inputs_embeds")
        inputs = options["input_ids"] if inputs is None else inputs
        shape = tuple(inputs.shape[:2])
        calls.forward.append(shape)
        if inputs.requires_grad:
            inputs.register_hook(lambda _: calls.backward.append(shape))

    handle = lm.model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


@contextmanager
def spoiled(lm: FrozenLM, call: int, rows: slice = slice(None)) -> Iterator[None]:
    """Make the logits of some rows NaN in one call of the model, counted from 0."""
    numbers = count()

    def after(_: nn.Module, __: tuple, output: Any) -> None:
        if next(numbers) == call:
            output.logits = output.logits.clone()
            output.logits[rows] *= float("nan")

    handle = lm.model.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()
