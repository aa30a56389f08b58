"""Learned starts: training goes on where it stopped, and a start serves its model and arrangement only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from families import FAMILIES, family
from prototokens import AdamW, FrozenLM, Given, InputError, Stop, decode, fit, fit_batch, load, preset, save
from prototokens.arrangements import ARRANGEMENTS, blocks
from prototokens.fitting.bank import AxisStatistics, Bank
from prototokens.fitting.starter import Starter, _shipped, load_starter, save_starter, shipped_starter
from prototokens.fitting.starts import start_vectors
from prototokens.fitting.train_starter import (
    StarterConfig,
    StarterProgress,
    StarterTraining,
    _grown,
    load_training,
    save_training,
    train_starter,
)

CONFIG = StarterConfig(lengths=(2, 3), batch_tokens=12, inner_steps=4, steps=6)


def draw(length: int, count: int, seed: int) -> Tensor:
    return torch.randint(97, 123, (count, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def trainings() -> list[tuple[StarterTraining, StarterProgress]]:
    steps: list[tuple[StarterTraining, StarterProgress]] = []
    train_starter(family("llama"), draw, CONFIG, keep=lambda t, p: steps.append((t, p)))
    return steps


@pytest.fixture(scope="module")
def kept(trainings) -> list[tuple[Starter, StarterProgress]]:
    return [(training.starter, progress) for training, progress in trainings]


def directions(starter: Starter) -> Tensor:
    """The directions of a start's axes, columns of length 1, (2, D, D)."""
    assert starter.axes is not None
    return torch.nn.functional.normalize(starter.axes.float(), dim=1)


def same(a: Starter, b: Starter) -> bool:
    pairs = [(getattr(a, name), getattr(b, name)) for name in ("e", "m", "axes")]
    vectors = all(x is y or (x is not None and y is not None and torch.equal(x, y)) for x, y in pairs)
    return vectors and (a.arrangement, a.model, a.training) == (b.arrangement, b.model, b.training)


def test_training_goes_on_where_it_stopped_and_ends_the_same(kept, trainings, tmp_path: Path) -> None:
    path = save_training(tmp_path / "start", trainings[2][0])
    assert same(load_starter(path), kept[2][0])  # a start already, whatever the training needs beside it
    ended = train_starter(family("llama"), draw, CONFIG, resume=load_training(path))
    assert same(ended, kept[-1][0])


def test_a_finished_training_is_left_as_it_is(kept, trainings) -> None:
    assert train_starter(family("llama"), draw, CONFIG, resume=trainings[-1][0]) is kept[-1][0]


def test_axes_are_orthogonal_and_of_the_gradients_that_were_met(kept, trainings) -> None:
    assert [t.moments is None for t, _ in trainings] == [False] * 5 + [True]
    met = [t.moments[0].trace() for t, _ in trainings[:-1]]
    assert met[1] < family("llama").width < met[3]
    assert [s.axes is None for s, _ in kept] == [True] * 3 + [False] * 3  # after 2 steps too few gradients were met
    turning = [directions(s) for s, _ in kept[3:]]
    renewed = [n for n in (1, 2) if not torch.allclose(turning[n], turning[n - 1], atol=1e-3)]
    assert renewed == [2]  # after 4 and all 6 steps
    axes, moments = directions(kept[3][0]), trainings[3][0].moments
    identity = torch.eye(axes.shape[-1])
    assert torch.allclose(axes.mT @ axes, identity.expand(2, -1, -1), atol=5e-3)
    along = axes.mT @ moments @ axes
    assert torch.allclose(along, along.diagonal(dim1=1, dim2=2).diag_embed(), atol=0.01 * moments.amax().item())
    rows = sum(CONFIG.batch_tokens // p.length for _, p in kept[:4])
    assert torch.allclose(moments.diagonal(dim1=1, dim2=2).sum(1), torch.tensor(float(rows * CONFIG.inner_steps)))


def test_steps_along_an_axis_are_as_long_as_the_axis() -> None:
    axes, rates = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)))[0], torch.ones(1)
    lengths = torch.tensor([0.5, 1.0, 2.0, 1.0, 3.0])
    gradients = torch.randn(3, 1, 1, 5, generator=torch.Generator().manual_seed(1))
    plain, scaled = (
        Bank(torch.zeros(1, 1, 5), torch.zeros(1).long(), trained=True, axes=a) for a in (axes, axes * lengths)
    )
    for gradient in gradients:
        before = [bank.values.detach().clone() for bank in (plain, scaled)]
        for bank in (plain, scaled):
            bank.step(gradient, AdamW(betas=(0.8, 0.95), eps=1e-12), rates)
        moved, moved_scaled = (b.values.detach() - v for b, v in zip((plain, scaled), before, strict=True))
        assert torch.allclose(moved_scaled @ axes, (moved @ axes) * lengths, rtol=1e-4, atol=1e-5)


