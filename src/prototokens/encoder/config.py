"""How an encoder is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..arrangements import Arrangement, arrangement_named
from ..errors import InputError


@dataclass(frozen=True)
class EncoderConfig:
    """What an encoder reads, what it is made of and what it writes.

    Beside an LM of width 576 the default encoder has 8 million weights.

    Attributes:
        arrangement: the arrangement that its vectors are for.
        e_tokens: K, the number of e-tokens that it writes.
        max_tokens: the longest text that it takes, in tokens; it takes every shorter one too.
        trunk: name of one of `TRUNKS`.
        width: width of the trunk.
        layers: layers of the trunk.
        token_width: width that a perceptron projects each token's features to before it concatenates them.
        hidden_layer: the frozen LM's hidden states that are features beside the token embeddings, numbered as Hugging
            Face does (0: the input of the first layer; -1: the last); None: embeddings alone. Hidden states cost one
            more forward pass of the LM over the T tokens.
        m: `"text"`: the encoder writes an m-token for every text; `"global"`: one learned m-token serves all texts.
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
    def n_vectors(self) -> int:
        """How many vectors the head writes for a text: K, and one more if every text gets an m-token."""
        return self.e_tokens + (self.m == "text")

    def to_json(self) -> dict[str, Any]:
        """The config as plain JSON values; `from_json` is the way back."""
        return asdict(self) | {"arrangement": arrangement_named(self.arrangement).to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EncoderConfig:
        """The config that `to_json` described."""
        return cls(**{**value, "arrangement": Arrangement.from_json(value["arrangement"])})
