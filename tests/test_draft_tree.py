"""Laws of trees of drafts: which tokens are worth a position, what each of them sees, and where the masks stand."""

from __future__ import annotations

from itertools import count
from math import inf
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prototokens.drafting.tree import Place, Tree, candidates, grow

CHANCES = st.floats(0.01, 1)


@st.composite
def places_of(draw: st.DrawFn) -> list[Place]:
    """Up to four places of up to three candidates, the likeliest first, whose chances add up to at most 1."""
    places = []
    for _ in range(draw(st.integers(0, 4))):
        chances = draw(st.lists(CHANCES, min_size=1, max_size=3))
        total = max(1.0, sum(chances) * 1.001)
        tokens = draw(st.permutations(range(5)))
        places.append(list(zip(tokens, sorted((c / total for c in chances), reverse=True), strict=False)))
    return places


def grow_of(token: int, places: list[Place], acceptance: list[list[float]], price: float, **bounds: Any) -> Tree:
    """A tree for which each place has the same candidates, whatever path leads to it."""

    def propose(paths: list[tuple[int, ...]]) -> list[Place]:
        assert {path[0] for path in paths} == {token}
        (length,) = {len(path) for path in paths}
        return [places[length - 1] if length <= len(places) else []] * len(paths)

    return grow(token, propose, acceptance, price, **({"depth": 9} | bounds))


@st.composite
def grown(draw: st.DrawFn) -> tuple[Tree, dict]:
    """A tree, and what it grew from."""
    shares = st.lists(st.floats(0, 1), min_size=3, max_size=3)
    n_masks = draw(st.integers(0, 4))
    source = {
        "places": draw(places_of()),
        "acceptance": [draw(shares) for _ in range(n_masks + 1)],
        "depth": draw(st.integers(0, 5)),
        "price": draw(st.sampled_from([0.0, 0.01, 0.05, 0.2, 0.6])),
        "max_nodes": draw(st.integers(1, 30)),
        "room": draw(st.none() | st.integers(1, 6)),
    }
    return grow_of(7, **source), source


def path(tree: Tree, node: int) -> list[int]:
    """The nodes that lead to a node, itself included."""
    return [] if node < 0 else [*path(tree, tree.parents[node]), node]


def continuations(places: list[Place], price: float) -> list[tuple[float, tuple[int, ...]]]:
    """Every continuation that is worth its position, with its chance."""
    level, worth = [(1.0, ())], []
    for place in places:
        level = [(chance * c, (*tokens, t)) for chance, tokens in level for t, c in place if chance * c >= price]
        worth += level
    return worth


@given(grown())
def test_a_tree_holds_the_likeliest_continuations_that_are_worth_a_position(case: tuple[Tree, dict]) -> None:
    tree, source = case
    room = 9 if source["room"] is None else max(0, source["room"] - 2)  # what follows the last but one is known
    worth = continuations(source["places"][: min(room, source["depth"])], source["price"])
    held = [(tree.chances[n], tuple(tree.tokens[i] for i in path(tree, n)[1:])) for n in range(1, len(tree.tokens))]
    assert len(held) == len(set(held)) == min(len(worth), source["max_nodes"] - 1)
    assert set(held) <= set(worth)
    likeliest = sorted((chance for chance, _ in worth), reverse=True)
    assert sorted((chance for chance, _ in held), reverse=True) == likeliest[: len(held)]


@given(grown())
def test_parents_come_first_and_chances_are_products(case: tuple[Tree, dict]) -> None:
    tree, source = case
    assert (tree.tokens[0], tree.parents[0], tree.depths[0], tree.chances[0]) == (7, -1, 0, 1.0)
    for node, parent in enumerate(tree.parents[1:], 1):
        assert 0 <= parent < node
        assert tree.depths[node] == tree.depths[parent] + 1
        assert (
            tree.chances[node] == tree.chances[parent] * dict(source["places"][tree.depths[parent]])[tree.tokens[node]]
        )
        assert tree.chances[node] >= source["price"]


@given(grown())
def test_a_mask_is_worth_the_chance_that_the_pass_ends_before_it(case: tuple[Tree, dict]) -> None:
    tree, source = case
    for node, n_masks in enumerate(tree.n_masks):
        end = tree.chances[node]
        for other, parent in enumerate(tree.parents):
            if parent == node:
                end -= tree.chances[other]
        gains = [end * sum(shares) - n * source["price"] for n, shares in enumerate(source["acceptance"])]
        if source["room"] is not None:
            # The mask at place p drafts the token at p + 1, which must not be the last: that one needs no draft.
            gains = [g for n, g in enumerate(gains) if n == 0 or tree.depths[node] + n + 1 <= source["room"] - 2]
        assert gains[n_masks] == max(gains) > max([-inf, *gains[:n_masks]])


def test_a_full_tree_goes_deep_or_wide_where_the_chances_are() -> None:
    deep: list[Place] = [[(1, 0.9), (2, 0.1)], [(3, 0.9)], [(4, 0.9)]]
    wide: list[Place] = [[(1, 0.4), (2, 0.3), (3, 0.2), (4, 0.1)], [(5, 0.3)]]
    assert grow_of(0, deep, [[0]], 0.0, max_nodes=4).tokens == (0, 1, 3, 4)
    assert grow_of(0, wide, [[0]], 0.0, max_nodes=4).tokens == (0, 1, 2, 3)


