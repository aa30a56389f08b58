"""How an encoder is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..arrangements import Arrangement, blocks
from ..errors import InputError


@dataclass(frozen=True)
class EncoderConfig:
    """What an encoder reads and what it is made of.

    It writes an e-token for every block of b tokens, in the arrangement `blocks(b)`: a text of T tokens has
    K = T / b rounded up, and a text of at most b tokens the paper's two vectors. It takes texts of any length.

    Beside an LM of width 576 the default encoder has 7 million weights.

    Attributes:
        block_length: b, the tokens of a block.
        neighbours: n, how many tokens on either side of a block the network reads beside the block's own.
        trunk: name of one of `TRUNKS`.
        width: width of the trunk.
        layers: layers of the trunk.
        token_width: width that a perceptron projects each token's features to before it concatenates them.
        hidden_layer: the frozen LM's hidden states that are features beside the token embeddings, numbered as Hugging
            Face does (0: the input of the first layer; -1: the last); None: embeddings alone. Hidden states cost one
            more forward pass of the LM over the T tokens.
        m: `"text"`: the encoder writes an m-token for every text; `"global"`: one learned m-token serves all texts.
    """

    block_length: int = 4
    neighbours: int = 4
    trunk: str = "perceptron"
    width: int = 1024
    layers: int = 3
    token_width: int = 256
    hidden_layer: int | None = None
    m: Literal["text", "global"] = "text"

    def __post_init__(self) -> None:
        for name, low in (("block_length", 1), ("neighbours", 0), ("width", 1), ("layers", 1), ("token_width", 1)):
            if getattr(self, name) < low:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least {low}")
        blocks(self.block_length)  # which knows how long they may be
        if self.m not in ("text", "global"):
            raise InputError(f"m is {self.m!r}; it must be 'text' or 'global'")

    @property
    def arrangement(self) -> Arrangement:
        """The arrangement that its vectors are for."""
        return blocks(self.block_length)

    @property
    def window_length(self) -> int:
        """The tokens that the network reads for a block: n + b + n."""
        return self.block_length + 2 * self.neighbours

    @property
    def n_outputs(self) -> int:
        """How many vectors the head writes for a block: e, and one more if every text gets an m-token."""
        return 1 + (self.m == "text")

    def to_json(self) -> dict[str, Any]:
        """The config as plain JSON values; `from_json` is the way back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EncoderConfig:
        """The config that `to_json` described."""
        return cls(**value)
