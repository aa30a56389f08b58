"""The report's tables: from rows written by hand, the means worked out by hand; published numbers beside them."""

from __future__ import annotations

import csv
import io

import pytest

from prototokens.report.coverage import coverage, provenance
from prototokens.report.exhibit import Entry, Table, lay_out, to_csv, unmeasured
from prototokens.report.exhibits import EXHIBITS
from prototokens.report.reconstruction import comparisons, tables
from prototokens.report.summary import Summary
from prototokens.study import published
from study_rows import every_study, row


def value(entries: list[Entry], *where: str) -> Summary:
    """The one measured number at (row heads ..., column)."""
    (result,) = [e.summary for e in entries if (*e.row, e.column) == where and not e.published]
    return result


def test_table_1_is_the_mean_over_texts() -> None:
    rows = [
        row("arrangements", arrangement="e*n", tokens=4, text=x, token_accuracy=a) for x, a in enumerate((0, 0.5, 1))
    ]
    result = value(tables.arrangements(rows), "e*n", "N = 4")
    assert (result.value, result.sd, result.n) == (0.5, 0.5, 3)


def test_table_2_takes_the_best_seed_of_each_group() -> None:
    accuracies = {0: ((1.0, 0.5), (0.5, 0.9)), 1: ((0.2, 0.2), (0.6, 0.4))}  # group -> seed -> text
    rows = [
        row("sharing", shared="m", group_size=2, group=group, seed=seed, text=2 * group + i, tokens=8, token_accuracy=a)
        for group, seeds in accuracies.items()
        for seed, texts in enumerate(seeds)
        for i, a in enumerate(texts)
    ]
    result = tables.sharing(rows)
    best, average = (value(result, "m", seeds, "groups of 2") for seeds in ("best seed", "average"))
    assert (best.value, best.n) == (pytest.approx((0.75 + 0.5) / 2), 2)
    assert (average.value, average.n) == (pytest.approx((0.75 + 0.7 + 0.2 + 0.5) / 4), 4)


def test_table_3_by_hand() -> None:
    accuracies = {4: (1.0, 1.0), 8: (1.0, 0.985), 16: (0.99, 0.5)}
    rows = [
        row("capacity", m_shared=1, method="grid", text=x, tokens=t, token_accuracy=a, h_lm_nats=10.0 * t + x)
        for t, texts in accuracies.items()
        for x, a in enumerate(texts)
    ]
    result = tables.capacity(rows)
    head = (tables.SOURCE_LABELS["old"], "shared")
    got = {q: value(result, *head, q, "tiny (laptop)") for q in (tables.BEST, tables.MEAN, tables.BY_TEXT, tables.NATS)}
    assert {q: s.value for q, s in got.items()} == {
        tables.BEST: 16, tables.MEAN: 8, tables.BY_TEXT: (16 + 4) / 2, tables.NATS: (160 + 41) / 2,
    }  # fmt: skip
    assert all(s.n == 2 for s in got.values())
    # A search is no part of the grid.
    searched = row("capacity", m_shared=1, method="growth", tokens=96, capacity_tokens=50, token_accuracy=None)
    assert tables.capacity([*rows, searched]) == result
    assert value(tables.searched_capacity([*rows, searched]), *head, "growth", "C, tokens: best").value == 50


def test_figure_3_pairs_texts() -> None:
    def cell(text: int, method: str, nats: float) -> dict:
        return row("information", vectors=1, method=method, text=text, capacity_tokens=8, h_lm_nats=nats)

    rows = [
        cell(0, "one-step", 10),
        cell(0, "autoregressive", 40),
        cell(1, "one-step", 20),
        cell(1, "autoregressive", 20),
    ]
    rows.append(cell(2, "one-step", 1000))  # without a partner
    result = comparisons.information(rows)
    head = (tables.SOURCE_LABELS["old"], "1")
    assert value(result, *head, comparisons.RATIO, "H_LM, nats") == Summary(30 / 60, 2)
    assert value(result, *head, "one-step", "H_LM, nats").n == 3


def test_figure_4_counts_verified_output_only() -> None:
    def cell(method: str, text: int, rate: float | None) -> dict:
        exact = int(rate is not None)
        return row("throughput", method=method, batch=1, text=text, tokens=16, tokens_per_second=rate, exact=exact)

    rows = [cell("one-step", 0, 90.0), cell("one-step", 1, 110.0), cell("autoregressive", 0, 20.0)]
    rows.append(cell("autoregressive", 1, None))
    result = comparisons.throughput(rows)
    assert value(result, "one-step", comparisons.SPEED, "N = 16").value == 100
    assert value(result, "one-step", comparisons.GAIN, "N = 16").value == 5
    assert value(result, "autoregressive", comparisons.VERIFIED, "N = 16").value == 0.5
    # Nothing verified to compare with: no gain.
    alone = comparisons.throughput([cell("one-step", 0, 90.0), cell("autoregressive", 0, None)])
    assert comparisons.GAIN not in {e.row[1] for e in alone if not e.published}


def test_table_4_by_hand() -> None:
    rows = [row("cost", text=x, seconds=s, steps=10 * x, exact=x) for x, s in enumerate((1.0, 4.0))]
    result, head = tables.cost(rows), ("tiny (laptop)", "fast")
    assert value(result, *head, "seconds", "N = 8").value == 2.5
    assert value(result, *head, "work, positions", "N = 8").value == 1700
    assert value(result, *head, "share exact", "N = 8").value == 0.5


