"""Columns of the studies of reconstruction, each against a value that is worked out apart from them."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from importlib.resources import as_file, files
from typing import Any

import pytest
import torch

from families import VOCABULARY, analytic, counted, family
from prototokens import AdamW, FitConfig, FitResult, Stop, fit
from prototokens.arrangements import arrangement_named
from prototokens.baselines.cramming import CrammingResult, cram
from prototokens.fitting.starter import load_starter, shipped_starter
from prototokens.study import study_module
from prototokens.study.fits import cramming_columns, fit_columns, information_nats, measured, recipe
from prototokens.study.jobs import describe, draw_texts
from prototokens.study.reconstruction import arrangements, capacity, cost, information, sharing
from prototokens.study.running import _conditions
from prototokens.texts.corpora import documents
from study_batches import (
    batch_of,
    fitted_ids,
    h_lm_by_hand,
    measure,
    read_out,
    scores,
    without_h_lm,
)

SHORT = FitConfig(arrangement="e,m*(n-1)", start="text-e", optimiser=AdamW(lr=0.1), stop=Stop(max_steps=3))


def batches_with(study: str, *numbers: int) -> list[tuple[str, int]]:
    return [(study, number) for number in numbers]


FITTED = [
    *batches_with("arrangements", *range(7, 14)),  # 4 tokens
    *batches_with("sharing", 2),
    *batches_with("capacity", 0, batch_of(capacity, method="grid", m_shared=1)),
    *batches_with("capacity", batch_of(capacity, method="growth", m_shared=1)),
    *batches_with("capacity", batch_of(capacity, tokens_per_vector=4)),
    *batches_with("information", batch_of(information, method="one-step", vectors=1)),
    *batches_with("throughput", 0, 1),
    *batches_with("cost", 0, 2, 3),
    *batches_with("quality", 0, 1),
    *batches_with("locality", 0),
    *batches_with("connectivity", 0, 1),
    *batches_with("interpolation", 0),
    *batches_with("basin", 0),
    *batches_with("roles", 0),
    *batches_with("structure", 3),
]


@pytest.mark.parametrize(("study", "batch"), FITTED)
def test_a_fit_s_columns_are_what_its_vectors_score_in_a_pass_written_out(study: str, batch: int) -> None:
    lm = family("llama")
    rows = [(row, vectors) for row, vectors in measure(study_module(study), batch) if vectors is not None]
    assert rows
    for row, vectors in rows:
        ids = fitted_ids(row)
        assert vectors.length == len(ids)
        if "arrangement" in row:
            assert vectors.arrangement.name == row["arrangement"]
        assert vectors.arrangement.block_length == row.get("tokens_per_vector", vectors.arrangement.block_length)
        if study != "throughput":  # its rows are timings
            assert row["e_tokens"] == len(vectors.e)
        expected = scores(read_out(lm, vectors), ids)
        assert {name: row[name] for name in expected if name in row} == pytest.approx(
            {name: value for name, value in expected.items() if name in row}, abs=2e-4
        )
        assert row["h_lm_nats"] == pytest.approx(h_lm_by_hand(lm, ids), rel=1e-4)


def test_h_lm_is_that_of_the_analytic_model_and_of_no_text_s_company() -> None:
    """With logits 10 head x, the token after v is v itself with a probability that is known."""
    nats = information_nats(analytic(), torch.tensor([[5, 5, 6], [7, 7, 7]]))
    stays = -torch.log(torch.tensor(10.0).exp() / (torch.tensor(10.0).exp() + VOCABULARY - 1)).item()
    assert nats == pytest.approx([2 * stays + 10, 2 * stays], rel=1e-4)


def known_result(kind: type, base: Any) -> Any:
    """The result with a number of its own in every field that is one."""
    numbers = {f.name: 0.5 + n for n, f in enumerate(fields(kind)) if isinstance(getattr(base, f.name), int | float)}
    return replace(base, **numbers, stop_reason="of its own"), numbers


def test_a_fit_s_columns_are_the_fields_of_its_result() -> None:
    lm = family("llama")
    result, numbers = known_result(FitResult, fit(lm, lm.encode("ab"), SHORT))
    names = {"token_accuracy", "steps", "min_margin", "token_positions", "backward_positions", "seconds"}
    expected = {name: numbers[name] for name in names} | {"loss_nats": numbers["loss"], "exact": 4, "start": "text-e"}
    expected["e_tokens"] = 1
    result = replace(result, exact=4)
    assert fit_columns(result) == expected | {"stop_reason": "of its own"}
    (row,) = measured(lm, lm.encode("ab")[None], [result])
    assert row.vectors is result.tokens
    assert row.columns == fit_columns(result) | {"h_lm_nats": pytest.approx(h_lm_by_hand(lm, lm.encode("ab")))}


def test_cramming_s_columns_are_the_fields_of_its_result() -> None:
    lm = family("llama")
    result, numbers = known_result(CrammingResult, cram(lm, lm.encode("ab"), SHORT))
    result = replace(result, exact=4)
    names = {"greedy_accuracy", "teacher_forced_accuracy", "steps", "min_margin", "token_positions",
             "backward_positions", "seconds"}  # fmt: skip
    expected = {name: numbers[name] for name in names} | {"loss_nats": numbers["loss"], "exact": 4}
    expected |= {"token_accuracy": numbers["greedy_accuracy"], "stop_reason": "of its own"}
    assert cramming_columns(result) == expected


def test_cost_is_what_went_through_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    without_h_lm(monkeypatch)
    for batch in range(len(cost.lay_out("smoke"))):
        began = time.perf_counter()
        with counted(family("llama")) as calls:
            ((row, _),) = measure(cost, batch)
        width = row["tokens"] + (1 if row["recipe"] == "fast" else 0)
        assert set(calls.forward) == set(calls.backward) == {(1, width)}
        assert row["steps"] == len(calls.backward) > 0
        assert row["token_positions"] == calls.positions()
        assert row["backward_positions"] == calls.backward_positions() == row["steps"] * width
        assert row["work"] == calls.positions() + calls.backward_positions()
        assert (row["stop_reason"] == "steps") == (row["steps"] == row["max_steps"])
        assert 0 < row["seconds"] <= time.perf_counter() - began


@pytest.mark.parametrize("module", [arrangements, sharing])
def test_a_batch_s_positions_are_what_went_through_the_model(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    without_h_lm(monkeypatch)
    with counted(family("llama")) as calls:
        rows = measure(module, 2)
    assert sum(row["token_positions"] for row, _ in rows) == calls.positions()
    assert sum(row["backward_positions"] for row, _ in rows) == calls.backward_positions() > 0


def test_texts_are_drawn_from_what_is_held_out() -> None:
    lm = family("llama")
    job = {"source": "old", "length": 120, "count": 24, "context_tokens": 8, "per_context": 1}
    held_out = [document.text for document in documents("old", "test")]
    drawn = [lm.decode(torch.tensor(ids)).strip("\N{REPLACEMENT CHARACTER}") for ids in draw_texts(lm, job)]
    assert len(drawn) == 24
    assert all(any(text in document for document in held_out) for text in drawn)


def test_a_row_says_what_machine_and_model_made_it() -> None:
    import transformers

    lm = family("llama")
    card = describe(lm, [])
    assert card["origin"] == {
        "fingerprint": lm.identity.fingerprint,
        "revision": None,
        "dtype": "float32",
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "versions": {"prototokens": card["origin"]["versions"]["prototokens"], "torch": torch.__version__,
                     "transformers": transformers.__version__},
    }  # fmt: skip
    assert card["max_positions"] == 64


@pytest.mark.parametrize(("tokens_per_vector", "named"), [(None, "m,e,m*(n-1)"), (8, "m,(e,m*7)"), (16, "m,(e,m*15)")])
def test_a_cell_in_blocks_is_conditioned_on_the_start_for_such_blocks(
    tokens_per_vector: int | None, named: str
) -> None:
    with as_file(files("prototokens") / "shipped" / "starters" / "smollm2-135m.safetensors") as path:
        model = load_starter(path).model
    cell = {"recipe": "fast", "seed": 0, "max_steps": 3, "scale": "smoke"} | (
        {"tokens_per_vector": tokens_per_vector} if tokens_per_vector else {}
    )
    assert arrangement_named(recipe(cell).arrangement).name == named
    starter = shipped_starter(model, arrangement_named(named))
    assert starter is not None
    assert _conditions(cell, model)["start_hash"] == starter.name.removeprefix("learned-")
