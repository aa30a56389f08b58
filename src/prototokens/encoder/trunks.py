"""Trunks: from a text's token features to one feature vector. To plug in another one, add it to `TRUNKS`.

A trunk is a module made by `trunk(config, feature_width)`. Its `forward` takes features (B, T, F), float32, of texts of
one length T from 1 to `config.max_tokens`, and returns (B, W), where W is its attribute `out_width`. What it returns
for a text must not depend on the rest of the batch. Weights of a position or of a length lie along the first axis of a
parameter, in order: `Encoder.up_to` cuts them there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .config import EncoderConfig

_HEAD_WIDTH = 64


class Perceptron(nn.Module):
    """One linear layer over the concatenated token features, then residual layers.

    h_1 = gelu(sum over i of W_i p(x_i) / sqrt(T) + b_T);   h_l = h_(l-1) + gelu(A_l norm(h_(l-1)) + a_l)

    A text shorter than `max_tokens` uses the first T of the W_i, as if it were padded with zeros.
    """

    def __init__(self, config: EncoderConfig, feature_width: int) -> None:
        super().__init__()
        self.out_width = config.width
        self.token = nn.Linear(feature_width, config.token_width)
        weights_by_position = torch.empty(config.max_tokens, config.token_width, config.width)
        self.slots = nn.Parameter(nn.init.normal_(weights_by_position, std=config.token_width**-0.5))
        self.by_length = nn.Parameter(torch.zeros(config.max_tokens, config.width))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, config.width), nn.GELU())
            for _ in range(config.layers - 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, T, F) to (B, W)."""
        length = features.shape[1]
        tokens = self.token(features).flatten(1)  # (B, T * token_width)
        summed = tokens @ self.slots[:length].flatten(0, 1)
        hidden = nn.functional.gelu(summed * length**-0.5 + self.by_length[length - 1])  # (B, W)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return hidden


class Transformer(nn.Module):
    """Pre-norm transformer layers over the tokens and one read-out token for each vector that the head writes.

    Attention is bidirectional. The read-out tokens get an embedding of the text's length, the others one of their
    position. The outputs of the read-out tokens are concatenated.

    Reference: On Layer Normalization in the Transformer Architecture (Xiong et al., 2020),
    https://arxiv.org/abs/2002.04745.
    """

    def __init__(self, config: EncoderConfig, feature_width: int) -> None:
        super().__init__()
        width, readouts = config.width, config.n_vectors
        self.out_width = readouts * width
        self.token = nn.Linear(feature_width, width)
        self.positions = nn.Parameter(torch.randn(config.max_tokens, width) * 0.5)
        self.by_length = nn.Parameter(torch.randn(config.max_tokens, width) * 0.5)
        self.readouts = nn.Parameter(torch.randn(readouts, width) * 0.5)
        heads = next(h for h in range(max(1, width // _HEAD_WIDTH), 0, -1) if width % h == 0)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, T, F) to (B, R * W), where R is the number of read-out tokens."""
        n_texts, length = features.shape[:2]
        readouts = (self.readouts + self.by_length[length - 1]).expand(n_texts, -1, -1)
        tokens = self.token(features) + self.positions[:length]
        sequence = torch.cat([readouts, tokens], 1)  # (B, R + T, W)
        return self.layers(sequence)[:, : len(self.readouts)].flatten(1)


TRUNKS: dict[str, Callable[[EncoderConfig, int], Any]] = {"perceptron": Perceptron, "transformer": Transformer}
"""The trunks that a config can name."""


def make_trunk(config: EncoderConfig, feature_width: int) -> Any:
    """The trunk that a config names.

    Raises:
        InputError: there is none of that name.
    """
    if config.trunk not in TRUNKS:
        raise InputError(f"unknown trunk {config.trunk!r}; choose one of: {' '.join(TRUNKS)}")
    return TRUNKS[config.trunk](config, feature_width)
