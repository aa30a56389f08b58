"""The encoder that the package holds for a runner's model, which may be loaded in other processes alone."""

from __future__ import annotations

from ..encoder.encoding import Encoder, shipped_encoder
from ..lm.frozen import FrozenLM
from .work import Runner, one


def encoder_of_the_package(runner: Runner) -> Encoder:
    """The encoder that comes with the package for the runner's model.

    Raises:
        InputError: there is none.
    """
    encoder: Encoder = one(runner, _shipped, None)
    return encoder


def _shipped(lm: FrozenLM, _: None) -> Encoder:
    """Work: the shipped encoder of the model."""
    return shipped_encoder(lm.identity)
