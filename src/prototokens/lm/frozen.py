"""FrozenLM: a causal language model and its tokenizer, frozen. Every fit and decode touches the network here only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .checkpointing import marked_layers, recomputed
from .compiled import forward_parameters, uncompiled
from .eager_attention import eager_attention
from .fingerprints import fingerprint_model
from .generation import generate
from .identity import Identity, hash_vocabulary
from .overrides import overrides
from .per_layer import per_layer_row
from .positions import position_bound
from .probe import check_causal

_EMBEDDING_ROWS_AT_ONCE = 8192


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
    One tiny forward pass makes sure that outputs do not depend on later inputs.

    Args:
        model: a causal LM with the interface of Hugging Face's: `get_input_embeddings()`, and
            `forward(inputs_embeds=...)` whose result has `.logits` (B, L, V).
        tokenizer: its tokenizer, with Hugging Face's interface.
        identity: name, revision, fingerprint. By default made from the weights in memory. Its fingerprint is that of
            `load_lm` if the weights are in the dtype of their files.

    Raises:
        InputError: the model or the tokenizer is missing, or the model is no causal LM that takes input embeddings.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, identity: Identity | None = None) -> None:
        if not isinstance(model, nn.Module) or not hasattr(model, "get_input_embeddings"):
            raise InputError(
                f"FrozenLM takes a causal LM in memory, not {type(model).__name__}; load_lm(name) loads one by its name"
            )
        if not hasattr(tokenizer, "get_vocab"):
            raise InputError(
                f"FrozenLM takes the model's tokenizer, not {type(tokenizer).__name__}: "
                "FrozenLM(model, AutoTokenizer.from_pretrained(name))"
            )
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.embedding: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
        self._modules = tuple(model.modules())
        parameters = forward_parameters(model)
        self._keeps_logits = "logits_to_keep" in parameters
        self._takes_ids = "input_ids" in parameters
        self.identity = identity or Identity(
            name=str(getattr(model, "name_or_path", "") or type(uncompiled(model)).__name__),
            revision=None,
            fingerprint=fingerprint_model(model),
            tokenizer_hash=hash_vocabulary(tokenizer),
        )
        check_causal(self)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.model.parameters()).dtype

    @property
    def dtype_name(self) -> str:
        """The dtype of the weights as `load_lm` takes it, e.g. `"float32"`."""
        return str(self.dtype).removeprefix("torch.")

    @cached_property
    def device(self) -> torch.device:
        """Where inputs go and logits come out: the device of the input embeddings.

        A model that accelerate spreads over devices returns its outputs to the device of its inputs. Embeddings that
        accelerate offloads lie on no device, and run where their hook says.
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
        return position_bound(self.model)

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
        return self.embedding(ids.to(self.device)).detach().float()  # a hook of gradient checkpointing marks them

    @cached_property
    def bos_id(self) -> int | None:
        """Id of the token that stands before a text, as the tokenizer or the model's config names it, or None."""
        sources = (self.tokenizer, getattr(self.model, "config", None))
        ids = (getattr(source, "bos_token_id", None) for source in sources)
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
            InputError: the input is longer than the model's positions, the model is in training mode, or autocast
                is on.
        """
        return self._logits(self.inputs_of_vectors(inputs_embeds), inputs_embeds.shape[1], read)

    def inputs_of_vectors(self, inputs_embeds: Tensor) -> dict[str, Tensor]:
        """What the model's `forward` is given for vectors (B, L, D)."""
        inputs = {"inputs_embeds": inputs_embeds.to(self.device, self.dtype)}
        if self.per_layer_row is not None:
            inputs["per_layer_inputs"] = self.per_layer_row.expand(*inputs_embeds.shape[:2], -1, -1)
        return inputs

    @cached_property
    def per_layer_row(self) -> Tensor | None:
        """What a vector gives to each layer in a model with per-layer embeddings, (N, P), else None."""
        with torch.inference_mode(False), torch.no_grad():
            return per_layer_row(self.model)

    def inputs_of_ids(self, ids: Tensor) -> dict[str, Tensor]:
        """What `forward` is given for token ids (B, T): the ids themselves, since some models look them up twice."""
        return {"input_ids": ids.to(self.device)} if self._takes_ids else self.inputs_of_vectors(self.embed(ids))

    def run(self, inputs: dict[str, Tensor], length: int, **options: Any) -> Any:
        """Call the model on inputs of `length` positions: the one place where the network is touched.

        Raises:
            InputError: as in `logits`.
        """
        self.check_ready(length)
        marked = marked_layers(self._modules) if torch.is_grad_enabled() else []
        with overrides(), recomputed(marked):
            return self.model(**inputs, **options)

    def check_ready(self, length: int = 0) -> None:
        """Refuse more input positions than the model has, and what would make two passes differ.

        Args:
            length: how many input positions are asked for.

        Raises:
            InputError: `length` is above `max_positions`, the model is in training mode, or autocast is on.
        """
        if self.max_positions is not None and length > self.max_positions:
            raise InputError(
                f"{length} input positions are asked for, and {self.identity.name} has {self.max_positions}"
            )
        if any(module.training for module in self._modules):
            raise InputError(
                f"{self.identity.name} was put back into training mode, in which two passes can differ: "
                "call lm.model.eval()"
            )
        if torch.is_autocast_enabled(self.device.type):
            raise InputError(
                "vectors that are fitted or decoded under torch.autocast pass in other arithmetic than elsewhere: "
                "leave the autocast block, or load the model with dtype='bfloat16'"
            )

    def _logits(self, inputs: dict[str, Tensor], length: int, read: range) -> Tensor:
        options = {"logits_to_keep": self._kept(read, length)} if self._keeps_logits and len(read) < length else {}
        logits = self.run(inputs, length, use_cache=False, **options).logits
        if logits.shape[1] != len(read):
            keeps_tail = self._keeps_logits and self._spread
            tail = range(read.start - length, read.stop - length)  # from the end, whatever was left out before
            logits = logits[:, _index(tail if keeps_tail else read, logits.device)]
        return logits.to(self.device).float()  # (B, T, V)

    @cached_property
    def _spread(self) -> bool:
        """Whether the weights lie on several devices."""
        return len(set(getattr(self.model, "hf_device_map", {}).values())) > 1

    def _kept(self, read: range, length: int) -> int | Tensor:
        """What tells the model which outputs to make logits of.

        Positions by index leave the hidden states in one piece, which the head multiplies faster than a slice. An index
        must lie on the device of the hidden states: a spread model is therefore told how many of the last to keep.
        """
        return length - read.start if self._spread else _index(read, self.device)

    @torch.no_grad()
    def next_token_logits(self, ids: Tensor) -> Tensor:
        """Logits of the ordinary autoregressive model on ids (T,) or (B, T): (..., T, V); the last predict t_{T+1}.

        Raises:
            InputError: as in `logits`.
        """
        batch = ids if ids.ndim == 2 else ids.unsqueeze(0)
        length = batch.shape[1]
        logits = self._logits(self.inputs_of_ids(batch), length, range(length))
        return logits if ids.ndim == 2 else logits[0]

    @torch.no_grad()
    def hidden_states(self, ids: Tensor, layer: int) -> Tensor:
        """Hidden states of the ordinary model on ids (B, T), float32, (B, T, H), on `device`.

        Args:
            ids: int64, (B, T).
            layer: 0: the input of the first layer; 1: its output; -1: the last of them.

        Raises:
            InputError: the model has no such layer; or as in `logits`.
        """
        options = {"logits_to_keep": 1} if self._keeps_logits else {}
        inputs = self.inputs_of_ids(ids)
        states = self.run(inputs, ids.shape[1], use_cache=False, output_hidden_states=True, **options).hidden_states
        if not -len(states) <= layer < len(states):
            raise InputError(f"hidden layer {layer} is not there: {self.identity.name} has 0 to {len(states) - 1}")
        return states[layer].to(self.device).float()

    @torch.no_grad()
    def attentions(self, inputs_embeds: Tensor) -> list[Tensor]:
        """Attention weights of one forward pass, layer by layer, each float32, (B, H, L, L), on `device`.

        Entry [b, h, i, j] is how much of head h's weight position i gives to position j. Layers without attention
        weights are left out. The pass runs the eager kernels, since fused ones never make the weights.

        Args:
            inputs_embeds: (B, L, D), any floating dtype; cast to the model's.

        Raises:
            InputError: the model gives no attention weights; or as in `logits`.
        """
        outputs = None
        if getattr(self.model, "config", None) is not None:
            options = {"logits_to_keep": 1} if self._keeps_logits else {}
            inputs = self.inputs_of_vectors(inputs_embeds)
            with eager_attention(self.model):
                outputs = self.run(inputs, inputs_embeds.shape[1], use_cache=False, output_attentions=True, **options)
        layers = getattr(outputs, "attentions", None) or ()
        weights = [layer.to(self.device).float() for layer in layers if isinstance(layer, Tensor) and layer.ndim == 4]
        if not weights:
            raise InputError(f"{self.identity.name} gives no attention weights: choose a model with softmax attention")
        return weights

    def generate(self, inputs_embeds: Tensor, n_tokens: int, *, seed: int | None = None) -> Tensor:
        """Generate exactly `n_tokens` ids, (B, n_tokens), with a KV cache after `inputs_embeds` (B, L, D).

        Args:
            inputs_embeds: any floating dtype; cast to the model's.
            n_tokens: number of new tokens.
            seed: greedy if None; otherwise multinomial sampling at temperature 1 from this seed. torch's random states
                are left as they were.

        Raises:
            InputError: the model keeps no cache, L + n_tokens - 1 is more than its positions, or as in `logits`.
        """
        return generate(self, inputs_embeds, n_tokens, seed)


@lru_cache(maxsize=64)
def _index(positions: range, device: torch.device) -> Tensor:
    # Kept, since a copy to a GPU in every step of a fit would stop its queue.
    with torch.inference_mode(False):
        return torch.tensor(positions, device=device)
