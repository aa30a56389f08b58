"""Trunks: from the tokens around a block to one feature vector. To plug in another one, add it to `TRUNKS`.

A trunk is a module made by `trunk(config, feature_width)`. Its module `token` projects the features of tokens (..., F)
to (..., P). Its `forward` takes windows (N, n + b + n, P) of projected tokens, float32, in which tokens outside the
text are zero, and `present`, bool, (N, n + b + n), true for the tokens of the text; a window's own block has at least
one of them. It returns (N, W), where W is its attribute `out_width`. What it returns for a window must not depend on
the others. `EMBEDDINGS` names parameters that are looked up, not multiplied; Muon leaves them to AdamW.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .config import EncoderConfig

_HEAD_WIDTH = 64

EMBEDDINGS = ("by_length", "positions", "readouts")


class Perceptron(nn.Module):
    """One linear layer over the concatenated tokens of a window, then residual layers.

    h_1 = gelu(sum over i of W_i p(x_i) / sqrt(c) + b_l);   h_k = h_(k-1) + gelu(A_k norm(h_(k-1)) + a_k)

    The sum runs over the tokens of the window that are in the text, c is their number, and l is the length of the
    block, which is shorter than the others at the end of a text.
    """

    def __init__(self, config: EncoderConfig, feature_width: int) -> None:
        super().__init__()
        self.out_width = config.width
        self.own = _own_tokens(config)
        self.token = nn.Linear(feature_width, config.token_width)
        slots = torch.empty(config.window_length * config.token_width, config.width)  # the W_i, one below another
        self.slots = nn.Parameter(nn.init.normal_(slots, std=config.token_width**-0.5))
        self.by_length = nn.Parameter(torch.zeros(config.block_length, config.width))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, config.width), nn.GELU())
            for _ in range(config.layers - 1)
        )

    def forward(self, windows: Tensor, present: Tensor) -> Tensor:
        """Windows (N, n + b + n, P) to (N, W)."""
        n_present = present.sum(1, keepdim=True)
        summed = windows.flatten(1) @ self.slots
        hidden = nn.functional.gelu(summed * n_present**-0.5 + self.by_length[present[:, self.own].sum(1) - 1])
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return hidden


class Transformer(nn.Module):
    """Pre-norm transformer layers over the tokens of a window and a read-out token for each vector of the head.

    Attention is bidirectional, and none goes to tokens outside the text. The read-out tokens get an embedding of the
    block's length, the others one of their position. The outputs of the read-out tokens are concatenated.

    Reference: On Layer Normalization in the Transformer Architecture (Xiong et al., 2020),
    https://arxiv.org/abs/2002.04745.
    """

    def __init__(self, config: EncoderConfig, feature_width: int) -> None:
        super().__init__()
        width, readouts = config.width, config.n_outputs
        self.out_width = readouts * width
        self.own = _own_tokens(config)
        self.token = nn.Linear(feature_width, width)
        self.positions = nn.Parameter(torch.randn(config.window_length, width) * 0.5)
        self.by_length = nn.Parameter(torch.randn(config.block_length, width) * 0.5)
        self.readouts = nn.Parameter(torch.randn(readouts, width) * 0.5)
        heads = next(h for h in range(max(1, width // _HEAD_WIDTH), 0, -1) if width % h == 0)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)

    def forward(self, windows: Tensor, present: Tensor) -> Tensor:
        """Windows (N, n + b + n, P) to (N, R * W), where R is the number of read-out tokens."""
        readouts = self.readouts + self.by_length[present[:, self.own].sum(1) - 1].unsqueeze(1)  # (N, R, W)
        sequence = torch.cat([readouts, windows + self.positions], 1)  # (N, R + n + b + n, W)
        absent = nn.functional.pad(~present, (len(self.readouts), 0), value=False)
        return self.layers(sequence, src_key_padding_mask=absent)[:, : len(self.readouts)].flatten(1)


def _own_tokens(config: EncoderConfig) -> slice:
    """Where a block's own tokens stand in its window."""
    return slice(config.neighbours, config.neighbours + config.block_length)


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
