"""Attention masks of our own for a model's forward pass, also for layers that look back a window only."""

from __future__ import annotations

import torch
from torch import Tensor

from ..lm.config_values import text_config
from ..lm.frozen import FrozenLM

_FULL, _SLIDING = "full_attention", "sliding_attention"


def attention_mask(lm: FrozenLM, seen: Tensor, places: Tensor, text_length: int) -> Tensor | dict[str, Tensor]:
    """What `forward` takes as its mask, for inputs behind a text that a cache holds.

    Args:
        lm: the frozen model.
        seen: which of the text's tokens and of the inputs each input attends to, bool, (B, Q, L + Q).
        places: the position of each input, int64, (B, Q).
        text_length: L; the text's tokens have the positions 0 ... L - 1.

    Returns:
        (B, 1, Q, L + Q), zero where seen and the lowest number elsewhere, in the model's dtype; for a model whose
        layers differ, one of them for each kind of layer.
    """
    window, by_kind = _window(lm)
    if window is None:
        return _additive(seen, lm.dtype)
    text = torch.arange(text_length, device=places.device).expand(len(places), -1)
    distance = places.unsqueeze(-1) - torch.cat([text, places], 1).unsqueeze(1)  # (B, Q, L + Q)
    near = _additive(seen & (distance < window), lm.dtype)
    return {_FULL: _additive(seen, lm.dtype), _SLIDING: near} if by_kind else near


def unknown_layers(lm: FrozenLM) -> list[str]:
    """The kinds of layers of a model whose masks are not known here."""
    return sorted(set(getattr(text_config(lm.model), "layer_types", None) or ()) - {_FULL, _SLIDING})


def _window(lm: FrozenLM) -> tuple[int | None, bool]:
    """How many tokens a layer with a window sees, itself included, and whether masks are given by kind of layer."""
    config = text_config(lm.model)
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    slides = _SLIDING in kinds if kinds else getattr(config, "use_sliding_window", True)
    return (window, bool(kinds)) if isinstance(window, int) and slides else (None, False)


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min).unsqueeze(1)
