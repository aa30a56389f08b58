"""Alignment with a teacher: the auxiliary losses' bounds, symmetries and gradients, what they do to a fit, ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from families import RECIPE, batch, budget, same_vectors
from prototokens import Given, InputError, Stop, fit_batch, preset
from prototokens.fitting.given import Regulariser
from prototokens.fitting.starts import start_vectors
from prototokens.geometry.alignment import (
    anchor,
    anchor_gap,
    cosines,
    partner_ranks,
    projected,
    relation_correlation,
    relation_gap,
    relational,
    shuffled_correlations,
)

RANDOM = replace(RECIPE, start="vocabulary", perturbation=0.0, restarts=2)
TEXTS = ("abc", "xyz", "Yes", "no!")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def losses(weight: float = 1.0) -> dict[str, Regulariser]:
    """Every auxiliary loss, on four texts of width 6."""
    teacher, places = random(4, 5, seed=7), random(4, 6, seed=8)
    return {
        f"{name} {vector}": make(given, vector, weight)
        for name, make, given in (("anchor", anchor, places), ("relational", relational, teacher))
        for vector in ("e", "m")
    }


NAMES = list(losses())


def test_projections_are_fixed_unit_vectors_that_keep_angles():
    teacher = F.normalize(random(6, 20), dim=-1)
    measured = projected(teacher, 4000)
    assert measured.dtype == torch.float32
    assert torch.allclose(measured.norm(dim=-1), torch.ones(6))
    assert torch.equal(measured, projected(teacher, 4000))
    assert not torch.equal(measured, projected(teacher, 4000, seed=1))
    assert torch.allclose(projected(3 * teacher, 50), projected(teacher, 50), atol=1e-5)
    assert torch.allclose(projected(teacher, 50)[:2], projected(teacher[:2], 50), atol=1e-6)  # text by text
    assert torch.allclose(cosines(measured).double(), cosines(teacher), atol=0.1)


def test_an_anchor_s_gap_is_0_at_its_place_2_on_the_other_side_and_does_not_mind_lengths():
    places, vectors = random(4, 6), random(4, 3, 6, seed=1)
    measured = anchor_gap(vectors, places)
    assert measured.shape == (4,)
    assert ((measured >= 0) & (measured <= 2)).all()
    lengths = torch.tensor([0.1, 1.0, 7.0]).view(1, 3, 1)
    assert torch.allclose(anchor_gap(vectors * lengths, 5 * places), measured)
    aligned = places.unsqueeze(1) * lengths
    assert torch.allclose(anchor_gap(aligned, places), torch.zeros(4, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(anchor_gap(-aligned, places), torch.full((4,), 2.0, dtype=torch.float64))
    assert torch.allclose(anchor_gap(vectors, -places), 2 - measured)


def test_a_relation_s_gap_is_its_formula_bounded_and_blind_to_turns_and_lengths():
    vectors, teacher = random(5, 2, 3), random(5, 4, seed=1)
    measured = relation_gap(vectors, teacher)
    of_vectors, of_teacher = cosines(vectors), cosines(teacher)
    expected = [sum((of_vectors[i, j] - of_teacher[i, j]) ** 2 for j in range(5) if j != i) / 4 for i in range(5)]
    assert torch.allclose(measured, torch.stack(expected))
    assert ((measured >= 0) & (measured <= 4)).all()
    assert torch.allclose(measured, relation_gap(teacher, vectors))
    turn = torch.linalg.qr(random(6, 6, seed=2)).Q
    turned = vectors.flatten(1) @ turn * torch.arange(1, 6).unsqueeze(1)
    assert torch.allclose(relation_gap(turned, teacher), measured)
    assert torch.allclose(relation_gap(turned, vectors), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    assert relation_gap(vectors[:1], teacher[:1]).tolist() == [0]


def test_rows_of_one_text_are_no_pair():
    vectors, teacher = random(3, 6), random(3, 4, seed=1)
    twice = torch.arange(3).repeat_interleave(2)
    doubled = relation_gap(vectors[twice], teacher[twice], twice)
    assert torch.allclose(doubled, relation_gap(vectors, teacher)[twice])
    assert relation_gap(vectors, teacher[[0, 0, 0]], torch.tensor([4, 4, 4])).tolist() == [0, 0, 0]


def test_vectors_that_are_not_finite_leave_the_others_alone():
    generator = torch.Generator().manual_seed(3)
    vectors, teacher = torch.randn(4, 6, generator=generator), torch.randn(4, 5, generator=generator)
    spoiled = vectors.clone()
    spoiled[1, 2] = torch.nan
    spoiled.requires_grad_(True)
    whole = [0, 2, 3]
    measured = relation_gap(spoiled, teacher)
    assert torch.allclose(measured[whole], relation_gap(vectors[whole], teacher[whole]), atol=1e-6)
    measured.sum().backward()
    assert spoiled.grad is not None
    assert spoiled.grad.isfinite().all()
    assert spoiled.grad[whole].abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_does_not_depend_on_the_order_of_rows_and_is_proportional_to_its_weight(name):
    e, m, texts = random(6, 2, 6), random(6, 6, seed=1), torch.tensor([0, 1, 1, 2, 3, 3])
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    loss = losses()[name].loss
    assert torch.allclose(loss(e[order], m[order], texts[order]), loss(e, m, texts))
    assert torch.allclose(losses(2.5)[name].loss(e, m, texts), 2.5 * loss(e, m, texts))
    assert torch.allclose(relation_gap(e[order], m[order], texts[order]), relation_gap(e, m, texts)[order])


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name):
    e, m = random(5, 2, 6).requires_grad_(), random(5, 6, seed=1).requires_grad_()
    texts, loss = torch.tensor([0, 1, 2, 2, 3]), losses()[name].loss
    moved = [e] if name.endswith("e") else [m]

    def of(moving: Tensor) -> Tensor:
        return loss(moving, m, texts) if name.endswith("e") else loss(e, moving, texts)

    assert torch.autograd.gradcheck(of, moved)
    other = m if name.endswith("e") else e
    (gradient,) = torch.autograd.grad(loss(e, m, texts), [other], allow_unused=True)
    assert gradient is None  # the loss is of the vector that is named, and of no other


@pytest.mark.parametrize("name", NAMES)
def test_descent_along_a_loss_reaches_its_lowest_value(name):
    teacher, places = random(4, 5, seed=7), random(4, 6, seed=8)
    e, m, texts = random(4, 1, 6).requires_grad_(), random(4, 6, seed=1).requires_grad_(), torch.arange(4)
    optimiser, loss = torch.optim.Adam([e, m], lr=0.05), losses()[name].loss
    for _ in range(300):
        optimiser.zero_grad()
        loss(e, m, texts).backward()
        optimiser.step()
    assert loss(e, m, texts).item() == pytest.approx(0, abs=1e-3)
    moved = (e if name.endswith("e") else m).detach().flatten(1)
    if name.startswith("anchor"):
        assert torch.allclose(F.normalize(moved, dim=-1), F.normalize(places, dim=-1), atol=0.05)
    else:
        assert torch.allclose(cosines(moved), cosines(teacher), atol=0.05)


@pytest.mark.parametrize("vector", ["e", "m"])
def test_a_weight_of_zero_leaves_the_fit_bit_for_bit(llama, vector):
    texts, config = batch(llama, *TEXTS), budget(RANDOM, max_steps=40)
    teacher = random(4, 5).float()
    plain = fit_batch(llama, texts, config)
    for regulariser in (anchor(projected(teacher, llama.width), vector, 0.0), relational(teacher, vector, 0.0)):
        for fit, other in zip(plain, fit_batch(llama, texts, config, Given(regulariser=regulariser)), strict=True):
            assert same_vectors(fit, other)
            assert (fit.steps, fit.loss, fit.stop_reason) == (other.steps, other.loss, other.stop_reason)


def test_a_loss_of_a_vector_that_is_held_fixed_changes_nothing(llama):
    texts, config = batch(llama, *TEXTS), budget(RANDOM, max_steps=10)
    m, regulariser = llama.embedding_statistics.mean, anchor(random(4, llama.width).float(), "m", 10.0)
    measured = [fit_batch(llama, texts, config, Given(m=m, regulariser=fit)) for fit in (None, regulariser)]
    assert all(same_vectors(fit, other) for fit, other in zip(*measured, strict=True))


@pytest.mark.parametrize("vector", ["e", "m"])
def test_vectors_of_a_fit_follow_the_teacher_and_the_text_comes_back(llama, vector):
    texts, config, teacher = batch(llama, *TEXTS), budget(RANDOM, max_steps=250), random(4, 5).float()
    places = projected(teacher, llama.width)

    def vectors(regulariser: Regulariser | None) -> Tensor:
        measured = fit_batch(llama, texts, config, Given(regulariser=regulariser))
        assert all(fit.exact for fit in measured)
        return torch.stack([fit.tokens.e if vector == "e" else fit.tokens.m.unsqueeze(0) for fit in measured])

    plain = vectors(None)
    assert anchor_gap(vectors(anchor(places, vector, 10.0, 60)), places).max() < anchor_gap(plain, places).min()
    related = vectors(relational(teacher, vector, 10.0, 60))
    assert relation_gap(related, teacher).mean() < relation_gap(plain, teacher).mean() / 2
    assert relation_correlation(related, teacher) > 0.8


def test_rows_that_are_done_stand_still_and_are_related_to(llama):
    """Else the last texts, the hardest, would be related to none, and the auxiliary loss would cost them nothing."""
    seen: list[Tensor] = []

    def loss(e: Tensor, m: Tensor, texts: Tensor) -> Tensor:
        seen.append(e.detach().clone())
        assert texts.tolist() == list(range(len(TEXTS)))
        return 0 * e.sum()

    texts, config = batch(llama, *TEXTS), replace(RANDOM, restarts=1)
    solved = fit_batch(llama, texts[:1], RANDOM)[0].tokens
    assert solved.provenance.token_accuracy == 1
    # The first text begins at its solution, the others at random.
    starts = [start_vectors(llama, ids, config, 0) for ids in texts[1:]]
    begin = {
        "e_start": torch.stack([solved.e, *(e for e, _ in starts)]),
        "m_start": torch.stack([solved.m, *(m for _, m in starts)]),
    }
    measured = fit_batch(llama, texts, budget(config, max_steps=3), Given(**begin, regulariser=Regulariser(loss)))
    assert measured[0].steps == 0
    assert max(fit.steps for fit in measured) > 0
    assert {len(e) for e in seen} == {len(TEXTS)}
    last = max(range(len(measured)), key=lambda n: measured[n].steps)
    after = torch.stack(seen)
    assert torch.equal(after[:, 0], after[:1, 0].expand_as(after[:, 0])), "done: it stands still"
    assert not torch.equal(after[0, last], after[-1, last])


def test_an_auxiliary_loss_has_its_whole_learning_rate_until_texts_may_be_done(llama):
    """The same steps as with a constant rate: where the text is all but solved, an annealed one would move nothing."""
    texts, annealed = batch(llama, *TEXTS), preset(start="vocabulary", stop=Stop(max_steps=20))
    constant = replace(annealed, optimiser=replace(annealed.optimiser, anneal_below_nats=0.0))
    regulariser = anchor(random(4, llama.width).float(), "e", 1.0, steps=20)
    for fit, other in zip(*(fit_batch(llama, texts, c, Given(regulariser=regulariser)) for c in (annealed, constant)),
                          strict=True):  # fmt: skip
        assert torch.equal(fit.loss_history, other.loss_history)


def test_more_steps_than_the_budget_are_refused(llama):
    regulariser = anchor(random(4, llama.width).float(), "e", 1.0, steps=11)
    with pytest.raises(InputError, match="to be at work for 11 steps, and max_steps is 10: no text could be done"):
        fit_batch(llama, batch(llama, *TEXTS), budget(RANDOM, max_steps=10), Given(regulariser=regulariser))


def test_correlation_of_relations():
    vectors, teacher = random(5, 2, 3), random(5, 4, seed=1)
    assert relation_correlation(vectors, 3 * vectors) == pytest.approx(1)
    value = relation_correlation(vectors, teacher)
    assert -1 <= value <= 1
    order = torch.tensor([3, 1, 4, 0, 2])
    assert relation_correlation(vectors[order], teacher[order]) == pytest.approx(value)
    first, second = torch.triu_indices(5, 5, 1)
    relations = torch.stack([cosines(rows)[first, second] for rows in (vectors, teacher)])
    assert value == pytest.approx(torch.corrcoef(relations)[0, 1].item())
    assert torch.tensor(relation_correlation(vectors[:2], teacher[:2])).isnan()


def test_partners_are_ranked_by_cosine():
    angles = torch.tensor([0.0, 10.0, 30.0, 70.0]).deg2rad()
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([[1.0], [5.0], [0.1], [2.0]])
    assert partner_ranks(vectors, torch.tensor([1, 0, 3, 0])).tolist() == [1, 1, 3, 3]
    assert partner_ranks(vectors, torch.tensor([3, 2, 1, 2])).tolist() == [3, 2, 1, 1]


def test_partners_of_pairs_come_first_and_ranks_go_with_their_rows():
    pairs = random(6, 2, 5)
    vectors, partners = torch.cat([pairs, 2 * pairs]), torch.arange(12).roll(6)
    assert partner_ranks(vectors, partners).tolist() == [1] * 12
    other, order = random(12, 2, 5, seed=1), torch.randperm(12, generator=torch.Generator().manual_seed(0))
    ranks = partner_ranks(other, partners)
    assert ((ranks >= 1) & (ranks <= 11)).all()
    assert torch.equal(partner_ranks(other[order], order.argsort()[partners[order]]), ranks[order])


@pytest.mark.parametrize("vectors", [torch.ones(6, 3), torch.zeros(6, 3), torch.full((6, 1), 0.3)])
def test_vectors_that_are_all_the_same_find_nothing(vectors):
    assert partner_ranks(vectors, torch.arange(6).roll(1)).tolist() == [5] * 6


@pytest.mark.parametrize("make", [anchor, relational])
def test_losses_that_cannot_be_are_refused(make):
    with pytest.raises(InputError, match=r"^vector is 'both'; it must be 'e' or 'm'$"):
        make(random(4, 6), "both", 1.0)
    for weight in (-0.5, float("nan")):
        with pytest.raises(InputError, match=rf"^weight is {weight:g}; it must be at least 0$"):
            make(random(4, 6), "e", weight)


def test_shuffled_teachers_show_nothing_of_relations_that_are_there():
    teacher = random(12, 5)
    measured = shuffled_correlations(teacher @ random(5, 40, seed=1), teacher)
    assert relation_correlation(teacher @ random(5, 40, seed=1), teacher) > 0.8
    assert measured.shape == (100,)
    assert abs(measured.mean()) < 3 * measured.std() / 10
    assert measured.max() < 0.8
    assert torch.equal(measured, shuffled_correlations(teacher @ random(5, 40, seed=1), teacher))


def test_neighbours_are_found_by_chance_where_vectors_know_nothing():
    partners = torch.arange(16).roll(8)
    first = [(partner_ranks(random(16, 30, seed=n), partners) == 1).double().mean() for n in range(60)]
    assert torch.stack(first).mean() == pytest.approx(1 / 15, abs=0.03)
