"""Arrangements: which vector stands at each input position, and which outputs are read."""

from __future__ import annotations

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
            (earlier symbols take what does not divide).
        first_read: `"head"` reads t_1 at the head's last position, `"body"` at the body's first.

    Reference: Exploring the Latent Capacity of LLMs for One-Step Text Generation (Mezentsev & Oseledets, 2025),
    Table 1, https://arxiv.org/abs/2505.21189.
    """

    name: str
    head: tuple[str, ...]
    body: tuple[str, ...]
    tiling: Literal["cycle", "blocks"] = "cycle"
    first_read: Literal["head", "body"] = "head"

    def __post_init__(self) -> None:
        object.__setattr__(self, "head", tuple(self.head))
        object.__setattr__(self, "body", tuple(self.body))
        for name, choices in (("tiling", ("cycle", "blocks")), ("first_read", ("head", "body"))):
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

    @property
    def fixed(self) -> tuple[str, ...]:
        """Names of the fixed vectors, in the order of their first appearance."""
        return tuple(dict.fromkeys(s for s in self.head + self.body if s not in (E_TOKEN, M_TOKEN)))

    def layout(self, length: int, e_tokens: int = 1) -> Layout:
        """Spell the arrangement out for a text of `length` tokens and K = `e_tokens` e-tokens.

        Raises:
            InputError: one of them is below 1 or above `MOST_TOKENS`; nothing is allocated then.
        """
        for what, n_tokens in (("a text", length), ("an input", e_tokens)):
            if not 1 <= n_tokens <= MOST_TOKENS:
                kind = "tokens" if what == "a text" else "e-tokens"
                raise InputError(f"{what} of {n_tokens} {kind}: it must have 1 to {MOST_TOKENS}")
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
        return Layout(tuple(head + body), first, length)

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
    """

    slots: tuple[int, ...]
    first: int
    length: int

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


def arrangement_named(name: str | Arrangement) -> Arrangement:
    """The arrangement of that name; an `Arrangement` is passed through."""
    if isinstance(name, Arrangement):
        return name
    if name.replace(" ", "") not in ARRANGEMENTS:
        raise InputError(f"unknown arrangement {name!r}; choose one of: {'  '.join(ARRANGEMENTS)}")
    return ARRANGEMENTS[name.replace(" ", "")]
