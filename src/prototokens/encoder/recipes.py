"""How to train an encoder: schedule, curriculum, objective, texts, and what is written when."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

from ..errors import InputError

Settings = TypeVar("Settings", bound=Any)

_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "int | None": (int, type(None)),
    "tuple[float, float]": (list, tuple),
}
"""Values that a field of an annotation takes; all others take words."""


def _check(name: str, value: float, low: float, high: float = math.inf) -> None:
    if not low <= value <= high:
        bound = f"at least {low:g}" + ("" if high == math.inf else f" and at most {high:g}")
        raise InputError(f"{name} is {value:g}; it must be {bound}")


@dataclass(frozen=True)
class Schedule:
    """AdamW (Loshchilov & Hutter, 2019) and its learning rate.

    Attributes:
        lr: learning rate after the warm-up.
        warmup_steps: steps over which it rises linearly.
        decay: `"end"`: constant, then linear to 0 over the last `decay_share` of the steps, so that a run can be made
            longer until then; `"cosine"`: half a cosine from the first step to the last.
        decay_share: share of the steps that `"end"` decays over.
        betas: decay of the running mean and of the running mean square of the gradient.
        weight_decay: decoupled decay of weight matrices, times the learning rate.
        clip: largest norm of the gradient.
    """

    lr: float = 1e-3
    warmup_steps: int = 100
    decay: Literal["end", "cosine"] = "end"
    decay_share: float = 0.2
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    clip: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.decay not in ("end", "cosine"):
            raise InputError(f"decay is {self.decay!r}; it must be 'end' or 'cosine'")
        if self.lr <= 0 or self.clip <= 0:
            raise InputError(f"lr is {self.lr:g} and clip {self.clip:g}; both must be above 0")
        _check("warmup_steps", self.warmup_steps, 0)
        _check("decay_share", self.decay_share, 0, 1)
        _check("weight_decay", self.weight_decay, 0)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0, in a run of so many steps."""
        rise = min(1.0, (step + 1) / (self.warmup_steps + 1))
        if self.decay == "cosine":
            return self.lr * rise * 0.5 * (1 + math.cos(math.pi * step / steps))
        left = (steps - step) / max(1.0, self.decay_share * steps)
        return self.lr * rise * min(1.0, left)


@dataclass(frozen=True)
class Curriculum:
    """Which lengths are trained: up to a frontier that moves when the encoder masters it.

    Attributes:
        first: the first frontier, in tokens.
        threshold: the frontier moves when the token accuracy of held-out texts of that length reaches this.
        growth: it moves to this many times its length, and by one token at least.
        frontier_share: share of the batches whose texts have the frontier's length; the others' lengths are drawn
            uniformly from 1 to it.
        patience: steps after which it moves in any case; None: never.
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

    def advance(self, frontier: int, accuracy: float, steps_there: int, longest: int) -> int:
        """The frontier after a validation of texts at it, at most `longest`."""
        mastered = accuracy >= self.threshold
        if not mastered and (self.patience is None or steps_there < self.patience):
            return frontier
        return min(longest, max(frontier + 1, round(frontier * self.growth)))


@dataclass(frozen=True)
class Objective:
    """What is minimised, with z = (e, m) what the encoder writes for a text and s the embeddings' standard deviation.

    CE(z + noise) + unroll CE(z_k) + distil mean((z - z_k)^2) / (2 s^2)

    CE is the mean cross-entropy over every position of the text, in nats, of the one forward pass. z_k is the best of
    `refine_steps` fit steps that set out from z; it is taken as z plus a constant (first order), so that nothing is
    differentiated twice. `unroll` trains the encoder to be a good place to fit from (MAML, first order), `distil`
    towards a solution of the text that is fitted anew from its own output whenever the text is drawn: stored
    solutions of one text lie far apart, and to regress onto them is ill-posed.

    Attributes:
        noise: standard deviation of Gaussian noise on e and m, in units of s.
        refine_steps: fit steps inside; each costs one more forward and backward pass. 0: none.
        unroll: weight of the loss after them.
        distil: weight of the squared distance to where they lead.

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
                "fit steps inside need a weight, and a weight needs fit steps"
            )


@dataclass(frozen=True)
class TextChoice:
    """Which texts are trained on and validated on.

    Attributes:
        source: see `texts.SOURCES`, or a file; only documents of the `train` split are used.
        texts: train on so many texts and their beginnings alone, and validate on the same: a check that the path
            learns at all. None: on all texts of the source.
        own_share: share of texts that begin at a sentence and are tokenized on their own; the others are windows of
            whole documents' ids.
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
    """A training run.

    Attributes:
        steps: optimiser steps.
        batch_positions: input positions of the LM in one step, over all processes and accumulated batches: what a step
            costs. Texts of a batch have one length.
        accumulate: batches that a step's gradient is summed over; each has texts of its own length.
        schedule: optimiser and learning rate.
        curriculum: lengths.
        objective: what is minimised.
        texts: which texts.
        validate_every: steps between two validations.
        precision: of the trunk's computations, `"float32"` or `"bfloat16"`; the weights stay float32. The LM has its
            own dtype (`load_lm(dtype=...)`).
        seed: what weights, lengths, texts and noise are drawn from.
    """

    steps: int = 20_000
    batch_positions: int = 512
    accumulate: int = 1
    schedule: Schedule = field(default_factory=Schedule)
    curriculum: Curriculum = field(default_factory=Curriculum)
    objective: Objective = field(default_factory=Objective)
    texts: TextChoice = field(default_factory=TextChoice)
    validate_every: int = 250
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_positions", "accumulate", "validate_every"):
            _check(name, getattr(self, name), 1)
        if self.precision not in ("float32", "bfloat16"):
            raise InputError(f"precision is {self.precision!r}; it must be 'float32' or 'bfloat16'")

    def to_json(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        record = asdict(self)
        record["schedule"]["betas"] = list(self.schedule.betas)
        return record


def read_setting(text: str) -> tuple[str, Any]:
    """Name and value of a setting written as `name=value`; the value is JSON, or else a word.

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
    """Settings with one of them changed, `outer.inner` for one of an inner dataclass.

    Raises:
        InputError: there is no setting of that name, or the value is of another kind or out of bounds.
    """
    own: Any = settings
    head, _, rest = name.partition(".")
    known = {f.name: str(f.type) for f in fields(own)}
    inner = {n for n in known if is_dataclass(getattr(own, n)) and n != "arrangement"}
    if head not in known or bool(rest) != (head in inner):
        choices = " ".join(f"{n}.…" if n in inner else n for n in known)
        raise InputError(f"unknown setting {name!r}; choose one of: {choices}")
    if rest:
        return replace(own, **{head: with_setting(getattr(own, head), rest, value)})
    if type(value) not in _KINDS.get(known[head], (str,)):
        raise InputError(f"setting {name} is {value!r}; it must be {known[head]}")
    return replace(own, **{head: value})
