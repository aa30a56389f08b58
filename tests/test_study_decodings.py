"""Throughput and quality: what is decoded, how fast and how like the text, against loops written out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from families import analytic, counted, family
from prototokens import FrozenLM
from prototokens.report.reconstruction import comparisons
from prototokens.study.reconstruction import quality, throughput
from study_batches import (
    Row,
    fitted_ids,
    greedy_by_hand,
    h_lm_by_hand,
    jacobi_by_hand,
    measure,
    outputs,
    scores,
    without_h_lm,
)
from study_rows import row as study_row
from study_rows import value


def test_throughput_counts_exact_texts_and_compares_a_batch_with_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding is made up: text 0 is exact alone and in a batch, text 1 in neither way; a clock says what it takes."""
    now, cells = [0.0], throughput.lay_out("smoke")[0].cells
    texts = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    wrong = torch.tensor([9, 10, 11, 13])
    takes = {("decode", 1): 2.0, ("decode", 2): 4.0, ("reconstruct", 1): 8.0, ("reconstruct", 2): 10.0}

    def decode(lm: FrozenLM, batch: list[Any], **_: Any) -> list[Any]:
        now[0] += takes["decode", len(batch)]
        hashes = [torch.equal(tokens.e, fits[0].tokens.e) for tokens in batch]
        return [SimpleNamespace(ids=texts[0] if first else wrong) for first in hashes]

    def reconstruct(lm: FrozenLM, prompts: Tensor, length: int) -> Tensor:
        assert length == 4
        now[0] += takes["reconstruct", len(prompts)]
        return torch.stack([texts[0] if torch.equal(p, crams[0].prompt) else wrong for p in prompts])

    fits, crams = [], []
    for name, made in (("fit_batch", fits), ("cram_batch", crams)):
        original = getattr(throughput, name)
        monkeypatch.setattr(
            throughput, name, lambda *a, original=original, made=made: made.extend(original(*a)) or made
        )
    monkeypatch.setattr(throughput, "decode", decode)
    monkeypatch.setattr(throughput, "reconstruct", reconstruct)
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    ids = torch.stack([texts[cell["text"]] for cell in cells])
    rows = [
        cell | one.columns for cell, one in zip(cells, throughput.run(family("llama"), list(cells), ids), strict=True)
    ]
    table = {(row["method"], row["text"]): row for row in rows}
    assert list(table) == [(m, t) for m in throughput.METHODS for t in range(1 if m.endswith("batched") else 2)]
    for (method, number), row in table.items():
        batched, kind = method.endswith("batched"), "decode" if method.startswith("one-step") else "reconstruct"
        assert row["batch"] == (2 if batched else 1)
        assert row["seconds"] == takes[kind, row["batch"]]
        assert row["exact"] == int(not batched and number == 0)
        assert row["exact_texts"] == int(number == 0)
        assert row["tokens_per_second"] == (4 / row["seconds"] if number == 0 else None)
        if not batched:
            assert row["h_lm_nats"] == pytest.approx(h_lm_by_hand(family("llama"), texts[number]), rel=1e-4)
    assert {row["recipe"] for row in rows if row["method"].startswith("one-step")} == {"fast"}
    assert {row["recipe"] for row in rows if row["method"].startswith("auto")} == {"cramming"}


def test_a_timing_is_the_median_of_the_repeats_without_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now, durations = [0.0], iter([50.0, 1.0, 9.0, 2.0])

    def job() -> list[Tensor]:
        now[0] += next(durations)
        return [torch.tensor([3])]

    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    decoded, seconds = throughput.timed(family("llama"), [job], 3)
    assert seconds == [2.0]
    assert decoded[0][0].tolist() == [3]


@pytest.fixture(scope="module")
def crammed() -> list[Row]:
    return measure(quality, 2)


