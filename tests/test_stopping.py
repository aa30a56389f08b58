"""Laws of stopping and counting: when a fit ends, what is counted, and how fast vectors move."""

from dataclasses import replace

import pytest
import torch

from families import ONE, RECIPE, batch, budget, build, counted, family, same_vectors, spoiled, tokenizer
from prototokens import AdamW, FrozenLM, fit, fit_batch
from prototokens.fitting.starts import start_vectors

# Stopping.


def test_a_margin_is_asked_for_and_given(llama: FrozenLM) -> None:
    plain = fit(llama, llama.encode("no"), budget(ONE, margin=0.0))
    asked = plain.min_margin + 1
    safe = fit(llama, llama.encode("no"), budget(ONE, margin=asked))
    assert safe.stop_reason == "accuracy"
    assert safe.min_margin > asked > plain.min_margin > 0
    assert safe.steps > plain.steps == plain.steps_to_exact == safe.steps_to_exact
    none = fit(llama, llama.encode("no"), budget(ONE, margin=1e9, max_steps=safe.steps))
    assert (none.exact, none.stop_reason, none.steps_to_exact) == (True, "steps", plain.steps)
    assert none.min_margin == safe.min_margin  # exact ones are told apart by their margin


def test_a_share_of_the_tokens_may_be_enough(llama: FrozenLM) -> None:
    result = fit(llama, llama.encode("tree"), budget(ONE, accuracy=0.5))
    assert result.stop_reason == "accuracy"
    assert 0.5 <= result.token_accuracy < 1
    assert not result.exact
    assert result.accuracy_history[:-1].max() < 0.5 <= result.accuracy_history[-1]


@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("check_every", [2, 7, 1000])
def test_looking_less_often_finds_the_same_vectors(llama: FrozenLM, check_every: int, restarts: int) -> None:
    config = budget(replace(RECIPE, restarts=restarts), max_steps=150)
    often = fit(llama, llama.encode("no"), config)
    seldom = fit(llama, llama.encode("no"), budget(config, check_every=check_every))
    assert often.stop_reason == seldom.stop_reason == "accuracy"
    assert same_vectors(often, seldom)
    assert often.steps <= seldom.steps <= min(config.stop.max_steps, often.steps + check_every)
    assert seldom.steps % check_every == 0 or seldom.steps == config.stop.max_steps
    assert (often.loss, often.steps_to_exact) == (seldom.loss, seldom.steps_to_exact)


def test_one_bad_restart_or_text_does_not_harm_the_others() -> None:
    lm = FrozenLM(build("llama"), tokenizer())
    with spoiled(lm, call=2, rows=slice(1)), counted(lm) as calls:
        result = fit(lm, lm.encode("tree"), RECIPE)
    assert (result.exact, result.stop_reason) == (True, "accuracy")
    assert [rows for rows, _ in calls.forward][:4] == [4, 4, 4, 3]
    with spoiled(lm, call=2, rows=slice(1)):
        bad, good = fit_batch(lm, batch(lm, "tree", "Yes."), ONE)
    assert (bad.stop_reason, good.stop_reason) == ("nonfinite", "accuracy")
    assert bad.tokens.e.isfinite().all()
    assert bad.loss_history.isnan().tolist() == [False, False, True]


# Counting.


def test_one_evaluation_more_than_steps(llama: FrozenLM) -> None:
    single = fit(llama, llama.encode("tree"), ONE)
    assert single.steps == len(single.loss_history) - 1 == len(single.accuracy_history) - 1
    assert single.steps_to_exact == single.accuracy_history.tolist().index(1)
    assert single.accuracy_history[-1] == 1


def test_one_evaluation_more_than_steps_in_a_batch(llama: FrozenLM) -> None:
    for result in fit_batch(llama, batch(llama, "aa", "Zq", "no"), ONE):
        assert result.steps == len(result.loss_history) - 1


def test_positions_are_those_that_went_through_the_model(llama: FrozenLM) -> None:
    with counted(llama) as calls:
        result = fit(llama, llama.encode("tree"), RECIPE)
    rows, length = RECIPE.restarts, 5
    assert calls.forward == [(rows, length)] * (result.steps + 1) + [(1, length)]  # the first restart done ends all
    assert calls.backward == [(rows, length)] * result.steps
    assert result.token_positions == rows * length * (result.steps + 1) + length == calls.positions()
    assert result.backward_positions == rows * length * result.steps == calls.backward_positions()


