"""Models that accelerate spreads over devices or keeps outside memory, as far as a CPU can show it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from families import FAMILIES, ONE, RECIPE, WIDTH, batch, budget, build, family, tokenizer
from prototokens import AdamW, FrozenLM, InputError, decode, fit_batch

ROUNDING = {"rtol": 1e-4, "atol": 1e-5}

# A large eps makes Adam's step a smooth function of the gradient, so that rounding stays small.
ONE_STEP = budget(replace(ONE, optimiser=AdamW(lr=1e-3, eps=0.1)), max_steps=1)


def test_a_model_may_lie_outside_memory() -> None:
    from accelerate import cpu_offload

    with pytest.raises(InputError, match="give FrozenLM an identity"):
        FrozenLM(cpu_offload(build("llama"), execution_device="cpu"), tokenizer())
    identity = family("llama").identity
    lm = FrozenLM(cpu_offload(build("llama"), execution_device="cpu"), tokenizer(), identity)
    assert lm.device.type == "cpu"
    ids = lm.encode("abc")
    torch.testing.assert_close(lm.next_token_logits(ids), family("llama").next_token_logits(ids), **ROUNDING)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_spread_model_is_not_told_positions_by_index(name: str) -> None:
    """An index would have to lie where the last layer does, which only the model knows."""
    lm, seen = FrozenLM(build(name), tokenizer()), []
    lm.model.hf_device_map = {"first": 0, "last": 1}
    lm.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs.get("logits_to_keep")), with_kwargs=True
    )
    inputs_embeds = torch.randn(2, 6, WIDTH, generator=torch.Generator().manual_seed(3))
    for read in (range(2, 5), range(1, 6), range(6)):
        torch.testing.assert_close(lm.logits(inputs_embeds, read), family(name).logits(inputs_embeds, read), **ROUNDING)
    assert all(kept is None or isinstance(kept, int) for kept in seen)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_a_model_may_be_compiled() -> None:
    """A step is that of the plain model but for rounding, which a longer descent would amplify."""
    lm = FrozenLM(build("llama"), tokenizer())
    lm.model.compile(backend="eager", dynamic=True)  # traced as ever, run without generated code
    ids = batch(lm, "no", "Zq")
    for compiled, plain in zip(fit_batch(lm, ids, ONE_STEP), fit_batch(family("llama"), ids, ONE_STEP), strict=True):
        assert plain.loss_history[1] < plain.loss_history[0]  # so that the vectors after the step are kept
        torch.testing.assert_close(compiled.loss_history, plain.loss_history, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(compiled.tokens.e, plain.tokens.e, rtol=0, atol=2e-6)  # of steps up to 1e-3
        torch.testing.assert_close(compiled.tokens.m, plain.tokens.m, rtol=0, atol=2e-6)
    for result in fit_batch(lm, ids, RECIPE):
        assert result.exact
        assert decode(lm, result.tokens).exact


@pytest.mark.cuda
def test_a_gpu_takes_the_step_that_a_cpu_takes() -> None:
    """And solves what a CPU solves; vectors found on one decode on the other."""
    on_cpu, on_gpu = family("llama"), FrozenLM(build("llama").cuda(), tokenizer())
    ids = batch(on_cpu, "no", "Zq")
    for one, other in zip(fit_batch(on_gpu, ids, ONE_STEP), fit_batch(on_cpu, ids, ONE_STEP), strict=True):
        torch.testing.assert_close(one.loss_history, other.loss_history, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(one.tokens.e, other.tokens.e, rtol=0, atol=2e-5)
        torch.testing.assert_close(one.tokens.m, other.tokens.m, rtol=0, atol=2e-5)
    for lm, another in ((on_gpu, on_cpu), (on_cpu, on_gpu)):
        for result in fit_batch(lm, ids, budget(RECIPE, margin=0.1)):
            assert result.exact
            assert decode(another, result.tokens).exact
