"""Cramming: the loss it descends, the scores it reports, and the parallel decoding that reads the same vectors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from families import FAMILIES, ONE, family
from prototokens import FrozenLM, InputError, Stop, preset
from prototokens.baselines.cramming import CRAMMING, CrammingResult, cram, cram_batch, reconstruct
from prototokens.baselines.jacobi import jacobi_decode

SHORT = replace(CRAMMING, stop=Stop(max_steps=300, margin=0.01))


@pytest.fixture(scope="module")
def crammed(llama: FrozenLM) -> CrammingResult:
    return cram(llama, llama.encode("abcd"), SHORT)


def teacher_forced(lm: FrozenLM, prompt: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Logits of t_1 ... t_T when the true tokens stand before them, written out."""
    inputs = torch.cat([prompt, lm.embed(ids)])[None]
    with torch.no_grad():
        logits = lm.model(inputs_embeds=inputs, use_cache=False).logits[0].float()
    return logits[len(prompt) - 1 : -1]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_short_text_is_generated_from_one_vector(name: str) -> None:
    lm = family(name)
    result = cram(lm, lm.encode("qz"), replace(SHORT, restarts=8))
    assert result.exact
    assert result.stop_reason == "accuracy"
    assert result.memory.shape == (1, lm.width)
    assert lm.decode(reconstruct(lm, result.prompt[None], 2)[0]) == "qz"


def test_the_first_token_is_scored_like_every_other(llama: FrozenLM) -> None:
    ids = llama.encode("abcd")
    begin = cram(llama, ids, replace(SHORT, stop=Stop(max_steps=0)))
    logits = teacher_forced(llama, begin.prompt, ids)
    assert begin.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, ids).item(), rel=1e-5)
    assert begin.loss_history[0].item() == pytest.approx(begin.loss, rel=1e-5)
    assert begin.teacher_forced_accuracy == (logits.argmax(-1) == ids).float().mean()


def test_the_scores_are_those_of_the_vectors_that_are_returned(llama: FrozenLM, crammed: CrammingResult) -> None:
    ids = llama.encode("abcd")
    logits = teacher_forced(llama, crammed.prompt, ids)
    assert crammed.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, ids).item(), rel=1e-5)
    assert crammed.teacher_forced_accuracy == (logits.argmax(-1) == ids).float().mean()
    assert crammed.exact == (crammed.greedy_accuracy == 1) == (crammed.greedy_prefix == len(ids))


def test_what_stands_before_the_memory_is_the_recipe_s(llama: FrozenLM, crammed: CrammingResult) -> None:
    assert torch.equal(crammed.prompt, torch.cat([llama.fixed_vectors(["bos"]), crammed.memory]))
    few = Stop(max_steps=2)
    for arrangement in ("e,m*(n-1)", "m,e,m*(n-1)", "e*n"):  # no fixed vector in front of e
        bare = cram(llama, llama.encode("abcd"), replace(SHORT, arrangement=arrangement, e_tokens=2, stop=few))
        assert torch.equal(bare.prompt, bare.memory)
        assert bare.token_positions == 4 * (2 + 3)  # two steps, their end, and the last scoring
    assert preset("paper").arrangement.head == ("e",)


def test_generation_is_the_argmax_token_by_token(llama: FrozenLM) -> None:
    memory = torch.randn(2, llama.width, generator=torch.Generator().manual_seed(3)) * 0.3
    given = memory
    ids = []
    for _ in range(6):
        with torch.no_grad():
            ids.append(int(llama.model(inputs_embeds=given[None], use_cache=False).logits[0, -1].argmax()))
        given = torch.cat([given, llama.embed(torch.tensor(ids[-1:]))])
    assert reconstruct(llama, memory[None], 6)[0].tolist() == ids


def test_a_result_that_is_not_reached_reports_both_accuracies(llama: FrozenLM) -> None:
    result = cram(llama, llama.encode("a text that three steps cannot hold"), replace(SHORT, stop=Stop(max_steps=3)))
    assert result.stop_reason == "steps"
    assert not result.exact
    assert result.greedy_prefix <= result.greedy_accuracy * len(result.greedy_ids)
    assert (result.greedy_ids[: result.greedy_prefix] == llama.encode("a text that three steps cannot hold")[
        : result.greedy_prefix]).all()  # fmt: skip


def test_a_batch_is_the_loop_over_its_texts(llama: FrozenLM) -> None:
    ids = torch.stack([llama.encode("abc"), llama.encode("xyz")])
    few = replace(SHORT, stop=Stop(max_steps=4, margin=float("inf")))
    for together, text in zip(cram_batch(llama, ids, few), ids, strict=True):
        alone = cram(llama, text, few)
        torch.testing.assert_close(together.loss_history, alone.loss_history, rtol=1e-3, atol=1e-4)
        assert together.token_positions == alone.token_positions


