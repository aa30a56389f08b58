"""How to fit: optimiser, stopping rule, and the named presets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..arrangements import Arrangement, arrangement_named, blocks
from ..errors import InputError
from .starter import Starter

DRAWN_STARTS = ("normal", "vocabulary")
"""Starts that are random vectors and do not depend on the text's tokens; no perturbation is added to them."""

NAMED_STARTS = ("auto", *DRAWN_STARTS, "text-e", "text-m")
"""Starts that a recipe can name; see `FitConfig.start`."""


_IN_TWO = "m,e,m*(n-1)"
LONGEST_IN_TWO, AUTO_BLOCK = 32, 8
"""Tokens up to which two vectors are taken, and tokens of a block beyond, where a recipe leaves it open."""


def _check(name: str, value: float, *, low: float, high: float = float("inf"), open_low: bool = False) -> None:
    if not (low < value <= high if open_low else low <= value <= high):
        bound = f"{'above' if open_low else 'at least'} {low:g}" + (
            "" if high == float("inf") else f" and at most {high:g}"
        )
        raise InputError(f"{name} is {value:g}; it must be {bound}")


@dataclass(frozen=True)
class AdamW:
    """Settings of AdamW (Loshchilov & Hutter, 2019), one state per vector.

    Attributes:
        lr: learning rate; in units of the standard deviation of the model's input embeddings if `relative`.
        betas: decay of the running mean and of the running mean square of the gradient.
        weight_decay: decoupled decay per step, times the learning rate.
        eps: added to the root mean square gradient.
        relative: whether `lr` is scaled to the model's embeddings, so that it means the same for any model.
        anneal_below_nats: loss, in nats per token, below which the learning rate falls with the square root of the
            loss, text by text; 0 keeps it constant. Decay is tied to progress since nobody knows beforehand how many
            steps a text takes. See `rates`.
        least_rate: where every block of a text has an e-token of its own, each is annealed by its own block's loss, but
            never to less than this share of the learning rate: blocks that are right still follow the shared m.
    """

    lr: float = 0.01
    betas: tuple[float, float] = (0.9, 0.9)
    weight_decay: float = 0.0
    eps: float = 1e-8
    relative: bool = False
    anneal_below_nats: float = 0.0
    least_rate: float = 0.15

    def __post_init__(self) -> None:
        _check("lr", self.lr, low=0, open_low=True)
        if len(self.betas) != 2:
            raise InputError(f"betas is {self.betas}; it must be two numbers")
        _check("betas[0]", self.betas[0], low=0, high=0.999999)
        _check("betas[1]", self.betas[1], low=0, high=0.999999)
        _check("weight_decay", self.weight_decay, low=0)
        _check("eps", self.eps, low=0, open_low=True)
        _check("anneal_below_nats", self.anneal_below_nats, low=0)
        _check("least_rate", self.least_rate, low=0, high=1)

    def rates(self, loss_nats: Tensor, embedding_std: float, least: float = 0.0) -> Tensor:
        """Learning rate at a loss: lr * sqrt(min(1, loss / anneal_below_nats)), times the spread if `relative`.

        Args:
            loss_nats: mean loss of each text or block, in nats per token, any shape.
            embedding_std: standard deviation of the model's input embeddings.
            least: share of the learning rate below which it does not fall.

        Returns:
            Of the same shape.
        """
        lr = self.lr * (embedding_std if self.relative else 1.0)
        if self.anneal_below_nats == 0:
            return lr * torch.ones_like(loss_nats)
        return lr * (loss_nats / self.anneal_below_nats).clamp(max=1).sqrt().clamp(min=least)


@dataclass(frozen=True)
class Stop:
    """When a text is done.

    Attributes:
        max_steps: the step budget; the vectors are scored once more than they are stepped.
        accuracy: stop when this share of the tokens is right; 1 means exact reconstruction.
        margin: and each of that share leads by more than this many logits. A text with no margin can lose tokens on
            another kernel or batch size.
        check_every: every how many steps it is checked whether a text is done; None means 1 on a CPU and 4 elsewhere,
            since each check synchronises with the device. The first evaluation that met the rule is kept in any case.
    """

    max_steps: int = 5000
    accuracy: float = 1.0
    margin: float = 0.0
    check_every: int | None = None

    def __post_init__(self) -> None:
        _check("max_steps", self.max_steps, low=0)
        _check("accuracy", self.accuracy, low=0, high=1, open_low=True)
        _check("margin", self.margin, low=0)
        _check("check_every", 1 if self.check_every is None else self.check_every, low=1)


