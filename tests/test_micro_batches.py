"""Laws of memory: a step in micro-batches or with checkpointing is the whole step, and an estimate comes first."""

import weakref
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from families import ONE, RECIPE, batch, budget, counted, same_vectors, tokenizer
from prototokens import AdamW, FitResult, FrozenLM, Given, InputError, Stop, fit, fit_batch
from prototokens.fitting import memory
from prototokens.fitting.checkpointing import checkpointed
from prototokens.fitting.memory import Passes, estimate_bytes, even_parts, plan_passes
from prototokens.fitting.starts import start_vectors
from prototokens.lm.identity import Identity

TEXTS = ("ab", "Zq", "aa")
# A large eps makes Adam's step a smooth function of the gradient, so that rounding stays small.
SMOOTH = replace(RECIPE, restarts=2, optimiser=AdamW(lr=1e-3, eps=0.1, anneal_below_nats=4.0))
SHARING = {
    "alone": None,
    "a shared m": Given(share="m"),
    "a shared e in groups": Given(share="e", groups=torch.tensor([0, 1, 0])),
}


def same_step(a: FitResult, b: FitResult) -> bool:
    losses = torch.allclose(a.loss_history, b.loss_history, rtol=1e-4)
    vectors = [(getattr(a.tokens, name), getattr(b.tokens, name)) for name in ("e", "m")]
    return losses and all(torch.allclose(x, y, rtol=0, atol=2e-6) for x, y in vectors)  # of steps up to 1e-3


@pytest.mark.parametrize("rows_at_once", [1, 2, 4])
@pytest.mark.parametrize("sharing", SHARING)
def test_a_step_in_parts_is_the_whole_step(lm: FrozenLM, sharing: str, rows_at_once: int) -> None:
    ids, config, given = batch(lm, *TEXTS), budget(SMOOTH, max_steps=2, margin=100), SHARING[sharing]
    whole = fit_batch(lm, ids, config, given)
    with counted(lm) as calls:
        parts = fit_batch(lm, ids, config, given, rows_at_once=rows_at_once)
    assert all(result.loss_history[1] < result.loss_history[0] for result in whole)  # it moves
    assert all(same_step(a, b) for a, b in zip(whole, parts, strict=True))
    assert max(rows for rows, _ in calls.forward) == {1: 1, 2: 2, 4: 3}[rows_at_once]  # six rows in even parts
    assert [a.steps for a in whole] == [b.steps for b in parts] == [2, 2, 2]


def test_one_part_is_the_undivided_batch_bit_for_bit(llama: FrozenLM) -> None:
    ids, config = batch(llama, *TEXTS), budget(RECIPE, max_steps=6)
    for a, b in zip(fit_batch(llama, ids, config), fit_batch(llama, ids, config, rows_at_once=99), strict=True):
        assert same_vectors(a, b)
        assert torch.equal(a.loss_history, b.loss_history)


@pytest.mark.parametrize("rows_at_once", [1, 3, 5])
def test_what_passes_in_parts_is_counted(llama: FrozenLM, rows_at_once: int) -> None:
    ids, config = batch(llama, "aaaa", "tree", "\x00\xff!"), replace(RECIPE, perturbation=0.0, restarts=1)
    solved = fit(llama, ids[0], replace(RECIPE, restarts=4, stop=Stop(max_steps=2000))).tokens
    starts = [start_vectors(llama, text, config, 0) for text in ids[1:]]
    e, m = (torch.stack(each) for each in zip((solved.e, solved.m), *starts, strict=True))
    begin = Given(e_start=e, m_start=m)
    with counted(llama) as calls:
        results = fit_batch(llama, ids, budget(config, max_steps=5), begin, rows_at_once=rows_at_once)
    assert (results[0].stop_reason, results[0].steps) == ("accuracy", 0)  # it leaves the batch at once
    assert max(rows for rows, _ in calls.forward) <= rows_at_once
    assert sum(result.token_positions for result in results) == calls.positions()
    assert sum(result.backward_positions for result in results) == calls.backward_positions()