def test_texts_that_are_done_cost_nothing_more(known: FrozenLM) -> None:
    """On the analytic model one m can be one letter only, so that a text of three is never done."""
    config = budget(RECIPE, max_steps=100)
    with counted(known) as calls:
        results = fit_batch(known, batch(known, "aaaa", "abbb", "abcd"), config)
    assert [result.stop_reason for result in results] == ["accuracy", "accuracy", "steps"]
    assert sum(result.token_positions for result in results) == calls.positions()
    assert sum(result.backward_positions for result in results) == calls.backward_positions()
    descent = calls.forward[: -len(results)]
    assert [rows for rows, _ in descent] == sorted((rows for rows, _ in descent), reverse=True)
    assert descent[0][0] == 3 * config.restarts > descent[-1][0]
    for result in results:
        assert result.token_positions == 5 * config.restarts * len(result.loss_history) + 5
    seconds = [result.seconds for result in sorted(results, key=lambda r: r.token_positions)]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0


@pytest.mark.parametrize("check_every", [1, 3])
def test_progress_tells_how_it_stands(llama: FrozenLM, check_every: int) -> None:
    seen, config = [], budget(ONE, check_every=check_every, max_steps=399)
    with counted(llama) as calls:
        results = fit_batch(
            llama, batch(llama, "aaaa", "tree"), config, progress=lambda p: seen.append((p, calls.positions()))
        )
    assert [p.step for p, _ in seen] == list(range(0, max(r.steps for r in results) + 1, check_every))
    for p, positions in seen:
        assert p.token_positions == positions
        assert (p.max_steps, p.texts) == (399, 2)
        losses = [result.loss_history[: p.step + 1].min().item() for result in results]
        accuracies = [result.accuracy_history[: p.step + 1].max().item() for result in results]
        if check_every == 1:  # what a text does between being done and being looked at does not count
            assert p.loss == pytest.approx(sum(losses) / 2, rel=0.011)  # it is told to one percent
        assert p.token_accuracy == pytest.approx(sum(accuracies) / 2)
        assert p.texts_done == sum(len(result.loss_history) <= p.step + 1 for result in results)
    seconds = [p.seconds for p, _ in seen]
    assert seconds == sorted(seconds)


def test_should_stop_is_asked_before_every_step(llama: FrozenLM) -> None:
    asked = []
    result = fit(llama, llama.encode("tree"), budget(ONE, check_every=5), should_stop=lambda: bool(asked.append(0)))
    assert len(asked) == result.steps
    stopped = fit(llama, llama.encode("tree"), ONE, should_stop=lambda: True)
    assert (stopped.stop_reason, stopped.steps, len(stopped.loss_history)) == ("interrupted", 0, 1)


# Learning rates.


def test_a_relative_rate_is_in_units_of_the_embeddings() -> None:
    lm = family("gemma3")
    std = lm.embedding_statistics.std
    relative, absolute = (
        fit(lm, lm.encode("tree"), budget(replace(ONE, optimiser=optimiser), max_steps=5))
        for optimiser in (AdamW(lr=0.2, relative=True), AdamW(lr=0.2 * std))
    )
    assert torch.equal(relative.loss_history, absolute.loss_history)
    assert same_vectors(relative, absolute)


@pytest.mark.parametrize("bound", [0.0, 1.0, 50.0])
def test_the_rate_falls_with_the_root_of_the_loss(llama: FrozenLM, bound: float) -> None:
    optimiser = AdamW(lr=1e-3, anneal_below_nats=bound, eps=1e-12)
    config = budget(replace(ONE, optimiser=optimiser), max_steps=1)
    result = fit(llama, llama.encode("tree"), config)
    before, after = result.loss_history.tolist()
    assert after < before  # so that the vectors after the step are kept
    factor = min(1.0, before / bound) ** 0.5 if bound else 1.0
    for moved, start in zip((result.tokens.e, result.tokens.m), start_vectors(llama, llama.encode("tree"), config, 0),
                            strict=True):  # fmt: skip
        assert (moved - start).abs().median().item() == pytest.approx(1e-3 * factor, rel=1e-3)