@dataclass(frozen=True)
class FitConfig:
    """A recipe for `fit`.

    Attributes:
        arrangement: name of one of `ARRANGEMENTS`, or an `Arrangement`.
        e_tokens: K, the number of e-tokens, in arrangements without blocks.
        tokens_per_vector: b: a text of more tokens is fitted in the arrangement `m,(e,m*(b-1))` instead, with an
            e-token for every block of b tokens; `"auto"`: two vectors up to `LONGEST_IN_TWO` tokens, and blocks of
            `AUTO_BLOCK` beyond; None: the arrangement as it is, for any length. It spreads the e-tokens of
            `m,e,m*(n-1)`; with another arrangement or more e-tokens, `"auto"` changes nothing. A `Starter` that was
            trained for one of the two decides which.
        start: `"normal"`: e and m from N(0, 1), the paper's; `"vocabulary"`: both from N(mean, std^2) of the model's
            input embeddings; `"text-e"`: e is the mean embedding of the text's tokens and m that of the whole
            vocabulary; `"text-m"`: the two exchanged; a `Starter`: a learned start; `"auto"`: the learned start that
            the package holds for the model and arrangement, or else `"text-e"`.
        perturbation: standard deviation of the Gaussian noise added to the start, in units of the standard
            deviation of the model's input embeddings. It is drawn from the seed, the restart's number and the
            text, so that it does not depend on what else is in the batch. `DRAWN_STARTS` take none.
        optimiser: settings of AdamW along the coordinates.
        axes_optimiser: settings of AdamW along the axes of a learned start (see `Starter`). They replace `optimiser`
            where a fit begins at a start that has axes; None: never. Adam divides each entry of the gradient by its
            size, and the coordinates of an embedding mean nothing by themselves. Along the axes in which gradients vary
            each division fits its axis, and longer steps pay (SOAP, Vyas et al., 2024,
            https://arxiv.org/abs/2409.11321; here the axes are learned beforehand and held).
        stop: when a text is done.
        restarts: starts fitted side by side for every text. The best is kept, and the first one done ends all. They
            differ by their perturbation alone, or by their draw for `DRAWN_STARTS`.
        seed: what the random draws are made from.
        preset: name under which the recipe is recorded.
    """

    arrangement: str | Arrangement = "m,e,m*(n-1)"
    e_tokens: int = 1
    tokens_per_vector: int | Literal["auto"] | None = None
    start: str | Starter = "auto"
    perturbation: float = 0.0
    optimiser: AdamW = field(default_factory=AdamW)
    axes_optimiser: AdamW | None = None
    stop: Stop = field(default_factory=Stop)
    restarts: int = 1
    seed: int = 0
    preset: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrangement", arrangement_named(self.arrangement))
        if self.restarts > 1 and self.perturbation == 0 and self.start not in DRAWN_STARTS:
            raise InputError(f"restarts is {self.restarts} and perturbation 0: they would all be the same")
        if not isinstance(self.start, Starter) and self.start not in NAMED_STARTS:
            raise InputError(f"unknown start {self.start!r}; choose one of: {' '.join(NAMED_STARTS)}")
        _check("e_tokens", self.e_tokens, low=1)
        if isinstance(self.tokens_per_vector, str) and self.tokens_per_vector != "auto":
            raise InputError(f"tokens_per_vector is {self.tokens_per_vector!r}; it must be a number, 'auto' or None")
        if isinstance(self.tokens_per_vector, int):
            _check("tokens_per_vector", self.tokens_per_vector, low=1)
            if not self._in_two_vectors:
                name = arrangement_named(self.arrangement).name
                raise InputError(
                    f"tokens_per_vector is {self.tokens_per_vector}: it goes with the arrangement {_IN_TWO!r} and one "
                    f"e-token, not with {name!r} and {self.e_tokens}"
                )
        _check("perturbation", self.perturbation, low=0)
        _check("restarts", self.restarts, low=1)

    def at(self, length: int) -> FitConfig:
        """The recipe for a text of `length` tokens, with its arrangement settled and `tokens_per_vector` None."""
        if self.tokens_per_vector is None:
            return self
        is_auto = self.tokens_per_vector == "auto"
        b = AUTO_BLOCK if is_auto else int(self.tokens_per_vector)
        in_blocks = self._in_two_vectors and length > (LONGEST_IN_TWO if is_auto else b)
        if isinstance(self.start, Starter):  # it serves one of the two
            in_blocks = self._in_two_vectors and self.start.arrangement.block_length is not None
        return replace(self, arrangement=blocks(b) if in_blocks else self.arrangement, tokens_per_vector=None)

    @property
    def _in_two_vectors(self) -> bool:
        return self.e_tokens == 1 and self.arrangement == arrangement_named(_IN_TWO)


PRESETS: dict[str, FitConfig] = {
    config.preset or "": config
    for config in (
        FitConfig(
            arrangement="m,e,m*(n-1)",
            tokens_per_vector="auto",
            start="auto",
            perturbation=0.1,
            optimiser=AdamW(0.22, (0.9, 0.9), relative=True, anneal_below_nats=2.0),
            axes_optimiser=AdamW(0.33, (0.8, 0.95), relative=True, anneal_below_nats=4.0),
            stop=Stop(max_steps=2000, margin=0.01),
            preset="fast",
        ),
        FitConfig(
            arrangement="m,e,m*(n-1)",
            start="text-e",
            perturbation=0.1,
            optimiser=AdamW(lr=0.22, relative=True),
            preset="tuned",
        ),
        FitConfig(
            arrangement="e,m*(n-1)",
            start="normal",
            optimiser=AdamW(lr=0.01, weight_decay=0.01),
            preset="paper",
        ),
    )
}
"""`fast` is the default. `paper` is the published recipe (arXiv 2505.21189, section 3.1): e, m x (N-1) from
N(0, 1), AdamW with lr 0.01, betas (0.9, 0.9), weight decay 0.01, 5,000 steps, stop at accuracy 1. `tuned` is the same
optimiser with arrangement, start and learning rate tuned."""

DEFAULT_PRESET = "fast"


def preset(name: str = DEFAULT_PRESET, **changes: Any) -> FitConfig:
    """The recipe of that name, with some of its fields changed.

    Raises:
        InputError: there is no such preset.
    """
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; choose one of: {' '.join(PRESETS)}")
    return replace(PRESETS[name], **changes)
