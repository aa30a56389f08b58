"""Arrangements: which vector stands at each input position, and which outputs are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from .errors import InputError

E_TOKEN = "e"
M_TOKEN = "m"

MOST_TOKENS = 1 << 20
"""Tokens of a text, and e-tokens, at most: beyond what one forward pass of any model takes."""


@dataclass(frozen=True)
class Arrangement:
    """How e, m and fixed vectors fill the input of the one forward pass.

    The input is `head` followed by `body`, repeated until T outputs can be read. A symbol is `"e"` (in the head:
    all K e-tokens one after another; in the body: e_1, e_2, ... in turn), `"m"`, or any other word, which names a
    fixed vector that is never trained (`"bos"` is filled in from the model; other names are given to `fit`).
    Nothing is shifted: the outputs of T consecutive positions are read as tokens t_1 ... t_T.

    Attributes:
        name: what the arrangement is called.
        head: symbols that stand once, in front.
        body: symbols that fill the rest.
        tiling: `"cycle"` repeats the body's symbols in turn, `"blocks"` gives each symbol one run of equal length
            (earlier symbols take what does not divide). `"e-blocks"` repeats the body too, and every repetition is a
            block of the text with an e-token of its own: K is the number of blocks, and the last one may be short.
        first_read: `"head"` reads t_1 at the head's last position, `"body"` at the body's first.

    Reference: Exploring the Latent Capacity of LLMs for One-Step Text Generation (Mezentsev & Oseledets, 2025),
    Table 1, https://arxiv.org/abs/2505.21189.
    """

    name: str
    head: tuple[str, ...]
    body: tuple[str, ...]
    tiling: Literal["cycle", "blocks", "e-blocks"] = "cycle"
    first_read: Literal["head", "body"] = "head"

    def __post_init__(self) -> None:
        object.__setattr__(self, "head", tuple(self.head))
        object.__setattr__(self, "body", tuple(self.body))
        for name, choices in (("tiling", ("cycle", "blocks", "e-blocks")), ("first_read", ("head", "body"))):
            if getattr(self, name) not in choices:
                raise InputError(
                    f"arrangement {self.name!r}: {name} is {getattr(self, name)!r}; it must be one of {choices}"
                )
        if not self.body:
            raise InputError(f"arrangement {self.name!r}: the body needs at least one symbol")
        if self.first_read == "head" and not self.head:
            raise InputError(f"arrangement {self.name!r}: t_1 cannot be read in an empty head")
        if E_TOKEN not in self.head + self.body:
            raise InputError(f"arrangement {self.name!r}: no position holds an e-token")
        in_blocks = self.body.count(E_TOKEN) == 1 and E_TOKEN not in self.head and self.first_read == "body"
        if self.tiling == "e-blocks" and not in_blocks:
            raise InputError(
                f"arrangement {self.name!r}: with tiling 'e-blocks' the body holds one e-token and the head none, and "
                "t_1 is read at the body's first position"
            )

    @property
    def fixed(self) -> tuple[str, ...]:
        """Names of the fixed vectors, in the order of their first appearance."""
        return tuple(dict.fromkeys(s for s in self.head + self.body if s not in (E_TOKEN, M_TOKEN)))

    @property
    def block_length(self) -> int | None:
        """b, the number of tokens of a block that has an e-token of its own; None where there are no such blocks."""
        return len(self.body) if self.tiling == "e-blocks" else None

    def n_e_tokens(self, length: int, e_tokens: int = 1) -> int:
        """K for a text of `length` tokens: one for every block, or else `e_tokens`."""
        return e_tokens if self.block_length is None else -(-length // self.block_length)

    def is_of_family(self, other: Arrangement) -> bool:
        """Whether the two are alike, or differ in nothing but the length of their blocks."""
        in_blocks = self.tiling == other.tiling == "e-blocks" and self.head == other.head
        return self == other or (in_blocks and self._pattern == other._pattern)

    @property
    def _pattern(self) -> tuple[str, ...]:
        """The body without the m-tokens that fill a block."""
        return tuple(symbol for symbol in self.body if symbol != M_TOKEN)

    def layout(self, length: int, e_tokens: int | None = None) -> Layout:
        """Spell the arrangement out for a text of `length` tokens.

        Args:
            length: T.
            e_tokens: K; None: one, or one for every block.

        Raises:
            InputError: a number is below 1 or above `MOST_TOKENS`, or K is not the number of blocks; nothing is
                allocated then.
        """
        needed = self.n_e_tokens(length, e_tokens or 1)
        e_tokens = needed if e_tokens is None else e_tokens
        for what, n_tokens in (("a text", length), ("an input", e_tokens)):
            if not 1 <= n_tokens <= MOST_TOKENS:
                kind = "tokens" if what == "a text" else "e-tokens"
                raise InputError(f"{what} of {n_tokens} {kind}: it must have 1 to {MOST_TOKENS}")
        if e_tokens != needed:
            raise InputError(
                f"{e_tokens} e-tokens for a text of {length} tokens in {self.name!r}: it takes {needed}, one for each "
                f"block of {self.block_length}"
            )
        head = [slot for symbol in self.head for slot in self._slots(symbol, e_tokens)]
        first = len(head) - 1 if self.first_read == "head" else len(head)
        n_symbols = first + length - len(head)
        if self.tiling == "blocks":
            share, rest = divmod(n_symbols, len(self.body))
            symbols = [s for i, s in enumerate(self.body) for _ in range(share + (i < rest))]
        else:
            symbols = [self.body[i % len(self.body)] for i in range(n_symbols)]
        slots_of = {symbol: self._slots(symbol, e_tokens) for symbol in self.body}
        n_e, body = 0, []  # how many e-tokens have been placed
        for symbol in symbols:
            slots = slots_of[symbol]
            body.append(slots[n_e % len(slots)])
            n_e += symbol == E_TOKEN
        return Layout(tuple(head + body), first, length, self.block_length)

    def _slots(self, symbol: str, e_tokens: int) -> list[int]:
        if symbol == E_TOKEN:
            return list(range(e_tokens))
        if symbol == M_TOKEN:
            return [e_tokens]
        return [e_tokens + 1 + self.fixed.index(symbol)]

    def to_json(self) -> dict[str, Any]:
        """The arrangement as plain JSON values; `from_json` is the way back."""
        return {
            "name": self.name,
            "head": list(self.head),
            "body": list(self.body),
            "tiling": self.tiling,
            "first_read": self.first_read,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Arrangement:
        """The arrangement that `to_json` described."""
        return cls(value["name"], tuple(value["head"]), tuple(value["body"]), value["tiling"], value["first_read"])


@dataclass(frozen=True)
class Layout:
    """An arrangement spelt out for one length.

    Attributes:
        slots: for each of the L input positions the vector that stands there: 0 ... K-1 are the e-tokens, K is m,
            K+1 ... are the fixed vectors.
        first: the input position whose output is t_1.
        length: T, the number of outputs read, at positions first ... first+T-1.
        block_length: b, where every block of b tokens has an e-token of its own; None where there are no such blocks.
    """

    slots: tuple[int, ...]
    first: int
    length: int
    block_length: int | None = None

    def block_means(self, values: Tensor) -> Tensor:
        """Means of the tokens' values (..., T) over each block, (..., K); over all tokens, (..., 1), without blocks."""
        b = self.block_length or self.length
        missing = -self.length % b  # tokens that the last block is short of
        means = torch.nn.functional.pad(values, (0, missing)).unflatten(-1, (-1, b)).mean(-1)
        means[..., -1] *= b / (b - missing)
        return means

    def inputs_embeds(self, e: Tensor, m: Tensor, fixed: Tensor) -> Tensor:
        """Put the vectors in their places: e (B, K, D), m (B, D), fixed (F, D) or (B, F, D) -> (B, L, D)."""
        rows = fixed.to(e).expand(e.shape[0], -1, -1)  # (B, F, D)
        vectors = torch.cat([e, m.unsqueeze(1), rows], dim=1)  # (B, K+1+F, D)
        return vectors[:, _on_device(self.slots, e.device)]  # (B, L, D)

    def read_positions(self) -> range:
        """The input positions whose outputs are t_1 ... t_T."""
        return range(self.first, self.first + self.length)


