"""Activation checkpointing of a frozen model: less memory for a second forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from .overrides import in_overrides


@contextmanager
def recomputed(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Keep only the inputs of these layers while the block runs; the backward pass computes the rest anew.

    transformers' own switch works in training mode only, in which dropout would be at work. Here the layers' `forward`
    is wrapped, so that the model stays in evaluation mode. Afterwards it is as before.

    Reference: Training Deep Nets with Sublinear Memory Cost (Chen et al., 2016), https://arxiv.org/abs/1604.06174.
    """
    wrapped = [layer for layer in layers if not _is_recomputed(layer)]
    before = [layer.__dict__.get("forward") for layer in wrapped]  # accelerate's hooks stand there
    for layer in wrapped:
        layer.forward = partial(_compute_anew, layer.forward)
    try:
        yield
    finally:
        for layer, forward in zip(wrapped, before, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def marked_layers(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The layers for which `model.gradient_checkpointing_enable()` asked to be computed anew."""
    marked = [module for module in modules if module.__dict__.get("gradient_checkpointing")]
    if not marked:
        return []
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in marked if isinstance(module, GradientCheckpointingLayer)]


def _is_recomputed(layer: nn.Module) -> bool:
    forward = layer.__dict__.get("forward")
    return isinstance(forward, partial) and forward.func is _compute_anew


def _compute_anew(forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    # A frozen model in evaluation mode draws nothing at random, so that no random state has to be kept.
    return checkpoint(partial(in_overrides, forward), *inputs, use_reentrant=False, preserve_rng_state=False, **options)
