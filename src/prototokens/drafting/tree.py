"""Trees of drafts: which tokens a pass verifies, and behind which of them it drafts anew."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Place = Sequence[tuple[int, float]]
"""Candidates for one place of the continuation, the likeliest first: token and chance."""


@dataclass(frozen=True)
class Tree:
    """Tokens to verify in one pass. Node 0 is the next token, which is known; the others are drafts.

    Attributes:
        tokens: of each node.
        parents: the node before it; -1 for node 0. Parents come before their children.
        depths: how many tokens a node is behind node 0.
        chances: the chance that a node and all before it are what the model writes.
        n_masks: learned inputs behind a node.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    chances: tuple[float, ...]
    n_masks: tuple[int, ...]

    @property
    def n_positions(self) -> int:
        """Input positions of its pass."""
        return len(self.tokens) + sum(self.n_masks)

    def child(self, node: int, token: int) -> int | None:
        """The child of a node that holds a token, if there is one."""
        children = (n for n in range(node + 1, len(self.tokens)) if self.parents[n] == node)
        return next((n for n in children if self.tokens[n] == token), None)

    def first_masks(self) -> tuple[int, ...]:
        """Where the learned inputs behind each node begin in the pass's input: nodes come first."""
        starts, position = [], len(self.tokens)
        for n_masks in self.n_masks:
            starts.append(position)
            position += n_masks
        return tuple(starts)

    def places(self) -> Tensor:
        """How many places each input position is behind node 0, int64, (Q,)."""
        masks = [depth + i for depth, n in zip(self.depths, self.n_masks, strict=True) for i in range(1, n + 1)]
        return torch.tensor([*self.depths, *masks])

    def visible(self) -> Tensor:
        """Which input positions each of them attends to, bool, (Q, Q): itself and what leads to it."""
        seen = torch.eye(self.n_positions, dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        for node, first in enumerate(self.first_masks()):
            for position in range(first, first + self.n_masks[node]):
                seen[position] |= seen[position - 1] if position > first else seen[node]
        return seen


def grow(
    token: int,
    places: Sequence[Place],
    acceptance: Sequence[float],
    price: float,
    *,
    max_nodes: int = 64,
    room: int | None = None,
) -> Tree:
    """The tree whose nodes and learned inputs are each worth their position.

    A node is worth the chance that it is accepted, in tokens. Mask i behind a node is worth the chance that the pass
    ends at this node, times the share of drafts that are accepted as far as the i-th.

    Args:
        token: the next token.
        places: the drafts for the places behind it.
        acceptance: for each mask behind a token, the share of drafts that are accepted as far as it.
        price: what one more input position costs, in tokens.
        max_nodes: nodes at most, the first included.
        room: tokens that are still wanted, `token` included. The last of them is not drafted: the output behind the one
            before gives it in any case.
    """
    depth_bound = len(places) if room is None else min(len(places), room - 2)
    tokens, parents, depths, chances = [token], [-1], [0], [1.0]
    waiting: list[tuple[float, int, int, int, int]] = []  # by chance, then in order of coming
    n_seen = 0

    def offer(node: int) -> None:
        nonlocal n_seen
        if depths[node] < depth_bound:
            for candidate, chance in places[depths[node]]:
                n_seen += 1
                if chances[node] * chance >= price:
                    heapq.heappush(waiting, (-chances[node] * chance, n_seen, node, candidate, depths[node] + 1))

    offer(0)
    while waiting and len(tokens) < max_nodes:
        chance, _, parent, candidate, depth = heapq.heappop(waiting)
        tokens.append(candidate)
        parents.append(parent)
        depths.append(depth)
        chances.append(-chance)
        offer(len(tokens) - 1)
    ends = list(chances)
    for node, parent in enumerate(parents[1:], 1):
        ends[parent] -= chances[node]
    n_masks = []
    for node, end in enumerate(ends):
        left = len(acceptance) if room is None else min(len(acceptance), max(0, room - 3 - depths[node]))
        n_masks.append(next((i for i in range(left) if end * acceptance[i] < price), left))
    return Tree(tuple(tokens), tuple(parents), tuple(depths), tuple(chances), tuple(n_masks))


def candidates(logits: Tensor, width: int) -> list[Place]:
    """The likeliest tokens for each place, from the logits of the masks, (M, V).

    Args:
        logits: of the learned inputs behind one token.
        width: candidates for each place.
    """
    if not len(logits):
        return []
    chances, tokens = logits.float().softmax(-1).topk(min(width, logits.shape[-1]), dim=-1)
    return [list(zip(*place, strict=True)) for place in zip(tokens.tolist(), chances.tolist(), strict=True)]
