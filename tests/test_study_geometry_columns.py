"""Columns of the studies of geometry, each against a value that is worked out apart from them."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from families import counted, family
from prototokens.geometry.alignment import projected
from prototokens.geometry.teacher import load_teacher
from prototokens.study.geometry import basin, connectivity, interpolation, locality, reading, roles, structure
from study_batches import Row, fitted_ids, measure, of, read_out, scores, text, without_h_lm


def vectors_of(rows: list[Row], *names: str) -> dict[Any, Any]:
    """Vectors of the fits by what tells them apart."""
    return {tuple(row[name] for name in names): vectors for row, vectors in rows if vectors is not None}


def cosine(a: Tensor, b: Tensor) -> float:
    return ((a.flatten().double() @ b.flatten().double()) / (a.double().norm() * b.double().norm())).item()


def on_the_way(first: Any, last: Any, tau: float, moved: str) -> Any:
    """Vectors on the straight line from one solution to another, what is not moved staying the first's."""
    e, m = ((1 - tau) * getattr(first, n) + tau * getattr(last, n) for n in "em")
    return replace(first, e=e if moved != "m" else first.e, m=m if moved != "e" else first.m)


def tfidf_by_hand(documents: list[list[int]]) -> list[list[float]]:
    """Cosine distances of counts times 1 + ln((1 + n) / (1 + documents that have the token))."""
    holders = Counter(token for ids in documents for token in set(ids))
    weights = [
        {t: n * (1 + math.log((1 + len(documents)) / (1 + holders[t]))) for t, n in Counter(ids).items()}
        for ids in documents
    ]
    lengths = [math.sqrt(sum(w * w for w in document.values())) for document in weights]
    return [
        [1 - sum(w * b.get(t, 0) for t, w in a.items()) / (lengths[i] * lengths[j]) for j, b in enumerate(weights)]
        for i, a in enumerate(weights)
    ]


def semantic_by_hand(texts: list[str]) -> list[list[float]]:
    embeddings = load_teacher().embed(texts)
    return [[1 - cosine(a, b) for b in embeddings] for a in embeddings]


def test_locality_s_distances_are_those_of_vectors_starts_and_texts() -> None:
    lm, rows = family("llama"), measure(locality)
    kept = vectors_of(rows, "text", "fit_seed")
    starts = vectors_of(measure(locality, max_steps=0), "text", "fit_seed")
    numbers = sorted({text for text, _ in kept})
    ids = [lm.encode(text("continued", n))[:4].tolist() for n in numbers]
    tfidf, semantic = tfidf_by_hand(ids), semantic_by_hand([lm.decode(torch.tensor(each)) for each in ids])
    for row in of(rows, "pair"):
        ends = [(row["text"], row["fit_seed"]), (row["other_text"], row["other_seed"])]
        for prefix, vectors in (("", kept), ("start_", starts)):
            a, b = (vectors[end] for end in ends)
            pairs = {"e": (a.e[0], b.e[0]), "m": (a.m, b.m)}
            pairs["both"] = (torch.cat([a.e[0], a.m]), torch.cat([b.e[0], b.m]))
            for part, (x, y) in pairs.items():
                assert row[f"{prefix}euclidean_{part}"] == pytest.approx(math.dist(x.tolist(), y.tolist()), rel=1e-5)
                assert row[f"{prefix}cosine_{part}"] == pytest.approx(1 - cosine(x, y), abs=1e-5)
        i, j = numbers.index(row["text"]), numbers.index(row["other_text"])
        assert row["tfidf_distance"] == pytest.approx(tfidf[i][j], abs=1e-5)
        assert row["semantic_distance"] == pytest.approx(semantic[i][j], abs=1e-4)


def test_connectivity_s_segment_scores_what_lies_on_the_straight_line() -> None:
    lm, rows = family("llama"), measure(connectivity)
    kept = vectors_of(rows, "fit_seed")
    for row in of(rows, "segment"):
        first, last = kept[row["fit_seed"],], kept[row["other_seed"],]
        expected = [
            scores(read_out(lm, on_the_way(first, last, n / (row["taus"] - 1), "both")), fitted_ids(row))
            for n in range(row["taus"])
        ]
        losses = [one["loss_nats"] for one in expected]
        assert json.loads(row["accuracies"]) == pytest.approx([one["token_accuracy"] for one in expected], abs=1e-5)
        assert json.loads(row["losses_nats"]) == pytest.approx(losses, abs=2e-4)
        assert row["barrier_nats"] == pytest.approx(max(losses) - (losses[0] + losses[-1]) / 2, abs=3e-4)
        assert row["highest_loss_nats"] == pytest.approx(max(losses), abs=2e-4)
        assert row["lowest_accuracy"] == pytest.approx(min(one["token_accuracy"] for one in expected), abs=1e-5)
        z = [torch.cat([v.e[0], v.m]).tolist() for v in (first, last)]
        assert row["length"] == pytest.approx(math.dist(*z), rel=1e-5)