def test_what_trains_the_rates_is_the_slope_of_the_loss_after_a_step() -> None:
    """On a quadratic, along the coordinates: products are -dL(after) / d log(length) / lr / |gradient|, by hand."""
    curvature, statistics = torch.tensor([0.1, 1.0, 30.0]), AxisStatistics.of_width(3)
    bank = Bank(
        torch.tensor([[[1.0, 1.0, 1.0]]]), torch.zeros(1).long(), trained=True, axes=torch.eye(3), statistics=statistics
    )
    lr, first = 0.5, bank.values.detach().clone()
    slopes = torch.zeros(3)
    for step in range(2):
        gradient = curvature * bank.values.detach()
        if step:
            log_length = torch.zeros(3, requires_grad=True)
            after = first - lr * torch.ones(3) * log_length.exp()  # Adam's first change is the gradient's sign
            slopes = torch.autograd.grad((curvature * after**2 / 2).sum(), log_length)[0]
            slopes = -slopes / lr / gradient.norm()
        bank.step(gradient, AdamW(betas=(0.8, 0.95), eps=1e-12), torch.full((1,), lr))
    assert torch.allclose(statistics.products, slopes, rtol=1e-4)
    assert torch.allclose(statistics.agreement, slopes.sign(), rtol=1e-4)


def test_a_training_learns_what_it_is_asked_to(kept) -> None:
    lm, lengths = family("llama"), torch.linspace(0.5, 2, family("llama").width).expand(2, -1)
    begin = replace(kept[-1][0], axes=(directions(kept[-1][0]) * lengths.unsqueeze(1)).half())
    for learn in (("start",), ("axes",), ("rates",), ("start", "rates")):
        ended = train_starter(lm, draw, replace(CONFIG, seed=2, learn=learn), begin=begin)
        assert ended.axes is not None
        assert torch.equal(ended.e, begin.e) == torch.equal(ended.m, begin.m) == ("start" not in learn)
        assert torch.allclose(directions(ended), directions(begin), atol=2e-3) == ("axes" not in learn)
        assert torch.allclose(ended.axes.float().norm(dim=1), lengths, rtol=2e-3) == ("rates" not in learn)
    for learn in (("rates",), ("start", "rates")):
        with pytest.raises(InputError, match="rates are learned along axes, and there are none"):
            train_starter(lm, draw, replace(CONFIG, learn=learn), begin=replace(begin, axes=None))
    along_the_coordinates = replace(CONFIG, steps=1, learn=("rates",), axes_optimiser=None)
    assert torch.equal(train_starter(lm, draw, along_the_coordinates, begin=begin).axes, begin.axes)
    with pytest.raises(InputError, match="learn is 'stars'; name one or more of: start axes rates"):
        replace(CONFIG, learn=("stars",))


def test_no_axis_is_lost_however_long_it_grows() -> None:
    axes, up = torch.eye(3).expand(2, -1, -1).half(), torch.tensor([5.0, -5.0, 0.0]).expand(2, -1)
    for _ in range(9):
        axes = _grown(axes, up)
    assert torch.allclose(axes.float().norm(dim=1), torch.tensor([16, 1 / 16, 1]).expand(2, -1), rtol=1e-3)


