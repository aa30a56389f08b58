"""Recipes: what cannot be is refused by its name, value and bound."""

import math
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from prototokens import AdamW, FitConfig, InputError, Stop, preset
from prototokens.arrangements import ARRANGEMENTS
from prototokens.fitting.recipes import DEFAULT_PRESET, NAMED_STARTS, PRESETS


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (AdamW, {"lr": 0}, "lr is 0; it must be above 0"),
        (AdamW, {"lr": -0.1}, "lr is -0.1; it must be above 0"),
        (AdamW, {"lr": math.nan}, "lr is nan; it must be above 0"),
        (AdamW, {"betas": (1.0, 0.9)}, "betas[0] is 1; it must be at least 0 and at most 0.999999"),
        (AdamW, {"betas": (0.9, -0.5)}, "betas[1] is -0.5; it must be at least 0 and at most 0.999999"),
        (AdamW, {"weight_decay": -1}, "weight_decay is -1; it must be at least 0"),
        (AdamW, {"eps": 0}, "eps is 0; it must be above 0"),  # an entry without a gradient would become 0/0
        (AdamW, {"anneal_below_nats": -2}, "anneal_below_nats is -2; it must be at least 0"),
        (Stop, {"max_steps": -1}, "max_steps is -1; it must be at least 0"),
        (Stop, {"accuracy": 0}, "accuracy is 0; it must be above 0 and at most 1"),
        (Stop, {"accuracy": 1.5}, "accuracy is 1.5; it must be above 0 and at most 1"),
        (Stop, {"margin": -0.5}, "margin is -0.5; it must be at least 0"),
        (Stop, {"check_every": 0}, "check_every is 0; it must be at least 1"),
        (FitConfig, {"start": "zero"}, f"unknown start 'zero'; choose one of: {' '.join(NAMED_STARTS)}"),
        (FitConfig, {"arrangement": "e,n"}, "unknown arrangement 'e,n'; choose one of: e*n "),
        (FitConfig, {"e_tokens": 0}, "e_tokens is 0; it must be at least 1"),
        (FitConfig, {"perturbation": -1}, "perturbation is -1; it must be at least 0"),
        (FitConfig, {"restarts": 0}, "restarts is 0; it must be at least 1"),
        (FitConfig, {"restarts": 2}, "restarts is 2 and perturbation 0: they would all be the same"),
    ],
)
def test_values_out_of_bounds_are_refused(kind: type, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        kind(**change)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_bounds_themselves_are_allowed() -> None:
    AdamW(lr=1e-12, betas=(0, 0.999999), weight_decay=0, anneal_below_nats=0)
    Stop(max_steps=0, accuracy=1, margin=0, check_every=1)
    FitConfig(e_tokens=1, perturbation=0, restarts=1, seed=-5)
    FitConfig(start="normal", restarts=2)
    FitConfig(start="vocabulary", restarts=2)


def test_presets_are_named_and_frozen() -> None:
    assert {"fast", "tuned", "paper"} <= set(PRESETS)
    assert preset() is not None
    assert preset() == PRESETS[DEFAULT_PRESET]
    for name, config in PRESETS.items():
        assert config.preset == name
        assert config.arrangement in ARRANGEMENTS.values()
        with pytest.raises(FrozenInstanceError):
            config.seed = 1  # type: ignore[misc]
    assert preset("paper", seed=3).seed == 3
    assert PRESETS["paper"].seed == 0
    with pytest.raises(InputError, match="unknown preset 'quick'; choose one of: fast tuned paper"):
        preset("quick")


def test_the_papers_recipe_is_the_papers() -> None:
    # arXiv 2505.21189, section 3.1.
    config = PRESETS["paper"]
    assert config.arrangement is ARRANGEMENTS["e,m*(n-1)"]
    assert (config.start, config.perturbation, config.e_tokens, config.restarts) == ("normal", 0, 1, 1)
    assert config.optimiser == AdamW(lr=0.01, betas=(0.9, 0.9), weight_decay=0.01, relative=False)
    assert config.stop == Stop(max_steps=5000, accuracy=1)
