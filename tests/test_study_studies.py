"""Every study: its grid fits its scale, and it runs end to end on a tiny model, the same rows every time."""

from __future__ import annotations

import re
import shutil
import sqlite3
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from families import analytic, family
from prototokens import FitConfig, decode, fit_batch, load, preset
from prototokens.baselines.cramming import CRAMMING, reconstruct
from prototokens.files.record import read_record
from prototokens.runners.in_process import InProcess
from prototokens.study import STUDIES, fits, study_module
from prototokens.study.estimates import ModelSize, estimate
from prototokens.study.prefix_search import prefix_h_lm_nats
from prototokens.study.reconstruction import capacity, quality, throughput
from prototokens.study.running import run_study
from prototokens.study.scales import SCALES
from prototokens.study.store import Store
from study_batches import batch_of

TIMED = {"seconds", "finished", "tokens_per_second"}
FIT = {"token_accuracy", "exact", "steps", "stop_reason", "min_margin", "loss_nats", "token_positions",
       "backward_positions", "seconds", "h_lm_nats"}  # fmt: skip
COMMON = {"key", "study", "scale", "model", "recipe", "source", "text", "text_hash", "seed", "tokens", "max_steps",
          "status", "error", "fingerprint", "dtype", "device", "threads", "prototokens", "torch",
          "transformers"}  # fmt: skip
DISTANCES = {f"{measure}_{part}" for measure in ("cosine", "euclidean") for part in ("e", "m", "both")}
WAY = {"start", "fit_seed", "other_seed", "taus", "inner", "curve_steps", "both_exact", "missing", "accuracies",
       "losses_nats", "lowest_accuracy", "highest_loss_nats", "barrier_nats", "length", "length_ratio", "steps",
       "stop_reason", "token_positions", "backward_positions", "seconds"}  # fmt: skip
SEARCH = {"capacity_tokens", "bound_tokens", "trials", "work", "m_work", "steps", "stop_reason", "seconds"}
OWN: dict[str, dict[Any, set[str]]] = {
    "arrangements": {None: FIT | {"arrangement"}},
    "sharing": {None: FIT | {"shared", "group_size", "group"}},
    "capacity": {
        "grid": FIT | {"m_shared"},
        "growth": SEARCH | {"m_shared", "capacity_h_lm_nats"},
        "bisection": SEARCH | {"m_shared", "capacity_h_lm_nats"},
        "shared-m": FIT | {"m_shared", "m_texts", "work", "search", "serves"},
    },
    "information": {
        "one-step": SEARCH | {"vectors", "h_lm_nats"},
        "autoregressive": SEARCH | {"vectors", "h_lm_nats"},
        "shared-m": FIT | {"vectors", "m_texts", "work", "serves"},
    },
    "throughput": {m: {"batch", "repeats", "exact", "exact_texts", "tokens_per_second"} for m in throughput.METHODS},
    "cost": {None: FIT | {"work"}},
    "quality": {
        method: FIT | {"correct_prefix", "bleu", "rouge_l", "chrf", "passes", "work"} | extra
        for method, extra in {
            "one-step": set(),
            "one-vector": set(),
            "autoregressive": {"teacher_forced_accuracy", "greedy_accuracy"},
            "jacobi": {"teacher_forced_accuracy", "greedy_accuracy"},
        }.items()
    },
    "locality": {
        "fit": FIT | {"start", "context", "fit_seed"},
        "pair": DISTANCES | {f"start_{name}" for name in DISTANCES}
        | {"start", "context", "fit_seed", "kind", "other_context", "other_text", "other_seed", "both_exact",
           "tfidf_distance", "semantic_distance"},
    },
    "connectivity": {
        "fit": FIT | {"start", "fit_seed"},
        "segment": WAY,
        "bezier": WAY,
    },
    "interpolation": {
        "fit": FIT | {"start", "margin"},
        "segment": {"start", "margin", "other_text", "vectors", "taus", "tau_from", "tau_to", "both_exact"}
        | {f"{of}_{what}" for of in ("first", "last") for what in ("accuracies", "from", "to")} | {"other_accuracies"},
    },
    "basin": {
        "fit": FIT | {"start", "margin"},
        "change": {"start", "margin", "kind", "amount", "vectors", "draw", "token_accuracy", "exact", "right", "moved",
                   "lost_margin_rank", "fit_exact", "fit_accuracy"},
    },
    "roles": {
        "fit": FIT | {"start", "chunk_start", "chunk_tokens"},
        "swap": {"m_source", "m_text", "own", "both_exact", "distinct"}
        | {f"{of}_{what}" for of in ("e", "m", "other") for what in ("accuracy", "overlap")},
        "probe": {"target", "features", "words", "folds", "shuffles", "score", "missing", "rows"},
        "attention": {"inputs", "place", "heads", "attention", "missing"},
    },
    "reading": {
        None: FIT - {"h_lm_nats"}
        | {"start", "text_tokens", "part", "bos", "sampled", "reading", "first_right", "reading_accuracy"}
        | {f"{measure}_{what}_{of}" for measure in ("tfidf", "semantic") for what in ("own", "other", "auc")
           for of in ("text", "context")},
    },
    "structure": {
        None: FIT
        | {"start", "loss", "vector", "weight", "hold", "chunk", "chunk_tokens", "candidates"}
        | {f"{what}_{of}" for of in "em" for what in ("anchor_cosine", "relation_error", "relation_correlation",
           "relation_correlation_shuffled", "relation_correlation_shuffled_sd")}
        | {f"rank_{by}" for by in ("e", "m", "both", "text", "teacher")},
    },
}  # fmt: skip
"""What a row holds, by study and method."""