def test_a_fit_descends_along_the_axes_of_its_start(kept, llama: FrozenLM) -> None:
    starter, ids = kept[-1][0], llama.encode("abc")
    stop = Stop(max_steps=5)

    def fitted(starter: Starter, **change: AdamW | None) -> Tensor:
        return fit(llama, ids, preset(start=starter, stop=stop, **change)).tokens.e

    axes_optimiser = preset().axes_optimiser
    assert axes_optimiser is not None
    plain = fitted(replace(starter, axes=None))
    assert not torch.allclose(fitted(starter), plain)
    assert torch.equal(fitted(starter, axes_optimiser=None), plain)
    assert torch.equal(fitted(starter, optimiser=AdamW(lr=3)), fitted(starter))
    assert torch.equal(fitted(replace(starter, axes=None), axes_optimiser=AdamW(lr=3)), plain)
    along_the_coordinates = fitted(replace(starter, axes=torch.eye(llama.width).half().expand(2, -1, -1).clone()))
    assert torch.allclose(
        along_the_coordinates, fitted(starter, axes_optimiser=None, optimiser=axes_optimiser), atol=1e-4
    )


def test_a_training_begins_at_another_start(kept) -> None:
    first = kept[-1][0]
    more: list[StarterTraining] = []
    train_starter(family("llama"), draw, replace(CONFIG, seed=1), begin=first, keep=lambda t, _: more.append(t))
    steps = [training.starter for training in more]
    assert steps[0].training["begun_at"] == first.name
    turned = [not torch.allclose(directions(s), directions(first), atol=2e-3) for s in steps[:4]]
    assert turned == [False, False, False, True]  # once enough gradients were met
    again = replace(CONFIG, seed=1)
    assert same(train_starter(family("llama"), draw, again, resume=more[2], begin=first), steps[-1])
    with pytest.raises(InputError, match="did not begin at learned-"):
        train_starter(family("llama"), draw, again, resume=more[2], begin=kept[0][0])
    with pytest.raises(InputError, match="this learned start belongs to"):
        train_starter(family("gpt2"), draw, CONFIG, begin=first)


@pytest.mark.parametrize("from_another", [False, True])
def test_a_start_moves_by_a_share_of_the_mean_displacement(kept, from_another: bool) -> None:
    """z <- z + rate mean(z_fit - z_start), worked out with plain fits; the first step and the second."""
    lm, begin = family("llama"), kept[-1][0] if from_another else None
    config = replace(CONFIG, seed=1, lengths=(3,), axes_optimiser=None)
    steps: list[Starter] = []
    train_starter(lm, draw, config, begin=begin, keep=lambda t, _: steps.append(t.starter))
    mean = lm.embedding_statistics.mean
    e, m = (begin.e, begin.m) if begin else (torch.zeros_like(mean), mean)
    for step, rate in ((0, 0.5), (1, 0.5 + (0.05 - 0.5) / 5)):
        texts = draw(3, 4, 1_000_003 + step)
        text_means = lm.embed(texts).mean(1)
        start = Given(e_start=(text_means + e)[:, None], m_start=m)
        plain = replace(preset(start="text-e", perturbation=0.0, axes_optimiser=None), optimiser=config.optimiser)
        # A margin that nothing reaches keeps every text in the batch to the end.
        plain = replace(plain, stop=Stop(max_steps=config.inner_steps, margin=float("inf")))
        fits = fit_batch(lm, texts, plain, start)
        e = e + rate * torch.stack([f.tokens.e[0] - t - e for f, t in zip(fits, text_means, strict=True)]).mean(0)
        m = m + rate * torch.stack([f.tokens.m - m for f in fits]).mean(0)
        assert torch.allclose(steps[step].e, e, atol=1e-3)
        assert torch.allclose(steps[step].m, m, atol=1e-3)
        e, m = steps[step].e, steps[step].m  # so that rounding does not add up


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_learns_a_start_whose_fits_solve_unseen_texts(name: str) -> None:
    """How many steps it saves is a benchmark: benchmarks/bench_families.py."""
    lm, training = family(name), StarterConfig(lengths=(4,), batch_tokens=16, inner_steps=5, steps=4)
    starter, unseen = train_starter(lm, draw, training), draw(4, 3, 1_000_000_000)
    assert starter.axes is not None
    axes = directions(starter)
    assert torch.allclose(axes.mT @ axes, torch.eye(lm.width).expand(2, -1, -1), atol=5e-3)
    for start in (starter, replace(starter, axes=None)):
        for result in fit_batch(lm, unseen, preset(start=start, restarts=4, perturbation=0.1)):
            assert result.exact
            assert result.tokens.provenance.start == start.name
            assert decode(lm, result.tokens).exact


