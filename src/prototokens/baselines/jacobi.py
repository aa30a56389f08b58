"""Jacobi decoding: all tokens of an autoregressive model guessed at once, over and over, until nothing changes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..lm.frozen import FrozenLM


@dataclass(frozen=True, eq=False)
class JacobiResult:
    """Where the iteration ended.

    Attributes:
        ids: the ids, int64, (T,), on the CPU.
        passes: forward passes made.
        converged: whether the last pass changed nothing: the ids are then those of greedy generation, as far as the
            rounding of one long pass and of many short ones agrees.
    """

    ids: Tensor
    passes: int
    converged: bool


@torch.no_grad()
def jacobi_decode(lm: FrozenLM, prompt: Tensor, length: int, max_passes: int | None = None) -> JacobiResult:
    """Solve t_i = argmax P(. | prompt, t_1 ... t_(i-1)) for all i at once by fixed-point iteration.

    Every pass gives each place the model's choice after the last pass's guess. Pass p makes at least the first p tokens
    those of greedy generation, so that at most T + 1 passes are needed. The first guess is the token that the prompt
    alone predicts, at every place.

    Args:
        lm: the frozen model.
        prompt: what stands before the text, e.g. `CrammingResult.prompt`, (P, D), float32.
        length: T, tokens to decode.
        max_passes: stop after that many; T + 1 if None.

    Raises:
        InputError: `length` or `max_passes` is below 1, or the model has not that many positions.

    Reference: Accelerating Transformer Inference for Translation via Parallel Decoding (Santilli et al., 2023),
    section 3, https://arxiv.org/abs/2305.10427.
    """
    limit = length + 1 if max_passes is None else max_passes
    for name, value in (("length", length), ("max_passes", limit)):
        if value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")
    before = prompt.to(lm.device).unsqueeze(0)  # (1, P, D)
    count = prompt.shape[0]
    guess = lm.logits(before, range(count - 1, count)).argmax(-1).expand(1, length)  # (1, T)
    passes, converged = 1, length == 1
    while passes < limit and not converged:
        inputs_embeds = torch.cat([before, lm.embed(guess[:, :-1])], dim=1)  # (1, P+T-1, D)
        found = lm.logits(inputs_embeds, range(count - 1, count - 1 + length)).argmax(-1)
        passes += 1
        converged = bool(torch.equal(found, guess))
        guess = found
    return JacobiResult(guess[0].cpu(), passes, converged)
