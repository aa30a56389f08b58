"""A probe of a model: does it take vectors, are its outputs those of a causal LM, and what does autograd keep of it?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..errors import InputError
from .compiled import uncompiled

if TYPE_CHECKING:
    from .frozen import FrozenLM

_POSITIONS = 5  # a number that no width of a model is, so that attention weights are told by their shape
_ROUNDING = 1e-4  # of the largest logit: what unequal kernels make of equal inputs in float32


@dataclass(frozen=True)
class Kept:
    """What autograd keeps until the backward pass, in bytes.

    Attributes:
        layers: of the layers, for each position of a row.
        attention: of attention weights, where the kernel makes them, for each pair of positions of a row.
        head: of what is as wide as the vocabulary, the logits themselves left out, for each position.
        dtype: that of the weights when it was measured.
        device: where they lay.
    """

    layers: float
    attention: float
    head: float
    dtype: torch.dtype
    device: torch.device


_causal: WeakKeyDictionary[nn.Module, Kept | None] = WeakKeyDictionary()
"""The models that were probed, and what was measured."""


def kept_of(lm: FrozenLM) -> Kept | None:
    """What the probe measured of a model, if it lies where it lay, in the same dtype."""
    kept = _causal.get(lm.model)
    return kept if kept is not None and (kept.dtype, kept.device) == (lm.dtype, lm.device) else None


def check_causal(lm: FrozenLM) -> None:
    """Refuse a model whose outputs depend on later inputs, or are not one for each input.

    One forward pass of two inputs that share their first half: the outputs there must agree. It is made once per model.

    Raises:
        InputError: the model is no causal LM, or cannot be run from input embeddings.
    """
    weight = next(lm.embedding.parameters())
    has_no_values = weight.is_meta and not hasattr(lm.embedding, "_hf_hook")  # such a model serves estimates only
    if lm.model in _causal or has_no_values:
        return
    name = type(uncompiled(lm.model)).__name__
    try:
        inputs_embeds = _inputs(lm)
        logits, kept = _pass(lm, inputs_embeds)
    except (InputError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # whatever a model's own code raises
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{name} cannot be run from input embeddings: {reason}") from None
    length, shared = inputs_embeds.shape[1], inputs_embeds.shape[1] // 2
    if logits.shape[1] != length:
        raise InputError(
            f"{name} gives {logits.shape[1]} outputs for {length} input positions: it adds positions of its own, "
            "as prompt tuning does, and proto-tokens need one output for each input"
        )
    difference = (logits[0, :shared] - logits[1, :shared]).abs().amax() if shared else logits.new_zeros(())
    tolerance = max(_ROUNDING, 8 * torch.finfo(lm.dtype).eps)
    if difference > tolerance * logits.abs().amax():
        raise InputError(
            f"{name} is no causal LM: its outputs depend on later inputs. "
            "A model such as BERT that was trained as a decoder says so by is_decoder=True in its config"
        )
    _causal[lm.model] = kept


def _pass(lm: FrozenLM, inputs_embeds: Tensor) -> tuple[Tensor, Kept | None]:
    """The logits of the probe, and what autograd keeps of it; None where the pass records nothing that can be counted.

    A compiled model would be compiled for it, and is not measured.
    """
    length = inputs_embeds.shape[1]
    is_compiled = uncompiled(lm.model) is not lm.model or getattr(lm.model, "_compiled_call_impl", None) is not None
    if not is_compiled:
        try:
            with torch.inference_mode(False), torch.enable_grad():
                return _recorded(lm, inputs_embeds)
        except Exception:  # a model that cannot be differentiated can still decode
            pass
    with torch.no_grad():
        return lm.run(lm.inputs_of_vectors(inputs_embeds), length, use_cache=False).logits.float(), None


def _recorded(lm: FrozenLM, inputs_embeds: Tensor) -> tuple[Tensor, Kept]:
    weights = {tensor.untyped_storage()._cdata for tensor in (*lm.model.parameters(), *lm.model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    inputs = lm.inputs_of_vectors(inputs_embeds.clone().requires_grad_())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = lm.run(inputs, inputs_embeds.shape[1], use_cache=False).logits
    kept.pop(logits.untyped_storage()._cdata, None)
    rows, length = inputs_embeds.shape[:2]
    layers = attention = head = 0
    for tensor in kept.values():
        n_bytes = tensor.untyped_storage().nbytes()
        if tensor.ndim > 1 and tensor.shape[-1] == logits.shape[-1]:
            head += n_bytes
        elif tensor.ndim > 2 and tensor.shape[-1] == tensor.shape[-2] == length:
            attention += n_bytes
        else:
            layers += n_bytes
    n_positions = rows * length
    measured = Kept(layers / n_positions, attention / (n_positions * length), head / n_positions, lm.dtype, lm.device)
    return logits.detach().float(), measured


def _inputs(lm: FrozenLM) -> Tensor:
    """Two rows of random vectors, as large as the embeddings, alike in their first half: (2, L, D)."""
    length = min(_POSITIONS, lm.max_positions or _POSITIONS)
    size = lm.embed(torch.arange(min(16, lm.vocabulary))).square().mean().sqrt().clamp_min(1e-6).cpu()
    rows = torch.randn(2, length, lm.width, generator=torch.Generator().manual_seed(0)) * size
    rows[1, : length // 2] = rows[0, : length // 2]
    return rows
