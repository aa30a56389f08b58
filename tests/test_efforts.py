"""Laws of efforts: what is tried next follows from what was found, and in the end every token is covered once."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prototokens import InputError
from prototokens.archive.efforts import EFFORTS, ChunkFit, Effort, FitRound, Task, effort_named, settle

EFFORT = st.builds(
    Effort,
    lengths=st.just((4,)),
    rounds=st.lists(st.builds(FitRound, st.booleans(), st.integers(0, 9)), min_size=1, max_size=3).map(tuple),
    tolerated_share=st.sampled_from([0.0, 0.25, 1.0]),
    floor_tokens=st.integers(1, 5),
)


def missed(task: Task, seed: int) -> int:
    """What a made-up fit misses."""
    return random.Random(f"{task} {seed}").choice([0, 0, 1, task.length])


def fitted(task: Task, seed: int) -> ChunkFit:
    return ChunkFit(task, min(task.length, missed(task, seed)), torch.zeros(1), None)


@given(EFFORT, st.lists(st.integers(1, 20), max_size=5), st.integers(0, 50))
def test_every_token_is_settled_once_by_the_best_of_what_was_tried(
    effort: Effort, lengths: list[int], seed: int
) -> None:
    ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
    chunks = list(pairwise(ends))
    fits: dict[Task, ChunkFit] = {}
    while True:
        tasks, chosen = settle(chunks, fits, effort)
        assert len(set(tasks)) == len(tasks)
        assert not set(tasks) & set(fits)
        if not tasks:
            break
        # One at a time, in any order: where a packer stops changes nothing.
        task = random.Random(seed).choice(tasks)
        fits[task] = fitted(task, seed)
    assert [t for fit in chosen for t in range(fit.task.start, fit.task.stop)] == list(range(ends[-1]))
    for fit in chosen:
        same = [f for t, f in fits.items() if (t.start, t.stop) == (fit.task.start, fit.task.stop)]
        assert fit.missed == min(f.missed for f in same) or fit.missed <= effort.tolerated_share * fit.task.length
        if fit.missed > effort.tolerated_share * fit.task.length:
            assert fit.task.length <= effort.floor_tokens
            assert len(same) == len(effort.rounds)


def test_a_chunk_that_succeeded_is_not_tried_again() -> None:
    effort = Effort((8,), (FitRound(False, 1), FitRound(True, 1)), tolerated_share=0.25, floor_tokens=2)
    first, second = Task(0, 8, 0), Task(0, 8, 1)
    assert settle([(0, 8)], {}, effort) == ([first], [])
    assert settle([(0, 8)], {}, effort, first_round=1) == ([second], [])
    good = ChunkFit(first, 2, torch.zeros(1), None)
    assert settle([(0, 8)], {first: good}, effort) == ([], [good])
    bad = ChunkFit(first, 3, torch.zeros(1), None)
    assert settle([(0, 8)], {first: bad}, effort) == ([second], [])
    worse = ChunkFit(second, 4, torch.zeros(1), torch.zeros(1))
    assert settle([(0, 8)], {first: bad, second: worse}, effort)[0] == [Task(0, 4, 0), Task(4, 8, 0)]


def test_efforts_grow() -> None:
    assert list(EFFORTS) == ["fast", "balanced", "thorough"]
    steps = [sum(fit_round.steps for fit_round in effort.rounds) for effort in EFFORTS.values()]
    assert steps == sorted(steps)
    assert [effort.margin for effort in EFFORTS.values()] == sorted(effort.margin for effort in EFFORTS.values())
    assert [effort.tolerated_share for effort in EFFORTS.values()] == sorted(
        (e.tolerated_share for e in EFFORTS.values()), reverse=True
    )


def test_mistakes_are_named() -> None:
    with pytest.raises(InputError, match="unknown effort 'slow'; choose one of: fast balanced thorough"):
        effort_named("slow")
    with pytest.raises(InputError, match="rising"):
        Effort((8, 4), (FitRound(True, 1),), 0.0, 1)
    with pytest.raises(InputError, match="floor"):
        Effort((8,), (), 0.0, 1)
