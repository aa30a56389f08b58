"""How to train an encoder: schedule, lengths, objective and texts."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

from ..arrangements import MOST_TOKENS
from ..errors import InputError

Settings = TypeVar("Settings", bound=Any)

_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "int | None": (int, type(None)),
    "tuple[float, float]": (list, tuple),
    "tuple[int, ...]": (list, tuple),
}
"""The types of value that a field takes, by its annotation; all other fields take words."""


def _check(name: str, value: float, low: float, high: float = math.inf) -> None:
    if not low <= value <= high:
        bound = f"at least {low:g}" + ("" if high == math.inf else f" and at most {high:g}")
        raise InputError(f"{name} is {value:g}; it must be {bound}")


OPTIMISERS = ("adamw", "muon")


@dataclass(frozen=True)
class Schedule:
    """The optimiser and its learning rate.

    AdamW (Loshchilov & Hutter, 2019), or Muon (Jordan et al., 2024) for the matrices of the trunk and AdamW for the
    rest. Muon's update is scaled to the size of AdamW's (Liu et al., 2025), so that both take the same learning rate.

    The rate rises linearly, is constant, and falls linearly to 0 at the end. A training can be given more steps until
    it falls.

    Attributes:
        optimiser: `"adamw"` or `"muon"`.
        lr: learning rate after the warm-up.
        warmup_steps: steps over which it rises.
        decay_share: share of the steps, the last ones, over which it falls.
        betas: AdamW's decay of the running mean and of the running mean square of the gradient.
        momentum: Muon's decay of the running sum of gradients.
        weight_decay: decoupled decay of weight matrices, times the learning rate.
        clip: largest norm of the gradient.

    References: Decoupled Weight Decay Regularization, https://arxiv.org/abs/1711.05101; Muon,
    https://kellerjordan.github.io/posts/muon/; Muon is Scalable for LLM Training, https://arxiv.org/abs/2502.16982.
    """

    optimiser: str = "adamw"
    lr: float = 1e-3
    warmup_steps: int = 100
    decay_share: float = 0.2
    betas: tuple[float, float] = (0.9, 0.98)
    momentum: float = 0.95
    weight_decay: float = 0.01
    clip: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.optimiser not in OPTIMISERS:
            raise InputError(f"unknown optimiser {self.optimiser!r}; choose one of: {' '.join(OPTIMISERS)}")
        if not (0 < self.lr < float("inf") and self.clip > 0):
            raise InputError(f"lr is {self.lr:g} and clip {self.clip:g}; both must be above 0, and lr finite")
        if len(self.betas) != 2 or not all(type(beta) in (int, float) and 0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas are {list(self.betas)}; give two numbers from 0 to below 1")
        _check("warmup_steps", self.warmup_steps, 0)
        _check("decay_share", self.decay_share, 0, 1)
        _check("momentum", self.momentum, 0, 1)
        _check("weight_decay", self.weight_decay, 0)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0, of a training of `steps` steps."""
        rise = min(1.0, (step + 1) / (self.warmup_steps + 1))
        fall = min(1.0, (steps - step) / max(1.0, self.decay_share * steps))
        return self.lr * rise * fall


@dataclass(frozen=True)
class Objective:
    """What is minimised. z = (e, m) are the encoder's vectors for a text, s is the embeddings' standard deviation.

    CE(z + noise) + unroll CE(z_k) + distil mean((z - z_k)^2) / (2 s^2)

    CE is the mean cross-entropy over all positions of the text, in nats, of one forward pass. z_k is the best of
    `refine_steps` fit steps from z. Its gradient is taken as if it were z plus a constant (first order). `unroll`
    trains the encoder to be a good start for fits (first-order MAML). `distil` trains it towards a solution that is
    fitted from its output each time the text is drawn. Stored solutions would not do: those of one text lie far apart.

    Attributes:
        noise: standard deviation of Gaussian noise on e and m, in units of s.
        refine_steps: number of fit steps; each costs one more forward and backward pass. 0: none.
        unroll: weight of the loss after them.
        distil: weight of the squared distance to their result.

    Reference: Model-Agnostic Meta-Learning (Finn, Abbeel & Levine, 2017), section 5.2,
    https://arxiv.org/abs/1703.03400.
    """

    noise: float = 0.0
    refine_steps: int = 0
    unroll: float = 0.0
    distil: float = 0.0

    def __post_init__(self) -> None:
        for name in ("noise", "refine_steps", "unroll", "distil"):
            _check(name, getattr(self, name), 0)
        if (self.refine_steps > 0) != (self.unroll + self.distil > 0):
            raise InputError(
                f"refine_steps is {self.refine_steps}, unroll {self.unroll:g} and distil {self.distil:g}: "
                "fit steps need a weight, and a weight needs fit steps"
            )


