"""Rows as a study's store gives them, made up: enough of every study for every table and figure."""

from __future__ import annotations

import json
import math
from itertools import product
from typing import Any

from prototokens.report.exhibit import Entry
from prototokens.report.summary import Summary

Row = dict[str, Any]
SOURCES = ("random", "old", "recent", "generated")


def value(entries: list[Entry], *where: str) -> Summary | None:
    """The measured number at (row heads ..., column), or None."""
    summaries = [e.summary for e in entries if (*e.row, e.column) == where and not e.published]
    assert len(summaries) < 2
    return summaries[0] if summaries else None


def row(study: str, **columns: Any) -> Row:
    """A cell that is done, with what all studies have in common; columns change that."""
    common = {
        "study": study, "scale": "laptop", "model": "tiny", "recipe": "fast", "source": "old", "text": 0, "seed": 0,
        "tokens": 8, "max_steps": 400, "token_accuracy": 1.0, "exact": 1, "steps": 50, "token_positions": 900,
        "backward_positions": 800, "seconds": 2.5, "h_lm_nats": 30.0, "status": "done", "error": None,
        "fingerprint": "f" * 64, "dtype": "float32", "device": "cpu", "threads": 2, "prototokens": "0.1.0",
        "torch": "2.13.0", "transformers": "5.23.0", "finished": "2026-11-22T15:00:00+00:00",
    }  # fmt: skip
    made = common | columns
    key = " ".join(f"{name}={made[name]}" for name in sorted(made) if name not in ("finished", "status", "error"))
    return {"key": key} | made


def every_study() -> list[Row]:
    """A few cells of each study, solved and unsolved."""
    return capacity_studies() + solution_studies()


def capacity_studies() -> list[Row]:
    """Those on what vectors hold: tables 1 to 4, figures 1, 3 and 4, quality."""
    rows = [
        row(
            "arrangements",
            arrangement=name,
            tokens=length,
            text=text,
            token_accuracy=1.0 if length < 3 else 0.25 * text,
        )
        for name, length, text in product(("e*n", "e,m*(n-1)", "m,e,m*(n-1)"), (1, 2, 4), range(3))
    ]
    rows += [
        row("sharing", shared=shared, group_size=size, group=text // size, text=text, seed=seed, tokens=16,
            token_accuracy=1 - 0.1 * seed - 0.01 * size)
        for shared, size, text, seed in product("em", (1, 4), range(4), range(2))
    ]  # fmt: skip
    for source, shared, text, length in product(SOURCES, (0, 1), range(3), (4, 8, 16, 32)):
        accuracy = min(1.0, 12 * (1 + text) / length / (1 + shared))
        rows.append(row("capacity", source=source, m_shared=shared, text=text, tokens=length, method="grid",
                        token_accuracy=accuracy, exact=int(accuracy == 1), h_lm_nats=4.0 * length))  # fmt: skip
    rows += [
        row("capacity", source=source, m_shared=0, text=text, method=method, capacity_tokens=20 + text, work=5e4,
            capacity_h_lm_nats=80.0 + text)
        for source, text, method in product(SOURCES, range(2), ("growth", "bisection"))
    ]  # fmt: skip
    rows += [
        row("information", source=source, vectors=vectors, method=method, text=text, capacity_tokens=10 * vectors,
            h_lm_nats=(30.0 if method == "one-step" else 55.0) * vectors + text)
        for source, vectors, method, text in product(SOURCES, (1, 2), ("one-step", "autoregressive"), range(3))
    ]  # fmt: skip
    for (method, batch, speed), length, repeat in product(
        (("one-step", 1, 90.0), ("one-step-batched", 8, 200.0), ("autoregressive", 1, 12.0)), (8, 16, 32), range(2)
    ):
        speed = speed * (1 if method == "autoregressive" else math.log2(length)) + repeat
        rows.append(row("throughput", method=method, batch=batch, tokens=length, text=repeat, tokens_per_second=speed))
    rows += [
        row("cost", recipe=recipe, tokens=length, text=text, seconds=length * (1.0 + text), exact=int(recipe == "fast"))
        for recipe, length, text in product(("fast", "paper"), (8, 16), range(2))
    ]
    rows += [
        row("quality", method=method, tokens=16, text=text, correct_prefix=8 * text, bleu=40.0 + text, rouge_l=0.9,
            chrf=88.0, passes=passes, exact=text % 2, greedy_accuracy=0.75 if passes == 16 else None)
        for (method, passes), text in product(
            (("one-step", 1), ("one-vector", 1), ("jacobi", 9), ("autoregressive", 16)), range(3)
        )
    ]  # fmt: skip
    return rows


