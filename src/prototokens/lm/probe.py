"""A probe of a model: does it take vectors, and are its outputs those of a causal LM?"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ..errors import InputError
from .compiled import uncompiled

if TYPE_CHECKING:
    from .frozen import FrozenLM

_POSITIONS = 4
_ROUNDING = 1e-4  # of the largest logit: what unequal kernels make of equal inputs in float32

_causal: WeakSet[nn.Module] = WeakSet()


@torch.no_grad()
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
        logits = lm.run(lm.inputs_of_vectors(inputs_embeds), inputs_embeds.shape[1], use_cache=False).logits.float()
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
    _causal.add(lm.model)


def _inputs(lm: FrozenLM) -> Tensor:
    """Two rows of random vectors, as large as the embeddings, alike in their first half: (2, L, D)."""
    length = min(_POSITIONS, lm.max_positions or _POSITIONS)
    size = lm.embed(torch.arange(min(16, lm.vocabulary))).square().mean().sqrt().clamp_min(1e-6).cpu()
    rows = torch.randn(2, length, lm.width, generator=torch.Generator().manual_seed(0)) * size
    rows[1, : length // 2] = rows[0, : length // 2]
    return rows
