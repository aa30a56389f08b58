"""Jacobi decoding: an autoregressive model guesses all tokens at once, again and again, until nothing changes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..lm.frozen import FrozenLM


@dataclass(frozen=True, eq=False)
class JacobiResult:
    """The last guess.

    Attributes:
        ids: the ids, int64, (T,), on the CPU.
        passes: forward passes made.
        converged: whether the last pass changed nothing. The ids are then those of greedy generation, up to the
            rounding of one long pass against many short ones.
    """

    ids: Tensor
    passes: int
    converged: bool


@torch.no_grad()
def jacobi_decode(lm: FrozenLM, prompt: Tensor, length: int, max_passes: int | None = None) -> JacobiResult:
    """Solve t_i = argmax P(. | prompt, t_1 ... t_(i-1)) for all i at once by fixed-point iteration.

    Every pass replaces each token by the model's argmax after the previous guess. After pass p at least the first p
    tokens are those of greedy generation, so that T + 1 passes suffice. The first guess is the token after the prompt,
    at every position.

    Args:
        lm: the frozen model.
        prompt: the vectors before the text, e.g. `CrammingResult.prompt`, (P, D), float32.
        length: T, tokens to decode.
        max_passes: stop after that many; T + 1 if None.

    Raises:
        InputError: `length` or `max_passes` is below 1, or the model has too few positions.

    Reference: Accelerating Transformer Inference for Translation via Parallel Decoding (Santilli et al., 2023),
    section 3, https://arxiv.org/abs/2305.10427.
    """
    limit = length + 1 if max_passes is None else max_passes
    for name, value in (("length", length), ("max_passes", limit)):
        if value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")
    before = prompt.to(lm.device).unsqueeze(0)  # (1, P, D)
    n_prompt = prompt.shape[0]
    guess = lm.logits(before, range(n_prompt - 1, n_prompt)).argmax(-1).expand(1, length)  # (1, T)
    passes, converged = 1, length == 1
    while passes < limit and not converged:
        inputs_embeds = torch.cat([before, lm.embed(guess[:, :-1])], dim=1)  # (1, P+T-1, D)
        next_guess = lm.logits(inputs_embeds, range(n_prompt - 1, n_prompt - 1 + length)).argmax(-1)
        passes += 1
        converged = bool(torch.equal(next_guess, guess))
        guess = next_guess
    return JacobiResult(guess[0].cpu(), passes, converged)