def test_one_graph_is_held_at_a_time(llama: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most, call = 0, FrozenLM.logits

    def watched(lm: FrozenLM, inputs_embeds: torch.Tensor, read: range) -> torch.Tensor:
        nonlocal most
        logits = call(lm, inputs_embeds, read)
        if logits.requires_grad:
            alive.add(logits)
            most = max(most, len(alive))
        return logits

    monkeypatch.setattr(FrozenLM, "logits", watched)
    fit_batch(llama, batch(llama, *TEXTS), budget(RECIPE, max_steps=2), rows_at_once=1)
    assert most == 1


def test_held_and_fixed_vectors_go_with_their_rows(llama: FrozenLM) -> None:
    held = torch.randn(3, llama.width, generator=torch.Generator().manual_seed(0))
    ids, config = batch(llama, *TEXTS), budget(replace(SMOOTH, arrangement="bos,e,m*(n-1)"), max_steps=1)
    whole, parts = (fit_batch(llama, ids, config, Given(m=held), rows_at_once=n) for n in (None, 2))
    assert all(same_step(a, b) for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize(("rows", "at_once"), [(1, 1), (6, 4), (7, 3), (8, 8), (5, 100), (1000, 7)])
def test_parts_cover_the_rows_once_and_evenly(rows: int, at_once: int) -> None:
    parts = even_parts(rows, at_once)
    assert [row for part in parts for row in range(rows)[part]] == list(range(rows))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) <= at_once
    assert max(sizes) - min(sizes) <= 1
    assert len(parts) == -(-rows // at_once)


# Checkpointing.


def test_a_step_with_checkpointing_is_the_step_without(lm: FrozenLM) -> None:
    ids, config = batch(lm, *TEXTS), budget(SMOOTH, max_steps=2, margin=100)
    plain = fit_batch(lm, ids, config)
    anew = fit_batch(lm, ids, config, checkpointing=True, rows_at_once=4)
    assert all(same_step(a, b) for a, b in zip(plain, anew, strict=True))
    assert not any("forward" in module.__dict__ for module in lm.model.modules())  # it is as it was
    assert not any(module.training for module in lm.model.modules())


def test_checkpointing_keeps_less(lm: FrozenLM) -> None:
    plain = kept_by_autograd(lm, 60)
    with checkpointed(lm):
        anew = kept_by_autograd(lm, 60)
    assert anew < 0.5 * plain  # of two layers and the logits; the more layers, the less
    assert anew <= estimate_bytes(lm, ONE.arrangement.layout(59), 1, checkpointing=True)


def test_layers_are_put_back_when_a_fit_is_cut_off(llama: FrozenLM) -> None:
    def cut_off(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(llama, llama.encode("ab"), ONE, checkpointing=True, progress=cut_off)
    assert not any("forward" in module.__dict__ for module in llama.model.modules())


def test_a_model_without_layers_cannot_be_checkpointed(known: FrozenLM) -> None:
    with pytest.raises(InputError, match="AnalyticLM has no list of layers"):
        fit(known, known.encode("ab"), ONE, checkpointing=True)


# The estimate.


def test_a_long_text_of_a_large_model_fits_on_one_gpu() -> None:
    # The shape of an 8B model in 16 bits; weights on the meta device take no memory.
    shape = LlamaConfig(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192)  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(shape).bfloat16()
    lm = FrozenLM(model, tokenizer(), Identity("8B", None, "", ""))
    layout = ONE.arrangement.layout(1024)
    weights = sum(weight.numel() * 2 for weight in model.parameters())
    without, with_it = (estimate_bytes(lm, layout, 1, checkpointing=c) for c in (False, True))
    assert 1.024e9 < with_it < 5e9 < without
    assert weights + with_it < 80e9


def test_memory_sets_the_size_of_a_part(llama: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = ONE.arrangement.layout(2)
    one, again = (estimate_bytes(llama, layout, 1, checkpointing=c) for c in (False, True))
    assert again < one
    assert estimate_bytes(llama, layout, 7) == 7 * one

    def planned(free: float, **passes: int | bool) -> tuple[int | None, bool | None]:
        monkeypatch.setattr(memory, "free_bytes", lambda _: int(free))
        plan = plan_passes(llama, layout, 12, Passes(**passes))
        return plan.rows_at_once, plan.checkpointing

    for free, rows in ((1e9, 12), (one * 12 / 0.8 + 1, 12), (one * 11, 8), (one * 5, 4), (one * 1.3, 1)):
        assert planned(free) == (rows, False)
    assert planned(again * 1.3) == (1, True)
    assert planned(1, rows_at_once=3) == (3, True)  # as asked for, whatever the estimate says
    assert planned(1, rows_at_once=3, checkpointing=False) == (3, False)
    assert planned(1e9, checkpointing=True) == (12, True)
    with pytest.raises(InputError, match=r"a text of 2 tokens needs about .* GB for one pass through Llama.*are free"):
        planned(again / 2)

    monkeypatch.setattr(memory, "free_bytes", lambda _: int(one * 5))
    with counted(llama) as calls:
        fit_batch(llama, batch(llama, *TEXTS), budget(RECIPE, max_steps=1))
    assert max(rows for rows, _ in calls.forward) == 4


def kept_by_autograd(lm: FrozenLM, length: int) -> int:
    """Bytes that autograd keeps for the backward pass of one row, each tensor once and weights left out."""
    weights = {weight.untyped_storage().data_ptr() for weight in lm.model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    inputs_embeds = torch.randn(1, length, lm.width, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = lm.logits(inputs_embeds, range(1, length))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) + logits.numel() * 4


@pytest.mark.parametrize("length", [3, 60])
def test_the_estimate_is_on_the_safe_side_and_not_far_off(lm: FrozenLM, length: int) -> None:
    estimate = estimate_bytes(lm, ONE.arrangement.layout(length - 1), 1)
    assert 1 <= estimate / kept_by_autograd(lm, length) < 8


ROWS = {"restarts": 10**6, "perturbation": 0.1}


@pytest.mark.parametrize(
    ("free", "change", "told"),
    [
        (10**9, ROWS, r"1000000 rows \(texts times restarts\) of 1 e-tokens, with 400 steps, need about .* GB"),
        (10**9, {"stop": Stop(max_steps=10**9)}, r"with 1000000000 steps, need about 8\.0 GB, and 1\.0 GB are free"),
        (10**18, ROWS, r"1000000 rows .* at most 65536 are fitted side by side; use fewer restarts"),
        (10**18, {"e_tokens": 10**9}, "an input of 1000000000 e-tokens: it must have 1 to 1048576"),
    ],
)
def test_more_than_a_fit_takes_is_refused_before_a_start_is_drawn(
    llama: FrozenLM, monkeypatch: pytest.MonkeyPatch, free: int, change: dict, told: str
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda _: free)
    monkeypatch.setattr("prototokens.fitting.fit.banks", lambda *_: pytest.fail("starts were drawn"))
    with pytest.raises(InputError, match=told) as error:
        fit(llama, llama.encode("ab"), replace(ONE, **change))
    assert "\n" not in str(error.value)
