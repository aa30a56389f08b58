"""How an encoder is built: a config, and named sizes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ..arrangements import Arrangement, arrangement_named
from ..errors import InputError


@dataclass(frozen=True)
class EncoderConfig:
    """What an encoder reads, what it is made of and what it writes.

    Attributes:
        arrangement: the arrangement that its vectors are for.
        e_tokens: K, the number of e-tokens that it writes.
        max_tokens: the longest text that it takes, in tokens; every length from 1 on is served.
        trunk: name of one of `TRUNKS`.
        width: width of the trunk.
        layers: layers of the trunk.
        token_width: what a token's features are projected to before a perceptron lays them side by side.
        hidden_layer: hidden states of the frozen LM that stand beside the token embeddings as features, numbered as
            Hugging Face does (0: the input of the first layer; -1: the last); None: embeddings alone. They cost one
            more forward pass of the LM over the T tokens.
        m: `"text"`: every text gets an m-token of its own; `"global"`: one learned m-token serves all.
    """

    arrangement: str | Arrangement = "m,e,m*(n-1)"
    e_tokens: int = 1
    max_tokens: int = 16
    trunk: str = "perceptron"
    width: int = 1024
    layers: int = 3
    token_width: int = 256
    hidden_layer: int | None = None
    m: Literal["text", "global"] = "text"

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrangement", arrangement_named(self.arrangement))
        for name in ("e_tokens", "max_tokens", "width", "layers", "token_width"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.m not in ("text", "global"):
            raise InputError(f"m is {self.m!r}; it must be 'text' or 'global'")

    @property
    def laid_out(self) -> Arrangement:
        """The arrangement itself."""
        return arrangement_named(self.arrangement)

    @property
    def vectors(self) -> int:
        """How many vectors the head writes for a text: K, and one more if m is the text's own."""
        return self.e_tokens + (self.m == "text")

    def to_json(self) -> dict[str, Any]:
        """The config as plain JSON values; `from_json` is the way back."""
        return asdict(self) | {"arrangement": self.laid_out.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EncoderConfig:
        """The config that `to_json` described."""
        return cls(**{**value, "arrangement": Arrangement.from_json(value["arrangement"])})


SIZES: dict[str, EncoderConfig] = {
    "tiny": EncoderConfig(trunk="perceptron", width=1024, layers=3, token_width=256),
    "small": EncoderConfig(trunk="transformer", width=576, layers=4),
    "large": EncoderConfig(trunk="transformer", width=1024, layers=12, hidden_layer=-1),
}
"""Named sizes. Beside an LM of 576 dimensions they have 8, 18 and 155 million weights at 16 tokens."""


def encoder_size(name: str, **changes: Any) -> EncoderConfig:
    """The config of that name, with some of its fields changed.

    Raises:
        InputError: there is no such size.
    """
    if name not in SIZES:
        raise InputError(f"unknown size {name!r}; choose one of: {' '.join(SIZES)}")
    return replace(SIZES[name], **changes)
