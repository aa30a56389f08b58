"""Laws of vectors that a fit is given: held ones stay as they are, shared ones are the same for all who share."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from families import ONE, RECIPE, WIDTH, batch, budget, counted, same_vectors
from prototokens import AdamW, FitConfig, FrozenLM, Given, InputError, decode, fit, fit_batch
from prototokens.fitting.starts import perturbations

TEXTS = ("ab", "Zq", "aa")


def vectors(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(0))


# Shared vectors.


@pytest.mark.parametrize(("shared", "unshared"), [("m", "e"), ("e", "m")])
@pytest.mark.parametrize("groups", [None, [0, 0, 1], [7, -3, 7]])
def test_a_group_has_one_vector_and_a_text_its_own(
    lm: FrozenLM, shared: str, unshared: str, groups: list[int] | None
) -> None:
    given = Given(share=shared, groups=None if groups is None else torch.tensor(groups))
    results = fit_batch(lm, batch(lm, *TEXTS), budget(RECIPE, max_steps=5), given)
    numbers = groups or [0, 0, 0]
    for i in range(3):
        for j in range(i):
            same = torch.equal(getattr(results[i].tokens, shared), getattr(results[j].tokens, shared))
            assert same == (numbers[i] == numbers[j])
            assert not torch.equal(getattr(results[i].tokens, unshared), getattr(results[j].tokens, unshared))


@pytest.mark.parametrize("share", ["m", "e"])
def test_sharers_are_solved_together(llama: FrozenLM, share: str) -> None:
    given = Given(share=share, groups=torch.tensor([0, 1, 0]))
    with counted(llama) as calls:
        results = fit_batch(llama, batch(llama, *TEXTS), RECIPE, given)
    first, _, last = results
    assert all(result.exact and result.stop_reason == "accuracy" for result in results)
    assert [decode(llama, result.tokens).text for result in results] == list(TEXTS)
    # No text of a group is done, or dropped, while the other still moves the vector they share.
    assert first.token_positions == last.token_positions
    assert first.backward_positions == last.backward_positions
    assert first.steps == last.steps
    assert len(first.loss_history) == len(last.loss_history)
    assert first.accuracy_history[-1] == last.accuracy_history[-1] == 1
    accuracy_of_group = (first.accuracy_history + last.accuracy_history) / 2
    assert accuracy_of_group[:-1].max() < 1 or first.min_margin > RECIPE.stop.margin
    assert calls.positions() == sum(result.token_positions for result in results)


def test_the_best_of_a_group_is_the_best_of_its_mean(llama: FrozenLM) -> None:
    texts = ("the quick", "brown fox")
    results = fit_batch(llama, batch(llama, *texts), budget(ONE, max_steps=25), Given(share="m"))
    accuracy = sum(result.accuracy_history for result in results) / 2
    loss = sum(result.loss_history for result in results) / 2
    best = max(range(26), key=lambda step: (accuracy[step].item(), -loss[step].item()))
    for result, text in zip(results, texts, strict=True):
        assert result.loss == pytest.approx(result.loss_history[best].item(), rel=1e-4)
        assert result.token_accuracy == pytest.approx(result.accuracy_history[best].item())
        tokens = result.tokens
        logits = llama.logits(tokens.inputs_embeds(), tokens.arrangement.layout(9).read_positions())[0]
        assert result.loss == F.cross_entropy(logits, llama.encode(text)).item()


@pytest.mark.parametrize("share", ["m", "e"])
def test_groups_of_one_share_nothing(llama: FrozenLM, share: str) -> None:
    config, ids = budget(RECIPE, max_steps=8), batch(llama, *TEXTS)
    plain = fit_batch(llama, ids, config)
    grouped = fit_batch(llama, ids, config, Given(share=share, groups=torch.tensor([5, 1, 3])))
    for a, b in zip(plain, grouped, strict=True):
        assert same_vectors(a, b)
        assert torch.equal(a.loss_history, b.loss_history)


def test_the_numbers_of_groups_mean_nothing(llama: FrozenLM) -> None:
    config, ids = budget(RECIPE, max_steps=8), batch(llama, *TEXTS)
    first, second = (
        fit_batch(llama, ids, config, Given(share="m", groups=torch.tensor(groups)))
        for groups in ([0, 1, 0], [9, -9, 9])
    )
    assert all(same_vectors(a, b) for a, b in zip(first, second, strict=True))


def test_a_shared_vector_descends_the_sum_of_the_losses(llama: FrozenLM) -> None:
    # One plain Adam step by hand, through torch's own loss and gradient.
    optimiser, ids = AdamW(lr=1e-3, eps=0.1), batch(llama, "ab", "Zq")
    config = budget(replace(ONE, optimiser=optimiser, perturbation=0.0), max_steps=1)
    before = fit_batch(llama, ids, budget(config, max_steps=0), Given(share="m"))
    after = fit_batch(llama, ids, config, Given(share="m"))
    e = torch.stack([result.tokens.e for result in before])
    m = before[0].tokens.m.clone().requires_grad_()
    layout = before[0].tokens.arrangement.layout(2)
    logits = llama.logits(layout.inputs_embeds(e, m.expand(2, -1), torch.empty(0, WIDTH)), layout.read_positions())
    F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="sum").div(2).backward()
    step = optimiser.lr * m.grad / (m.grad.abs() + optimiser.eps)
    assert sum(result.loss_history[1] - result.loss_history[0] for result in after) < 0  # else the start is kept
    assert torch.allclose(after[0].tokens.m, m - step, rtol=1e-4, atol=1e-6)
    assert torch.equal(after[0].tokens.m, after[1].tokens.m)


# Held vectors.


@pytest.mark.parametrize("per_text", [False, True])
@pytest.mark.parametrize("name", ["e", "m"])
def test_held_vectors_stay_as_they_are(lm: FrozenLM, name: str, per_text: bool) -> None:
    lead = (3,) if per_text else ()
    held = vectors(*lead, *((2,) if name == "e" else ()))
    before = held.clone()
    config = budget(replace(RECIPE, e_tokens=2, restarts=2), max_steps=4)
    results = fit_batch(lm, batch(lm, *TEXTS), config, Given(**{name: held}))
    start = fit_batch(lm, batch(lm, *TEXTS), budget(config, max_steps=0))
    other = "m" if name == "e" else "e"
    assert torch.equal(held, before)
    assert not held.requires_grad
    for text, result in enumerate(results):
        assert torch.equal(getattr(result.tokens, name), held[text] if per_text else held)
        assert not torch.equal(getattr(result.tokens, other), getattr(start[text].tokens, other))


def test_one_held_vector_is_enough_to_fit_the_other(llama: FrozenLM) -> None:
    solved = fit_batch(llama, batch(llama, *TEXTS), RECIPE)
    for name in ("e", "m"):
        held = torch.stack([getattr(result.tokens, name) for result in solved])
        results = fit_batch(llama, batch(llama, *TEXTS), RECIPE, Given(**{name: held}))
        assert all(result.exact for result in results)
        assert all(torch.equal(getattr(r.tokens, name), h) for r, h in zip(results, held, strict=True))


@pytest.mark.parametrize(("held", "share"), [("e", "m"), ("m", "e")])
def test_one_may_be_held_and_the_other_shared(llama: FrozenLM, held: str, share: str) -> None:
    value = vectors(3, 1) if held == "e" else vectors(3)
    given = Given(**{held: value}, share=share, groups=torch.tensor([0, 0, 1]))
    a, b, c = (r.tokens for r in fit_batch(llama, batch(llama, *TEXTS), budget(RECIPE, max_steps=5), given))
    assert all(torch.equal(getattr(t, held), v) for t, v in zip((a, b, c), value, strict=True))
    assert torch.equal(getattr(a, share), getattr(b, share))
    assert not torch.equal(getattr(a, share), getattr(c, share))


def test_held_vectors_of_texts_that_are_done_leave_with_them(llama: FrozenLM) -> None:
    """A text that begins at its solution leaves at once; the others' next steps are those they take alone."""
    ids, held = batch(llama, "aa", "Zq", "no"), vectors(3)
    solved = fit(llama, ids[0], RECIPE, Given(m=held[0]))
    assert solved.exact
    e, few = solved.tokens.e, budget(replace(ONE, perturbation=0.0, optimiser=AdamW(lr=1e-3, eps=0.1)), max_steps=2)
    together = fit_batch(llama, ids, few, Given(e_start=e, m=held))
    assert [result.steps for result in together] == [0, 2, 2]
    for text in (1, 2):
        alone = fit(llama, ids[text], few, Given(e_start=e, m=held[text]))
        assert torch.allclose(together[text].loss_history, alone.loss_history, rtol=1e-4)
        assert torch.allclose(together[text].tokens.e, alone.tokens.e, rtol=0, atol=4e-6)  # of steps up to 1e-3


