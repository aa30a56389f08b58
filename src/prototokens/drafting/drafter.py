"""Drafter: learned inputs for one model, at whose outputs it drafts the tokens after the next one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..files.record import read_record, write_record
from ..lm.frozen import EmbeddingStatistics, FrozenLM
from ..lm.identity import Identity, check_same_model, library_versions

_KIND = "a drafter"
_UNFINISHED = "unfinished."


@dataclass(frozen=True)
class DrafterConfig:
    """How a drafter is built.

    Attributes:
        n_masks: M, learned inputs behind a token: mask i stands at the place of the i-th next token, and its output
            drafts the token after that.
        hidden_width: width of the network that adds to the masks what the context says; 0: the masks alone.
    """

    n_masks: int = 3
    hidden_width: int = 512

    def __post_init__(self) -> None:
        if not 1 <= self.n_masks <= 64:
            raise InputError(f"n_masks is {self.n_masks}; it must be from 1 to 64")
        if not 0 <= self.hidden_width <= 65_536:
            raise InputError(f"hidden_width is {self.hidden_width}; it must be from 0 to 65536")


class DrafterNetwork(nn.Module):
    """The inputs behind a token.

    m_i = mean + s (a_i + W_i gelu(U [h / rms(h); (x - mean) / s] + b_lag)),   i = 1 ... M

    where h is the last hidden state that is known, x the embedding of the token, and lag the number of tokens between
    the two; mean and s are the mean and the standard deviation of the model's embeddings. W is zero at first, so that
    the untrained network gives the mean embedding.

    Args:
        config: how it is built.
        width: D, width of the model's input embeddings.
        state_width: H, width of its hidden states.
    """

    embedding_mean: Tensor
    embedding_std: Tensor

    def __init__(self, config: DrafterConfig, width: int, state_width: int) -> None:
        super().__init__()
        self.n_masks, self.width = config.n_masks, width
        self.masks = nn.Parameter(torch.zeros(config.n_masks, width))
        if config.hidden_width:
            self.inner = nn.Linear(state_width + width, config.hidden_width)
            self.by_lag = nn.Parameter(torch.zeros(config.n_masks + 1, config.hidden_width))
            self.outer = nn.Linear(config.hidden_width, config.n_masks * width)
            nn.init.zeros_(self.outer.weight)
            nn.init.zeros_(self.outer.bias)
        self.register_buffer("embedding_mean", torch.zeros(width))
        self.register_buffer("embedding_std", torch.ones(()))

    @property
    def reads_context(self) -> bool:
        """Whether anything is added to the masks."""
        return hasattr(self, "inner")

    @torch.no_grad()
    def begin_at(self, statistics: EmbeddingStatistics) -> None:
        """Set the model's statistics."""
        self.embedding_mean.copy_(statistics.mean)
        self.embedding_std.fill_(statistics.std)

    def forward(self, state: Tensor, token: Tensor, lag: Tensor) -> Tensor:
        """The inputs behind N tokens.

        Args:
            state: the last known hidden states, float32, (N, H).
            token: embeddings of the tokens, float32, (N, D).
            lag: tokens between the two, int64, (N,); more than M count as M.

        Returns:
            float32, (N, M, D).
        """
        offsets = self.masks.expand(len(token), -1, -1)  # (N, M, D)
        if self.reads_context:
            state = state * state.square().mean(-1, keepdim=True).clamp_min(1e-12).rsqrt()
            token = (token - self.embedding_mean) / self.embedding_std
            features = self.inner(torch.cat([state, token], -1)) + self.by_lag[lag.clamp_max(self.n_masks)]
            offsets = offsets + self.outer(nn.functional.gelu(features)).view(-1, self.n_masks, self.width)
        return self.embedding_mean + self.embedding_std * offsets


