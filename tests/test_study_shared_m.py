"""Searches and shared vectors: what is shared, on which texts it is found, and what it costs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from families import counted, family
from prototokens import FitConfig, FrozenLM
from prototokens.report.conditions import series
from prototokens.study.prefix_search import Trial
from prototokens.study.reconstruction import capacity, held_m, information, sharing
from study_batches import (
    batch_of,
    fitted_ids,
    h_lm_by_hand,
    measure,
    measure_cells,
    of,
    without_h_lm,
)
from study_rows import row as study_row


def test_a_group_that_is_too_large_for_a_pass_is_fitted_in_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    without_h_lm(monkeypatch)
    shared = {sharing: 2, capacity: batch_of(capacity, method="grid", m_shared=1)}
    for module, batch in shared.items():
        with counted(family("llama")) as calls:
            rows = measure(module, batch, rows_at_once=1, max_steps=2, shared="m", group=0)
        assert {shape[0] for shape in calls.forward} == {1}
        by_group: dict[str, list[Tensor]] = {}
        for row, vectors in rows:
            by_group.setdefault(row["source"], []).append(vectors.m)
        assert all(len(held) > 1 and all(torch.equal(m, held[0]) for m in held) for held in by_group.values())


@pytest.mark.parametrize("module", [sharing, capacity])
def test_the_paper_s_groups_are_cut_into_passes_that_memory_holds(module: Any) -> None:
    for batch in module.lay_out("paper"):
        cell = batch.cells[-1]
        if cell.get("method", "grid") == "grid" and cell.get("group_size", 1) > 1:
            rows = cell.get("rows_at_once", len(batch.cells))
            assert rows * (cell["tokens"] + 1) <= 8256
            assert batch.peak_positions is not None
            assert rows * (cell["tokens"] + 1) <= batch.peak_positions <= 8256


def test_sharing_shares_within_a_group_only() -> None:
    cells = [dict(cell) for cell in sharing.lay_out("smoke")[2].cells]
    many = [cell | {"text": n, "group": n // 2, "group_size": 2, "shared": "m"} for n in range(4) for cell in cells[:1]]
    m = [vectors.m for _, vectors in measure_cells(sharing, many)]
    assert torch.equal(m[0], m[1])
    assert torch.equal(m[2], m[3])
    assert not torch.equal(m[0], m[2])


class Known:
    """Stands for `one_step` or `autoregressive`: it holds prefixes of up to three tokens, at a price that is set."""

    def __init__(self) -> None:
        self.made: list[tuple[FitConfig, Any]] = []
        self.max_steps: list[int] = []

    def __call__(self, lm: FrozenLM, config: FitConfig, given: Any = None) -> Any:
        self.made.append((config, given))

        def fit_prefixes(ids: Tensor, begin: list[Any], max_steps: int) -> list[Trial]:
            self.max_steps.append(max_steps)
            length = ids.shape[1]
            return [Trial(length, length <= 3, 1.0, 7, 100 + length, length) for _ in ids]

        return fit_prefixes


def clock(*readings: float) -> SimpleNamespace:
    """A module `time` that shows these readings, one after another."""
    left = iter(readings)
    return SimpleNamespace(perf_counter=lambda: next(left))


SEARCHES = [
    (capacity, {"method": method, "m_shared": m_shared}, "one_step", "capacity_h_lm_nats")
    for method in ("growth", "bisection")
    for m_shared in (0, 1)
] + [
    (information, {"method": method, "vectors": vectors}, name, "h_lm_nats")
    for method, name in (("one-step", "one_step"), ("autoregressive", "autoregressive"))
    for vectors in (1, 2)
]


@pytest.mark.parametrize(("module", "wanted", "name", "nats"), SEARCHES)
def test_a_search_s_columns_are_those_of_its_trials(
    module: Any, wanted: dict[str, Any], name: str, nats: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, lm = Known(), family("llama")
    monkeypatch.setattr(held_m, name, known)
    monkeypatch.setattr(held_m, "time", clock(10.0, 16.0))
    without_h_lm(monkeypatch)
    with counted(lm) as calls:
        rows = measure(module, batch_of(module, **wanted), work_limit=10_000)
    searched = [row for row, _ in rows if row["method"] == wanted["method"]]
    m_rows = [(row, vectors) for row, vectors in rows if row["method"] == "shared-m"]
    shared = wanted in ({"method": wanted["method"], "m_shared": 1}, {"method": "one-step", "vectors": 1})
    price = sum(row["work"] for row, _ in m_rows)
    for row in searched:
        # 2, 3 and 4 tokens; by halving 4, 5, 8 at first the middle, then what is left: 5, 4.
        lengths = (5, 4) if wanted["method"] == "bisection" else (2, 3, 4)
        assert row["capacity_tokens"] == (0 if wanted["method"] == "bisection" else 3)
        assert row["bound_tokens"] == 4
        assert row["trials"] == len(lengths)
        assert row["steps"] == 7 * len(lengths)
        assert row["m_work"] == -(-price // len(searched))
        assert row["work"] == sum(100 + length for length in lengths) + row["m_work"]
        assert row["stop_reason"] == "bound"
        assert row["seconds"] == pytest.approx(6 / len(searched))
        prefix = fitted_ids(row)[: row["capacity_tokens"]]
        assert row[nats] == pytest.approx(h_lm_by_hand(lm, prefix) if len(prefix) else 0, rel=1e-4)
    ((config, given),) = known.made
    assert config.stop.accuracy == 0.99
    assert config.e_tokens == (wanted["vectors"] if name == "autoregressive" else 1)
    assert bool(m_rows) == shared == (price > 0)
    if shared:
        assert all(torch.equal(vectors.m, given.m) for _, vectors in m_rows), "what is held is what was found"
        assert len({vectors.e.sum().item() for _, vectors in m_rows}) == len(m_rows) > 1
        forward = calls.positions() - sum(row["capacity_tokens"] for row in searched)
        assert price == forward + calls.backward_positions()
    elif name == "one_step":
        assert given.m is None


@pytest.mark.parametrize(
    ("module", "wanted"), [(m, w) for m, w, *_ in SEARCHES if w.get("m_shared", w.get("vectors")) == 1]
)
def test_the_price_of_a_held_m_is_paid_from_the_budget(
    module: Any, wanted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "autoregressive" if wanted["method"] == "autoregressive" else "one_step"
    free = [row for row in measure(module, batch_of(module, **wanted), work_limit=0) if "bound_tokens" in row[0]]
    m_work = free[0][0]["m_work"]
    assert bool(m_work) == (name == "one_step")
    first = 5 if wanted["method"] == "bisection" else 2
    for extra, steps in ((0, []), (2 * (first + 2) * 4, [3])):
        known = Known()
        monkeypatch.setattr(held_m, name, known)
        rows = measure(module, batch_of(module, **wanted), work_limit=m_work + extra)
        assert known.max_steps[:1] == steps
        (row,) = [row for row, _ in rows if "bound_tokens" in row]
        assert row["m_work"] == m_work
        if not steps:
            assert (row["capacity_tokens"], row["trials"], row["work"]) == (0, 0, m_work)
            assert (row["bound_tokens"], row["stop_reason"]) == (None, "work")


@pytest.mark.parametrize("scale", ["smoke", "laptop", "paper"])
@pytest.mark.parametrize("module", [capacity, information])
def test_a_shared_m_is_shared_and_a_held_one_is_found_on_other_texts(module: Any, scale: str) -> None:
    for batch in module.lay_out(scale):
        found_on = {(c["source"], c["text"]) for c in batch.cells if c["method"] == "shared-m"}
        judged = {(c["source"], c["text"]) for c in batch.cells if c["method"] != "shared-m"}
        assert not found_on & judged
        last = batch.cells[-1]
        if last["method"] == "grid" and last["m_shared"]:
            groups = [(c["source"], c["group"], c["group_size"]) for c in batch.cells]
            assert all(groups.count(group) == group[2] > 1 for group in groups), "groups are whole, and share"
        held = last["method"] != "grid" and (
            last.get("m_shared") or (last["method"], last.get("vectors")) == ("one-step", 1)
        )
        assert bool(found_on) == bool(held)
        if held:
            assert len(found_on) == last["m_texts"] > 1
            assert len({source for source, _ in found_on | judged}) == 1


def test_groups_of_the_grid_do_not_depend_on_the_length_of_their_texts() -> None:
    for scale in ("laptop", "paper"):
        cells = [c for b in capacity.lay_out(scale) for c in b.cells if c["method"] == "grid" and c["m_shared"]]
        groups = {(c["tokens"], c["source"], c["seed"], c["text"]): (c["group"], c["group_size"]) for c in cells}
        size = capacity.GRIDS[scale].group_size
        assert all(group == (text // size, size) for (*_, text), group in groups.items())


def test_a_shared_m_of_the_grid_is_shared_within_its_kind_and_group() -> None:
    base = capacity.lay_out("smoke")[batch_of(capacity, method="grid", m_shared=1)].cells[0]
    cells = [base | {"source": s, "text": n, "group": n // 2, "tokens": 4} for s in ("old", "random") for n in range(4)]
    m = [vectors.m for _, vectors in measure_cells(capacity, cells)]
    for first in range(0, 8, 2):
        assert torch.equal(m[first], m[first + 1])
        assert all(not torch.equal(m[first], m[other]) for other in range(8) if other // 2 != first // 2)
    assert len(of(measure_cells(capacity, cells), "grid")) == 8


@pytest.mark.parametrize("column", ["group_size", "m_texts", "start_hash"])
def test_rows_of_older_studies_are_not_averaged_with_those_of_fixed_groups_and_known_starts(column: str) -> None:
    older = study_row("capacity", m_shared=1, method="grid")
    labels = series([older, older | {column: 16}], ("source", "m_shared", "text", "seed", "tokens"))
    assert [label.rpartition(", ")[2] for label in labels] == [f"{column} 16)", f"{column} None)"]
    assert len(series([older, older], ("source", "m_shared", "text", "seed", "tokens"))) == 1
