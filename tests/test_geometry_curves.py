"""The settings of fitted curves, and the taus that their steps sample."""

from __future__ import annotations

import pytest
import torch

from prototokens import InputError
from prototokens.geometry.curves import ConnectConfig, drawn_taus, focused


def test_drawn_taus_are_uniform_and_mirrored():
    taus = drawn_taus(ConnectConfig(taus=6, max_steps=4000))
    assert taus.shape == (4000, 6)
    assert torch.allclose(taus, 1 - taus.flip(1))
    assert ((taus >= 0) & (taus <= 1)).all()
    for part in range(6):
        assert ((taus[:, part] >= part / 6) & (taus[:, part] <= (part + 1) / 6)).all()
        assert (6 * taus[:, part] - part).mean().item() == pytest.approx(0.5, abs=0.02)
    assert taus.var().item() == pytest.approx(1 / 12, rel=0.03)


def test_taus_move_to_where_the_loss_is():
    drawn = torch.linspace(0, 1, 9)
    uneven = torch.tensor([[1.0, 5.0, 2.0], [3.0, 3.0, 3.0]])
    assert torch.allclose(focused(drawn, uneven, 0.0), drawn.expand(2, -1), atol=1e-6)
    # Known answer: half of the probability is even, 1/4 for each interval; the other half is 1/16, 6/16, 7/16, 2/16.
    share = torch.tensor([5, 10, 11, 6]) / 32
    edges = torch.cat([torch.zeros(1), share.cumsum(0)])
    assert torch.allclose(focused(edges, uneven[:1], 0.5)[0], torch.linspace(0, 1, 5), atol=1e-6)
    # Of many taus, each interval gets its share.
    moved = focused((torch.arange(3200) + 0.5) / 3200, uneven[:1], 0.5)[0]
    assert torch.histc(moved, 4, 0, 1).tolist() == (3200 * share).tolist()
    mirrored = 1 - focused(1 - drawn.flip(0), uneven.flip(1), 0.9).flip(1)
    assert torch.allclose(mirrored, focused(drawn, uneven, 0.9), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "spline"}, "unknown kind of curve 'spline'; choose one of: bezier chain"),
        ({"kind": "segment"}, "unknown kind of curve 'segment'; choose one of: bezier chain"),
        ({"inner": 0}, "inner is 0; it must be at least 1"),
        ({"taus": 3}, "taus is 3; it must be even and at least 2"),
        ({"taus": 0}, "taus is 0; it must be even and at least 2"),
        ({"max_steps": -1}, "max_steps is -1; it must be at least 0"),
        ({"check_every": 0}, "check_every is 0; it must be at least 1"),
        ({"check_taus": 0}, "check_taus is 0; it must be at least 1"),
        ({"focus": 1}, "focus is 1; it must be at least 0 and below 1"),
        ({"accuracy": 0}, "accuracy is 0; it must be above 0 and at most 1"),
    ],
)
def test_settings_have_bounds(change, message):
    with pytest.raises(InputError) as error:
        ConnectConfig(**change)
    assert str(error.value) == message