def test_connectivity_s_curve_costs_what_went_through_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    without_h_lm(monkeypatch)
    lm = family("llama")
    with counted(lm) as calls:
        rows = measure(connectivity, max_steps=200)
    fits, (segment,), (curve,) = of(rows, "fit"), of(rows, "segment"), of(rows, "bezier")
    assert all(row["exact"] for row in fits), "the tiny model solves two tokens"
    looks = 2 * segment["taus"] * 3  # the profiles of both ways, at three positions a place
    assert calls.positions() - looks == sum(row["token_positions"] for row in (*fits, curve))
    assert calls.backward_positions() == sum(row["backward_positions"] for row in (*fits, curve))
    assert curve["steps"] > 0
    assert curve["seconds"] > 0


def test_interpolation_s_places_are_those_of_the_straight_line() -> None:
    lm, rows = family("llama"), measure(interpolation, max_steps=100)
    kept = vectors_of(rows, "text")
    ids = {row["text"]: fitted_ids(row) for row in of(rows, "fit")}
    for row in of(rows, "segment"):
        first, last = row["text"], row["other_text"]
        for n, tau in enumerate((-0.5, 0.0, 0.5, 1.0, 1.5)):
            decoded = read_out(lm, on_the_way(kept[first,], kept[last,], tau, row["vectors"])).argmax(-1)
            controls = [number for number in ids if number not in (first, last)]
            for name, numbers in (("first", [first]), ("last", [last]), ("other", controls)):
                shares = [(decoded == ids[number]).double().mean().item() for number in numbers]
                told = json.loads(row[f"{name}_accuracies"])[n]
                assert told == pytest.approx(sum(shares) / len(shares), abs=1e-5)


def test_basin_s_digits_are_what_vectors_moved_by_hand_decode_to() -> None:
    lm, amount = family("llama"), 1.5
    rows = measure(basin, kind="scaling", amount=amount, max_steps=60)
    kept = vectors_of(rows, "text")
    for row in of(rows, "change"):
        before = kept[row["text"],]
        after = on_the_way(before, replace(before, e=before.e * 2, m=before.m * 2), amount, row["vectors"])
        ids = fitted_ids(row)
        was, now = (read_out(lm, tokens) for tokens in (before, after))
        right = (now.argmax(-1) == ids).tolist()
        assert row["right"] == "".join(str(int(one)) for one in right)
        assert row["token_accuracy"] == pytest.approx(sum(right) / len(right))
        assert row["exact"] == int(all(right))
        assert row["moved"] == pytest.approx(amount)
        assert row["fit_accuracy"] == pytest.approx(scores(was, ids)["token_accuracy"])
        assert row["fit_exact"] == scores(was, ids)["exact"]
        margins = [scores(line[None], target[None])["min_margin"] for line, target in zip(was, ids, strict=True)]
        ranks = [sorted(margins).index(margin) / (len(margins) - 1) for margin in margins]
        lost = [rank for rank, one in zip(ranks, right, strict=True) if not one]
        expected = sum(lost) / len(lost) if 0 < len(lost) < len(right) and row["fit_exact"] else None
        assert row["lost_margin_rank"] == (None if expected is None else pytest.approx(expected))
    assert any(0 < row["right"].count("0") < 4 for row in of(rows, "change"))


def test_roles_overlaps_and_kinds_of_tokens_are_counted() -> None:
    lm, rows = family("llama"), measure(roles, max_steps=40)
    chunks = {(r["source"], r["text"]): (v, fitted_ids(r)) for r, v in rows if v is not None and r["chunk_start"] == 0}
    for row in of(rows, "swap"):
        of_e, of_m = (row["source"], row["text"]), (row["m_source"], row["m_text"])
        decoded = read_out(lm, replace(chunks[of_e][0], m=chunks[of_m][0].m)).argmax(-1).tolist()

        def overlap(key: Any, decoded: list[int] = decoded) -> float:
            ids = chunks[key][1].tolist()
            return sum(min(decoded.count(v), ids.count(v)) for v in set(decoded)) / len(ids)

        assert row["distinct"] == pytest.approx(len(set(decoded)) / len(decoded))
        assert row["e_overlap"] == pytest.approx(overlap(of_e))
        assert row["m_overlap"] == pytest.approx(overlap(of_m))
        controls = [key for key in chunks if key not in (of_e, of_m) and key[0] in (of_e[0], of_m[0])]
        mean = sum(map(overlap, controls)) / len(controls) if controls else None
        assert row["other_overlap"] == (None if mean is None else pytest.approx(mean))


