"""The training objective and its gradient with respect to the vectors, through the frozen LM."""

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
class ObjectiveGradient:
    """The objective's gradient for a batch, and scores from the same passes.

    Attributes:
        e: gradient of the batch's mean objective with respect to the e-tokens, float32, (B, K, D).
        m: the same with respect to m, (B, D).
        loss_nats: mean cross-entropy of the encoder's vectors, noise included, in nats per token, ().
        token_accuracy: their share of right tokens, ().
        refined_loss_nats: mean cross-entropy after the refining fit steps, in nats per token, ().
    """

    e: Tensor
    m: Tensor
    loss_nats: Tensor
    token_accuracy: Tensor
    refined_loss_nats: Tensor


def objective_gradient(
    lm: FrozenLM,
    arrangement: Arrangement,
    e: Tensor,
    m: Tensor,
    target_ids: Tensor,
    objective: Objective,
    seed: int,
) -> ObjectiveGradient:
    """The objective's gradient with respect to e and m; see `Objective` for the formula.

    Args:
        lm: the frozen model.
        arrangement: the vectors' arrangement.
        e: the encoder's e-tokens, (B, K, D); detached here.
        m: the encoder's m-tokens, (B, D); detached here.
        target_ids: the texts, int64, (B, T).
        objective: what is minimised.
        seed: the noise is drawn from it.
    """
    e, m, target_ids = e.detach(), m.detach(), target_ids.to(lm.device)
    std = lm.embedding_statistics.std
    e_noise, m_noise = _noise(e, m, objective.noise * std, seed) if objective.noise else (0.0, 0.0)
    loss_nats, accuracy, e_gradient, m_gradient = _cross_entropy_at(
        lm, arrangement, e + e_noise, m + m_noise, target_ids
    )
    refined_loss_nats = loss_nats
    if objective.refine_steps:
        fitted_e, fitted_m = _refined(lm, arrangement, e, m, target_ids, objective.refine_steps)
        refined_loss_nats, _, e_unrolled, m_unrolled = _cross_entropy_at(
            lm, arrangement, fitted_e, fitted_m, target_ids
        )
        # The mean over a text's vectors and the batch of half the squared distance, in embedding standard deviations.
        distil = objective.distil / (std**2 * (e.numel() + m.numel()))
        e_gradient = e_gradient + objective.unroll * e_unrolled + distil * (e - fitted_e)
        m_gradient = m_gradient + objective.unroll * m_unrolled + distil * (m - fitted_m)
    return ObjectiveGradient(e_gradient, m_gradient, loss_nats, accuracy, refined_loss_nats)


def logits_of(lm: FrozenLM, arrangement: Arrangement, e: Tensor, m: Tensor, length: int) -> Tensor:
    """Logits of one forward pass from e (B, K, D) and m (B, D), (B, T, V)."""
    layout = arrangement.layout(length, e.shape[1])
    fixed = lm.fixed_vectors(arrangement.fixed)
    return lm.logits(layout.inputs_embeds(e, m, fixed), layout.read_positions())


@torch.enable_grad()
def _cross_entropy_at(
    lm: FrozenLM, arrangement: Arrangement, e: Tensor, m: Tensor, target_ids: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean loss in nats per token, share of right tokens, and the loss's gradients with respect to e and m."""
    e, m = e.detach().requires_grad_(), m.detach().requires_grad_()
    logits = logits_of(lm, arrangement, e, m, target_ids.shape[1])
    scores = cross_entropy(logits.detach(), target_ids)
    # A text can be too short for the arrangement to hold an m-token.
    gradients = torch.autograd.grad(logits, [e, m], scores.logit_gradient, allow_unused=True)
    e_gradient, m_gradient = (
        torch.zeros_like(z) if g is None else g / target_ids.numel() for z, g in zip((e, m), gradients, strict=True)
    )
    return scores.loss.mean(), is_right(scores.margin).float().mean(), e_gradient, m_gradient


def _refined(
    lm: FrozenLM, arrangement: Arrangement, e: Tensor, m: Tensor, target_ids: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Each text's best vectors within some fit steps from e and m."""
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
    drawn = torch.randn(len(e), e.shape[1] + 1, e.shape[2], generator=generator).to(e.device, non_blocking=True) * std
    return drawn[:, :-1], drawn[:, -1]
