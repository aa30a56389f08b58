"""Generation after vectors, with a KV cache, without the checkpoint's own settings."""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError
from .compiled import forward_parameters, uncompiled
from .positions import padded_positions

if TYPE_CHECKING:
    from .frozen import FrozenLM

_CACHES = ("past_key_values", "cache_params", "state")
"""What the models call their cache, in outputs and inputs."""


@torch.no_grad()
def generate(lm: FrozenLM, inputs_embeds: Tensor, n_tokens: int, seed: int | None) -> Tensor:
    """Generate ids (B, n_tokens) after vectors (B, L, D); see `FrozenLM.generate`."""
    lm.check_ready(inputs_embeds.shape[1] + n_tokens - 1)  # the last token is no input
    cuda = [lm.device] if lm.device.type == "cuda" else []
    with torch.random.fork_rng(cuda, enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        generate_batch = _by_transformers if _transformers_can(lm) else _step_by_step
        batches = inputs_embeds.split(1) if mixes_rows(lm) else [inputs_embeds]
        return torch.cat([generate_batch(lm, batch, n_tokens, sample=seed is not None) for batch in batches])


def without_own_settings(model: Any) -> Any:
    """A copy of a model that shares its weights, with none of the checkpoint's settings (penalties, EOS ids).

    A compiled model is generated from as it was before, since its wrapper would set the settings of both.
    """
    from transformers import GenerationConfig

    blank = copy.copy(uncompiled(model))
    blank._compiled_call_impl = None  # that of `model.compile()`, which would be compiled anew for every length
    blank.generation_config = GenerationConfig()
    return blank


def mixes_rows(lm: FrozenLM) -> bool:
    """Whether a step from the cache mixes the rows of a batch, so that each has to be generated alone.

    RWKV, the one model that names its cache `state`, adds the state (B, D) to one token's hidden state (B, 1, D).
    """
    return "state" in forward_parameters(lm.model)


def _transformers_can(lm: FrozenLM) -> bool:
    """Whether `model.generate` takes vectors, and then gives each position its own place and per-layer inputs."""
    prepare = getattr(lm.model, "prepare_inputs_for_generation", None)
    takes_vectors = prepare is not None and "inputs_embeds" in inspect.signature(prepare).parameters
    return takes_vectors and lm.per_layer_row is None and not padded_positions(lm.model)


def _by_transformers(lm: FrozenLM, inputs_embeds: Tensor, n_tokens: int, *, sample: bool) -> Tensor:
    from transformers import GenerationConfig

    inputs = inputs_embeds.to(lm.device, lm.dtype)
    mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=lm.device)
    sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {}
    settings = GenerationConfig(max_new_tokens=n_tokens, do_sample=sample, use_cache=True, pad_token_id=0, **sampling)
    blank = without_own_settings(lm.model)
    return blank.generate(inputs_embeds=inputs, attention_mask=mask, generation_config=settings)


def _step_by_step(lm: FrozenLM, inputs_embeds: Tensor, n_tokens: int, *, sample: bool) -> Tensor:
    """The same, token by token, for models whose `generate` refuses vectors or misplaces them."""
    parameters = forward_parameters(lm.model)
    places = "position_ids" in parameters and not padded_positions(lm.model)
    options = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
    inputs = lm.inputs_of_vectors(inputs_embeds)
    start, length = 0, inputs_embeds.shape[1]
    rows: list[Tensor] = []
    while len(rows) < n_tokens:
        if places:
            inputs["position_ids"] = torch.arange(start, length, device=lm.device).unsqueeze(0)
        outputs = lm.run(inputs, length, use_cache=True, **options)
        logits = outputs.logits[:, -1].to(lm.device).float()  # (B, V)
        ids = torch.multinomial(logits.softmax(-1), 1) if sample else logits.argmax(-1, keepdim=True)  # (B, 1)
        rows.append(ids)
        cache = {name: outputs[name] for name in _CACHES if outputs.get(name) is not None}
        if not cache:
            raise InputError(f"{lm.identity.name} keeps no cache: it cannot generate after vectors")
        inputs = {"input_ids": ids, **cache}
        start, length = length, length + 1
    return torch.cat(rows, dim=1)
