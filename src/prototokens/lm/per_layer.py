"""Per-layer embeddings (Gemma 3n, Gemma 4): each layer looks the token up once more, in a table of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def per_layer_row(model: Any) -> Tensor | None:
    """What a vector that is no token gives to each layer: (N, P) for N layers of width P.

    It is the row of the padding token, as these models were trained with it for the vectors of images.

    Returns:
        The row, or None for a model without per-layer embeddings.
    """
    for module in model.modules():
        table = getattr(module, "embed_tokens_per_layer", None)
        if table is not None:
            config = module.config
            padding = getattr(config, "pad_token_id", None) or 0
            device = next(table.parameters()).device
            return table(torch.tensor(padding, device=device)).detach().reshape(config.num_hidden_layers, -1)
    return None