def solution_studies() -> list[Row]:
    """Those on where solutions lie and what they say: figures 5 to 7, interpolation, basin, and so on."""
    return [*_locality(), *_connectivity(), *_interpolation(), *_basin(), *_roles(), *_reading(), *_structure()]


def _locality() -> list[Row]:
    kinds = (("same text", 0, 0), ("same context", 0, 1), ("different", 1, 2))
    rows = [row("locality", method="fit", start=start, context=0, fit_seed=0) for start in ("vocabulary", "text-e")]
    for start, (kind, other, far), n in product(("vocabulary", "text-e"), kinds, range(6)):
        distances = {
            f"{when}{measure}_{part}": (0.3 + 0.2 * far + 0.01 * n * (1 + i)) * (1 if measure == "cosine" else 10)
            for when, measure in (("", "cosine"), ("", "euclidean"), ("start_", "cosine"), ("start_", "euclidean"))
            for i, part in enumerate(("e", "m", "both"))
        }
        distances |= {"tfidf_distance": 0.3 * far + 0.02 * n, "semantic_distance": 0.2 * far + 0.03 * n}
        rows.append(row("locality", method="pair", start=start, kind=kind, context=n % 3, other_seed=int(not far),
                        other_context=n % 3 + 3 * other, text=n, other_text=n + far, fit_seed=0,
                        both_exact=int(n < 5), **distances))  # fmt: skip
    return rows


def _connectivity() -> list[Row]:
    rows = [
        row("connectivity", method="fit", text=text, fit_seed=seed, exact=int(text + seed < 3))
        for text, seed in product(range(2), range(3))
    ]
    for method, text, (first, last) in product(("segment", "bezier"), range(2), ((0, 1), (0, 2), (1, 2))):
        deep = (0.8 if method == "segment" else 0.02) / (1 + text)
        way = [round(1 - deep * math.sin(math.pi * i / 8), 6) for i in range(9)]
        exact = int(text + last < 3)
        steps, ratio = (None, 1.0) if method == "segment" else (40 + text, 1.1 + 0.01 * last)
        rows.append(row("connectivity", method=method, text=text, fit_seed=first, other_seed=last, both_exact=exact,
                        taus=9, accuracies=json.dumps(way), losses_nats=json.dumps([4.01 - 4 * x for x in way]),
                        lowest_accuracy=min(way), barrier_nats=4 * deep, length_ratio=ratio, steps=steps))  # fmt: skip
    return rows


def _interpolation() -> list[Row]:
    rows = [row("interpolation", method="fit", text=text, exact=int(text < 3)) for text in range(4)]
    for vectors, text, step in product(("both", "e", "m"), range(4), (1, 2)):
        other, reached = (text + step) % 4, 1.0 if vectors == "both" else 0.25
        first = [1.0, 1.0, 0.5, 0.5 * (vectors == "m"), 0.0]
        last = [0.0, 0.0, 0.5 * reached, reached, 0.75 * reached]
        whole = (1.0, 1.0) if reached == 1 else (None, None)
        rows.append(row("interpolation", method="segment", text=text, other_text=other, vectors=vectors, taus=5,
                        tau_from=-0.5, tau_to=1.5, both_exact=int(max(text, other) < 3),
                        first_accuracies=json.dumps(first), last_accuracies=json.dumps(last),
                        other_accuracies=json.dumps([0.01 * text] * 5), first_from=-0.5, first_to=0.0,
                        last_from=whole[0], last_to=whole[1]))  # fmt: skip
    return rows


