"""How to train an encoder: schedule, curriculum, objective and texts."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

from ..errors import InputError

Settings = TypeVar("Settings", bound=Any)

_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "int | None": (int, type(None)),
    "tuple[float, float]": (list, tuple),
}
"""The types of value that a field takes, by its annotation; all other fields take words."""


def _check(name: str, value: float, low: float, high: float = math.inf) -> None:
    if not low <= value <= high:
        bound = f"at least {low:g}" + ("" if high == math.inf else f" and at most {high:g}")
        raise InputError(f"{name} is {value:g}; it must be {bound}")


@dataclass(frozen=True)
class Schedule:
    """AdamW (Loshchilov & Hutter, 2019) and its learning rate.

    The rate rises linearly, is constant, and falls linearly to 0 at the end. A training can be given more steps until
    it falls.

    Attributes:
        lr: learning rate after the warm-up.
        warmup_steps: steps over which it rises.
        decay_share: share of the steps, the last ones, over which it falls.
        betas: decay of the running mean and of the running mean square of the gradient.
        weight_decay: decoupled decay of weight matrices, times the learning rate.
        clip: largest norm of the gradient.
    """

    lr: float = 1e-3
    warmup_steps: int = 100
    decay_share: float = 0.2
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    clip: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        if not (0 < self.lr < float("inf") and self.clip > 0):
            raise InputError(f"lr is {self.lr:g} and clip {self.clip:g}; both must be above 0, and lr finite")
        _check("warmup_steps", self.warmup_steps, 0)
        _check("decay_share", self.decay_share, 0, 1)
        _check("weight_decay", self.weight_decay, 0)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0, of a training of `steps` steps."""
        rise = min(1.0, (step + 1) / (self.warmup_steps + 1))
        fall = min(1.0, (steps - step) / max(1.0, self.decay_share * steps))
        return self.lr * rise * fall


@dataclass(frozen=True)
class Curriculum:
    """Which lengths are trained: those up to a frontier, which grows as the encoder learns.

    Attributes:
        first: the first frontier, in tokens.
        threshold: the frontier grows once held-out texts of its length have this token accuracy.
        growth: factor by which it grows, by at least one token.
        frontier_share: share of the batches with texts of the frontier's length. The lengths of the other batches are
            drawn uniformly from 1 to the frontier.
        patience: steps after which it grows in any case; None: never.
    """

    first: int = 2
    threshold: float = 0.9
    growth: float = 1.25
    frontier_share: float = 0.5
    patience: int | None = None

    def __post_init__(self) -> None:
        _check("first", self.first, 1)
        _check("threshold", self.threshold, 0, 1)
        _check("growth", self.growth, 1)
        _check("frontier_share", self.frontier_share, 0, 1)
        _check("patience", 1 if self.patience is None else self.patience, 1)

    def draw(self, frontier: int, key: str) -> int:
        """A length for one batch; the same for the same key."""
        rng = random.Random(key)
        return frontier if rng.random() < self.frontier_share else 1 + int(rng.random() * frontier)

    def advance(self, frontier: int, accuracy: float, steps_at_frontier: int, max_tokens: int) -> int:
        """The frontier after a validation with this accuracy at it, at most `max_tokens`."""
        learned = accuracy >= self.threshold
        if not learned and (self.patience is None or steps_at_frontier < self.patience):
            return frontier
        return min(max_tokens, max(frontier + 1, round(frontier * self.growth)))


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
        source: see `texts.corpora.SOURCES`, or a file; only documents of the `train` split are used.
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
        schedule: optimiser and learning rate.
        curriculum: lengths.
        objective: what is minimised.
        texts: which texts.
        validate_every: steps between two validations.
        seed: weights, lengths, texts and noise are drawn from it.
    """

    steps: int = 20_000
    batch_positions: int = 512
    accumulate: int = 1
    schedule: Schedule = field(default_factory=Schedule)
    curriculum: Curriculum = field(default_factory=Curriculum)
    objective: Objective = field(default_factory=Objective)
    texts: TextChoice = field(default_factory=TextChoice)
    validate_every: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_positions", "accumulate", "validate_every"):
            _check(name, getattr(self, name), 1)

    def to_json(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        record = asdict(self)
        record["schedule"]["betas"] = list(self.schedule.betas)
        return record


def read_setting(text: str) -> tuple[str, Any]:
    """Name and value of a setting written as `name=value`; a value that is not JSON is a word.

    Raises:
        InputError: there is no name or no value.
    """
    name, equals, value = text.partition("=")
    if not name or not equals or not value:
        raise InputError(f"setting {text!r} must be NAME=VALUE, e.g. curriculum.threshold=0.8")
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
    nested = {n for n in types if is_dataclass(getattr(settings, n)) and n != "arrangement"}
    if head not in types or bool(rest) != (head in nested):
        choices = " ".join(f"{n}.…" if n in nested else n for n in types)
        raise InputError(f"unknown setting {name!r}; choose one of: {choices}")
    if rest:
        return replace(settings, **{head: with_setting(getattr(settings, head), rest, value)})
    if type(value) not in _TYPES.get(types[head], (str,)):
        raise InputError(f"setting {name} is {value!r}; it must be {types[head]}")
    return replace(settings, **{head: value})
