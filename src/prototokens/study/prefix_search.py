"""Capacity: the longest prefix of a text that one set of vectors holds, for one model, recipe and seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..baselines.cramming import CRAMMING, CrammingResult, cram_batch
from ..errors import InputError
from ..fitting.fit import FitResult, fit_batch
from ..fitting.given import Given
from ..fitting.recipes import FitConfig, preset
from ..lm.frozen import FrozenLM
from ..metrics import h_lm_nats
from .published import LENGTHS


@dataclass(frozen=True, eq=False)
class Trial:
    """One fit of one prefix.

    Attributes:
        n_tokens: its length.
        reached: whether the vectors hold it: the recipe's accuracy was reached.
        token_accuracy: share of right tokens.
        steps: optimiser steps.
        work: positions passed forward plus positions passed backward.
        vectors: what a longer prefix starts from: (e, m), or [mem] vectors.
    """

    n_tokens: int
    reached: bool
    token_accuracy: float
    steps: int
    work: int
    vectors: Any


FitPrefixes = Callable[[Tensor, list[Any], int], list[Trial]]
"""`fit_prefixes(target_ids (B, L), begin, max_steps)`: one trial per text.

`begin` has an entry for each text: the vectors to start from, or None for the recipe's start. Either all entries are
vectors or all are None.
"""


@dataclass(frozen=True, eq=False)
class Capacity:
    """The result of a search for the longest prefix.

    Attributes:
        n_tokens: length of the longest prefix that was reached; 0 if none was.
        bound: the shortest length that failed, or None where the search ended before one did.
        vectors: those of the longest prefix, or None.
        trials: all fits, in order.
        work: positions passed forward plus positions passed backward, over all trials.
        stop_reason: `"text"` (the whole text was reached), `"bound"` (`n_tokens` + 1 failed, or the next of the
            lengths), or `"work"` (the budget was spent).
    """

    n_tokens: int
    bound: int | None
    vectors: Any
    trials: tuple[Trial, ...]
    work: int
    stop_reason: str


def one_step(lm: FrozenLM, config: FitConfig | None = None, given: Given | None = None) -> FitPrefixes:
    """Fits of e and m, read in one pass; reached at the recipe's `Stop.accuracy`.

    Args:
        lm: the frozen model.
        config: the recipe; the default preset if None. Its perturbation is for first starts only.
        given: vectors held fixed for all texts, m (D,) or e (K, D); nothing shared.
    """
    config, given = config or preset(), given or Given()
    config = replace(config, tokens_per_vector=None)  # a longer prefix begins at the vectors of a shorter one
    if given.share is not None:
        raise InputError("a search for one text's longest prefix shares no vector with other texts")

    def fit_prefixes(target_ids: Tensor, begin: list[Any], max_steps: int) -> list[Trial]:
        recipe, vectors = replace(config, stop=replace(config.stop, max_steps=max_steps)), given
        if begin[0] is not None:
            recipe = replace(recipe, perturbation=0.0, restarts=1)
            e_start, m_start = (torch.stack(each) for each in zip(*begin, strict=True))
            vectors = replace(
                given,
                e_start=None if given.e is not None else e_start,
                m_start=None if given.m is not None else m_start,
            )
        return [
            _trial(r, target_ids.shape[1], r.token_accuracy, config.stop.accuracy, (r.tokens.e, r.tokens.m))
            for r in fit_batch(lm, target_ids, recipe, vectors)
        ]

    return fit_prefixes


def autoregressive(lm: FrozenLM, config: FitConfig | None = None) -> FitPrefixes:
    """Fits of [mem] vectors, read token by token; reached at the recipe's `Stop.accuracy`, of greedy generation.

    Args:
        lm: the frozen model.
        config: the recipe, `CRAMMING` if None; `e_tokens` is the number of [mem] vectors.
    """
    config = config or CRAMMING

    def fit_prefixes(target_ids: Tensor, begin: list[Any], max_steps: int) -> list[Trial]:
        recipe, start = replace(config, stop=replace(config.stop, max_steps=max_steps)), None
        if begin[0] is not None:
            recipe, start = replace(recipe, perturbation=0.0, restarts=1), torch.stack(begin)
        return [
            _trial(r, target_ids.shape[1], r.greedy_accuracy, config.stop.accuracy, r.memory)
            for r in cram_batch(lm, target_ids, recipe, start)
        ]

    return fit_prefixes


def _trial(result: FitResult | CrammingResult, n_tokens: int, accuracy: float, goal: float, vectors: Any) -> Trial:
    """A fit of a prefix as a trial; the prefix is reached if its token accuracy is the goal or above."""
    work = result.token_positions + result.backward_positions
    return Trial(n_tokens, accuracy >= goal, accuracy, result.steps, work, vectors)


def grow(
    fit_prefixes: FitPrefixes,
    target_ids: Tensor,
    max_steps: int,
    *,
    first: int = 8,
    factor: float = 1.25,
    work: int | None = None,
) -> list[Capacity]:
    """Find the longest prefix by growing it while it holds, each time from the vectors that held the last one.

    The prefix grows by `factor` until it fails; then the gap between the longest that held and the shortest that failed
    is halved, always from the vectors of the former, until nothing is left of it. Texts whose next length is the same
    are fitted side by side.

    Args:
        fit_prefixes: how a prefix is fitted: `one_step(...)` or `autoregressive(...)`.
        target_ids: texts, int64, (B, T).
        max_steps: optimiser steps that one trial may take.
        first: length of the first prefix.
        factor: by what it grows, above 1; at least by one token.
        work: positions forward and backward that one text may cost; a trial gets no more steps than what is left pays
            for. None: no bound.

    Returns:
        One result per text, in order.

    Raises:
        InputError: `first` is below 1, `factor` is not above 1, or the texts do not fit the model.
    """
    if first < 1:
        raise InputError(f"first is {first}; it must be at least 1")
    if factor <= 1:
        raise InputError(f"factor is {factor:g}; it must be above 1")
    whole = target_ids.shape[1]
    searches = [_Search([min(first, whole)]) for _ in target_ids]

    def following(search: _Search) -> int | None:
        if search.bound is not None:
            middle = (search.n_tokens + search.bound) // 2
            return middle if middle > search.n_tokens else None
        longer = min(whole, max(search.n_tokens + 1, round(search.n_tokens * factor)))
        return longer if search.n_tokens < whole else None

    return _run(fit_prefixes, target_ids, searches, following, max_steps, work, warm=True)


def bisect(
    fit_prefixes: FitPrefixes,
    target_ids: Tensor,
    max_steps: int,
    *,
    lengths: tuple[int, ...] = LENGTHS,
    work: int | None = None,
) -> list[Capacity]:
    """Find the longest of some lengths by halving, every fit from the recipe's start.

    It trusts that what holds a prefix could hold all shorter ones; fits that fail by bad luck of the start break that.

    Args:
        fit_prefixes: how a prefix is fitted.
        target_ids: texts, int64, (B, T).
        max_steps: optimiser steps that one trial may take.
        lengths: lengths to choose from, the paper's unless given; those above T are left out.
        work: as in `grow`.

    Returns:
        One result per text, in order.

    Raises:
        InputError: no length is left, or the texts do not fit the model.
    """
    ladder = sorted({n for n in lengths if 1 <= n <= target_ids.shape[1]})
    if not ladder:
        raise InputError(f"none of the lengths is from 1 to {target_ids.shape[1]}, the texts' length")
    searches = [_Search([ladder[(len(ladder) - 1) // 2]]) for _ in target_ids]

    def following(search: _Search) -> int | None:
        bound = search.bound or ladder[-1] + 1
        open_lengths = [n for n in ladder if search.n_tokens < n < bound]
        return open_lengths[(len(open_lengths) - 1) // 2] if open_lengths else None

    return _run(fit_prefixes, target_ids, searches, following, max_steps, work, warm=False)


def prefix_h_lm_nats(lm: FrozenLM, target_ids: Tensor, n_tokens: int) -> float:
    """H_LM of the first `n_tokens` tokens of a text (T,), in nats (eq. 3); 0 for fewer than two."""
    if n_tokens < 2:
        return 0.0
    prefix = target_ids[:n_tokens]
    return float(h_lm_nats(lm.next_token_logits(prefix).cpu(), prefix))


@dataclass
class _Search:
    """State of the search for one text; `queue` holds the length to try next, or nothing."""

    queue: list[int]
    n_tokens: int = 0
    bound: int | None = None
    vectors: Any = None
    work: int = 0
    spent: bool = False

    def __post_init__(self) -> None:
        self.trials: list[Trial] = []

    def steps_allowed(self, max_steps: int, work: int | None) -> int:
        """Optimiser steps of the next trial at most; the budget also pays for its two evaluations without a step."""
        if work is None:
            return max_steps
        return min(max_steps, (work - self.work) // (2 * (self.queue[0] + 2)) - 1)

    def enter(self, trial: Trial, following: Callable[[_Search], int | None]) -> None:
        self.trials.append(trial)
        self.work += trial.work
        if trial.reached:
            self.n_tokens, self.vectors = trial.n_tokens, trial.vectors
        else:
            self.bound = trial.n_tokens
        ahead = following(self)
        self.queue = [] if ahead is None else [ahead]

    def result(self, whole: int) -> Capacity:
        reason = "work" if self.spent else "text" if self.n_tokens == whole else "bound"
        return Capacity(self.n_tokens, self.bound, self.vectors, tuple(self.trials), self.work, reason)


def _run(
    fit_prefixes: FitPrefixes,
    target_ids: Tensor,
    searches: list[_Search],
    following: Callable[[_Search], int | None],
    max_steps: int,
    work: int | None,
    *,
    warm: bool,
) -> list[Capacity]:
    while waiting := [s for s in searches if s.queue]:
        for search in waiting:
            if search.steps_allowed(max_steps, work) < 1:
                search.queue, search.spent = [], True
        plans = {
            number: (s.queue[0], s.steps_allowed(max_steps, work), s.vectors is None)
            for number, s in enumerate(searches)
            if s.queue
        }
        if not plans:
            break
        length, steps, fresh = plan = min(plans.values())
        rows = [number for number, its_plan in plans.items() if its_plan == plan]
        begin = [searches[row].vectors if warm and not fresh else None for row in rows]
        for row, trial in zip(rows, fit_prefixes(target_ids[rows, :length], begin, steps), strict=True):
            searches[row].enter(trial, following)
    return [s.result(target_ids.shape[1]) for s in searches]
