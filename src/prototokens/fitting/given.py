"""Given: what a fit is told beside the texts and the recipe, such as vectors held fixed, shared, or begun at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True, eq=False)
class Regulariser:
    """An auxiliary loss on the vectors of a batch, minimised together with the cross-entropy.

    The tokens alone decide what is kept and who is done, but only after `steps` steps. Until then the learning rate is
    not annealed by the cross-entropy either: where that is small already, the auxiliary loss would hardly move
    anything.

    Attributes:
        loss: e-tokens (R, K, D), m-tokens (R, D) and the number of each row's text, int64, (R,), all on the model's
            device -> the sum over the rows of what is added to their `loss`, nats per token, (), by differentiable
            operations. A row is one restart of a text; rows that are done stand still.
        steps: no text is done before that many steps, and the best evaluation from there on is kept.
    """

    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    steps: int = 0


@dataclass(frozen=True, eq=False)
class Given:
    """Vectors and groupings that a fit takes over instead of choosing them.

    Attributes:
        e: e-tokens held fixed, (K, D) for all texts or (B, K, D).
        m: m-token held fixed, (D,) for all texts or (B, D).
        e_start: where the descent of e begins instead of at the recipe's start, (K, D) for all texts or (B, K, D); for
            an e that groups share, (K, D) or one per group. The recipe's perturbation is added.
        m_start: the same for m, (D,), (B, D), or one per group.
        share: `"e"` or `"m"`: texts of one group have that vector in common.
        groups: group number of each text, int64, (B,); one group if None.
        fixed: values of the arrangement's fixed vectors by name, each (D,); the model's own where a name is missing.
        regulariser: an auxiliary loss on the vectors of the batch.
    """

    e: Tensor | None = None
    m: Tensor | None = None
    e_start: Tensor | None = None
    m_start: Tensor | None = None
    share: Literal["e", "m"] | None = None
    groups: Tensor | None = None
    fixed: Mapping[str, Tensor] | None = None
    regulariser: Regulariser | None = None

    def __post_init__(self) -> None:
        if self.share not in (None, "e", "m"):
            raise InputError(f"share is {self.share!r}; it must be 'e', 'm' or None")
        if self.e is not None and self.m is not None:
            raise InputError("both e and m are given: there is nothing to fit")
        if self.share is not None and getattr(self, self.share) is not None:
            raise InputError(f"{self.share} is given and held fixed: it cannot be shared and trained too")
        for name in ("e", "m"):
            if getattr(self, name) is not None and getattr(self, f"{name}_start") is not None:
                raise InputError(f"{name} is given and held fixed: it has no start")
        if self.groups is not None and self.share is None:
            raise InputError("groups say which texts share a vector: name it with share='e' or share='m'")
