"""The training objective and its gradient at the vectors: the frozen LM is passed through here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..arrangements import Arrangement
from ..fitting.fit import descend
from ..fitting.given import Given
from ..fitting.objective import cross_entropy, is_right
from ..fitting.recipes import FitConfig, Stop, preset
from ..lm.frozen import FrozenLM
from .recipes import Objective

_STEPPER = preset().optimiser


@dataclass(frozen=True, eq=False)
class Pull:
    """Where the objective pulls a batch's vectors, and what was seen on the way.

    Attributes:
        e: gradient at the e-tokens, of the mean over the batch, float32, (B, K, D).
        m: the same at m, (B, D).
        loss: mean cross-entropy of what the encoder wrote, noise included, in nats per token, ().
        token_accuracy: its share of right tokens, ().
        refined_loss: mean cross-entropy after the fit steps inside, ().
    """

    e: Tensor
    m: Tensor
    loss: Tensor
    token_accuracy: Tensor
    refined_loss: Tensor


def pull(
    lm: FrozenLM,
    arrangement: Arrangement,
    e: Tensor,
    m: Tensor,
    target_ids: Tensor,
    objective: Objective,
    seed: int,
) -> Pull:
    """The objective's gradient with respect to e (B, K, D) and m (B, D); see `Objective` for the formula.

    Args:
        lm: the frozen model.
        arrangement: the vectors' arrangement.
        e: what the encoder wrote; nothing flows back into it from here.
        m: the same.
        target_ids: the texts, int64, (B, T).
        objective: what is minimised.
        seed: what the noise is drawn from.
    """
    e, m, target_ids = e.detach(), m.detach(), target_ids.to(lm.device)
    std = lm.embedding_statistics.std
    noise = _noise(e, m, objective.noise * std, seed) if objective.noise else (0.0, 0.0)
    loss, accuracy, e_pull, m_pull = _cross_entropy_at(lm, arrangement, e + noise[0], m + noise[1], target_ids)
    refined_loss = loss
    if objective.refine_steps:
        fitted_e, fitted_m = _refined(lm, arrangement, e, m, target_ids, objective.refine_steps)
        refined_loss, _, e_later, m_later = _cross_entropy_at(lm, arrangement, fitted_e, fitted_m, target_ids)
        # The mean over a text's vectors and the batch of half the squared distance, in embedding standard deviations.
        share = objective.distil / (std**2 * (e.numel() + m.numel()))
        e_pull = e_pull + objective.unroll * e_later + share * (e - fitted_e)
        m_pull = m_pull + objective.unroll * m_later + share * (m - fitted_m)
    return Pull(e_pull, m_pull, loss, accuracy, refined_loss)


def logits_of(lm: FrozenLM, arrangement: Arrangement, e: Tensor, m: Tensor, length: int) -> Tensor:
    """Logits of one forward pass from e (B, K, D) and m (B, D), (B, T, V)."""
    layout = arrangement.layout(length, e.shape[1])
    fixed = lm.fixed_vectors(arrangement.fixed)
    return lm.logits(layout.inputs_embeds(e, m, fixed), layout.read_positions())


@torch.enable_grad()
def _cross_entropy_at(
    lm: FrozenLM, arrangement: Arrangement, e: Tensor, m: Tensor, target_ids: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean loss, share of right tokens, and the loss's gradients at e and m."""
    e, m = e.detach().requires_grad_(), m.detach().requires_grad_()
    logits = logits_of(lm, arrangement, e, m, target_ids.shape[1])
    scores = cross_entropy(logits.detach(), target_ids)
    # m is in no input where a text is too short for the arrangement to hold one.
    gradients = torch.autograd.grad(logits, [e, m], scores.logit_gradient, allow_unused=True)
    e_pull, m_pull = (
        torch.zeros_like(z) if g is None else g / target_ids.numel() for z, g in zip((e, m), gradients, strict=True)
    )
    return scores.loss.mean(), is_right(scores.margin).float().mean(), e_pull, m_pull


def _refined(
    lm: FrozenLM, arrangement: Arrangement, e: Tensor, m: Tensor, target_ids: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """The best of some fit steps from e and m, text by text."""
    config = FitConfig(
        arrangement=arrangement,
        e_tokens=e.shape[1],
        optimiser=_STEPPER,
        stop=Stop(max_steps=steps, margin=float("inf")),
    )
    reached = descend(lm, target_ids, config, Given(e_start=e, m_start=m)).results
    return torch.stack([r.e for r in reached]), torch.stack([r.m for r in reached])


def _noise(e: Tensor, m: Tensor, std: float, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(len(e), e.shape[1] + 1, e.shape[2], generator=generator).to(e.device) * std
    return drawn[:, :-1], drawn[:, -1]
