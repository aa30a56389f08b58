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

    e_k = mean of block k + start_e + s exp(l_e) head_e(trunk(x_k))
    m = start_m + s exp(l_m) mean over k of head_m(trunk(x_k))

    where x_k are the normalised features of block k and of its neighbours, and s is the standard deviation of the LM's
    embeddings. start_e, start_m, l, head and trunk are trained. The output is not normalised. The head is zero at
    first, so that the untrained network gives the learned start. With one m for all texts, m = start_m.

    Args:
        config: how it is built.
        width: D, width of the LM's input embeddings.
        hidden_width: H, width of the hidden states that are features beside the embeddings; 0 without them.
    """

    embedding_mean: Tensor
    embedding_std: Tensor

    def __init__(self, config: EncoderConfig, width: int, hidden_width: int) -> None:
        super().__init__()
        self.block_length, self.neighbours, self.n_outputs = config.block_length, config.neighbours, config.n_outputs
        self.width, self.hidden_width = width, hidden_width
        self.trunk = make_trunk(config, width + hidden_width)
        self.head = nn.Linear(self.trunk.out_width, self.n_outputs * width)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.log_scale = nn.Parameter(torch.zeros(self.n_outputs, 1))
        self.start_e = nn.Parameter(torch.zeros(width))
        self.start_m = nn.Parameter(torch.zeros(width))
        self.register_buffer("embedding_mean", torch.zeros(width))
        self.register_buffer("embedding_std", torch.ones(()))

    @torch.no_grad()
    def begin_at(self, statistics: EmbeddingStatistics, starter: Starter | None) -> None:
        """Set the LM's statistics and the start; without a starter, e is a block's mean and m the vocabulary's."""
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
        n_texts, length = embeddings.shape[:2]
        features = (embeddings - self.embedding_mean) / self.embedding_std
        if hidden is not None:
            features = torch.cat([features, nn.functional.layer_norm(hidden, hidden.shape[-1:])], -1)
        windows = self._windows(self.trunk.token(features), self.neighbours)  # (B, K, n + b + n, P)
        present = self._present(length, self.neighbours, embeddings.device).expand(n_texts, -1, -1)
        outputs = self.head(self.trunk(windows.flatten(0, 1), present.flatten(0, 1))).float()
        offsets = outputs.view(n_texts, -1, self.n_outputs, self.width)  # (B, K, 1 or 2, D)
        offsets = offsets * (self.embedding_std * self.log_scale.exp())
        e = self._block_means(embeddings) + self.start_e + offsets[:, :, 0]
        m_of_text = self.n_outputs > 1
        m = self.start_m + offsets[:, :, 1].mean(1) if m_of_text else self.start_m.expand(n_texts, -1)
        return e, m

    def _windows(self, tokens: Tensor, neighbours: int) -> Tensor:
        """Each block's tokens and neighbours, zeros outside the text: (B, T, P) to (B, K, n + b + n, P)."""
        b, missing = self.block_length, -tokens.shape[1] % self.block_length
        padded = nn.functional.pad(tokens, (0, 0, neighbours, missing + neighbours))
        return padded.unfold(1, b + 2 * neighbours, b).transpose(2, 3)

    def _present(self, length: int, neighbours: int, device: torch.device) -> Tensor:
        """Which tokens of the windows are in a text of this length, bool, (K, n + b + n)."""
        return self._windows(torch.ones(1, length, 1, device=device), neighbours)[0, :, :, 0] > 0

    def _block_means(self, embeddings: Tensor) -> Tensor:
        """Mean embedding of each block, (B, K, D)."""
        n_tokens = self._present(embeddings.shape[1], 0, embeddings.device).sum(1, keepdim=True)  # (K, 1)
        return self._windows(embeddings, 0).sum(2) / n_tokens