COMPARISONS = {"pair", "segment", "bezier", "chain", "cubic", "change", "swap", "probe", "attention"}
"""Methods that fit nothing anew: they look at the fits of their batch."""


def run(path: Path, study: str, name: str = "llama") -> list[dict[str, Any]]:
    with Store.open(path, write=True) as store:
        end = run_study(store, InProcess(lambda: family(name)), study, SCALES["smoke"])
        rows = store.rows()
    assert end.failed == 0, [row["error"] for row in rows]
    assert end.done == end.cells == len(rows)
    return rows


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[dict[str, Any]]]]:
    """Every study's rows at the smallest scale, each in a store of its own."""
    folder = tmp_path_factory.mktemp("studies")
    return {study: (folder / study, run(folder / study, study)) for study in STUDIES}


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMED} for row in rows]


@pytest.mark.parametrize("study", STUDIES)
def test_rows_hold_what_the_report_reads(done, study):
    rows = done[study][1]
    assert {row.get("method") for row in rows} == set(OWN[study])
    for row in rows:
        assert COMMON | OWN[study][row.get("method")] <= set(row)
        assert row["status"] == "done"
        assert row["error"] is None
        assert 0 <= row.get("token_accuracy", 0) <= 1
        assert row.get("capacity_tokens", 0) <= row["tokens"]
        if row.get("token_accuracy") is not None:
            assert (row["token_accuracy"] == 1) == bool(row["exact"])