def test_quality_of_generation_is_that_of_a_loop_without_a_cache(crammed: list[Row]) -> None:
    lm = family("llama")
    for row, memory in crammed:
        prompt = torch.cat([lm.fixed_vectors(["bos"]), memory])
        target = fitted_ids(row)
        if row["method"] == "autoregressive":
            ids, passes = greedy_by_hand(lm, prompt, row["tokens"]), row["tokens"]
        else:
            ids, passes = jacobi_by_hand(lm, prompt, row["tokens"])
        assert row["passes"] == passes
        hits = [a == b for a, b in zip(ids.tolist(), target.tolist(), strict=True)]
        assert row["token_accuracy"] == pytest.approx(sum(hits) / len(hits))
        assert row["exact"] == int(all(hits))
        assert row["correct_prefix"] == [*hits, False].index(False)
        greedy = greedy_by_hand(lm, prompt, row["tokens"])
        assert row["greedy_accuracy"] == pytest.approx((greedy == target).float().mean().item())
        forced = scores_under_teacher(lm, prompt, target)
        assert row["teacher_forced_accuracy"] == pytest.approx(forced["token_accuracy"])
        assert (row["loss_nats"], row["min_margin"]) == pytest.approx(
            (forced["loss_nats"], forced["min_margin"]), abs=2e-4
        )
        assert row["h_lm_nats"] == pytest.approx(h_lm_by_hand(lm, target), rel=1e-4)


def scores_under_teacher(lm: FrozenLM, prompt: Tensor, ids: Tensor) -> dict[str, float]:
    logits = outputs(lm, torch.cat([prompt, lm.embed(ids[:-1])]))
    return scores(logits[len(prompt) - 1 :], ids)