@torch.no_grad()
def test_roles_attention_is_the_model_s_own() -> None:
    """Of every head what the positions behind a place give it, averaged over positions and texts."""
    lm, rows = family("llama"), measure(roles, max_steps=300)
    exact = [(r, v) for r, v in rows if v is not None and r["chunk_start"] == 0 and r["exact"]]
    for row in of(rows, "attention"):
        place = {"e": 1, "first": 0}[row["place"]]  # m, e, m, m, m
        if row["inputs"] == "vectors":
            inputs = torch.stack([torch.stack([v.m, v.e[0], v.m, v.m, v.m]) for _, v in exact])
        else:
            inputs = torch.stack([lm.embed(fitted_ids(r)) for r, _ in exact])
        length = inputs.shape[1]
        kind = lm.model.config._attn_implementation
        lm.model.set_attn_implementation("eager")
        layers = lm.model(inputs_embeds=inputs, output_attentions=True, use_cache=False).attentions
        lm.model.set_attn_implementation(kind)
        heads = [layer[:, :, place + 1 :, place].mean((0, 2)).tolist() for layer in layers]
        flat = [head for layer in heads for head in layer]
        assert row["texts"] == len(exact) > 1
        assert json.loads(row["heads"]) == [pytest.approx(layer, abs=1e-3) for layer in heads]
        assert row["attention"] == pytest.approx(sum(flat) / len(flat), abs=1e-4)
        assert row["attention_top"] == pytest.approx(max(flat), abs=1e-4)
        assert row["layer_top"] == max(range(len(heads)), key=lambda n: max(heads[n]))
        behind = range(place + 1, length)
        assert row["even"] == pytest.approx(sum(1 / (n + 1) for n in behind) / len(behind))


def test_roles_probes_see_the_vectors_that_their_features_name(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Any, list[int], int, int]] = []

    def probe(features: Tensor, target: Any, numbers: list[int], *, folds: int, shuffles: int) -> Any:
        seen.append((features, target, numbers, folds, shuffles))
        return type("Seen", (), {"score": 0.1, "chance": 0.2, "shuffled": 0.3, "shuffled_sd": 0.4, "beaten": 0.5})

    monkeypatch.setattr(roles, "probe", probe)
    rows, lm = measure(roles), family("llama")
    fits = [(row, vectors) for row, vectors in rows if vectors is not None]
    probes = of(rows, "probe")
    assert len(seen) == len(probes)
    texts = [(row["source"], row["text"]) for row, _ in fits]
    for row, (features, target, numbers, folds, shuffles) in zip(probes, seen, strict=True):
        expected = {
            "e": [v.e[0] for _, v in fits],
            "m": [v.m for _, v in fits],
            "both": [torch.cat([v.e[0], v.m]) for _, v in fits],
            "text": [lm.embed(fitted_ids(r)).mean(0) for r, _ in fits],
        }[row["features"]]
        assert torch.allclose(features, torch.stack(expected), atol=1e-6)
        assert (folds, shuffles) == (row["folds"], row["shuffles"])
        pairs = list(product(range(len(fits)), repeat=2))
        assert all((numbers[i] == numbers[j]) == (texts[i] == texts[j]) for i, j in pairs)
        assert len(target.values) == len(fits)
        assert [row[n] for n in ("score", "chance", "shuffled", "shuffled_sd", "beaten")] == [0.1, 0.2, 0.3, 0.4, 0.5]
        assert (row["rows"], row["rows_exact"]) == (len(fits), sum(r["exact"] for r, _ in fits))


