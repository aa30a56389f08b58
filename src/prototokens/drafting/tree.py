"""Trees of drafts: which tokens a pass verifies, and behind which of them it drafts anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


Propose = Callable[[list[tuple[int, ...]]], list[Place]]
"""Candidates for the place behind each of some paths, all equally long: the tokens from node 0 on."""


def grow(
    token: int,
    propose: Propose,
    acceptance: Sequence[Sequence[float]],
    price: float,
    *,
    depth: int,
    max_nodes: int = 64,
    room: int | None = None,
) -> Tree:
    """The tree whose nodes and learned inputs are each worth their position.

    A node is worth the chance that it is accepted, in tokens. The masks behind a node are worth the chance that the
    pass ends at this node, times the number of drafts that are accepted behind so many masks in the mean.

    Args:
        token: the next token.
        propose: gives candidates.
        acceptance: row n: with n masks behind a token, the share of drafts that are accepted as far as the i-th.
        price: what one more input position costs, in tokens.
        depth: drafts behind the next token at most.
        max_nodes: nodes at most, the first included; the likeliest are kept.
        room: tokens that are still wanted, `token` included. The last of them is not drafted: the output behind the one
            before gives it in any case.
    """
    nodes: list[tuple[float, int, tuple[int, ...]]] = [(1.0, -1, (token,))]  # chance, parent, path
    level = [0]
    for _ in range(depth if room is None else min(depth, room - 2)):
        if not level or max_nodes == 1:
            break
        children = [
            (nodes[node][0] * chance, node, (*nodes[node][2], candidate))
            for node, place in zip(level, propose([nodes[node][2] for node in level]), strict=True)
            for candidate, chance in place
            if nodes[node][0] * chance >= price
        ]
        children = sorted(children, key=lambda child: -child[0])[: max_nodes - 1]
        level = list(range(len(nodes), len(nodes) + len(children)))
        nodes += children
    kept = sorted(sorted(range(len(nodes)), key=lambda node: -nodes[node][0])[:max_nodes])
    place_of = {node: i for i, node in enumerate(kept)} | {-1: -1}
    chances, parents, paths = zip(*(nodes[node] for node in kept), strict=True)
    parents = tuple(place_of[parent] for parent in parents)
    tokens, depths = tuple(path[-1] for path in paths), tuple(len(path) - 1 for path in paths)
    ends = list(chances)
    for node, parent in enumerate(parents[1:], 1):
        ends[parent] -= chances[node]
    worth = [sum(row) for row in acceptance]
    n_masks = []
    for end, node_depth in zip(ends, depths, strict=True):
        most = len(worth) - 1 if room is None else min(len(worth) - 1, max(0, room - 3 - node_depth))
        n_masks.append(max(range(most + 1), key=lambda n: end * worth[n] - n * price))
    return Tree(tokens, parents, depths, chances, tuple(n_masks))


def candidates(logits: Tensor, width: int, vocabulary: Tensor | None = None) -> list[Place]:
    """The likeliest tokens of each row of logits (N, S).

    Args:
        logits: of drafts.
        width: candidates for each.
        vocabulary: the ids of the S tokens, int64; None: 0 ... S - 1.
    """
    chances, tokens = logits.float().softmax(-1).topk(min(width, logits.shape[-1]), dim=-1)
    tokens = tokens.cpu() if vocabulary is None else vocabulary.cpu()[tokens.cpu()]
    return [list(zip(*place, strict=True)) for place in zip(tokens.tolist(), chances.tolist(), strict=True)]
