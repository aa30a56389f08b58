"""Estimates: how long a study may take and how much memory, told before any weights are loaded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import InputError
from .cells import Batch

_SPEED = {
    # One A100 at a third of its bfloat16 peak, and the launch of some hundreds of kernels.
    "paper": (1.0e14, 0.02),
    # Two CPU cores with AVX2: the built-in model was measured at 6.5 ms per position, and 0.3 s for any step.
    "smoke": (8.3e10, 0.3),
    "laptop": (8.3e10, 0.3),
}
"""Assumed floating point operations per second, and seconds of the shortest step, by scale."""


@dataclass(frozen=True)
class ModelSize:
    """What an estimate needs to know about a model.

    Attributes:
        parameters: number of weights.
        vocabulary: V.
        width: width of the hidden states.
        layers: number of layers.
        bytes_per_weight: 4 in float32, 2 in bfloat16.
    """

    parameters: float
    vocabulary: int
    width: int
    layers: int
    bytes_per_weight: int


_KNOWN = {
    "EleutherAI/pythia-160m": ModelSize(162e6, 50304, 768, 12, 2),
    "EleutherAI/pythia-410m": ModelSize(405e6, 50304, 1024, 24, 2),
    "EleutherAI/pythia-1.4b": ModelSize(1.41e9, 50304, 2048, 24, 2),
    "meta-llama/Llama-3.2-1B": ModelSize(1.24e9, 128256, 2048, 16, 2),
    "meta-llama/Llama-3.2-3B": ModelSize(3.21e9, 128256, 3072, 28, 2),
    "meta-llama/Llama-3.1-8B": ModelSize(8.03e9, 128256, 4096, 32, 2),
}
"""The paper's models, which need not be on this machine to plan for them."""


@dataclass(frozen=True)
class CostEstimate:
    """What a batch may cost.

    Attributes:
        seconds: time at most, the whole step budget spent.
        gigabytes: memory of weights and activations.
    """

    seconds: float
    gigabytes: float


def size_of(name: str, revision: str | None = None) -> ModelSize:
    """Size of a model by its configuration: its weights are neither loaded nor fetched.

    Raises:
        InputError: the model cannot be found, or its configuration cannot be read.
    """
    if name in _KNOWN and revision is None:
        return _KNOWN[name]
    import torch
    from transformers import AutoModelForCausalLM

    from ..lm.configs import find_config

    config = find_config(name, revision)
    try:
        with torch.device("meta"):
            parameters = AutoModelForCausalLM.from_config(config).num_parameters()
    except (ValueError, OSError, KeyError, TypeError, ImportError) as error:
        raise InputError(
            f"{name}: its size cannot be told without loading it ({' '.join(str(error).split())})"
        ) from None
    text = config.get_text_config()
    dtype = getattr(config, "dtype", None) or torch.float32
    return ModelSize(parameters, text.vocab_size, text.hidden_size, text.num_hidden_layers, dtype.itemsize)


def estimate(batch: Batch, size: ModelSize, scale: str) -> CostEstimate:
    """Time and memory of a batch.

    A step passes each position forward and, to the inputs only, backward: 4 operations per weight and position, and at
    least the time that reading the weights takes. Memory holds the weights, about 16 activations of the model's width
    per layer and position, and three float32 tensors of the logits' size.
    """
    operations, floor_seconds = _SPEED[scale]
    floor_seconds *= size.parameters / 135e6 if scale != "paper" else 1.0
    step_seconds = max(floor_seconds, 4 * size.parameters * batch.positions / operations)
    activations = (batch.peak_positions or batch.positions) * (
        16 * size.layers * size.width * size.bytes_per_weight + 12 * size.vocabulary
    )
    return CostEstimate(batch.steps * step_seconds, (size.parameters * size.bytes_per_weight + activations) / 1e9)


def table(batches: Iterable[Batch], size: ModelSize, scale: str) -> tuple[list[str], CostEstimate]:
    """A line per batch, and the total: the times' sum and the largest memory."""
    lines, seconds, gigabytes = [], 0.0, 0.0
    listed = list(batches)
    widest = max((len(batch.label) for batch in listed), default=0)
    for batch in listed:
        one = estimate(batch, size, scale)
        lines.append(
            f"{batch.study:13} {batch.label:{widest}} {len(batch.cells):5} cells  at most {duration(one.seconds):>8}  "
            f"{one.gigabytes:6.1f} GB"
        )
        seconds, gigabytes = seconds + one.seconds, max(gigabytes, one.gigabytes)
    return lines, CostEstimate(seconds, gigabytes)


def duration(seconds: float) -> str:
    """Seconds in words: 45 s, 12 min, 3.5 h, 2.1 d."""
    for bound, unit, name in ((90, 1, "s"), (90 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < bound:
            return f"{seconds / unit:.1f} h" if name == "h" else f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.1f} d"
