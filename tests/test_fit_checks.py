"""Laws of what a fit refuses before it begins, and of what it says was meant."""

from typing import Any

import pytest
import torch

from families import ONE, batch, budget, build, tokenizer
from prototokens import FrozenLM, Given, InputError, fit, fit_batch
from prototokens.baselines.cramming import CRAMMING, cram


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("text",), "target_ids is of type str; it must be a tensor: lm.encode(text)"),
        (([1, 2, 3],), "target_ids is of type list; it must be a tensor: torch.tensor(ids)"),
        ((["a", "b"],), "target_ids is of type list; it must be a tensor: lm.encode(text)"),
        (("ids", "fast"), "config is 'fast'; it must be a FitConfig: preset('fast')"),
        (("ids", "paper"), "config is 'paper'; it must be a FitConfig: preset('paper')"),
        (("ids", "quick"), "config is 'quick'; it must be a FitConfig: preset('fast')"),
        (("ids", {"restarts": 2}), "config is of type dict; it must be a FitConfig: preset('fast')"),
        (("ids", Given()), "config is of type Given; it must be a FitConfig: preset('fast')"),
        (("ids", None, {"share": "m"}), "given is of type dict; it must be a Given: Given(m=...)"),
    ],
)
def test_what_was_meant_is_said(llama: FrozenLM, arguments: tuple[Any, ...], message: str) -> None:
    first = llama.encode("ab") if arguments[0] == "ids" else arguments[0]
    for call in (fit, fit_batch):
        with pytest.raises(InputError) as error:
            call(llama, first, *arguments[1:])
        assert str(error.value) == message


def test_a_bare_model_is_no_frozen_one(llama: FrozenLM) -> None:
    with pytest.raises(InputError, match=r"lm is of type LlamaForCausalLM; it must be a FrozenLM: load_lm\(name\)"):
        fit(llama.model, llama.encode("ab"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="lm is of type Tensor"):
        fit(llama.encode("ab"), llama)  # type: ignore[arg-type]


@pytest.mark.parametrize("part", ["model", "layer"])
def test_a_model_put_back_into_training_mode_is_refused(part: str) -> None:
    lm = FrozenLM(build("gpt2"), tokenizer())
    (lm.model if part == "model" else lm.model.transformer.h[1].attn).train()
    for call, config in ((fit, ONE), (cram, CRAMMING)):
        with pytest.raises(InputError, match=r"was put back into training mode.*call lm\.model\.eval\(\)"):
            call(lm, lm.encode("ab"), config)
    lm.model.eval()
    assert fit(lm, lm.encode("ab"), budget(ONE, max_steps=0)).steps == 0


def test_a_fit_under_autocast_is_refused(llama: FrozenLM) -> None:
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(InputError, match=r"under torch\.autocast.*or load the model with dtype='bfloat16'"),
    ):
        fit_batch(llama, batch(llama, "ab", "cd"), ONE)


@pytest.mark.parametrize("rows_at_once", [0, -3])
def test_rows_at_once_has_a_bound(llama: FrozenLM, rows_at_once: int) -> None:
    with pytest.raises(InputError, match=f"rows_at_once is {rows_at_once}; it must be at least 1"):
        fit(llama, llama.encode("ab"), ONE, rows_at_once=rows_at_once)
