"""FrozenLM: a causal language model and its tokenizer, frozen. Every fit and decode touches the network here only."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..errors import InputError
from .identity import Identity
from .sources import find_source

_EMBEDDING_ROWS_AT_ONCE = 8192
_DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class EmbeddingStatistics:
    """What the model's input embeddings look like, taken from the embedding module's outputs.

    Attributes:
        mean: mean row, float32, (D,).
        std: standard deviation of all entries around the mean row.
    """

    mean: Tensor
    std: float


class FrozenLM:
    """A frozen causal LM with its tokenizer: text to ids and back, and logits from input embeddings.

    Putting a model in here freezes it: evaluation mode, no gradients for weights. The weights are never written.

    Args:
        model: a causal LM with the interface of Hugging Face's: `get_input_embeddings()`, and
            `forward(inputs_embeds=...)` whose result has `.logits` (B, L, V).
        tokenizer: its tokenizer, with Hugging Face's interface.
        identity: name, revision, fingerprint. Made from the weights in memory if not given, and then different
            for another dtype; `load_lm` gives one that isn't.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, identity: Identity | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.embedding: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
        self._keeps_logits = "logits_to_keep" in inspect.signature(type(model).forward).parameters
        self.identity = identity or Identity(
            name=str(getattr(model, "name_or_path", "") or type(model).__name__),
            revision=None,
            fingerprint=_hash_state(model),
            tokenizer_hash=hash_vocabulary(tokenizer),
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.model.parameters()).dtype

    @cached_property
    def device(self) -> torch.device:
        """Where inputs go and logits come out: the device of the input embeddings.

        A model that accelerate spreads over devices brings its outputs back to where its inputs were; embeddings that
        it offloads lie on no device, and run where their hook says.
        """
        device = next(self.embedding.parameters()).device
        if device.type == "meta":
            hook = getattr(self.embedding, "_hf_hook", None)
            return torch.device(getattr(hook, "execution_device", None) or "cpu")
        return device

    @cached_property
    def width(self) -> int:
        """D, the width of the input embeddings (not always that of the hidden states)."""
        return self.embed(torch.zeros(1, dtype=torch.long)).shape[-1]

    @cached_property
    def vocabulary(self) -> int:
        """V, the number of rows of the input embeddings: ids are below it."""
        return next(self.embedding.parameters()).shape[0]

    @cached_property
    def max_positions(self) -> int | None:
        """The number of input positions that the model was built for, or None where there is no bound."""
        config: Any = getattr(self.model, "config", None)
        text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
        return getattr(text_config, "max_position_embeddings", None)

    @cached_property
    def embedding_statistics(self) -> EmbeddingStatistics:
        """Mean and spread of the embedding module's outputs over the whole vocabulary."""
        with torch.inference_mode(False), torch.no_grad():  # what is kept must serve later fits
            return self._embedding_statistics()

    def _embedding_statistics(self) -> EmbeddingStatistics:
        rows = self.vocabulary
        chunks = [
            torch.arange(i, min(i + _EMBEDDING_ROWS_AT_ONCE, rows)) for i in range(0, rows, _EMBEDDING_ROWS_AT_ONCE)
        ]
        mean = sum(self.embed(c).sum(0) for c in chunks) / rows
        assert isinstance(mean, Tensor)
        square = sum((self.embed(c) - mean).square().sum().item() for c in chunks)
        return EmbeddingStatistics(mean, (square / (rows * mean.numel())) ** 0.5)

    def encode(self, text: str) -> Tensor:
        """Token ids of a text, int64, (T,): no special token added; `<|im_start|>` in a text is text.

        Raises:
            InputError: the text is empty.
        """
        ids = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) if text else []
        if not ids:
            raise InputError("the text is empty: there is nothing to encode")
        return torch.tensor(ids, dtype=torch.long)

    def decode(self, ids: Tensor) -> str:
        """The text of token ids (T,), nothing skipped and nothing cleaned up."""
        return self.tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """Outputs of the embedding module for ids (...), float32, (..., D), on `device`."""
        return self.embedding(ids.to(self.device)).float()

    @cached_property
    def bos_id(self) -> int | None:
        """Id of the token that stands before a text, as the tokenizer or the model's config names it, or None."""
        owners = (self.tokenizer, getattr(self.model, "config", None))
        ids = (getattr(owner, "bos_token_id", None) for owner in owners)
        return next((token for token in ids if isinstance(token, int)), None)

    def fixed_vector(self, name: str) -> Tensor:
        """The model's own fixed vector of that name, float32, (D,).

        `"bos"` is the embedding of the BOS token; a model without one gives its EOS token's, else that of id 0.

        Raises:
            InputError: the model has no vector of that name.
        """
        if name != "bos":
            raise InputError(f"the arrangement holds a fixed vector {name!r}: give its value in Given(fixed=...)")
        fallback = getattr(self.tokenizer, "eos_token_id", None)
        token = self.bos_id if self.bos_id is not None else fallback if isinstance(fallback, int) else 0
        return self.embed(torch.tensor(token))

    def fixed_vectors(self, names: Sequence[str]) -> Tensor:
        """The model's own fixed vectors of these names, float32, (F, D), on `device`; errors as in `fixed_vector`."""
        empty = torch.empty(0, self.width, device=self.device)
        return torch.cat([empty, *(self.fixed_vector(name).unsqueeze(0) for name in names)])

    def logits(self, inputs_embeds: Tensor, read: range) -> Tensor:
        """Logits of one forward pass, by the model's own path from input embeddings.

        Args:
            inputs_embeds: (B, L, D), any floating dtype; cast to the model's.
            read: the T input positions whose outputs are wanted.

        Returns:
            (B, T, V), float32, on `device`.

        Raises:
            InputError: the input is longer than the model's positions.
        """
        length = inputs_embeds.shape[1]
        if self.max_positions is not None and length > self.max_positions:
            raise InputError(
                f"{length} input positions are asked for, and {self.identity.name} has {self.max_positions}"
            )
        options = {"logits_to_keep": self._kept(read, length)} if self._keeps_logits and len(read) < length else {}
        inputs = inputs_embeds.to(self.device, self.dtype)
        logits = self.model(inputs_embeds=inputs, use_cache=False, **options).logits
        if logits.shape[1] != len(read):
            keeps_tail = self._keeps_logits and self._spread
            tail = range(read.start - length, read.stop - length)  # counted from the end, whatever was left out before
            logits = logits[:, _index(tail if keeps_tail else read, logits.device)]
        return logits.to(self.device).float()  # (B, T, V)

    @cached_property
    def _spread(self) -> bool:
        """Whether the weights lie on several devices."""
        return len(set(getattr(self.model, "hf_device_map", {}).values())) > 1

    def _kept(self, read: range, length: int) -> int | Tensor:
        """What tells the model which outputs to make logits of.

        Positions by index leave the hidden states in one piece, which the head multiplies faster than a slice; but an
        index on another device than they are is refused, so that a spread model makes those of all the last positions.
        """
        return length - read.start if self._spread else _index(read, self.device)

    @torch.no_grad()
    def next_token_logits(self, ids: Tensor) -> Tensor:
        """Logits of the ordinary autoregressive model on ids (T,) or (B, T): (..., T, V); the last predict t_{T+1}."""
        batch = ids if ids.ndim == 2 else ids.unsqueeze(0)
        logits = self.logits(self.embed(batch), range(batch.shape[1]))
        return logits if ids.ndim == 2 else logits[0]

    @torch.no_grad()
    def hidden_states(self, ids: Tensor, layer: int) -> Tensor:
        """Hidden states of the ordinary model on ids (B, T), float32, (B, T, H), on `device`.

        Args:
            ids: int64, (B, T).
            layer: 0: the input of the first layer; 1: its output; -1: the last of them.

        Raises:
            InputError: the model has no such layer.
        """
        options = {"logits_to_keep": 1} if self._keeps_logits else {}
        inputs = self.embed(ids).to(self.dtype)
        found = self.model(inputs_embeds=inputs, use_cache=False, output_hidden_states=True, **options).hidden_states
        if not -len(found) <= layer < len(found):
            raise InputError(f"hidden layer {layer} is not there: {self.identity.name} has 0 to {len(found) - 1}")
        return found[layer].to(self.device).float()

    @torch.no_grad()
    def attentions(self, inputs_embeds: Tensor) -> list[Tensor]:
        """Attention weights of one forward pass, layer by layer, each float32, (B, H, L, L), on `device`.

        Entry [b, h, i, j] is how much of head h's weight position i gives to position j; layers that have no attention
        weights are left out. Fused kernels never make the weights, so that the pass runs the eager ones.

        Args:
            inputs_embeds: (B, L, D), any floating dtype; cast to the model's.

        Raises:
            InputError: the model gives no attention weights.
        """
        found = None
        if getattr(self.model, "config", None) is not None:
            options = {"logits_to_keep": 1} if self._keeps_logits else {}
            inputs = inputs_embeds.to(self.device, self.dtype)
            with _eager_attention(self.model):
                found = self.model(inputs_embeds=inputs, use_cache=False, output_attentions=True, **options)
        layers = getattr(found, "attentions", None) or ()
        weights = [layer.to(self.device).float() for layer in layers if isinstance(layer, Tensor) and layer.ndim == 4]
        if not weights:
            raise InputError(f"{self.identity.name} gives no attention weights: choose a model with softmax attention")
        return weights

    @torch.no_grad()
    def generate(self, inputs_embeds: Tensor, count: int, *, seed: int | None = None) -> Tensor:
        """Generation with a KV cache after `inputs_embeds` (B, L, D): exactly `count` ids, (B, count).

        Args:
            inputs_embeds: (B, L, D), any floating dtype; cast to the model's.
            count: number of new tokens.
            seed: greedy if None; otherwise multinomial sampling at temperature 1 from this seed. torch's random states
                are left as they were.
        """
        from transformers import GenerationConfig

        # A shallow copy shares the weights. Its blank settings keep the checkpoint's own (penalties, EOS ids) out.
        model: Any = copy.copy(self.model)
        model.generation_config = GenerationConfig()
        inputs = inputs_embeds.to(self.device, self.dtype)
        mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=self.device)
        how = {} if seed is None else {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
        settings = GenerationConfig(
            max_new_tokens=count, do_sample=seed is not None, use_cache=True, pad_token_id=0, **how
        )
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else [], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            return model.generate(inputs_embeds=inputs, attention_mask=mask, generation_config=settings)


def load_lm(
    name: str = "smollm2-135m",
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> FrozenLM:
    """Load a causal LM and its tokenizer, frozen.

    Args:
        name: `smollm2-135m` (built in), a Hub id, a folder, or a `.gguf` file.
        revision: branch, tag or commit on the Hub.
        dtype: `"auto"` (that of the checkpoint), `"float32"`, `"bfloat16"`, `"float16"`, or a torch dtype.
        device: one device for all, e.g. `"cuda"`; the CPU by default.
        device_map: how accelerate spreads the model over devices, e.g. `"auto"`; instead of `device`.
        trust_remote_code: run the model repository's own Python code. Only for repositories that you trust.

    Raises:
        InputError: the model cannot be found or loaded; the message says why and what can be.
    """
    if device is not None and device_map is not None:
        raise InputError("give device or device_map, not both")
    if isinstance(dtype, str) and dtype not in _DTYPES:
        raise InputError(f"unknown dtype {dtype!r}; choose one of: {' '.join(_DTYPES)}")
    source = find_source(name, revision)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    own_code = {"trust_remote_code": trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.folder, **own_code)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.folder,
            dtype=dtype,
            device_map=device_map,
            use_safetensors=True,
            output_loading_info=True,
            **own_code,
        )
    except (ValueError, OSError, RuntimeError, ImportError, KeyError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        if "trust_remote_code" in reason:
            reason = "it needs its repository's own code; allow that with --trust-remote-code if you trust it"
        raise InputError(f"{name}: cannot be loaded as a causal LM: {reason[:300]}") from None
    if not tokenizer.get_vocab():
        raise InputError(f"{name}: holds no tokenizer; save it there too: tokenizer.save_pretrained(folder)")
    model, loading = loaded
    if loading["missing_keys"]:
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise InputError(f"{name}: its files lack weights that the model needs: {missing}")
    if device is not None:
        try:
            model = model.to(torch.device(device))
        except (RuntimeError, AssertionError) as error:
            raise InputError(
                f"device {str(device)!r} cannot be used here: {' '.join(str(error).split())[:200]}"
            ) from None
    identity = Identity(source.name, source.revision, source.fingerprint, hash_vocabulary(tokenizer))
    return FrozenLM(model, tokenizer, identity)


def quiet_libraries() -> None:
    """Keep transformers' progress bars and advice off stderr, for programs that speak for themselves."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def hash_vocabulary(tokenizer: Any) -> str:
    """SHA-256 over a tokenizer's vocabulary, tokens with their ids."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()


def _hash_state(model: nn.Module) -> str:
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise InputError("weights that are offloaded cannot be hashed: give FrozenLM an identity, or use load_lm")
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _eager_attention(model: Any) -> Iterator[None]:
    """Attention that tells its weights while the block runs; the model's own comes back afterwards."""
    owners = {id(c): c for c in (getattr(part, "config", None) for part in model.modules()) if c is not None}
    own = [(c, c._attn_implementation_internal) for c in owners.values() if hasattr(c, "_attn_implementation_internal")]
    try:
        if own:
            model.set_attn_implementation("eager")
        yield
    finally:
        for config, name in own:
            config._attn_implementation_internal = name


@lru_cache(maxsize=64)
def _index(positions: range, device: torch.device) -> Tensor:
    # Kept, since a copy to a GPU in every step of a fit would stop its queue.
    with torch.inference_mode(False):
        return torch.tensor(positions, device=device)