def _basin() -> list[Row]:
    amounts = {"noise": (0.1, 0.4, 1.6), "scaling": (-0.5, 0.5, 1.0), "rounding": (16, 28), "projection": (0.25, 0.75)}
    amounts["random projection"] = amounts["projection"]
    rows = [row("basin", method="fit", margin=margin, text=text) for margin, text in product((0.01, 2.0), range(3))]
    for margin, text, kind, vectors in product((0.01, 2.0), range(3), amounts, ("e", "m", "both")):
        for n, amount in enumerate(amounts[kind]):
            lost = n * (2 + (vectors == "both") - (margin > 1)) + (vectors == "m") * (n > 0)
            right = "1" * (8 - lost) + "0" * lost
            rank = 0.2 if lost else None
            rows.append(row("basin", method="change", margin=margin, text=text, kind=kind, amount=amount, draw=0,
                            vectors=vectors, right=right, exact=int(not lost), token_accuracy=1 - lost / 8,
                            lost_margin_rank=rank, moved=abs(amount), fit_exact=int(text < 2)))  # fmt: skip
    return rows


def _roles() -> list[Row]:
    rows = [
        row("roles", method="swap", text=text, m_source="old", m_text=(text + step) % 3, own=int(not step),
            both_exact=int(text < 2), e_accuracy=1.0 - step / 2, m_accuracy=1.0 - step / 3, other_accuracy=0.1,
            e_overlap=1.0, m_overlap=0.5, other_overlap=0.2, distinct=0.75)
        for text, step in product(range(3), range(2))
    ]  # fmt: skip
    rows += [
        row("roles", method="probe", target=target, features=features, words=4, folds=2, shuffles=20, score=0.7,
            chance=0.5, shuffled=0.5, shuffled_sd=0.05, beaten=0.95, rows=24, rows_exact=20)
        for target, features in product(("words", "length", "source", "teacher"), ("e", "m", "both", "text"))
    ]  # fmt: skip
    rows += [
        row("roles", method="attention", inputs=inputs, place=place, attention=0.3, attention_top=0.9, layer_top=2,
            even=0.2, texts=3, heads=json.dumps([[0.1 * (i + j) for j in range(4)] for i in range(6)]))
        for inputs, place in product(("vectors", "text"), ("e", "first"))
    ]  # fmt: skip
    return rows


def _reading() -> list[Row]:
    names = product(("tfidf", "semantic"), ("own", "other", "auc"), ("text", "context"))
    measures = ["_".join(name) for name in names]
    return [
        row("reading", part=part, bos=bos, sampled=sampled, text=text, text_tokens=8, reading="so it goes",
            first_right=int(part != "m"), **dict.fromkeys(measures, 0.5 + 0.1 * text))
        for part, bos, sampled, text in product(("e", "m", "both", "first"), (0, 1), (0, 1), range(2))
    ]  # fmt: skip


def _structure() -> list[Row]:
    ways = [("none", "none", 0.0), *product(("anchor", "relational"), "em", (0.1, 1.0, 10.0))]
    return [
        row("structure", loss=loss, vector=vector, weight=weight, hold=20, chunk=chunk, text=text, loss_nats=0.01,
            token_accuracy=1 - weight * (0.05 if loss == "anchor" else 0.01), candidates=5,
            **{f"{name}_{v}": 0.2 + 0.2 * math.log10(1 + weight) + 0.1 * (v == "m")
               for name in ("anchor_cosine", "relation_error", "relation_correlation", "relation_correlation_shuffled",
                            "relation_correlation_shuffled_sd")
               for v in "em"},
            **{f"rank_{name}": 1 + (text + n) % 3
               for n, name in enumerate(("e", "m", "both", "text", "teacher"))})
        for (loss, vector, weight), chunk, text in product(ways, range(2), range(3))
    ]  # fmt: skip