def test_jacobi_of_one_token_and_of_one_that_repeats() -> None:
    """On the analytic model the token after v is v: the first guess stands, and the second pass shows it."""
    lm = analytic()
    prompt = lm.embed(torch.tensor([65]))
    for length, passes in ((1, 1), (4, 2)):
        ids, took = jacobi_by_hand(lm, prompt, length)
        assert (ids.tolist(), took) == ([65] * length, passes)
        decoded = quality.jacobi_decode(lm, prompt, length)
        assert (decoded.ids.tolist(), decoded.passes) == ([65] * length, passes)


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_quality_s_work_is_what_the_fits_passed(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    without_h_lm(monkeypatch)
    lm = family("llama")
    monkeypatch.setattr(quality, "decode", lambda lm, tokens: SimpleNamespace(ids=torch.zeros(tokens.length).long()))
    monkeypatch.setattr(quality, "jacobi_decode", lambda lm, p, n: SimpleNamespace(ids=torch.zeros(n).long(), passes=3))
    monkeypatch.setattr("prototokens.baselines.cramming.reconstruct", lambda lm, p, n: torch.zeros(len(p), n).long())
    with counted(lm) as calls:
        rows = [row for row, _ in measure(quality, batch)]
    alone = [row for row in rows if row["method"] != "jacobi"]
    assert sum(row["work"] for row in alone) == calls.positions() + calls.backward_positions()
    assert all(row["work"] == row["token_positions"] + row["backward_positions"] for row in rows)
    assert [row["passes"] for row in rows] == [{"autoregressive": 4, "jacobi": 3}.get(r["method"], 1) for r in rows]


def test_likeness_is_what_the_libraries_say_of_the_strings() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    lm = family("llama")
    original, decoded = "the cat sat on the mat", "on the mat the cat lay"
    ids, target = lm.encode(decoded), lm.encode(original)
    row = quality._likeness(lm, ids, target)
    right = [a == b for a, b in zip(decoded, original, strict=True)]
    assert row["token_accuracy"] == pytest.approx(sum(right) / len(right))
    assert (row["exact"], row["correct_prefix"]) == (0, right.index(False))
    assert row["bleu"] == pytest.approx(sacrebleu.sentence_bleu(decoded, [original]).score)
    assert row["chrf"] == pytest.approx(sacrebleu.sentence_chrf(decoded, [original]).score)
    assert row["rouge_l"] == pytest.approx(3 / 6), "three of six words in order: on the mat"


def test_likeness_is_of_what_was_decoded_to_the_original_and_not_the_other_way_round() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    lm = family("llama")
    decoded, original = "the cat sat on the mat", "the cat " + 7 * "é"  # as many bytes and tokens, fewer letters
    expected = [sacrebleu.sentence_chrf(decoded, [original]).score, sacrebleu.sentence_bleu(decoded, [original]).score]
    assert expected[0] != pytest.approx(sacrebleu.sentence_chrf(original, [decoded]).score)
    row = quality._likeness(lm, lm.encode(decoded), lm.encode(original))
    assert [row["chrf"], row["bleu"]] == pytest.approx(expected)


def test_jacobi_s_rows_are_scored_by_what_jacobi_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = family("llama")
    ids = lm.encode("zzzz")
    monkeypatch.setattr(quality, "jacobi_decode", lambda *_: SimpleNamespace(ids=ids, passes=2))
    cells = [{**cell, "max_steps": 0} for cell in quality.lay_out("smoke")[2].cells]
    for cell, one in zip(cells, quality.run(lm, cells, ids.expand(len(cells), -1)), strict=True):
        assert one.columns["greedy_accuracy"] < 1, "nothing was fitted"
        jacobi = cell["method"] == "jacobi"
        assert one.columns["token_accuracy"] == (1 if jacobi else one.columns["greedy_accuracy"])


def test_one_step_rows_of_quality_are_decoded_not_taken_on_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = family("llama").encode("zzzz")
    monkeypatch.setattr(quality, "decode", lambda lm, tokens: SimpleNamespace(ids=ids))
    for row, _ in measure(quality, 0):
        assert row["token_accuracy"] == pytest.approx((fitted_ids(row) == ids).float().mean().item())
        assert row["exact"] == 0


def test_only_verified_output_has_a_throughput() -> None:
    lm, length = family("llama"), 2
    cells = [cell | {"tokens": length, "max_steps": 200} for cell in throughput.lay_out("smoke")[0].cells]
    ids = torch.stack([torch.tensor([[5, 6], [7, 8]])[cell["text"]] for cell in cells])
    solved = throughput.run(lm, cells, ids)
    assert sum(one.columns["exact"] for one in solved[:2]) > 0, "the tiny model solves two tokens"
    hopeless = throughput.run(lm, [cell | {"max_steps": 0} for cell in cells], ids)
    assert any(one.columns["tokens_per_second"] is None for one in hopeless)
    for one in (*solved, *hopeless):
        exact, rate = one.columns["exact_texts"], one.columns["tokens_per_second"]
        assert (rate is None) == (exact == 0)
        if rate is not None:
            assert rate == pytest.approx(exact * length / one.columns["seconds"])


def test_the_report_compares_a_batch_with_a_batch() -> None:
    speeds = {"one-step": 90.0, "autoregressive": 10.0, "one-step-batched": 200.0, "autoregressive-batched": 40.0}
    rows = [
        study_row("throughput", method=method, batch=4 if "batched" in method else 1, tokens=16,
                  tokens_per_second=speed, exact=1, exact_texts=4 if "batched" in method else 1)
        for method, speed in speeds.items()
    ]  # fmt: skip
    rows[-2] |= {"exact": 0, "exact_texts": 3}
    entries = comparisons.throughput(rows)
    assert value(entries, "one-step", comparisons.GAIN, "N = 16").value == 9
    assert value(entries, "one-step-batched, 4 texts", comparisons.GAIN, "N = 16").value == 5
    assert value(entries, "one-step-batched, 4 texts", comparisons.VERIFIED, "N = 16").value == 0.75
    without = comparisons.throughput(rows[:-1])
    assert value(without, "one-step-batched, 4 texts", comparisons.GAIN, "N = 16") is None, "nothing to compare with"