def test_candidates_may_depend_on_the_path() -> None:
    def propose(paths: list[tuple[int, ...]]) -> list[Place]:
        return [[(sum(path) + 10, 0.6), (sum(path) + 70, 0.4)] for path in paths]

    tree = grow(1, propose, [[0]], 0.0, depth=3)
    assert len(tree.tokens) == 1 + 2 + 4 + 8
    for node in range(1, 15):
        tokens = [tree.tokens[i] for i in path(tree, node)]
        assert tokens[-1] - sum(tokens[:-1]) in (10, 70)


def test_masks_by_hand() -> None:
    """One candidate of chance 0.6: the pass ends at node 0 with chance 0.4 and at node 1 with chance 0.6."""
    rows = [[0.1, 0.0], [0.5, 0.1], [0.5, 0.3]]  # 0.1, 0.6 and 0.8 drafts are accepted behind no, one and two masks
    # One mask is worth 0.2 at node 0 and 0.3 at node 1; the second is worth 0.08 and 0.12.
    masks = {0.07: (2, 2), 0.1: (1, 2), 0.15: (1, 1), 0.25: (0, 1), 0.35: (0, 0)}
    for price, n_masks in masks.items():
        tree = grow_of(1, [[(2, 0.6)]], rows, price)
        assert (tree.tokens, tree.n_masks) == ((1, 2), n_masks)
    assert grow_of(1, [[(2, 0.6)]], rows, 0.6).tokens == (1, 2)  # worth exactly its price
    assert grow_of(1, [[(2, 0.6)]], rows, 0.61) == Tree((1,), (-1,), (0,), (1.0,), (0,))


@pytest.mark.parametrize(
    ("room", "tokens", "n_masks"),
    [
        (None, (1, 2, 3, 4), (3, 3, 3, 3)),
        (9, (1, 2, 3, 4), (3, 3, 3, 3)),
        (6, (1, 2, 3, 4), (3, 2, 1, 0)),
        (4, (1, 2, 3), (1, 0, 0)),
        (3, (1, 2), (0, 0)),
        (2, (1,), (0,)),
        (1, (1,), (0,)),
    ],
)
def test_nothing_is_drafted_that_no_pass_is_saved_by(
    room: int | None, tokens: tuple[int, ...], n_masks: tuple[int, ...]
) -> None:
    """Of `room` wanted tokens the first is known, and the output behind the last but one gives the last."""
    tree = grow_of(1, [[(2, 0.9)], [(3, 0.9)], [(4, 0.9)]], [[0], [1], [2], [3]], 0, room=room)
    assert (tree.tokens, tree.n_masks) == (tokens, n_masks)


def test_a_price_of_nothing_takes_all_and_an_infinite_one_nothing() -> None:
    places: list[Place] = [[(1, 0.5), (2, 0.1)], [(3, 0.3), (4, 0.2), (5, 0.1)]]
    everything = grow_of(0, places, [[0], [0.5], [0.6]], 0.0)
    assert len(everything.tokens) == 1 + 2 + 2 * 3
    assert everything.n_masks == (2,) * 9
    assert grow_of(0, places, [[0], [1], [2]], inf) == Tree((0,), (-1,), (0,), (1.0,), (0,))


@given(places_of(), st.integers(1, 30))
def test_one_candidate_a_place_gives_a_chain(places: list[Place], max_nodes: int) -> None:
    tree = grow_of(0, [place[:1] for place in places], [[0.5]], 0.0, max_nodes=max_nodes)
    assert tree.parents == tuple(range(-1, len(tree.tokens) - 1))
    assert tree.tokens == (0, *(place[0][0] for place in places))[:max_nodes]


@given(grown())
def test_nodes_see_what_leads_to_them_and_masks_the_masks_before_them(case: tuple[Tree, dict]) -> None:
    tree, _ = case
    expected = torch.zeros(tree.n_positions, tree.n_positions, dtype=torch.bool)
    position = count(len(tree.tokens))
    places = list(tree.depths)
    for node in range(len(tree.tokens)):
        expected[node, path(tree, node)] = True
    for node, n_masks in enumerate(tree.n_masks):
        masks = [next(position) for _ in range(n_masks)]
        assert not masks or tree.first_masks()[node] == masks[0]
        for i, row in enumerate(masks):
            expected[row, path(tree, node) + masks[: i + 1]] = True
            places.append(tree.depths[node] + i + 1)
    assert next(position) == tree.n_positions
    assert torch.equal(tree.visible(), expected)
    assert tree.places().tolist() == places


@given(grown())
def test_a_child_is_found_by_its_token(case: tuple[Tree, dict]) -> None:
    tree, _ = case
    for node in range(len(tree.tokens)):
        children = {tree.tokens[n]: n for n, parent in enumerate(tree.parents) if parent == node}
        assert {token: tree.child(node, token) for token in range(8)} == {t: children.get(t) for t in range(8)}


def test_candidates_are_the_likeliest_tokens_with_their_chances() -> None:
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    for width in (1, 4, 6, 9):
        for place, row in zip(candidates(logits, width), logits.softmax(-1).tolist(), strict=True):
            order = sorted(range(6), key=lambda token: -row[token])[:width]
            assert [token for token, _ in place] == order
            assert [chance for _, chance in place] == pytest.approx([row[token] for token in order], rel=1e-5)
