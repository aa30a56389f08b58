"""The encoder's weights: features of a text in, e and m out, at the scale that the frozen LM needs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..fitting.starter import Starter
from ..lm.frozen import EmbeddingStatistics
from .config import EncoderConfig
from .trunks import make_trunk


class EncoderNetwork(nn.Module):
    """Trunk and head; the untrained network gives the learned start.

    e = text mean + start_e + s exp(l_e) head_e(trunk(x)),    m = start_m + s exp(l_m) head_m(trunk(x))

    where x are the normalised features and s is the standard deviation of the LM's embeddings. start_e, start_m, l,
    head and trunk are trained. The output is not normalised. The head is zero at first, so that the untrained network
    gives the learned start. With one m for all texts, m = start_m.

    Args:
        config: how it is built.
        width: D, width of the LM's input embeddings.
        hidden_width: H, width of the hidden states that are features beside the embeddings; 0 without them.
    """

    embedding_mean: Tensor
    embedding_std: Tensor

    def __init__(self, config: EncoderConfig, width: int, hidden_width: int) -> None:
        super().__init__()
        self.e_tokens, self.n_vectors = config.e_tokens, config.n_vectors
        self.width, self.hidden_width = width, hidden_width
        self.trunk = make_trunk(config, width + hidden_width)
        self.head = nn.Linear(self.trunk.out_width, config.n_vectors * width)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.log_scale = nn.Parameter(torch.zeros(config.n_vectors, 1))
        self.start_e = nn.Parameter(torch.zeros(width))
        self.start_m = nn.Parameter(torch.zeros(width))
        self.register_buffer("embedding_mean", torch.zeros(width))
        self.register_buffer("embedding_std", torch.ones(()))

    @torch.no_grad()
    def begin_at(self, statistics: EmbeddingStatistics, starter: Starter | None) -> None:
        """Set the LM's statistics and the start; without a starter, e is the text's mean and m the vocabulary's."""
        self.embedding_mean.copy_(statistics.mean)
        self.embedding_std.fill_(statistics.std)
        self.start_m.copy_(statistics.mean if starter is None else starter.m)
        if starter is not None:
            self.start_e.copy_(starter.e)

    def forward(self, embeddings: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The vectors of texts of one length.

        Args:
            embeddings: outputs of the LM's embedding module, float32, (B, T, D).
            hidden: its hidden states, float32, (B, T, H), if the config asks for them.

        Returns:
            e (B, K, D) and m (B, D), float32.
        """
        features = (embeddings - self.embedding_mean) / self.embedding_std
        if hidden is not None:
            features = torch.cat([features, nn.functional.layer_norm(hidden, hidden.shape[-1:])], -1)
        offsets = self.head(self.trunk(features)).float().view(len(embeddings), self.n_vectors, self.width)
        offsets = offsets * (self.embedding_std * self.log_scale.exp())  # (B, K or K + 1, D)
        e = (embeddings.mean(1) + self.start_e).unsqueeze(1) + offsets[:, : self.e_tokens]
        m_of_text = self.n_vectors > self.e_tokens
        m = self.start_m + offsets[:, -1] if m_of_text else self.start_m.expand(len(embeddings), -1)
        return e, m
