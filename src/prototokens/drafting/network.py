"""The weights of a drafter: learned inputs behind a token, and what reads drafts from the outputs there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..lm.frozen import EmbeddingStatistics

_TINY = 1e-6  # the square of a length that counts as none, so that a state of zeros has a gradient


@dataclass(frozen=True)
class DrafterConfig:
    """How a drafter is built.

    Attributes:
        n_masks: M, learned inputs behind a token: mask i stands at the place of the i-th next token.
        n_drafts: D, tokens that are drafted behind the next one, at least M.
        input_width: width of the network that adds to the masks what the context says; 0: the masks alone.
        reader_width: width of the network that reads the drafts; 0: the model's head reads them from the outputs at the
            masks, and D is M.
        vocabulary: tokens that can be drafted, the most frequent in the texts of its training; 0: all. The
            head's share of a pass is large, and its rows for a few thousand tokens take little of it.
    """

    n_masks: int = 2
    n_drafts: int = 4
    input_width: int = 256
    reader_width: int = 768
    vocabulary: int = 8192

    def __post_init__(self) -> None:
        if not 0 <= self.n_masks <= self.n_drafts <= 64 or self.n_drafts < 1:
            raise InputError(
                f"n_masks is {self.n_masks} and n_drafts {self.n_drafts}; "
                "n_drafts must be from 1 to 64, and n_masks no more than it"
            )
        for name in ("input_width", "reader_width"):
            if not 0 <= getattr(self, name) <= 65_536:
                raise InputError(f"{name} is {getattr(self, name)}; it must be from 0 to 65536")
        if self.vocabulary < 0:
            raise InputError(f"vocabulary is {self.vocabulary}; it must be at least 0, which is all tokens")
        if not self.reader_width and self.n_masks != self.n_drafts:
            raise InputError(
                f"n_masks is {self.n_masks} and n_drafts {self.n_drafts}; without a reader they must be equal"
            )


class DrafterNetwork(nn.Module):
    """The inputs behind a token, and what reads the drafts from the outputs there.

    Inputs, before the pass: m_i = mean + s (a_i + W_i gelu(U [n(h); (x - mean) / s] + b_lag)),   i = 1 ... M

    where h is the last state that is known then, x the embedding of the token, and lag the number of tokens between the
    two; mean and s are the mean and the standard deviation of the model's embeddings, and n(h) = h / rms(h).

    Reading, after the pass: r_i = g_i + rms(h) V gelu(R [n(g_i); n(h); (y_i - mean) / s] + c_i),   i = 1 ... D

    where g_i is the state at mask i (zero where there is none), h now the state of the token itself, and y_i the
    embedding of the token before the one that is drafted: the next token, which is known by then, and then drafts. The
    model's own head gives the logits of r_i. States are what the head reads. W and V are zero at first, so that the
    untrained network gives the mean embedding and reads g_i.

    Args:
        config: how it is built.
        width: D, width of the model's input embeddings.
        state_width: H, width of its states.
    """

    embedding_mean: Tensor
    embedding_std: Tensor

    def __init__(self, config: DrafterConfig, width: int, state_width: int) -> None:
        super().__init__()
        self.n_masks, self.n_drafts = config.n_masks, config.n_drafts
        self.width, self.state_width = width, state_width
        self.masks = nn.Parameter(torch.zeros(config.n_masks, width))
        if config.input_width and config.n_masks:
            self.inner = nn.Linear(state_width + width, config.input_width)
            self.by_lag = nn.Parameter(torch.zeros(config.n_drafts + 1, config.input_width))
            self.outer = _zero(nn.Linear(config.input_width, config.n_masks * width))
        if config.reader_width:
            self.read_in = nn.Linear(2 * state_width + width, config.reader_width)
            self.by_depth = nn.Parameter(torch.zeros(config.n_drafts, config.reader_width))
            self.read_out = _zero(nn.Linear(config.reader_width, state_width))
        self.register_buffer("embedding_mean", torch.zeros(width))
        self.register_buffer("embedding_std", torch.ones(()))

    @property
    def has_reader(self) -> bool:
        """Whether drafts are read by a network, and not from the outputs at the masks as they are."""
        return hasattr(self, "read_in")

    @torch.no_grad()
    def begin_at(self, statistics: EmbeddingStatistics) -> None:
        """Set the model's statistics."""
        self.embedding_mean.copy_(statistics.mean)
        self.embedding_std.fill_(statistics.std)

    def inputs(self, state: Tensor, token: Tensor, lag: Tensor) -> Tensor:
        """The inputs behind N tokens.

        Args:
            state: the last known states, float32, (N, H).
            token: embeddings of the tokens, float32, (N, D).
            lag: tokens between the two, int64, (N,); more than D count as D.

        Returns:
            float32, (N, M, D).
        """
        offsets = self.masks.expand(len(token), -1, -1)  # (N, M, D)
        if hasattr(self, "inner"):
            features = torch.cat([_unit(state), self._standard(token)], -1)
            hidden = nn.functional.gelu(self.inner(features) + self.by_lag[lag.clamp_max(self.n_drafts)])
            offsets = offsets + self.outer(hidden).view(-1, self.n_masks, self.width)
        return self.embedding_mean + self.embedding_std * offsets

    def read(self, at_mask: Tensor, state: Tensor, before: Tensor, depth: Tensor) -> Tensor:
        """What the model's head reads drafts from.

        Args:
            at_mask: states at the masks, zero where there is none, float32, (N, H).
            state: states of the tokens behind which is drafted, float32, (N, H).
            before: embeddings of the tokens before the drafted ones, float32, (N, D).
            depth: i - 1, int64, (N,).

        Returns:
            float32, (N, H).
        """
        if not self.has_reader:
            return at_mask
        features = torch.cat([_unit(at_mask), _unit(state), self._standard(before)], -1)
        hidden = nn.functional.gelu(self.read_in(features) + self.by_depth[depth])
        return at_mask + _rms(state) * self.read_out(hidden)

    def _standard(self, embeddings: Tensor) -> Tensor:
        return (embeddings - self.embedding_mean) / self.embedding_std


def _rms(states: Tensor) -> Tensor:
    return (states.square().mean(-1, keepdim=True) + _TINY).sqrt()


def _unit(states: Tensor) -> Tensor:
    return states / _rms(states)


def _zero(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