def test_quality_by_hand() -> None:
    rows = [row("quality", method="jacobi", text=x, bleu=b, passes=4, chrf=None) for x, b in enumerate((10.0, 20.0))]
    result, head = comparisons.quality(rows), (tables.SOURCE_LABELS["old"], "8", "jacobi")
    assert value(result, *head, "BLEU").value == 15
    assert value(result, *head, "work, positions").value == 1700
    assert "chrF" not in {e.column for e in result}


def made(rows: list[dict]) -> dict[str, list[Entry]]:
    return {
        e.name: e.make([x for x in rows if x["study"] == e.study]) for e in EXHIBITS if isinstance(e, Table)
    }  # fmt: skip


@pytest.mark.parametrize("rows", [[], every_study()], ids=["empty", "every study"])
def test_every_published_number_stands_in_its_table(rows: list[dict]) -> None:
    result = {name: [e for e in entries if e.published] for name, entries in made(rows).items()}
    values = {name: sorted(e.summary.value for e in entries) for name, entries in result.items()}
    one, two = published.TABLE_1.values(), published.TABLE_2.values()
    assert values["table-1"] == sorted(v for lengths in one for v, _ in lengths.values())
    assert values["table-2"] == sorted(v for sizes in two for numbers in sizes.values() for v in numbers)
    nats = [v for models in published.TABLE_3_NATS.values() for v, _ in models]
    assert values["table-3"] == sorted([*nats, *(v for models in published.TABLE_3_TOKENS.values() for v in models)])
    assert values["table-4"] == sorted(v for seconds in published.TABLE_4.values() for v in seconds)
    assert values["table-figure-3"] == sorted(v for m in published.CRAMMED_TOKENS.values() for v in m.values())
    assert values["table-figure-4"] == [published.SPEED_UP]


def test_what_was_measured_stands_before_what_was_published_and_no_cell_holds_two_numbers() -> None:
    for entries in made(every_study()).values():
        grid = lay_out(entries)
        flags = [is_published for _, is_published, _ in grid.groups]
        assert flags == sorted(flags)
        assert sum(e is not None for _, cells in grid.rows for e in cells) == len(entries)
        assert sum(columns for *_, columns in grid.groups) == len(grid.columns)


def test_rows_that_only_the_paper_has_are_named() -> None:
    result = made(every_study())
    assert unmeasured(result["table-1"]) == [("e*n/2,m*n/2",), ("(e,m)*n/2",), ("e,m*n",)]
    assert unmeasured(result["table-3"]) == []
    assert unmeasured(result["quality"]) == []


def test_csv_holds_every_number_unrounded() -> None:
    for exhibit in EXHIBITS:
        if isinstance(exhibit, Table):
            entries = made(every_study())[exhibit.name]
            lines = list(csv.DictReader(io.StringIO(to_csv(exhibit, entries))))
            assert [float(line["value"]) for line in lines] == [e.summary.value for e in entries]
            assert [line["numbers"] == "published" for line in lines] == [e.published for e in entries]
            assert [tuple(line[head] for head in exhibit.row_heads) for line in lines] == [e.row for e in entries]


def test_coverage_tells_what_failed_and_what_is_left() -> None:
    failed = [row("cost", text=x, status="failed", error="out of memory" if x else "other") for x in range(3)]
    (cost, quality, sharing) = coverage(
        [row("cost"), *failed, row("quality")],
        [{"study": "cost", "planned": 5}, {"study": "quality", "planned": 0}],
        ("cost", "quality", "sharing"),
    )
    assert cost.in_words() == "1 cell done, 3 failed, 5 left to run: prototokens study cost --store STORE"
    assert cost.errors == (("out of memory", 2), ("other", 1))
    assert not cost.complete
    assert quality.complete
    assert sharing.in_words("--store a") == "not run: prototokens study sharing --store a"


def test_provenance_tells_settings_and_versions() -> None:
    rows = [row("cost", text=x, tokens=t, seed=s) for x in range(2) for t in (8, 16) for s in range(3)]
    (line,) = provenance(rows)
    assert line[:4] == ("cost", "tiny, weights ffffffffffff", "laptop", "12")
    assert line[4] == "2 (old), 3 seeds"
    assert line[5] == "recipe fast; at most steps 400; tokens 8, 16"
    assert line[6] == "prototokens 0.1.0, torch 2.13.0, transformers 5.23.0, float32, cpu, 2 threads"
    assert len(provenance([*rows, row("cost", torch="3.0")])) == 2
    assert provenance([row("cost", status="failed")]) == []


def test_capacity_keeps_texts_in_blocks_apart_from_those_in_two_vectors():
    common = {"m_shared": 0, "method": "grid"}
    rows = [row("capacity", tokens=n, token_accuracy=float(n <= 16), **common) for n in (8, 16, 64)]
    rows += [row("capacity", tokens=n, tokens_per_vector=8, **common) for n in (64, 512)]
    best = {e.column: e.summary.value for e in tables.capacity(rows) if e.row[2] == "C best" and not e.published}
    assert best == {"tiny (laptop, tokens_per_vector 8)": 512, "tiny (laptop, tokens_per_vector None)": 16}
