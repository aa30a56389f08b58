"""Laws of fitting: what is kept is what was scored, what is counted is what was done, and why it ended is said."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from families import (
    FAMILIES,
    ONE,
    RECIPE,
    VOCABULARY,
    AnalyticLM,
    analytic,
    batch,
    budget,
    build,
    family,
    same_vectors,
    spoiled,
    tokenizer,
)
from prototokens import (
    AdamW,
    FitConfig,
    FitResult,
    FrozenLM,
    InputError,
    Stop,
    decode,
    fit,
    fit_batch,
    load,
    preset,
    save,
)
from prototokens.arrangements import ARRANGEMENTS
from prototokens.fitting.starts import start_vectors

HARD = "the quick brown fox"


# Law 1: nothing is shifted.


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_every_token_is_scored_at_its_own_position(known: FrozenLM, arrangement: str) -> None:
    config = FitConfig(arrangement=arrangement, start="normal", e_tokens=2, stop=Stop(max_steps=0))
    ids = known.encode("abcd")
    layout = ARRANGEMENTS[arrangement].layout(4, 2)
    e, m = start_vectors(known, ids, config, 0)
    vectors = [*e, m, known.fixed_vector("bos")]
    read = [vectors[layout.slots[position]] for position in layout.read_positions()]
    loss = torch.stack([F.cross_entropy(10 * x, t) for x, t in zip(read, ids, strict=True)]).mean()
    result = fit(known, ids, config)
    assert result.loss_history.tolist() == pytest.approx([loss.item()], rel=1e-5)
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)


def test_each_input_learns_the_token_of_its_own_output(known: FrozenLM) -> None:
    ids = known.encode("abcd")
    result = fit(known, ids, replace(ONE, arrangement="e*n", e_tokens=4))
    assert result.exact
    assert torch.equal(result.tokens.e.argmax(-1), ids)


# Law 2: a score belongs to the vectors that it comes with.


def run(reason: str) -> tuple[FrozenLM, FitResult]:
    """A fit that ends for this reason."""
    lm = family("llama")
    if reason == "accuracy":
        return lm, fit(lm, lm.encode("tree"), RECIPE)
    if reason == "steps":
        return lm, fit(lm, lm.encode(HARD), budget(ONE, max_steps=6))
    if reason == "interrupted":
        asked = iter([False] * 4 + [True])
        return lm, fit(lm, lm.encode(HARD), ONE, should_stop=lambda: next(asked))
    lm = FrozenLM(build("llama"), tokenizer())
    with spoiled(lm, call=5):
        return lm, fit(lm, lm.encode(HARD), ONE)


@pytest.mark.parametrize("reason", ["accuracy", "steps", "nonfinite", "interrupted"])
def test_the_vectors_kept_are_those_that_were_scored(reason: str, tmp_path: Path) -> None:
    lm, result = run(reason)
    assert result.stop_reason == reason
    # Among all evaluations it is the best: by accuracy, then by loss, and an exact one ends it.
    finite = result.loss_history.isfinite()
    losses, accuracies = result.loss_history[finite], result.accuracy_history[finite]
    lowest = losses[-1] if result.exact else losses[accuracies == accuracies.max()].min()
    assert result.loss == pytest.approx(lowest.item(), rel=1e-4)
    assert result.token_accuracy == pytest.approx(accuracies.max().item())

    path = save(tmp_path / "fit.safetensors", result.tokens)
    for tokens in (result.tokens, load(path)):
        read = tokens.arrangement.layout(tokens.length).read_positions()
        logits = lm.logits(tokens.inputs_embeds(), read)[0]
        ids = lm.encode("tree" if reason == "accuracy" else HARD)
        assert result.loss == tokens.provenance.loss == F.cross_entropy(logits, ids).item()
        right = logits.argmax(-1) == ids
        assert result.token_accuracy == tokens.provenance.token_accuracy == right.float().mean().item()
        assert result.exact == bool(right.all()) == decode(lm, tokens).exact == (reason == "accuracy")
        rivals = logits.scatter(-1, ids[:, None], -torch.inf).amax(-1)
        margin = (logits.gather(-1, ids[:, None])[:, 0] - rivals).min().item()
        assert result.min_margin == tokens.provenance.min_margin == margin


def test_a_budget_of_no_steps_scores_the_start(llama: FrozenLM) -> None:
    result = fit(llama, llama.encode("abc"), budget(ONE, max_steps=0))
    e, m = start_vectors(llama, llama.encode("abc"), ONE, 0)
    assert torch.equal(result.tokens.e, e)
    assert torch.equal(result.tokens.m, m)
    assert (result.steps, len(result.loss_history), result.backward_positions) == (0, 1, 0)
    assert (result.stop_reason, result.steps_to_exact) == ("steps", None)


def test_the_best_restart_is_kept(llama: FrozenLM) -> None:
    ids, config = llama.encode("abcd"), budget(replace(RECIPE, perturbation=1.0), max_steps=0)
    layout = ARRANGEMENTS["m,e,m*(n-1)"].layout(4)
    scores = []
    for restart in range(config.restarts):
        e, m = start_vectors(llama, ids, config, restart)
        logits = llama.logits(layout.inputs_embeds(e[None], m[None], torch.empty(0, llama.width)), range(1, 5))[0]
        scores.append(((logits.argmax(-1) == ids).float().mean().item(), -F.cross_entropy(logits, ids).item()))
    result = fit(llama, ids, config)
    best = max(range(config.restarts), key=lambda r: scores[r])
    assert torch.equal(result.tokens.e, start_vectors(llama, ids, config, best)[0])
    assert (result.token_accuracy, -result.loss) == pytest.approx(scores[best])


# Law 4: the model is as it was.


def test_the_model_is_left_as_it_was(lm: FrozenLM) -> None:
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    results = fit_batch(lm, batch(lm, "ab", "cd"), budget(RECIPE, max_steps=4))
    decode(lm, [result.tokens for result in results], scores=True)
    lm.next_token_logits(lm.encode("ab"))
    lm.generate(lm.embed(batch(lm, "ab", "cd")), 2)
    after = lm.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(module.training for module in lm.model.modules())
    assert all(w.grad is None and not w.requires_grad for w in lm.model.parameters())
    assert not any(result.tokens.e.requires_grad or result.tokens.m.requires_grad for result in results)


def test_a_fit_may_run_where_gradients_are_off(llama: FrozenLM) -> None:
    for off in (torch.no_grad(), torch.inference_mode()):
        with off:
            assert fit(llama, llama.encode("no"), RECIPE).exact


def test_a_model_in_training_is_frozen_first() -> None:
    model = build("gpt2").train()
    assert any(w.requires_grad for w in model.parameters())
    lm = FrozenLM(model, tokenizer())
    result = fit(lm, lm.encode("ab"), RECIPE)
    assert result.exact  # with dropout at work it would not be scored twice alike
    assert not any(module.training for module in model.modules())
    assert all(w.grad is None and not w.requires_grad for w in model.parameters())


# Law 5: the same seed gives the same bits, and a batch is a loop.


def test_the_same_seed_gives_the_same_bits(lm: FrozenLM) -> None:
    first, second = (fit_batch(lm, batch(lm, "tree", "Yes."), budget(RECIPE, max_steps=6)) for _ in range(2))
    other = fit_batch(lm, batch(lm, "tree", "Yes."), budget(replace(RECIPE, seed=1), max_steps=6))
    for a, b, c in zip(first, second, other, strict=True):
        assert same_vectors(a, b)
        assert torch.equal(a.loss_history, b.loss_history)
        assert (a.loss, a.min_margin, a.steps, a.stop_reason) == (b.loss, b.min_margin, b.steps, b.stop_reason)
        assert not same_vectors(a, c)


@pytest.mark.parametrize("restarts", [1, 2])
def test_a_step_of_a_batch_is_a_step_in_a_loop(lm: FrozenLM, restarts: int) -> None:
    # A large eps makes Adam's step a smooth function of the gradient, so that rounding stays small.
    config = budget(replace(RECIPE, restarts=restarts, optimiser=AdamW(lr=1e-3, eps=0.1)), max_steps=1)
    texts = ["tree", "Yes.", "abcd"]
    together = fit_batch(lm, batch(lm, *texts), config)
    for text, one in zip(texts, together, strict=True):
        alone = fit(lm, lm.encode(text), config)
        assert one.loss_history[1] < one.loss_history[0]  # so that the vectors after the step are kept
        assert torch.allclose(one.loss_history, alone.loss_history, rtol=1e-4)
        assert torch.allclose(one.tokens.e, alone.tokens.e, rtol=0, atol=2e-6)  # of steps up to 1e-3
        assert torch.allclose(one.tokens.m, alone.tokens.m, rtol=0, atol=2e-6)
        assert (one.token_positions, one.backward_positions) == (alone.token_positions, alone.backward_positions)


@pytest.mark.parametrize("start", ["normal", "vocabulary", "text-e", "text-m"])
def test_a_start_does_not_depend_on_the_batch(llama: FrozenLM, start: str) -> None:
    config = budget(replace(ONE, start=start), max_steps=0)
    texts = ["tree", "Yes.", "tree"]
    together = fit_batch(llama, batch(llama, *texts), config)
    alone = [fit(llama, llama.encode(text), config) for text in texts]
    assert all(same_vectors(a, b) for a, b in zip(together, alone, strict=True))
    assert same_vectors(together[0], together[2])
    assert not same_vectors(together[0], together[1])


def test_bfloat16_models_get_float32_vectors() -> None:
    lm = FrozenLM(build("llama").bfloat16(), tokenizer())
    result = fit(lm, lm.encode("no"), RECIPE)
    assert result.exact
    assert result.tokens.provenance.dtype == "bfloat16"
    assert result.tokens.e.dtype == result.tokens.m.dtype == torch.float32
    assert not torch.equal(result.tokens.e, result.tokens.e.bfloat16().float())  # it moves in finer steps
    assert decode(lm, result.tokens).exact


# Law 7: short texts are solved, and what cannot be is said not to be.


@pytest.mark.parametrize("texts", [("a", "\n", "~"), ("no", "aa", "Zq"), ("tree", "Yes.")], ids=["T=1", "T=2", "T=4"])
def test_short_texts_are_solved_on_every_family(lm: FrozenLM, texts: tuple[str, ...]) -> None:
    results = fit_batch(lm, batch(lm, *texts), RECIPE)
    for result, text in zip(results, texts, strict=True):
        assert result.exact
        assert (result.token_accuracy, result.stop_reason) == (1, "accuracy")
        assert result.min_margin > 0
        assert decode(lm, result.tokens).text == text


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("texts", [("a", "\n"), ("no", "Zq")], ids=["T=1", "T=2"])
def test_every_arrangement_solves_short_texts_or_says_that_it_did_not(
    lm: FrozenLM, arrangement: str, texts: tuple[str, ...]
) -> None:
    config = budget(replace(RECIPE, arrangement=arrangement), max_steps=15 if arrangement == "e*n" else 200)
    for result in fit_batch(lm, batch(lm, *texts), config):
        right = decode(lm, result.tokens).exact
        assert result.exact == (result.token_accuracy == 1) == (result.min_margin > 0) == right
        assert result.stop_reason == ("accuracy" if result.exact else "steps")
        assert result.exact or (arrangement, result.tokens.length) == ("e*n", 2)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_default_recipe_solves_short_texts(name: str) -> None:
    lm = family(name)
    results = fit_batch(lm, batch(lm, "no", "Zq", "a."), preset(restarts=4, perturbation=0.1))
    assert [result.stop_reason for result in results] == ["accuracy"] * 3
    assert all(result.exact and result.tokens.provenance.preset == "fast" for result in results)


def unsolved(result: FitResult, accuracy: float) -> bool:
    return (result.exact, result.steps_to_exact, result.stop_reason) == (False, None, "steps") and (
        result.token_accuracy == pytest.approx(accuracy)
    )


def test_one_vector_alone_cannot_tell_positions_apart(llama: FrozenLM) -> None:
    # Equal inputs leave attention nothing to weigh: with rotary positions all outputs are the same.
    config = budget(replace(RECIPE, arrangement="e*n"), max_steps=30)
    assert unsolved(fit(llama, llama.encode("no"), config), 1 / 2)
    assert fit(llama, llama.encode("nn"), config).exact


def test_one_m_cannot_be_two_tokens_without_a_context(known: FrozenLM) -> None:
    assert unsolved(fit(known, known.encode("abc"), budget(RECIPE, max_steps=60)), 2 / 3)
    assert fit(known, known.encode("abb"), RECIPE).exact


def test_a_token_that_the_head_never_ranks_first_stays_wrong() -> None:
    # Its row lies between two others, so that one of them always scores as high.
    head = torch.eye(VOCABULARY)
    lm = analytic(head)
    a, b, c = lm.encode("abc")
    head[c] = (head[a] + head[b]) / 2
    assert unsolved(fit(lm, lm.encode("ac"), budget(RECIPE, max_steps=60)), 1 / 2)
    assert fit(lm, lm.encode("ab"), RECIPE).exact


class DeafLM(AnalyticLM):
    """Its logits say `a` whatever it hears."""

    def forward(self, inputs_embeds: torch.Tensor, use_cache: bool):
        output = super().forward(inputs_embeds, use_cache)
        output.logits = 0 * output.logits + nn.functional.one_hot(tokenizer_id("a"), VOCABULARY)
        return output


def tokenizer_id(letter: str) -> torch.Tensor:
    return torch.tensor(tokenizer().encode(letter)[0])


def test_a_model_that_ignores_its_input_moves_nothing() -> None:
    lm = FrozenLM(DeafLM(), tokenizer())
    result = fit(lm, lm.encode("ab"), budget(ONE, max_steps=20))
    assert unsolved(result, 1 / 2)
    assert torch.equal(result.tokens.e, start_vectors(lm, lm.encode("ab"), ONE, 0)[0])
    assert fit(lm, lm.encode("aa"), ONE).steps == 0


@pytest.mark.parametrize("ids", [[1, 2], [0, 0]])
def test_logits_that_are_no_numbers_are_never_exact(ids: list[int]) -> None:
    lm = FrozenLM(build("llama"), tokenizer())
    for weight in lm.model.parameters():
        weight.data.fill_(torch.nan)
    lm.embedding.weight.data.fill_(1.0)
    result = fit(lm, torch.tensor(ids), ONE)
    assert (result.exact, result.stop_reason, result.steps) == (False, "nonfinite", 0)


# What a user can mend.


@pytest.mark.parametrize("name", FAMILIES)
def test_a_text_that_is_too_long_is_refused(name: str) -> None:
    lm = family(name)
    config = budget(ONE, max_steps=0)
    if lm.max_positions is None:
        assert fit(lm, torch.zeros(100, dtype=torch.long), config).steps == 0
        return
    assert fit(lm, torch.zeros(63, dtype=torch.long), config).steps == 0
    message = f"a text of 64 tokens needs 65 positions, and {lm.identity.name} has 64; shorten it to 63 tokens"
    with pytest.raises(InputError, match=message):
        fit(lm, torch.zeros(64, dtype=torch.long), config)


def test_texts_are_given_as_ids(llama: FrozenLM) -> None:
    for call, texts in ((fit, "a text"), (fit_batch, ["a", "text"]), (fit_batch, [llama.encode("a")])):
        with pytest.raises(InputError, match=r"it must be a tensor: lm\.encode\(text\)"):
            call(llama, texts)  # type: ignore[arg-type]


def test_shapes_are_checked(llama: FrozenLM) -> None:
    with pytest.raises(InputError, match=r"target_ids is \(1, 2\); fit takes one text \(T,\), fit_batch \(B, T\)"):
        fit(llama, torch.zeros(1, 2, dtype=torch.long))
    for shape in ((3,), (0, 3), (3, 0), (1, 1, 1)):
        with pytest.raises(InputError, match=r"it must be \(B, T\) with at least one token"):
            fit_batch(llama, torch.zeros(shape, dtype=torch.long))


KNOWN_IDS = f"{{}} from 0 to {VOCABULARY - 1}; is the tokenizer another model's?"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([0.0]), "target_ids is torch.float32; it must be torch.int64"),
        (torch.tensor([1], dtype=torch.int32), "target_ids is torch.int32; it must be torch.int64"),
        (
            torch.tensor([2, VOCABULARY]),
            "token ids go from 2 to 264, and those of " + KNOWN_IDS,
        ),
        (
            torch.tensor([0, -1]),
            "token ids go from -1 to 0, and those of " + KNOWN_IDS,
        ),
    ],
)
def test_ids_that_are_no_tokens_are_refused(lm: FrozenLM, ids: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError) as error:
        fit(lm, ids, budget(ONE, max_steps=1))
    assert str(error.value) == message.format(lm.identity.name)


def test_the_record_says_what_made_it(llama: FrozenLM) -> None:
    tokens = fit(llama, llama.encode("ab"), preset("paper", seed=7, stop=Stop(max_steps=0))).tokens
    made = tokens.provenance
    assert (made.preset, made.seed, made.dtype, made.model) == ("paper", 7, "float32", llama.identity)
    assert sorted(made.versions) == ["prototokens", "torch", "transformers"]
    assert (made.start, tokens.length) == ("normal", 2)
    assert fit(llama, llama.encode("a"), preset(stop=Stop(max_steps=0))).tokens.provenance.start == "text-e"
    assert tokens.arrangement == ARRANGEMENTS["e,m*(n-1)"]


def test_every_family_gives_four_tokens_back_from_a_file(lm: FrozenLM, tmp_path: Path) -> None:
    result = fit(lm, lm.encode("tree"), RECIPE)
    assert result.exact
    decoded = decode(lm, load(save(tmp_path / "tree", result.tokens)))
    assert (decoded.text, decoded.exact) == ("tree", True)
