"""Laws of the parts of a fit: the objective, the optimiser, the score board, the start."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.nn import functional as F

from families import family
from prototokens import AdamW, FitConfig, InputError, Stop
from prototokens.arrangements import ARRANGEMENTS
from prototokens.fitting.bank import AxisStatistics, Bank
from prototokens.fitting.objective import cross_entropy
from prototokens.fitting.scoreboard import MET, NONFINITE, RUNNING, ScoreBoard
from prototokens.fitting.starter import Starter
from prototokens.fitting.starts import start_vectors
from prototokens.metrics import logit_margins


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# The objective


@pytest.mark.parametrize(("rows", "length", "vocabulary", "scale"), [(1, 1, 2, 1), (3, 4, 7, 3), (2, 5, 300, 1e3)])
def test_the_objective_is_torchs_with_its_gradient(rows: int, length: int, vocabulary: int, scale: float) -> None:
    logits = scale * torch.randn(rows, length, vocabulary, generator=generator())
    logits.requires_grad_()
    target_ids = torch.randint(vocabulary, (rows, length), generator=generator(1))
    loss = F.cross_entropy(logits.flatten(0, 1), target_ids.flatten(), reduction="none").view(rows, length)
    loss.sum().backward()
    before = logits.detach().clone()
    scores = cross_entropy(logits, target_ids)
    assert torch.allclose(scores.loss, loss, rtol=1e-5, atol=1e-6)
    assert torch.allclose(scores.logit_gradient, logits.grad, rtol=1e-4, atol=1e-6)
    assert torch.allclose(scores.margin, logit_margins(before, target_ids), rtol=1e-4, atol=1e-5 * scale)
    assert torch.equal(scores.margin > 0, logits.argmax(-1) == target_ids)
    assert torch.equal(logits, before)
    assert not scores.loss.requires_grad


def test_a_tie_is_not_right() -> None:
    logits = torch.tensor([[[1.0, 1.0, 0.0], [2.0, 1.0, 1.0]]])
    assert cross_entropy(logits, torch.tensor([[0, 1]])).margin.tolist() == [[0, -1]]


# The optimiser


@pytest.mark.parametrize(
    "adamw",
    [
        AdamW(lr=0.01, weight_decay=0.01),
        AdamW(lr=0.3, betas=(0.9, 0.999)),
        AdamW(lr=0.1, betas=(0.0, 0.0), eps=0.1),
        AdamW(lr=0.5, betas=(0.5, 0.95), weight_decay=0.5, eps=1e-3),
    ],
)
def test_a_step_is_torchs_adamw(adamw: AdamW) -> None:
    start = torch.randn(3, 2, 5, generator=generator())
    bank = Bank(start, torch.arange(3), trained=True)
    reference = start.clone().requires_grad_()
    optimiser = torch.optim.AdamW(
        [reference], lr=adamw.lr, betas=adamw.betas, eps=adamw.eps, weight_decay=adamw.weight_decay
    )
    for step in range(12):
        reference.grad = torch.randn(start.shape, generator=generator(step + 1)) * 10 ** (step % 4 - 2)
        optimiser.step()
        bank.step(reference.grad, adamw, torch.full((3,), adamw.lr))
        assert torch.allclose(bank.values, reference, rtol=1e-5, atol=1e-6)


def test_a_rotated_step_is_a_step_of_the_rotated_problem() -> None:
    adamw, start = AdamW(lr=0.1, weight_decay=0.1), torch.randn(3, 2, 5, generator=generator())
    axes = torch.linalg.qr(torch.randn(5, 5, generator=generator(9)))[0]
    rotated = Bank(start, torch.arange(3), trained=True, axes=axes)
    along = Bank(start @ axes, torch.arange(3), trained=True)
    for step in range(6):
        gradient = torch.randn(start.shape, generator=generator(step + 1))
        rotated.step(gradient, adamw, torch.full((3,), adamw.lr))
        along.step(gradient @ axes, adamw, torch.full((3,), adamw.lr))
        assert torch.allclose(rotated.values @ axes, along.values, atol=1e-5)


def test_second_moments_are_of_gradients_of_length_1() -> None:
    statistics = AxisStatistics.of_width(3)
    moments, bank = statistics.moments, Bank(torch.zeros(2, 1, 3), torch.arange(2), trained=True, statistics=statistics)
    bank.step(torch.tensor([[[3.0, 0, 0]], [[0, 0.1, 0]]]), AdamW(), torch.full((2,), 0.1))
    assert torch.allclose(moments, torch.diag(torch.tensor([1.0, 1.0, 0.0])))
    bank.step(torch.tensor([[[0.0, 0, 5]], [[torch.nan, 0.1, torch.inf]]]), AdamW(), torch.full((2,), 0.1))
    assert torch.allclose(moments, torch.eye(3))  # what is no number counts for nothing


def test_dropping_rows_leaves_the_others_steps_alone() -> None:
    adamw, start = AdamW(lr=0.1, weight_decay=0.1), torch.randn(4, 1, 6, generator=generator())
    whole, thinned = (Bank(start, torch.tensor([0, 1, 1, 2, 3]), trained=True) for _ in range(2))
    kept = torch.arange(4)
    for step in range(9):
        gradient = torch.randn(4, 1, 6, generator=generator(step))
        whole.step(gradient, adamw, torch.full((5,), adamw.lr))
        thinned.step(gradient[kept], adamw, torch.full((len(thinned.of),), adamw.lr))
        for bank in (whole, thinned):
            bank.remember(torch.ones(len(bank.of), dtype=torch.bool))
        if step == 2:
            thinned.keep(torch.tensor([1, 2, 4]))  # rows of the vectors 1, 1 and 3
            kept = torch.tensor([1, 3])
        if step == 5:
            thinned.keep(torch.tensor([2]))
            kept = torch.tensor([3])
    assert thinned.values.shape == (1, 1, 6)
    assert thinned.values.requires_grad
    assert torch.equal(thinned.best(4), whole.best(4))
    assert not torch.equal(thinned.best(1), whole.best(1))  # vector 1 has stood still since its rows were dropped
    assert torch.equal(thinned.best(1), thinned.best(2))


def test_sharers_add_their_gradients_up() -> None:
    bank = Bank(torch.randn(2, 1, 3, generator=generator()), torch.tensor([0, 1, 0]), trained=True)
    weights = torch.randn(3, 1, 3, generator=generator(1))
    (gradient,) = torch.autograd.grad((bank.rows() * weights).sum(), bank.values)
    assert torch.equal(gradient, torch.stack([weights[0] + weights[2], weights[1]]))


def test_sharers_move_their_vector_at_their_mean_rate() -> None:
    bank = Bank(torch.zeros(2, 1, 3), torch.tensor([0, 1, 0]), trained=True)
    bank.step(torch.ones(2, 1, 3), AdamW(eps=1e-12), torch.tensor([0.1, 0.5, 0.3]))
    assert torch.allclose(bank.values, torch.tensor([-0.2, -0.5])[:, None, None].expand(2, 1, 3))  # Adam's first step


def test_held_vectors_remember_nothing() -> None:
    start = torch.randn(1, 1, 3, generator=generator())
    bank = Bank(start, torch.zeros(2, dtype=torch.long), trained=False)
    bank.values.add_(1)
    bank.remember(torch.tensor([True, True]))
    assert torch.equal(bank.best(1), start[0])
    assert not bank.values.requires_grad


# The score board


def board_of(*candidates: int, **stop: float) -> ScoreBoard:
    return ScoreBoard(torch.tensor(candidates), Stop(**stop))


def margins(right: int, length: int, margin: float = 1.0) -> torch.Tensor:
    return torch.tensor([margin] * right + [-margin] * (length - right))


def update(board: ScoreBoard, step: int, *rows: tuple[torch.Tensor, float]) -> list[bool]:
    """Enter rows given as margins (T,) and a loss."""
    margin = torch.stack([row for row, _ in rows])
    loss = torch.tensor([loss for _, loss in rows])[:, None].expand_as(margin)
    return board.update(torch.arange(len(rows)), loss, margin, step).tolist()


@pytest.mark.parametrize("length", [1, 3, 7, 10, 33, 100, 301])
def test_a_share_of_right_tokens_meets_that_share(length: int) -> None:
    # k / T and a float32 mean of k ones need not be the same number; the threshold has to be met all the same.
    for right in range(1, length + 1):
        board = board_of(0, accuracy=right / length)
        assert update(board, 0, (margins(right - 1, length), 1.0)) == [True]
        assert board.status() == [RUNNING]
        assert update(board, 1, (margins(right, length), 1.0)) == [True]
        assert board.status() == [MET]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 4)), min_size=1, max_size=12),
       st.sampled_from([1.0, 2 / 3, 1 / 3]), st.sampled_from([0.0, 2.0]))  # fmt: skip
@example([(3, 1, 1), (3, 9, 2)], 1.0, 2.0)  # exact ones compare by margin
@example([(2, 1, 1), (2, 9, 3)], 2 / 3, 2.0)  # the one that meets the rule is kept, even if its loss is higher
def test_the_best_is_kept_until_the_candidate_is_met(history: list, accuracy: float, margin: float) -> None:
    board, best, met = board_of(0, accuracy=accuracy, margin=margin), (-1.0, -math.inf), False
    for step, (right, loss, lead) in enumerate(history):
        (improved,) = update(board, step, (margins(right, 3, float(lead)), float(loss)))
        share = right / 3
        meets = share >= accuracy and lead > margin
        rank = (share, lead if right == 3 else -loss)
        assert improved == (not met and (rank > best or meets))
        best, met = (rank if improved else best), met or meets
        assert board.status() == [MET if met else RUNNING]
    losses, accuracies = board.histories()
    assert losses[:, 0].tolist() == [loss for _, loss, _ in history]
    assert torch.allclose(accuracies[:, 0], torch.tensor([right / 3 for right, _, _ in history]))


def test_a_margin_of_zero_is_not_right() -> None:
    board = board_of(0)
    update(board, 0, (torch.tensor([0.0, 1.0]), 1.0))
    assert board.histories()[1].item() == 0.5
    assert board.status() == [RUNNING]


def test_a_candidate_is_met_when_all_its_rows_are() -> None:
    board = board_of(0, 0, 1)
    assert update(board, 0, (margins(2, 2), 1.0), (margins(1, 2), 1.0), (margins(2, 2), 1.0)) == [True, True, True]
    assert board.status() == [RUNNING, MET]
    # Better together, though the first row alone is worse.
    assert update(board, 1, (margins(1, 2), 0.5), (margins(2, 2), 0.5), (margins(2, 2, 9), 0.5)) == [True, True, False]
    assert update(board, 2, (margins(2, 2), 2.0), (margins(2, 2), 2.0), (margins(2, 2), 2.0)) == [True, True, False]
    assert board.status() == [MET, MET]


def test_the_first_restart_done_ranks_first_then_accuracy_then_loss() -> None:
    board = board_of(0, 1, 2, 3, accuracy=0.5, margin=2.0)
    update(board, 0, (margins(2, 4, 3), 9.0), (margins(3, 4), 1.0), (margins(3, 4), 2.0), (margins(1, 4), 0.1))
    ranking = board.ranking()
    assert sorted(range(4), key=lambda a: ranking[a], reverse=True) == [0, 1, 2, 3]


def test_the_first_restart_done_stays_the_first() -> None:
    board = board_of(0, 1)
    update(board, 0, (margins(1, 2), 1.0), (margins(1, 2), 1.0))
    update(board, 1, (margins(2, 2), 1.0), (margins(1, 2), 1.0))
    update(board, 2, (margins(2, 2), 1.0), (margins(2, 2, 9), 0.1))
    assert board.status() == [MET, MET]
    assert board.ranking()[0] > board.ranking()[1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_never_kept(bad: float) -> None:
    board = board_of(0, 1)
    assert update(board, 0, (margins(1, 2), 1.0), (margins(1, 2), bad)) == [True, False]
    assert update(board, 1, (margins(2, 2), bad), (margins(2, 2), 1.0)) == [False, False]
    assert board.status() == [NONFINITE, NONFINITE]


# The start


def test_a_start_knows_its_seed_restart_and_text_only() -> None:
    lm, config = family("gemma3"), FitConfig(perturbation=0.1, e_tokens=2)
    text, other = lm.encode("abc"), lm.encode("abd")
    e, m = start_vectors(lm, text, config, 0)
    assert e.shape == (2, lm.width)
    assert m.shape == (lm.width,)
    again = start_vectors(lm, text, config, 0)
    assert torch.equal(e, again[0])
    assert torch.equal(m, again[1])
    for changed in (
        start_vectors(lm, text, config, 1),
        start_vectors(lm, other, config, 0),
        start_vectors(lm, text, FitConfig(perturbation=0.1, e_tokens=2, seed=1), 0),
    ):
        assert not torch.equal(e, changed[0])
        assert not torch.equal(m, changed[1])


def test_starts_are_what_they_are_called() -> None:
    lm = family("gemma3")  # its embedding module scales
    text = lm.encode("abca")
    mean, everything = lm.embed(text).mean(0), lm.embed(torch.arange(264)).mean(0)
    e, m = start_vectors(lm, text, FitConfig(start="text-e", e_tokens=2), 0)
    assert torch.allclose(e, mean.expand(2, -1))
    assert torch.allclose(m, everything, atol=1e-6)
    e, m = start_vectors(lm, text, FitConfig(start="text-m"), 0)
    assert torch.allclose(m, mean)
    assert torch.allclose(e[0], everything, atol=1e-6)
    normal, vocabulary = (
        torch.cat([torch.cat([e, m[None]]) for r in range(50)
                   for e, m in [start_vectors(lm, text, FitConfig(start=start), r)]])
        for start in ("normal", "vocabulary")
    )  # fmt: skip
    assert normal.mean() == pytest.approx(0, abs=0.05)
    assert normal.std() == pytest.approx(1, abs=0.05)
    assert torch.equal(vocabulary, everything + lm.embedding_statistics.std * normal)
    shared = torch.stack([lm.encode("ab"), lm.encode("cd")])
    e, _ = start_vectors(lm, shared, FitConfig(start="text-e"), 0)
    assert torch.allclose(e[0], lm.embed(lm.encode("abcd")).mean(0), atol=1e-6)


def test_a_learned_start_is_an_offset_for_one_model_and_arrangement() -> None:
    lm, text = family("gemma3"), family("gemma3").encode("abca")
    arrangement = ARRANGEMENTS["m,e,m*(n-1)"]
    offsets = torch.randn(2, lm.width, generator=generator())
    starter = Starter(e=offsets[0], m=offsets[1], arrangement=arrangement, model=lm.identity, training={})
    e, m = start_vectors(lm, text, FitConfig(start=starter, e_tokens=2), 0)
    assert torch.allclose(e, (lm.embed(text).mean(0) + offsets[0]).expand(2, -1))
    assert torch.equal(m, offsets[1])
    with pytest.raises(InputError, match=r"this learned start is for 'm,e,m\*\(n-1\)', not for 'e,m\*n'"):
        start_vectors(lm, text, FitConfig(arrangement="e,m*n", start=starter), 0)
    with pytest.raises(
        InputError, match=r"this learned start belongs to Gemma3ForCausalLM .*, not to LlamaForCausalLM"
    ):
        start_vectors(family("llama"), text, FitConfig(start=starter), 0)


def test_auto_is_the_mean_where_no_start_was_learned() -> None:
    lm, text = family("llama"), family("llama").encode("abc")
    auto, mean = (start_vectors(lm, text, FitConfig(start=start), 0) for start in ("auto", "text-e"))
    assert all(torch.equal(a, b) for a, b in zip(auto, mean, strict=True))


def test_the_perturbation_is_in_units_of_the_embeddings() -> None:
    lm = family("gemma3")
    text = lm.encode("abc")
    plain, _ = start_vectors(lm, text, FitConfig(e_tokens=50), 0)
    noisy, _ = start_vectors(lm, text, FitConfig(e_tokens=50, perturbation=0.1), 0)
    assert (noisy - plain).std().item() == pytest.approx(0.1 * lm.embedding_statistics.std, rel=0.05)