@dataclass(frozen=True)
class TextChoice:
    """Which texts are trained on and validated on.

    Attributes:
        source: see `texts.corpora.SOURCES`, or a file or folder; only documents of the `train` split are used.
        texts: train on this many texts (and their beginnings) and validate on the same ones, to check that training
            works at all. None: all texts of the source.
        own_share: share of texts that begin at a sentence and are tokenized by themselves; the others are windows cut
            out of a document's ids.
        validation_texts: held-out texts of each of these two kinds.
    """

    source: str = "speeches"
    texts: int | None = None
    own_share: float = 0.25
    validation_texts: int = 64

    def __post_init__(self) -> None:
        if self.source in ("random", "generated"):
            raise InputError(f"source {self.source!r} has no documents to train on; take another, or a file")
        _check("texts", 1 if self.texts is None else self.texts, 1)
        _check("own_share", self.own_share, 0, 1)
        _check("validation_texts", self.validation_texts, 1)


@dataclass(frozen=True)
class EncoderTraining:
    """How an encoder is trained.

    Attributes:
        steps: optimiser steps.
        batch_positions: input positions of the LM in one step, over all processes and accumulated batches; they are
            what a step costs. All texts of a batch have one length.
        accumulate: batches per step; their gradients are averaged, and each has one length of text.
        lengths: lengths of text, in tokens; each batch draws one of them.
        short_share: share of the batches whose texts are 1 to b-1 tokens shorter, so that their last block is short.
        schedule: optimiser and learning rate.
        objective: what is minimised.
        texts: which texts.
        validate_every: steps between two validations.
        seed: weights, lengths, texts and noise are drawn from it.
    """

    steps: int = 20_000
    batch_positions: int = 512
    accumulate: int = 1
    lengths: tuple[int, ...] = (4, 8, 16, 32, 64)
    short_share: float = 0.25
    schedule: Schedule = field(default_factory=Schedule)
    objective: Objective = field(default_factory=Objective)
    texts: TextChoice = field(default_factory=TextChoice)
    validate_every: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_positions", "accumulate", "validate_every"):
            _check(name, getattr(self, name), 1)
        object.__setattr__(self, "lengths", tuple(self.lengths))
        if not self.lengths or not all(type(n) is int and 1 <= n <= MOST_TOKENS for n in self.lengths):
            raise InputError(f"lengths are {list(self.lengths)}; give numbers of tokens from 1 to {MOST_TOKENS}")
        _check("short_share", self.short_share, 0, 1)

    def draw_length(self, block_length: int, key: str) -> int:
        """The length of a batch's texts, in tokens; the same for the same key."""
        rng = random.Random(key)
        length = self.lengths[int(rng.random() * len(self.lengths))]
        most_missing = min(block_length, length) - 1
        if most_missing and rng.random() < self.short_share:
            length -= 1 + int(rng.random() * most_missing)
        return length

    def to_json(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        record = asdict(self)
        record["lengths"], record["schedule"]["betas"] = list(self.lengths), list(self.schedule.betas)
        return record


def read_setting(text: str) -> tuple[str, Any]:
    """Name and value of a setting written as `name=value`; a value that is not JSON is a word.

    Raises:
        InputError: there is no name or no value.
    """
    name, equals, value = text.partition("=")
    if not name or not equals or not value:
        raise InputError(f"setting {text!r} must be NAME=VALUE, e.g. schedule.warmup_steps=20")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def with_setting(settings: Settings, name: str, value: Any) -> Settings:
    """Settings with one of them changed; `outer.inner` names a setting of an inner dataclass.

    Raises:
        InputError: there is no setting of that name, or the value has another type or is out of bounds.
    """
    head, _, rest = name.partition(".")
    types = {f.name: str(f.type) for f in fields(settings)}
    nested = {n for n in types if is_dataclass(getattr(settings, n))}
    if head not in types or bool(rest) != (head in nested):
        choices = " ".join(f"{n}.…" if n in nested else n for n in types)
        raise InputError(f"unknown setting {name!r}; choose one of: {choices}")
    if rest:
        return replace(settings, **{head: with_setting(getattr(settings, head), rest, value)})
    if type(value) not in _TYPES.get(types[head], (str,)):
        raise InputError(f"setting {name} is {value!r}; it must be {types[head]}")
    return replace(settings, **{head: value})
