"""Curves between solutions: known answers where the landscape is known, laws of the descent on tiny models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from families import RECIPE, counted, family, spoiled, tokenizer
from prototokens import AdamW, FrozenLM, InputError, ProtoTokens, decode, fit
from prototokens.fitting.recipes import FitConfig, Stop
from prototokens.geometry.connecting import connect, connect_pairs
from prototokens.geometry.curve_descent import CurveDescent
from prototokens.geometry.curves import ConnectConfig, drawn_taus
from prototokens.geometry.paths import Path, segment, straight
from prototokens.geometry.profiles import even_taus, profile
from ring import RingLM, holding, on_the_ring

TEXT = "abc"
SMOOTH = AdamW(lr=0.01, eps=0.1)  # a large eps makes a step a smooth function of the gradient: rounding stays small


@pytest.fixture(scope="module")
def ring() -> FrozenLM:
    return FrozenLM(RingLM(), tokenizer())


@pytest.fixture(scope="module")
def solutions() -> list[ProtoTokens]:
    """Three solutions of one text on a tiny model, from random starts."""
    lm, config = family("llama"), replace(RECIPE, start="vocabulary", perturbation=0.0)
    fitted = [fit(lm, lm.encode(TEXT), replace(config, seed=seed)) for seed in range(3)]
    assert all(result.exact for result in fitted)
    return [result.tokens for result in fitted]


def same_bits(a: Path, b: Path) -> bool:
    return torch.equal(a.e, b.e) and torch.equal(a.m, b.m)


@pytest.mark.parametrize(("kind", "inner"), [("bezier", 1), ("bezier", 3), ("chain", 1), ("chain", 3)])
def test_a_curve_goes_around_the_hole(ring, kind, inner):
    first, last = on_the_ring(ring, 0), on_the_ring(ring, 150)
    config = ConnectConfig(kind=kind, inner=inner, optimiser=AdamW(lr=0.03), max_steps=400)
    (fitted,) = connect_pairs(ring, [(first, last)], config)
    assert fitted.stop_reason == "accuracy"
    assert fitted.lowest_accuracy == 1
    line = replace(segment(first, last), target_ids=fitted.path.target_ids)
    assert profile(ring, line).lowest_accuracy == 0.5
    assert profile(ring, fitted.path).barrier < profile(ring, line).barrier / 2
    assert profile(ring, fitted.path, even_taus(101)).lowest_accuracy == 1
    assert 1 < fitted.path.ratio < 2


def test_where_logits_are_linear_every_segment_does(known):
    """On the analytic model the set of solutions is convex, and so is the loss: nothing is left to a curve."""
    target = torch.tensor([7, 9])
    rows = torch.eye(264)
    first = holding(known, 2 * rows[7:8], rows[9] + 0.3 * rows[1], target)
    last = holding(known, rows[7:8] + 0.5 * rows[2], 3 * rows[9], target)
    (fitted,) = connect_pairs(known, [(first, last)])
    assert (fitted.stop_reason, fitted.steps, fitted.backward_positions) == ("accuracy", 0, 0)
    assert fitted.path.ratio == pytest.approx(1)
    scores = profile(known, fitted.path)
    assert scores.lowest_accuracy == 1
    assert scores.barrier == pytest.approx(abs(scores.loss_nats[0] - scores.loss_nats[-1]).item() / 2)


def test_the_ends_are_held_and_their_scores_are_those_of_the_solutions(solutions):
    lm = family("llama")
    path = connect(lm, solutions[0], solutions[1], ConnectConfig(max_steps=20))
    for end, tokens in ((0, solutions[0]), (-1, solutions[1])):
        assert torch.equal(path.e[end], tokens.e)
        assert torch.equal(path.m[end], tokens.m)
    scores = profile(lm, path)
    for end, tokens in ((0, solutions[0]), (-1, solutions[1])):
        assert scores.loss_nats[end].item() == pytest.approx(tokens.provenance.loss, abs=1e-4)
        assert torch.equal(scores.ids[end], decode(lm, tokens).ids)


def test_a_curve_between_fitted_solutions_is_no_worse_than_the_segment(solutions):
    """At the points of the evaluations: the curve began there, and the best evaluation is kept."""
    lm, config = family("llama"), ConnectConfig(max_steps=100)
    fitted = connect_pairs(lm, [(solutions[0], solutions[1])], config)[0]
    places = even_taus(config.check_taus + 2)
    line = profile(lm, straight(fitted.path, "segment", 2), places)
    curve = profile(lm, fitted.path, places)
    assert curve.lowest_accuracy >= line.lowest_accuracy
    assert curve.lowest_accuracy > line.lowest_accuracy or curve.loss_nats.max() <= line.loss_nats.max() + 1e-4


@pytest.mark.parametrize("kind", ["bezier", "chain"])
def test_exchanged_ends_give_the_same_curve(solutions, kind):
    lm, config = family("llama"), ConnectConfig(kind=kind, inner=2, optimiser=SMOOTH, max_steps=1, check_every=1)
    one, other = (connect(lm, *ends, config) for ends in (solutions[:2], solutions[1::-1]))
    back = other.reversed()
    assert not one.e.allclose(straight(one, kind, 4).e, atol=1e-4)  # the step that was taken is kept
    assert one.e.allclose(back.e, atol=1e-5)
    assert one.m.allclose(back.m, atol=1e-5)


def test_same_seed_same_bits_and_another_seed_another_curve(solutions):
    lm, config = family("llama"), ConnectConfig(max_steps=6, check_every=6)
    again = [connect(lm, *solutions[:2], config) for _ in range(2)]
    assert same_bits(*again)
    fitted = connect_pairs(lm, [tuple(solutions[:2])], replace(config, seed=1))[0]
    assert fitted.steps == 6
    assert torch.equal(drawn_taus(config), drawn_taus(config))
    assert not torch.equal(drawn_taus(config), drawn_taus(replace(config, seed=1)))


def test_pairs_of_a_batch_are_fitted_as_each_alone(solutions):
    lm, config = family("llama"), ConnectConfig(optimiser=SMOOTH, max_steps=1, check_every=1)
    pairs = [(solutions[0], solutions[1]), (solutions[0], solutions[2]), (solutions[1], solutions[2])]
    together = connect_pairs(lm, pairs, config)
    for pair, one in zip(pairs, together, strict=True):
        (alone,) = connect_pairs(lm, [pair], config)
        assert one.path.e.allclose(alone.path.e, atol=1e-5)
        assert one.path.m.allclose(alone.path.m, atol=1e-5)
        assert one.highest_loss_nats == pytest.approx(alone.highest_loss_nats, rel=1e-3)
        assert (one.steps, one.token_positions, one.backward_positions) == (
            alone.steps, alone.token_positions, alone.backward_positions,
        )  # fmt: skip


def test_work_is_what_went_through_the_model(ring):
    near, far = on_the_ring(ring, 20), on_the_ring(ring, 150)
    pairs = [(on_the_ring(ring, 0), near), (on_the_ring(ring, 0), far)]
    with counted(ring) as calls:
        fitted = connect_pairs(ring, pairs, ConnectConfig(max_steps=25), torch.tensor([[3, 5], [3, 5]]))
    assert fitted[0].steps == 0, "the near ones are done at once and leave the batch"
    assert fitted[1].steps > 0
    assert sum(one.token_positions for one in fitted) == calls.positions()
    assert sum(one.backward_positions for one in fitted) == calls.backward_positions()
    with counted(ring) as calls:
        scores = profile(ring, fitted[1].path, even_taus(9))
    assert scores.token_positions == calls.positions() == 18


def test_the_best_evaluation_is_kept(ring):
    """Steps that are far too long lead nowhere: what is kept is no worse than the segment that it began as."""
    ends = on_the_ring(ring, 0), on_the_ring(ring, 150)
    wild = ConnectConfig(optimiser=AdamW(lr=50.0), max_steps=15, check_every=5)
    still = ConnectConfig(max_steps=0)
    fitted, begin = (connect_pairs(ring, [ends], config)[0] for config in (wild, still))
    assert begin.path.ratio == pytest.approx(1)
    assert (fitted.lowest_accuracy, -fitted.highest_loss_nats) >= (begin.lowest_accuracy, -begin.highest_loss_nats)
    scored = profile(ring, begin.path, even_taus(17))
    assert scored.lowest_accuracy == begin.lowest_accuracy
    assert scored.loss_nats.max().item() == pytest.approx(begin.highest_loss_nats, abs=1e-5)


def test_what_is_not_finite_ends_its_curve_alone(ring):
    pairs = [(on_the_ring(ring, 0), on_the_ring(ring, angle)) for angle in (150, 155)]
    with spoiled(ring, 3, slice(0, 2)):  # an evaluation comes before it
        fitted = connect_pairs(
            ring, pairs, ConnectConfig(optimiser=AdamW(lr=0.03), max_steps=200), torch.tensor(2 * [[3, 5]])
        )
    assert [one.stop_reason for one in fitted] == ["nonfinite", "accuracy"]
    assert fitted[0].path.e.isfinite().all()


def test_a_fit_may_be_interrupted_and_tells_its_progress(ring):
    ends = on_the_ring(ring, 0), on_the_ring(ring, 150)
    (fitted,) = connect_pairs(ring, [ends], should_stop=lambda: True)
    assert (fitted.stop_reason, fitted.steps) == ("interrupted", 0)
    seen: list[Any] = []
    connect_pairs(ring, [ends], ConnectConfig(max_steps=20), progress=seen.append)
    assert [p.step for p in seen] == [0, 10, 20]
    assert [p.token_positions for p in seen] == [30, 30 + 80 + 30, 30 + 2 * (80 + 30)]
    assert connect_pairs(ring, []) == []


def test_the_model_is_left_as_it_was(solutions):
    lm = family("llama")
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    with torch.inference_mode():
        path = connect(lm, *solutions[:2], ConnectConfig(max_steps=3, check_every=3))
    profile(lm, path)
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    assert not lm.model.training
    assert all(p.grad is None and not p.requires_grad for p in lm.model.parameters())
    assert not path.e.requires_grad
    assert not path.m.requires_grad


def test_every_family_and_several_e_tokens_connect(lm):
    config = FitConfig(arrangement="bos,e,m*n", start="vocabulary", e_tokens=2, stop=Stop(max_steps=0))
    ids = lm.encode("ab")
    ends = [fit(lm, ids, replace(config, seed=seed)).tokens for seed in (0, 1)]
    path = connect(lm, *ends, ConnectConfig(max_steps=4, check_every=2, taus=2, check_taus=3), target_ids=ids)
    assert path.e.shape == (3, 2, lm.width)
    assert profile(lm, path, even_taus(3)).loss_nats.isfinite().all()


def test_a_focus_draws_places_near_the_hole(ring):
    """The loss of the segment rises towards its middle: every place of the first step moves that way, none back."""
    ends = on_the_ring(ring, 0), on_the_ring(ring, 170)
    radii = []
    for focus in (0.0, 0.9):
        config = ConnectConfig(optimiser=AdamW(lr=0.01), focus=focus, max_steps=1)
        with inputs_of_steps(ring) as inputs:
            connect_pairs(ring, [ends], config)
        (inputs_embeds,) = inputs
        radii.append(inputs_embeds[:, 0, 6:8].norm(dim=-1))
    even, moved = radii
    assert len(even) == config.taus
    assert (moved <= even + 1e-5).all()
    assert moved.mean() < even.mean()


@contextmanager
def inputs_of_steps(lm: FrozenLM) -> Iterator[list[Tensor]]:
    """The inputs that pass through the model with a gradient, (rows, L, D) each."""
    inputs: list[Tensor] = []

    def before(_: nn.Module, __: tuple, options: dict[str, Any]) -> None:
        if options["inputs_embeds"].requires_grad:
            inputs.append(options["inputs_embeds"].detach().clone())

    handle = lm.model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield inputs
    finally:
        handle.remove()


def test_curves_descend_along_the_axes_of_the_model_s_start(solutions, monkeypatch):
    """With axes that are the coordinates, nothing changes; with turned ones, the curve does."""
    from prototokens.geometry import connecting

    lm, config = family("llama"), ConnectConfig(max_steps=6, check_every=6)
    plain = connect(lm, *solutions[:2], config)
    one = torch.eye(lm.width)
    asked: list[Any] = []
    shipped = object()
    monkeypatch.setattr(
        connecting, "shipped_starter", lambda model, arrangement: (asked.append(arrangement), shipped)[1]
    )

    def axes(e: Tensor, m: Tensor) -> Any:
        return lambda lm, starter: (e, m) if starter is shipped else (None, None)

    monkeypatch.setattr(connecting, "learned_axes", axes(one, one))
    assert same_bits(connect(lm, *solutions[:2], config), plain)
    monkeypatch.setattr(connecting, "learned_axes", axes(turned(lm, 0), turned(lm, 0)))
    other = connect(lm, *solutions[:2], config)
    assert not torch.allclose(other.m[1], plain.m[1])
    assert asked == 2 * [solutions[0].arrangement]


def turned(lm: FrozenLM, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(lm.width, lm.width, generator=torch.Generator().manual_seed(seed)))[0]


def test_the_first_step_is_as_long_along_every_axis_of_its_vector(solutions):
    """Adam's first step is the rate along each axis, and so along those of e for e and of m for m."""
    lm, first, last = family("llama"), *solutions[:2]
    target_ids = lm.encode(TEXT)
    path = replace(straight(segment(first, last), "bezier", 3), target_ids=target_ids)
    config = ConnectConfig(optimiser=AdamW(lr=0.1, relative=False, weight_decay=0.0), max_steps=1)
    axes = turned(lm, 1), turned(lm, 2)
    descent = CurveDescent(lm, [path], config, axes)
    descent.run()
    for bank, start, vector_axes, other_axes in zip(
        descent.banks, (path.e[1], path.m[1:2]), axes, axes[::-1], strict=True
    ):
        moved = bank.values.detach()[0] - start
        assert torch.allclose((moved @ vector_axes).abs(), torch.full_like(moved, 0.1), rtol=1e-2)
        assert (moved @ other_axes).abs().std() > 0.01


def test_what_cannot_be_connected_is_refused(ring, solutions):
    lm = family("llama")
    other = fit(lm, lm.encode("abd"), replace(RECIPE, stop=Stop(max_steps=0))).tokens
    with pytest.raises(InputError, match=r"a curve connects two solutions of one text; these are of two \(hashes "):
        connect(lm, solutions[0], other)
    with pytest.raises(InputError, match="these proto-tokens belong to LlamaForCausalLM"):
        connect(ring, *solutions[:2])
    with pytest.raises(InputError, match="neither of two solutions decodes to their text"):
        connect(lm, other, other)
    with pytest.raises(InputError, match="target_ids is not the text that the proto-tokens were fitted to"):
        connect(lm, *solutions[:2], target_ids=lm.encode("xyz"))
    with pytest.raises(InputError, match=r"it must be \(1, T\), one text per pair"):
        connect_pairs(lm, [(solutions[0], solutions[1])], None, torch.zeros(2, 3, dtype=torch.long))
    short = fit(lm, lm.encode("ab"), RECIPE).tokens
    with pytest.raises(InputError, match="pairs of one batch need texts of one length"):
        connect_pairs(lm, [(solutions[0], solutions[1]), (short, short)])