@lru_cache(maxsize=64)
def _on_device(slots: tuple[int, ...], device: torch.device) -> Tensor:
    # Kept, since a copy to a GPU in every step of a fit would stop its queue.
    with torch.inference_mode(False):
        return torch.tensor(slots, device=device)


ARRANGEMENTS: dict[str, Arrangement] = {
    a.name: a
    for a in (
        Arrangement("e*n", (), ("e",), first_read="body"),
        Arrangement("e*n/2,m*n/2", (), ("e", "m"), "blocks", first_read="body"),
        Arrangement("(e,m)*n/2", (), ("e", "m"), first_read="body"),
        Arrangement("e,m*n", ("e",), ("m",), first_read="body"),
        Arrangement("e,m*(n-1)", ("e",), ("m",)),
        Arrangement("m,e,m*(n-1)", ("m", "e"), ("m",)),
        Arrangement("bos,e,m*(n-1)", ("bos", "e"), ("m",)),
        Arrangement("bos,e,m*n", ("bos", "e"), ("m",), first_read="body"),
    )
}
"""The five arrangements of the paper's Table 1, then those that move e off the attention sink at position 0."""


def blocks(block_length: int) -> Arrangement:
    """The arrangement with an e-token for every block of b tokens, at the block's first position, and one m for all.

    m  e_1 m ... m  e_2 m ... m  ...  e_K m ... m,  K = T / b rounded up, t_1 read at e_1; it is called
    `m,(e,m*(b-1))`, b being spelt out. For T <= b its input is that of `m,e,m*(n-1)`.

    Raises:
        InputError: `block_length` is below 1 or above `MOST_TOKENS`.
    """
    if not 1 <= block_length <= MOST_TOKENS:
        raise InputError(f"blocks of {block_length} tokens: they must have 1 to {MOST_TOKENS}")
    name = "m,(e)" if block_length == 1 else f"m,(e,m*{block_length - 1})"
    return Arrangement(name, ("m",), ("e",) + ("m",) * (block_length - 1), "e-blocks", "body")


def arrangement_named(name: str | Arrangement) -> Arrangement:
    """The arrangement of that name; an `Arrangement` is passed through."""
    if isinstance(name, Arrangement):
        return name
    plain = name.replace(" ", "")
    if plain in ARRANGEMENTS:
        return ARRANGEMENTS[plain]
    in_blocks = re.fullmatch(r"m,\(e(?:,m\*(\d{1,7}))?\)", plain)
    if in_blocks:
        return blocks(int(in_blocks[1] or 0) + 1)
    raise InputError(
        f"unknown arrangement {name!r}; choose one of: {'  '.join(ARRANGEMENTS)}, or m,(e,m*7) for blocks of 8 tokens, "
        "and so on"
    )