def test_work_is_counted(kept) -> None:
    expected = 0
    for _, progress in kept:
        rows, positions = CONFIG.batch_tokens // progress.length, progress.length + 1
        expected += rows * positions * (CONFIG.inner_steps + 1)
        assert progress.token_positions == expected
    assert kept[-1][1].backward_positions == expected * CONFIG.inner_steps // (CONFIG.inner_steps + 1)


def test_other_settings_are_refused(trainings) -> None:
    with pytest.raises(InputError, match=r"other settings \(seed\): give the same, or begin anew \(--force\)"):
        train_starter(family("llama"), draw, replace(CONFIG, seed=1), resume=trainings[2][0])


def test_lengths_that_the_model_has_no_room_for_are_refused_at_once() -> None:
    with pytest.raises(InputError, match=r"a text of 64 tokens needs 65 positions, .*; choose shorter --lengths"):
        train_starter(family("llama"), draw, StarterConfig(lengths=(2, 64)))


def test_a_fit_begins_at_the_learned_start_and_says_so(kept, llama: FrozenLM, tmp_path: Path) -> None:
    starter, ids = kept[-1][0], llama.encode("abc")
    config = preset(start=starter, perturbation=0.0, stop=Stop(max_steps=0))
    e, m = start_vectors(llama, ids, config, 0)
    assert torch.allclose(e[0], llama.embed(ids).mean(0) + starter.e)
    assert torch.equal(m, starter.m)
    tokens = load(save(tmp_path / "fit", fit(llama, ids, config).tokens))
    assert tokens.provenance.start == starter.name
    assert starter.name.startswith("learned-")


def test_another_model_or_arrangement_is_refused(kept, llama: FrozenLM) -> None:
    starter = kept[0][0]
    other = family("gpt2")
    with pytest.raises(InputError, match="this learned start belongs to"):
        fit(other, other.encode("ab"), preset(start=starter))
    with pytest.raises(InputError, match=r"is for 'm,e,m\*\(n-1\)', not for 'e,m\*n'"):
        fit(llama, llama.encode("ab"), preset(start=starter, arrangement="e,m*n"))


def test_save_and_load_is_the_identity_and_damage_is_refused(kept, tmp_path: Path) -> None:
    path = save_starter(tmp_path / "start", kept[0][0])
    assert same(load_starter(path), kept[0][0])
    with pytest.raises(InputError, match="holds a learned start, not proto-tokens"):
        load(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match="damaged"):
        load_starter(path)


def test_shipped_starts_are_whole_and_serve_the_default() -> None:
    assert [starter.arrangement for starter in _shipped()] == [
        blocks(16),
        blocks(8),
        preset().at(1).arrangement,
    ]
    for starter in _shipped():
        assert starter.arrangement.is_of_family(preset().at(1).arrangement) or starter.arrangement.is_of_family(
            preset().at(500).arrangement
        )
        assert starter.axes is not None
        assert "speeches" in str(starter.training)


def test_blocks_begin_at_the_start_for_the_nearest_length() -> None:
    of_16, of_8, of_two = _shipped()
    for b, starter in ((1, of_8), (8, of_8), (11, of_8), (12, of_16), (16, of_16), (64, of_16)):
        assert shipped_starter(starter.model, blocks(b)) is starter
    assert shipped_starter(of_two.model, ARRANGEMENTS["m,e,m*(n-1)"]) is of_two
    assert shipped_starter(of_two.model, ARRANGEMENTS["e,m*n"]) is None
    assert shipped_starter(replace(of_8.model, fingerprint="0" * 64), blocks(8)) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [({"lengths": ()}, "lengths are"), ({"lengths": (0,)}, "lengths are"), ({"steps": 0}, "both must be at least 1")],
)
def test_settings_have_bounds(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        StarterConfig(**change)