def test_rows_that_leave_the_batch_take_their_own_texts_along(llama: FrozenLM) -> None:
    """A text that is exact at its start leaves at once: what is left must still see its own true tokens."""
    ids = torch.stack([llama.encode(t) for t in ("qz", "qa", "b!")])
    solved = cram(llama, ids[0], replace(SHORT, restarts=8))
    assert solved.exact
    few, start = replace(SHORT, perturbation=0.0, stop=Stop(max_steps=2)), solved.memory.expand(3, 1, -1)
    together = cram_batch(llama, ids, few, start)
    assert [r.steps for r in together] == [0, 2, 2]
    for number in (1, 2):
        alone = cram(llama, ids[number], few, start[number : number + 1])
        torch.testing.assert_close(together[number].loss_history, alone.loss_history, rtol=1e-3, atol=1e-4)


def test_several_vectors_and_a_given_start(llama: FrozenLM, crammed: CrammingResult) -> None:
    ids = llama.encode("abcd")
    two = cram(llama, ids, replace(SHORT, e_tokens=2, stop=Stop(max_steps=0)))
    assert two.memory.shape == (2, llama.width)
    again = cram(llama, ids, replace(SHORT, stop=Stop(max_steps=0)), crammed.memory[None])
    assert torch.equal(again.memory, crammed.memory)
    with pytest.raises(InputError, match=r"memory_start is \(1, 48\); it must be \(1, 1, 48\)"):
        cram(llama, ids, SHORT, crammed.memory)


def test_the_published_recipe_and_the_ones_that_are_not_for_cramming(llama: FrozenLM) -> None:
    short = Stop(max_steps=2)
    assert cram(llama, llama.encode("ab"), preset("paper", stop=short)).steps == 2
    text_e = cram(llama, llama.encode("ab"), replace(ONE, start="text-e", stop=short))
    auto = cram(llama, llama.encode("ab"), replace(ONE, start="auto", stop=short))
    assert torch.equal(auto.memory, text_e.memory)
    with pytest.raises(InputError, match="cram takes one text"):
        cram(llama, torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(InputError, match="at least one token"):
        cram(llama, torch.zeros(0, dtype=torch.long))
    with pytest.raises(InputError, match="needs 67 positions, and LlamaForCausalLM has 64"):
        cram(llama, torch.zeros(66, dtype=torch.long))


@pytest.mark.parametrize("name", FAMILIES)
def test_jacobi_decoding_ends_at_the_greedy_generation(name: str) -> None:
    lm = family(name)
    memory = torch.randn(1, lm.width, generator=torch.Generator().manual_seed(5)) * 0.3
    greedy = reconstruct(lm, memory[None], 8)[0]
    full = jacobi_decode(lm, memory, 8)
    assert full.converged
    assert full.passes <= 9
    assert full.ids.tolist() == greedy.tolist()
    for passes in range(1, full.passes):
        partial = jacobi_decode(lm, memory, 8, max_passes=passes)
        assert (partial.passes, partial.converged) == (passes, False)
        assert partial.ids[:passes].tolist() == greedy[:passes].tolist()


def test_jacobi_refuses_bad_lengths(llama: FrozenLM, crammed: CrammingResult) -> None:
    one = jacobi_decode(llama, crammed.prompt, 1)
    assert (one.passes, one.converged, one.ids.tolist()) == (1, True, crammed.greedy_ids[:1].tolist())
    with pytest.raises(InputError, match="length is 0; it must be at least 1"):
        jacobi_decode(llama, crammed.memory, 0)
    with pytest.raises(InputError, match="max_passes is 0"):
        jacobi_decode(llama, crammed.memory, 4, max_passes=0)


# What is refused before it begins.


def test_what_was_meant_is_said(llama: FrozenLM) -> None:
    ids = llama.encode("ab")
    for call, target in ((cram, ids), (cram_batch, ids[None])):
        for arguments, message in (
            ((llama, target, "fast"), "config is 'fast'; it must be a FitConfig: preset('fast')"),
            ((llama, "ab"), "target_ids is of type str; it must be a tensor: lm.encode(text)"),
            ((llama, [1, 2]), "target_ids is of type list; it must be a tensor: torch.tensor(ids)"),
            ((llama.model, target), "lm is of type LlamaForCausalLM; it must be a FrozenLM: load_lm(name)"),
            ((llama, target, SHORT, [1.0]), "memory_start is of type list; it must be a tensor (B, K, D)"),
        ):
            with pytest.raises(InputError) as error:
                call(*arguments)  # type: ignore[operator]
            assert str(error.value) == message
    with pytest.raises(InputError, match=r"target_ids is \(2,\); it must be \(B, T\) with at least one token"):
        cram_batch(llama, ids)


def test_memory_is_asked_for_before_it_is_taken(llama: FrozenLM) -> None:
    with pytest.raises(InputError, match=r"1000000000 rows \(texts times restarts\) of 1 e-tokens.*use fewer restarts"):
        cram(llama, llama.encode("ab"), replace(SHORT, restarts=10**9))
    with pytest.raises(InputError, match="an input of 1000000000 e-tokens: it must have 1 to"):
        cram(llama, llama.encode("ab"), replace(SHORT, e_tokens=10**9))