@dataclass(frozen=True, eq=False)
class Drafter:
    """Learned inputs at whose outputs a frozen model drafts its own continuation.

    Attributes:
        config: how it is built.
        model: the language model that it was trained on; it serves no other.
        network: the weights, float32.
        training: how it was trained: settings, steps, versions.
        acceptance: of each of the M drafts, the share of unseen places at which it and all drafts before it were what
            the model writes.
    """

    config: DrafterConfig
    model: Identity
    network: DrafterNetwork
    training: dict[str, Any]
    acceptance: tuple[float, ...]

    def __post_init__(self) -> None:
        shares = self.acceptance
        if len(shares) != self.config.n_masks or not all(0 <= share <= 1 for share in shares):
            raise InputError(f"acceptance is {shares}; it must be {self.config.n_masks} shares from 0 to 1")

    @classmethod
    def untrained(cls, lm: FrozenLM, config: DrafterConfig | None = None, *, seed: int = 0) -> Drafter:
        """A drafter whose inputs are the model's mean embedding.

        Args:
            lm: the model that it is for.
            config: how to build it.
            seed: what the network's first layer is drawn from.
        """
        config = config or DrafterConfig()
        state_width = lm.hidden_states(torch.zeros(1, 1, dtype=torch.long), -1).shape[-1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = DrafterNetwork(config, lm.width, state_width)
        network.begin_at(lm.embedding_statistics)
        training = {"step": 0, "versions": library_versions()}
        return cls(
            config, lm.identity, network.to(lm.device), training, tuple(0.5**i for i in range(1, config.n_masks + 1))
        )

    @cached_property
    def n_weights(self) -> int:
        """The number of trained weights."""
        return sum(p.numel() for p in self.network.parameters())

    @property
    def name(self) -> str:
        """A short name that tells drafters apart: `drafter-` and the first digits of a hash of the weights."""
        digest = hashlib.sha256()
        for weight in self.network.state_dict().values():
            digest.update(weight.detach().cpu().contiguous().numpy().tobytes())
        return f"drafter-{digest.hexdigest()[:12]}"

    def check(self, model: Identity) -> None:
        """Refuse another model, and say which one this drafter is for."""
        check_same_model("this drafter belongs", self.model, model)


def save_drafter(
    path: str | os.PathLike[str],
    drafter: Drafter,
    *,
    overwrite: bool = False,
    dtype: torch.dtype = torch.float32,
    unfinished: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a drafter to a `.safetensors` file; errors as in `save`.

    Args:
        path: where to write.
        drafter: what to write.
        overwrite: replace a file that is there.
        dtype: of the weights on disk; `torch.float16` halves the file. They are float32 again when loaded.
        unfinished: further tensors by name, which a training needs to resume; `load_drafter` passes over them.
    """
    record = {
        "config": asdict(drafter.config),
        "model": asdict(drafter.model),
        "training": drafter.training,
        "acceptance": list(drafter.acceptance),
    }
    tensors = {name: tensor.to(dtype) for name, tensor in drafter.network.state_dict().items()}
    tensors |= {f"{_UNFINISHED}{name}": tensor for name, tensor in (unfinished or {}).items()}
    return write_record(path, _KIND, tensors, record, overwrite=overwrite)


def load_drafter(path: str | os.PathLike[str]) -> Drafter:
    """Read a drafter that `save_drafter` wrote, on the CPU; errors as in `load`."""
    return read_drafter(path)[0]


def read_drafter(path: str | os.PathLike[str]) -> tuple[Drafter, dict[str, Tensor]]:
    """Read a drafter, and what its training needs to resume: nothing if it has ended; errors as in `load`."""
    tensors, record = read_record(path, _KIND)
    unfinished = {k.removeprefix(_UNFINISHED): tensors.pop(k) for k in list(tensors) if k.startswith(_UNFINISHED)}
    try:
        config = DrafterConfig(**record["config"])
        width = tensors["masks"].shape[1]
        state_width = tensors["inner.weight"].shape[1] - width if config.hidden_width else 0
        network = DrafterNetwork(config, width, state_width)
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        model, shares = Identity(**record["model"]), tuple(record["acceptance"])
        return Drafter(config, model, network, record["training"], shares), unfinished
    except (KeyError, TypeError, IndexError, RuntimeError) as error:
        raise InputError(f"{path}: its record cannot be read ({' '.join(str(error).split())[:200]})") from None


def shipped_drafter(model: Identity) -> Drafter | None:
    """The drafter that comes with the package for this model, if there is one."""
    return next((drafter for drafter in _shipped() if drafter.model.fingerprint == model.fingerprint), None)


@cache
def _shipped() -> tuple[Drafter, ...]:
    folder = files("prototokens") / "shipped" / "drafters"
    with as_file(folder) as path:
        return tuple(load_drafter(p) for p in sorted(path.glob("*.safetensors")))