@pytest.mark.parametrize("T", [1, 2])
def test_a_held_e_without_any_m_ends_like_any_fit(llama: FrozenLM, T: int) -> None:
    config = budget(replace(ONE, arrangement="e,m*(n-1)"), max_steps=3)
    result = fit(llama, llama.encode("ab"[:T]), config, Given(e=vectors(1)))
    assert result.stop_reason == "steps"
    assert len(set(result.loss_history.tolist())) == (1 if T == 1 else 4)  # at T = 1 nothing moves


def test_fixed_vectors_may_be_ones_own(llama: FrozenLM) -> None:
    config = budget(replace(ONE, arrangement="bos,e,m*(n-1)"), max_steps=2)
    bos = vectors()
    plain = fit(llama, llama.encode("ab"), config)
    result = fit(llama, llama.encode("ab"), config, Given(fixed={"bos": bos}))
    assert torch.equal(plain.tokens.fixed[0], llama.fixed_vector("bos"))
    assert torch.equal(result.tokens.fixed[0], bos)
    assert result.loss != plain.loss


# What a user can mend.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": "x"}, "share is 'x'; it must be 'e', 'm' or None"),
        ({"e": vectors(1), "m": vectors()}, "both e and m are given: there is nothing to fit"),
        ({"e": vectors(1), "share": "e"}, "e is given and held fixed: it cannot be shared and trained too"),
        ({"m": vectors(), "share": "m"}, "m is given and held fixed: it cannot be shared and trained too"),
        ({"groups": torch.zeros(2)}, "groups say which texts share a vector: name it with share='e' or share='m'"),
    ],
)
def test_contradictions_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        Given(**given)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"e": vectors(2)}, f"e is (2, {WIDTH}); it must be (1, {WIDTH})"),
        ({"e": vectors()}, f"e is ({WIDTH},); it must be (1, {WIDTH})"),
        ({"e": vectors(2, 1)}, f"e is (2, 1, {WIDTH}); it must be (3, 1, {WIDTH})"),
        ({"m": vectors(2)}, f"m is (2, {WIDTH}); it must be (3, {WIDTH})"),
        ({"m": torch.zeros(5)}, f"m is (5,); it must be ({WIDTH},)"),
        ({"m": vectors() / 0}, "m holds values that are not finite"),
        ({"share": "m", "groups": torch.zeros(2)}, "groups is (2,); it must be (3,), one number per text"),
        ({"fixed": {"x": vectors()}}, "arrangement 'm,e,m*(n-1)' holds no fixed vector 'x'"),
    ],
)
def test_what_does_not_fit_the_texts_is_refused(llama: FrozenLM, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        fit_batch(llama, batch(llama, *TEXTS), ONE, Given(**given))
    assert str(error.value) == message


def test_a_fixed_vector_of_another_width_is_refused(llama: FrozenLM) -> None:
    with pytest.raises(InputError, match=rf"fixed\['bos'\] is \(5,\); it must be \({WIDTH},\)"):
        fit(llama, llama.encode("a"), FitConfig("bos,e,m*n"), Given(fixed={"bos": torch.zeros(5)}))


@pytest.mark.parametrize("share", [None, "e", "m"])
def test_a_given_start_is_where_the_descent_begins(llama: FrozenLM, share: str | None) -> None:
    ids, config = batch(llama, "ab", "cd", "ef"), budget(replace(ONE, perturbation=0.0), max_steps=0)
    draw = torch.Generator().manual_seed(1)
    e = torch.randn(2 if share == "e" else 3, 1, llama.width, generator=draw)
    m = torch.randn(2 if share == "m" else 3, llama.width, generator=draw)
    groups = None if share is None else torch.tensor([0, 1, 0])
    of = {name: [0, 1, 0] if share == name else [0, 1, 2] for name in "em"}
    given = Given(e_start=e, m_start=m, share=share, groups=groups)
    for number, result in enumerate(fit_batch(llama, ids, config, given)):
        assert torch.equal(result.tokens.e, e[of["e"][number]])
        assert torch.equal(result.tokens.m, m[of["m"][number]])
    for result in fit_batch(llama, ids, config, Given(e_start=e[0], m_start=m[0], share=share, groups=groups)):
        assert torch.equal(result.tokens.e, e[0])
        assert torch.equal(result.tokens.m, m[0])


def test_restarts_from_a_given_start_differ_by_their_perturbation(llama: FrozenLM) -> None:
    ids = batch(llama, "ab")
    config = budget(replace(ONE, restarts=3, perturbation=0.1), max_steps=0)
    e = torch.zeros(1, llama.width)
    tokens = fit_batch(llama, ids, config, Given(e_start=e, m_start=e[0]))[0].tokens
    expected = 0.1 * llama.embedding_statistics.std
    assert tokens.e.std().item() == pytest.approx(expected, rel=0.4)
    kept = [perturbations(llama, ids[0], config, r) for r in range(3)]
    assert any(torch.equal(tokens.e, noise_e) and torch.equal(tokens.m, noise_m) for noise_e, noise_m in kept)


def test_a_given_start_is_refused_where_it_does_not_fit(llama: FrozenLM) -> None:
    with pytest.raises(InputError, match="m is given and held fixed: it has no start"):
        Given(m=torch.zeros(llama.width), m_start=torch.zeros(llama.width))
    for given, message in (
        (Given(e_start=torch.zeros(2, 1, llama.width)), r"e_start is \(2, 1, 48\); it must be \(3, 1, 48\)"),
        (Given(m_start=torch.zeros(7)), r"m_start is \(7,\); it must be \(48,\)"),
        (Given(m_start=torch.full((llama.width,), float("nan"))), "m_start holds values that are not finite"),
    ):
        with pytest.raises(InputError, match=message):
            fit_batch(llama, batch(llama, "ab", "cd", "ef"), ONE, given)