@pytest.mark.parametrize("study", STUDIES)
def test_stopped_halfway_and_run_again_the_rows_are_the_same(done, study, tmp_path):
    """A store that lost the last batches, and a row of the first, is filled up with the very same rows."""
    whole = done[study][1]
    names = sorted({row["batch_name"] for row in whole})
    lost = names[-max(1, len(names) // 3) :]
    shutil.copy(done[study][0], tmp_path / "store")
    with sqlite3.connect(tmp_path / "store") as connection:
        connection.executemany("DELETE FROM cells WHERE batch = ?", [(name,) for name in lost])
        connection.execute("DELETE FROM cells WHERE key = ?", (whole[0]["key"],))
    connection.close()
    assert untimed(run(tmp_path / "store", study)) == untimed(whole)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("study", STUDIES)
def test_grids_fit_the_texts_of_their_scale_and_name_each_cell_once(study, scale):
    batches, texts = study_module(study).lay_out(scale), SCALES[scale]
    seen = set()
    for batch in batches:
        assert batch.cells
        assert batch.steps >= 1
        assert batch.positions >= sum(s.get("method") not in COMPARISONS for s in batch.cells) / 3
        for settings in batch.cells:
            assert settings["scale"] == scale
            assert settings["text"] < texts.counts[settings["source"]]
            assert 1 <= settings["tokens"] <= texts.length_of(settings["source"])
            assert settings["max_steps"] >= 1
            assert fits.recipe_hash(settings["recipe"])
            cell = tuple(sorted(settings.items()))
            assert cell not in seen
            seen.add(cell)
        shapes = {(s["tokens"], s["seed"], s["max_steps"]) for s in batch.cells}
        assert len(shapes) == 1, "a batch is one fit"
    assert batches == study_module(study).lay_out(scale)


def test_a_laptop_study_ends_within_ninety_minutes_and_smoke_within_ten_in_all():
    size = ModelSize(135e6, 49152, 576, 30, 4)
    total = {scale: {study: sum(estimate(b, size, scale).seconds for b in study_module(study).lay_out(scale))
                     for study in STUDIES} for scale in ("smoke", "laptop")}  # fmt: skip
    assert sum(total["smoke"].values()) < 600
    assert max(total["laptop"].values()) < 90 * 60


def test_the_method_page_counts_the_cells_as_the_grids_do():
    page = (Path(__file__).parent.parent / "docs" / "method" / "studies.md").read_text()
    told = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \| (\d+) \|", page, re.MULTILINE)
    assert told == [
        (study, *(str(sum(len(b.cells) for b in study_module(study).lay_out(scale))) for scale in SCALES))
        for study in STUDIES
    ]


def test_the_paper_s_cells_are_its_own():
    sharing = [s for b in study_module("sharing").lay_out("paper") for s in b.cells]
    assert {(s["shared"], s["group_size"], s["seed"]) for s in sharing} == {
        (v, g, seed) for v in "em" for g in (1, 16, 256) for seed in range(10)
    }
    assert {s["tokens"] for s in sharing} == {256}
    table = [s for b in study_module("arrangements").lay_out("paper") for s in b.cells]
    assert {s["tokens"] for s in table} == {1, 2, 4, 256}
    assert {s["text"] for s in table} == set(range(50))
    grid = [s for b in study_module("capacity").lay_out("paper") for s in b.cells if s["method"] == "grid"]
    assert sorted({s["tokens"] for s in grid}) == [4, 5, 8, 11, 16, 22, 32, 45, 64, 90, 128, 181, 256, 362, 512, 724,
                                                   1024, 1448]  # fmt: skip
    assert {s["source"] for s in grid} == {"random", "old", "recent", "generated"}
    assert {s["recipe"] for s in grid + sharing + table if "tokens_per_vector" not in s} == {"paper"}
    for study in ("sharing", "capacity"):
        for batch in study_module(study).lay_out("paper"):
            groups = [(s["source"], s.get("group_size"), s.get("group")) for s in batch.cells]
            assert all(g[1] is None or groups.count(g) == g[1] for g in groups), "groups are whole"


def test_vectors_of_a_row_score_what_it_says(done):
    lm = family("llama")
    for study in ("sharing", "quality", "throughput"):
        path, rows = done[study]
        with Store.open(path) as store:
            for row in rows:
                file = store.vectors_path(row["key"])
                if row.get("method") in ("autoregressive", "jacobi"):
                    if study == "quality":
                        memory = read_record(file, "[mem] vectors")[0]["memory"]
                        assert memory.shape == (1, lm.width)
                        if row["method"] == "autoregressive":
                            ids = reconstruct(lm, memory.unsqueeze(0), row["tokens"])[0]
                            assert row["exact"] == int(fits_text(ids, row))
                elif not str(row.get("method")).endswith("-batched"):
                    assert decode(lm, load(file)).exact == bool(row["exact"])


def fits_text(ids: torch.Tensor, row: dict[str, Any]) -> bool:
    from prototokens.lm.identity import hash_ids

    return hash_ids(ids) == row["text_hash"]


def test_a_group_shares_its_vector_and_a_group_of_one_has_its_own(done):
    path, rows = done["sharing"]
    with Store.open(path) as store:
        for shared in "em":
            for size in (1, 2):
                held = [
                    load(store.vectors_path(r["key"])) for r in rows if (r["shared"], r["group_size"]) == (shared, size)
                ]
                unshared = "m" if shared == "e" else "e"
                assert torch.equal(getattr(held[0], shared), getattr(held[1], shared)) == (size == 2)
                assert not torch.equal(getattr(held[0], unshared), getattr(held[1], unshared))


def test_tables_of_texts_that_any_model_holds_are_full():
    """On the analytic model, whose output at a place is its input there, e alone holds texts of one repeated token."""
    lm = analytic()
    for method, m_shared in product(("grid", "growth", "bisection"), (0, 1)):
        batch = capacity.lay_out("smoke")[batch_of(capacity, method=method, m_shared=m_shared)]
        cells = [cell | {"max_steps": 60, "work_limit": 10**6} for cell in batch.cells]
        same = torch.full((len(cells), 5 if method == "grid" else 9), 7)
        for cell, measurement in zip(cells, capacity.run(lm, cells, same), strict=True):
            if cell["method"] in ("grid", "shared-m"):
                assert measurement.columns["exact"] == 1
                continue
            expected = 9 if method == "growth" else 8  # of the paper's lengths
            assert measurement.columns["capacity_tokens"] == expected
            assert measurement.columns["capacity_h_lm_nats"] == pytest.approx(
                prefix_h_lm_nats(lm, torch.full((9,), 7), expected)
            )


def test_jacobi_of_a_row_reads_the_vector_that_generation_reads(done):
    rows = done["quality"][1]
    rows_of = {m: {r["text_hash"]: r for r in rows if r["method"] == m} for m in ("autoregressive", "jacobi")}
    assert set(rows_of["autoregressive"]) == set(rows_of["jacobi"])
    for text, generated in rows_of["autoregressive"].items():
        iterated = rows_of["jacobi"][text]
        for column in ("loss_nats", "steps", "teacher_forced_accuracy", "work"):
            assert iterated[column] == generated[column]
        assert 1 <= iterated["passes"] <= iterated["tokens"] + 1
        assert generated["passes"] == generated["tokens"]


def test_one_vector_is_the_arrangement_of_e_alone(done):
    path, rows = done["quality"]
    with Store.open(path) as store:
        for row in rows:
            if row["method"] == "one-vector":
                assert load(store.vectors_path(row["key"])).arrangement.name == "e*n"


def test_what_comes_back_exactly_has_full_marks():
    lm = family("llama")
    ids = lm.encode("the same words again")
    scores = quality._likeness(lm, ids, ids)
    assert scores == {
        "token_accuracy": 1,
        "exact": 1,
        "correct_prefix": len(ids),
        "bleu": pytest.approx(100),
        "rouge_l": 1,
        "chrf": pytest.approx(100),
    }


def test_recipes_are_the_presets_with_the_cell_s_budget():
    settings = {"recipe": "fast", "seed": 3, "max_steps": 7}
    config = fits.recipe(settings)
    base = preset("fast", seed=3, tokens_per_vector=None)  # studies are of one e, whatever the length
    assert config == replace(base, stop=replace(base.stop, max_steps=7))
    assert fits.recipe(settings | {"margin": 2.0}) == replace(base, stop=replace(base.stop, max_steps=7, margin=2.0))
    crammed = fits.recipe({"recipe": "cramming", "seed": 3, "max_steps": 7})
    assert isinstance(crammed, FitConfig)
    assert crammed.optimiser == CRAMMING.optimiser
    assert len({fits.recipe_hash(name) for name in ("fast", "tuned", "paper", "cramming")}) == 4


def test_another_stopping_rule_makes_other_cells(monkeypatch):
    before = {name: fits.recipe_hash(name) for name in ("fast", "cramming")}
    monkeypatch.setattr(fits, "STOPPING_RULE", 1)  # the margin asked of all tokens, whatever the accuracy
    assert all(fits.recipe_hash(name) != digits for name, digits in before.items())


def test_a_cell_is_the_fit_that_the_library_makes(done):
    lm, (path, rows) = family("llama"), done["cost"]
    row = next(r for r in rows if r["recipe"] == "fast")
    with Store.open(path) as store:
        saved = load(store.vectors_path(row["key"]))
        key = next(k for (k,) in store._connection.execute("SELECT key FROM texts"))
        ids = torch.tensor(store.texts(key))[row["text"], : row["tokens"]]
    base = preset("fast", seed=row["seed"])
    (again,) = fit_batch(lm, ids.unsqueeze(0), replace(base, stop=replace(base.stop, max_steps=row["max_steps"])))
    assert torch.equal(again.tokens.e, saved.e)
    assert torch.equal(again.tokens.m, saved.m)
    assert again.loss == row["loss_nats"]
