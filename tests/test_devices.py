"""Models that accelerate spreads over devices or keeps outside memory, as far as a CPU can show it."""

from __future__ import annotations

import pytest
import torch

from families import FAMILIES, ONE, WIDTH, batch, build, family, same_vectors, tokenizer
from prototokens import FrozenLM, InputError, decode, fit_batch


def test_a_model_may_lie_outside_memory() -> None:
    from accelerate import cpu_offload

    with pytest.raises(InputError, match="give FrozenLM an identity"):
        FrozenLM(cpu_offload(build("llama"), execution_device="cpu"), tokenizer())
    identity = family("llama").identity
    lm = FrozenLM(cpu_offload(build("llama"), execution_device="cpu"), tokenizer(), identity)
    assert lm.device.type == "cpu"
    ids = lm.encode("abc")
    assert torch.equal(lm.next_token_logits(ids), family("llama").next_token_logits(ids))


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
        assert torch.equal(lm.logits(inputs_embeds, read), family(name).logits(inputs_embeds, read)) or torch.allclose(
            lm.logits(inputs_embeds, read), family(name).logits(inputs_embeds, read), atol=1e-5
        )
    assert all(kept is None or isinstance(kept, int) for kept in seen)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_a_model_may_be_compiled() -> None:
    lm = FrozenLM(build("llama"), tokenizer())
    lm.model.compile(backend="eager", dynamic=True)  # traced as ever, run without generated code
    ids = batch(lm, "no", "Zq")
    for own, plain in zip(fit_batch(lm, ids, ONE), fit_batch(family("llama"), ids, ONE), strict=True):
        assert own.exact
        assert same_vectors(own, plain)
        assert decode(lm, own.tokens).exact
