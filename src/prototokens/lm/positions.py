"""How many input positions a model has."""

from __future__ import annotations

from typing import Any

from torch import nn

from .config_values import text_config

_NAMES = ("max_position_embeddings", "max_seq_len", "max_sequence_length", "max_target_positions", "n_positions")


def position_bound(model: Any) -> int | None:
    """The number of input positions that a model was built for, or None where its config names no bound."""
    values = (getattr(text_config(model), name, None) for name in _NAMES)
    bound = next((value for value in values if isinstance(value, int) and value > 0), None)
    return None if bound is None else bound - padded_positions(model)


def padded_positions(model: Any) -> int:
    """How many rows of a table of positions come before that of the first token, as in RoBERTa."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0