def test_reading_s_likeness_leaves_the_first_token_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readings are made up; what is like what is worked out from all but their first token."""
    lm, words = family("llama"), ("the sea shell", "of old times", "in the park", "a b c d e f")
    made = torch.stack([lm.encode(word)[:8] for word in words])
    monkeypatch.setattr(reading, "generate_from", lambda *_, **__: made)
    rows = [row for row, _ in measure(reading) if (row["part"], row["bos"], row["sampled"]) == ("e", 0, 0)]
    windows = [lm.encode(text("old", n))[:16] for n in range(4)]
    for name, targets in (("text", [w[8:] for w in windows]), ("context", [w[:8] for w in windows])):
        documents = [ids[1:].tolist() for ids in made] + [ids.tolist() for ids in targets]
        distances = {
            "tfidf": tfidf_by_hand(documents),
            "semantic": semantic_by_hand([lm.decode(torch.tensor(ids)) for ids in documents]),
        }
        for i, row in enumerate(rows):
            assert row["reading"] == lm.decode(made[i])
            assert row["first_right"] == int(made[i][0] == windows[i][8])
            assert row["reading_accuracy"] == pytest.approx((made[i] == windows[i][8:]).double().mean().item())
            for measure_name, table in distances.items():
                to_target, to_controls = table[i][4 + i], [table[i][4 + j] for j in range(4) if j != i]
                wins = sum(
                    1.0 if to_target < x - 1e-9 else 0.5 if abs(to_target - x) <= 1e-9 else 0.0 for x in to_controls
                )
                assert row[f"{measure_name}_own_{name}"] == pytest.approx(to_target, abs=1e-4)
                assert row[f"{measure_name}_other_{name}"] == pytest.approx(sum(to_controls) / 3, abs=1e-4)
                assert row[f"{measure_name}_auc_{name}"] == pytest.approx(wins / 3, abs=1e-6)


def test_reading_s_fits_are_of_the_text_and_not_of_its_context(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    original = reading.fit_batch
    monkeypatch.setattr(reading, "fit_batch", lambda lm, ids, config: seen.append(ids) or original(lm, ids, config))
    measure(reading)
    assert [family("llama").decode(ids) for ids in seen[0]] == [text("old", n)[8:16] for n in range(4)]


def pearson(x: list[float], y: list[float]) -> float:
    a, b = (torch.tensor(v, dtype=torch.float64) for v in (x, y))
    a, b = a - a.mean(), b - b.mean()
    return ((a @ b) / (a.norm() * b.norm())).item()


def test_structure_s_columns_are_cosines_ranks_and_correlations_by_hand() -> None:
    lm, rows = family("llama"), measure(structure, 3)
    kept = [vectors for _, vectors in rows]
    ids = [fitted_ids(row) for row, _ in rows]
    teacher = load_teacher().embed([lm.decode(each) for each in ids])
    places = projected(teacher, lm.width)
    e, m = [v.e[0] for v in kept], [v.m for v in kept]
    unit = [torch.cat([a / a.norm(), b / b.norm()]) for a, b in zip(e, m, strict=True)]
    means = [lm.embed(each).mean(0) for each in ids]
    n = len(rows)
    partner = {i: next(j for j in range(n) if j != i and rows[j][0]["text"] == rows[i][0]["text"]) for i in range(n)}
    for i, (row, _) in enumerate(rows):
        for name, vectors in (("e", e), ("m", m), ("both", unit), ("text", means), ("teacher", list(teacher))):
            near = [cosine(vectors[i], vectors[j]) for j in range(n)]
            rank = sum(near[j] >= near[partner[i]] - 1e-9 for j in range(n) if j != i)
            assert row[f"rank_{name}"] == rank
        for name, vectors in (("e", e), ("m", m)):
            assert row[f"anchor_cosine_{name}"] == pytest.approx(cosine(vectors[i], places[i]), abs=1e-5)
            gaps = [cosine(vectors[i], vectors[j]) - cosine(teacher[i], teacher[j]) for j in range(n) if j != i]
            error = math.sqrt(sum(gap * gap for gap in gaps) / len(gaps))
            assert row[f"relation_error_{name}"] == pytest.approx(error, abs=1e-5)
            upper = [(a, b) for a in range(n) for b in range(a + 1, n)]
            of_vectors, of_teacher = ([cosine(v[a], v[b]) for a, b in upper] for v in (vectors, teacher))
            assert row[f"relation_correlation_{name}"] == pytest.approx(pearson(of_vectors, of_teacher), abs=1e-4)
            assert abs(row[f"relation_correlation_shuffled_{name}"]) < 0.4
            assert 0 < row[f"relation_correlation_shuffled_sd_{name}"] < 1
        assert row["candidates"] == n - 1
