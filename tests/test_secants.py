"""Secants: the equation that they solve, what they refuse to learn from, and what they do to a step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prototokens import AdamW, InputError
from prototokens.descent import Bank
from prototokens.secants import Secants

VECTORS, ENTRIES = 3, 8


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


HESSIAN = torch.linalg.qr(random(ENTRIES, ENTRIES))[0]
HESSIAN = HESSIAN @ torch.diag(torch.logspace(-1, 1, ENTRIES, dtype=torch.float64)) @ HESSIAN.T


def slope(values: Tensor) -> Tensor:
    """Gradient of half of x H x, summed over vectors (P, 2, 4)."""
    return (values.flatten(1) @ HESSIAN).view_as(values)


def learned(memory: int, moves: int, sign: float = 1.0) -> tuple[Secants, list[Tensor]]:
    """Secants of a quadratic, from so many random places, and the places."""
    secants, places = Secants(memory), [random(VECTORS, 2, 4, seed=n) for n in range(moves + 1)]
    for place in places:
        secants.learn(place, sign * slope(place))
    return secants, places


@pytest.mark.parametrize("memory", [1, 2, 5])
def test_the_last_turn_is_solved_by_the_last_move(memory):
    secants, places = learned(memory, 7)
    metric = random(VECTORS, 2, 4, seed=9).abs() + 0.1
    found = secants.solve(slope(places[-1]) - slope(places[-2]), metric)
    assert torch.allclose(found, places[-1] - places[-2])


def test_what_is_solved_for_is_a_way_down_and_linear_and_does_not_mind_the_metric_s_units():
    secants, _ = learned(4, 6)
    gradient, metric = random(VECTORS, 2, 4, seed=20), random(VECTORS, 2, 4, seed=9).abs() + 0.1
    found = secants.solve(gradient, metric)
    assert ((found * gradient).sum((1, 2)) > 0).all()
    assert torch.allclose(secants.solve(-3 * gradient, metric), -3 * found)
    assert torch.allclose(secants.solve(gradient, 100 * metric), found)


def test_with_as_many_moves_along_axes_as_entries_newton_s_step_is_found():
    """The moves are conjugate: axes of a diagonal Hessian."""
    secants, place, metric = Secants(4), torch.zeros(1, 1, 4), torch.ones(1, 1, 4)
    curvature = torch.tensor([0.1, 1.0, 5.0, 20.0])
    for axis in torch.eye(4):
        secants.learn(place, curvature * place)
        place = place + axis
    secants.learn(place, curvature * place)
    assert torch.allclose(secants.solve(curvature * place, metric), place, atol=1e-5)


def test_where_the_loss_bends_down_nothing_is_learned():
    secants, places = learned(4, 6, sign=-1.0)
    assert torch.equal(secants.solve(slope(places[0]), torch.ones(VECTORS, 2, 4)), torch.zeros(VECTORS, 2, 4))
    still = Secants(4)
    for _ in range(3):  # no move, no turn
        still.learn(places[0], slope(places[0]))
    assert torch.equal(still.solve(slope(places[0]), torch.ones(VECTORS, 2, 4)), torch.zeros(VECTORS, 2, 4))


def test_vectors_know_nothing_of_each_other():
    whole, places = learned(3, 4)
    alone = Secants(3)
    for place in places:
        alone.learn(place[1:2], slope(place[1:2]))
    gradient, metric = random(VECTORS, 2, 4, seed=5), torch.ones(VECTORS, 2, 4)
    expected = alone.solve(gradient[1:2], metric[1:2])
    assert torch.allclose(whole.solve(gradient, metric)[1:2], expected)
    whole.keep(torch.tensor([1]))
    assert torch.allclose(whole.solve(gradient[1:2], metric[1:2]), expected)


def descended(adamw: AdamW, annealed: float, steps: int, axes: Tensor | None = None) -> list[Tensor]:
    """Values after each step down the quadratic."""
    start, hessian = random(VECTORS, 1, ENTRIES).float(), HESSIAN.float()
    bank, seen = Bank(start, torch.arange(VECTORS), trained=True, axes=axes), [start]
    for _ in range(steps):
        bank.step(bank.values.detach() @ hessian, adamw, adamw.lr, torch.full((VECTORS,), annealed))
        seen.append(bank.values.detach().clone())
    return seen


def test_only_where_the_rate_is_annealed_a_step_is_bent_and_never_longer_than_adam_s():
    plain, bent = AdamW(lr=0.1), AdamW(lr=0.1, secants=3)
    for one, other in zip(descended(plain, 1.0, 6), descended(bent, 1.0, 6), strict=True):
        assert torch.equal(one, other)
    first, second = descended(plain, 0.5, 2), descended(bent, 0.5, 2)
    assert torch.equal(first[1], second[1]), "one place tells of no curvature"
    assert not torch.allclose(first[2], second[2])
    lengths = [(places[2] - places[1]).flatten(1).norm(dim=1) for places in (first, second)]
    assert (lengths[1] <= lengths[0] * (1 + 1e-5)).all()


@pytest.mark.parametrize("rotated", [False, True])
def test_secants_come_nearer_to_the_bottom_of_a_quadratic(rotated):
    axes = torch.linalg.qr(random(ENTRIES, ENTRIES, seed=3))[0].float() if rotated else None
    plain, bent = (descended(AdamW(lr=0.1, betas=(0.8, 0.95), secants=n), 0.99, 60, axes)[-1] for n in (0, 4))
    heights = [torch.einsum("psd,de,pse->", x, HESSIAN.float(), x) for x in (plain, bent)]
    assert heights[1] < 0.1 * heights[0]


def test_fewer_than_no_secants_are_refused():
    with pytest.raises(InputError, match=r"^secants is -1; it must be at least 0$"):
        AdamW(secants=-1)
