"""The studies of geometry: what their rows say about the fits of their batch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations, product
from math import comb
from typing import Any

import pytest
import torch

from families import family
from prototokens import FitConfig, FitResult, decode, fit_batch
from prototokens.errors import InputError
from prototokens.geometry.changes import Change, principal_directions, random_directions
from prototokens.geometry.distances import PAIR_KINDS, vector_distances
from prototokens.geometry.paths import VECTORS
from prototokens.geometry.robustness import decode_changed
from prototokens.study.fits import recipe
from prototokens.study.geometry import basin, connectivity, locality, reading, roles, structure
from prototokens.study.scales import SCALES
from study_batches import Row, ids_of, measure, of, text


def solutions(rows: list[Row]) -> dict[tuple[int, int], Any]:
    """Vectors by text and seed."""
    return {(row["text"], row["fit_seed"]): vectors for row, vectors in rows if row["method"] == "fit"}


@pytest.mark.parametrize("scale", SCALES)
def test_locality_compares_every_pair_that_a_kind_means_and_no_other(scale):
    grid = locality.GRIDS[scale]
    assert grid.continuations == SCALES[scale].per_context, "else texts are taken for those of another context"
    for batch in locality.lay_out(scale):
        fits = {(c["text"], c["fit_seed"]) for c in batch.cells if c["method"] == "fit"}
        pairs = [c for c in batch.cells if c["method"] == "pair"]
        ends = [frozenset({(c["text"], c["fit_seed"]), (c["other_text"], c["other_seed"])}) for c in pairs]
        assert len(set(ends)) == len(ends), "a pair is compared once"
        assert set().union(*ends) == fits, "all that is fitted is compared, and nothing else"
        contexts = len({c["context"] for c in batch.cells})
        assert Counter(c["kind"] for c in pairs) == {
            PAIR_KINDS[0]: contexts * comb(grid.seeds, 2),
            PAIR_KINDS[1]: contexts * comb(grid.continuations, 2),
            PAIR_KINDS[2]: comb(contexts, 2) * grid.continuations,
        }
        for c in pairs:
            same = (c["text"] == c["other_text"], c["context"] == c["other_context"])
            assert same == dict(zip(PAIR_KINDS, ((True, True), (False, True), (False, False)), strict=True))[c["kind"]]
            assert (c["context"], c["other_context"]) == tuple(
                c[t] // grid.continuations for t in ("text", "other_text")
            )


def test_locality_measures_the_vectors_that_it_keeps_and_the_starts_before_them():
    rows = measure(locality)
    kept, exact = solutions(rows), {(r["text"], r["fit_seed"]): r["exact"] for r in of(rows, "fit")}
    for row in of(rows, "pair"):
        first, second = (row["text"], row["fit_seed"]), (row["other_text"], row["other_seed"])
        expected = vector_distances((kept[second].e, kept[second].m), (kept[first].e, kept[first].m))
        assert {name: row[name] for name in expected} == pytest.approx(expected)
        assert row["both_exact"] == exact[first] * exact[second]
        if row["kind"] == PAIR_KINDS[0]:
            assert row["tfidf_distance"] == row["semantic_distance"] == 0
        else:
            assert row["tfidf_distance"] > 0
            assert row["semantic_distance"] > 0
    for row in of(measure(locality, max_steps=0), "pair"):
        for name in expected:
            assert row[name] == pytest.approx(row[f"start_{name}"], abs=1e-6), "with no step taken they are the starts"


@pytest.mark.parametrize("scale", SCALES)
def test_connectivity_joins_every_pair_of_a_text_s_solutions_once_for_each_way(scale):
    grid = connectivity.GRIDS[scale]
    cells = [cell for batch in connectivity.lay_out(scale) for cell in batch.cells]
    kinds = {(kind.margin, kind.max_steps, kind.tokens_per_vector) for kind in grid.kinds}
    assert len(kinds) == len(grid.kinds) > 1
    for number, kind in product(range(grid.texts), kinds):
        solved_so = [cell for cell in cells if cell["text"] == number and _kind(cell) == kind]
        assert [cell["fit_seed"] for cell in solved_so if cell["method"] == "fit"] == list(range(grid.seeds))
        for way in ("segment", *grid.curves):
            pairs = [(cell["fit_seed"], cell["other_seed"]) for cell in solved_so if cell["method"] == way]
            assert pairs == list(combinations(range(grid.seeds), 2))
    assert len(cells) == len(kinds) * grid.texts * (grid.seeds + (1 + len(grid.curves)) * comb(grid.seeds, 2))


def _kind(cell: dict[str, Any]) -> tuple[Any, ...]:
    return cell["margin"], cell["max_steps"], cell.get("tokens_per_vector")


@pytest.fixture
def all_curves(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[Row]]]:
    """Connectivity of three solutions of each of two texts, by every kind of curve."""
    grid = replace(
        connectivity.GRIDS["smoke"],
        texts=2,
        seeds=3,
        curves=tuple(connectivity.CURVES),
        texts_at_once=2,
        pairs_at_once=2,
    )
    monkeypatch.setitem(connectivity.GRIDS, "smoke", grid)
    return lambda **changes: measure(connectivity, max_steps=200, **changes)


def test_connectivity_s_ways_begin_and_end_at_the_solutions(all_curves):
    rows = all_curves(taus=33)  # the places that a curve's look has, and the ends
    fits = {(row["text"], row["fit_seed"]): row for row in of(rows, "fit")}
    kept, segments = solutions(rows), {}
    assert all(row["exact"] for row in fits.values()), "the tiny model solves two tokens"
    for row in (row for method in ("segment", *connectivity.CURVES) for row in of(rows, method)):
        ends = [(row["text"], row["fit_seed"]), (row["text"], row["other_seed"])]
        accuracies, losses = json.loads(row["accuracies"]), json.loads(row["losses_nats"])
        assert len(accuracies) == len(losses) == row["taus"]
        for place, end in ((0, ends[0]), (-1, ends[1])):
            assert accuracies[place] == pytest.approx(fits[end]["token_accuracy"])
            assert losses[place] == pytest.approx(fits[end]["loss_nats"], abs=1e-4)
        assert row["lowest_accuracy"] == pytest.approx(min(accuracies), abs=1e-5)
        assert row["highest_loss_nats"] == pytest.approx(max(losses), abs=1e-5)
        assert row["barrier_nats"] == pytest.approx(max(losses) - (losses[0] + losses[-1]) / 2, abs=1e-5)
        vectors = [(kept[end].e, kept[end].m) for end in ends]
        straight = vector_distances(*vectors)["euclidean_both"]
        assert row["length"] == pytest.approx(straight * row["length_ratio"], rel=1e-5)
        assert row["both_exact"] == 1
        assert row["missing"] is None
        if row["method"] == "segment":
            assert row["length_ratio"] == pytest.approx(1)
            segments[tuple(ends)] = row
        else:
            assert row["length_ratio"] >= 1 - 1e-6
            assert row["lowest_accuracy"] >= segments[tuple(ends)]["lowest_accuracy"], "a curve begins as the segment"
            assert row["steps"] <= row["curve_steps"]


def test_connectivity_s_curves_are_the_segment_before_their_first_step(all_curves):
    rows = all_curves(curve_steps=0)
    for method in connectivity.CURVES:
        for straight, curve in zip(of(rows, "segment"), of(rows, method), strict=True):
            assert curve["steps"] == 0
            assert curve["length_ratio"] == pytest.approx(1)
            for column in ("accuracies", "losses_nats"):
                assert json.loads(curve[column]) == pytest.approx(json.loads(straight[column]), abs=1e-4)


def test_connectivity_s_curves_do_not_depend_on_how_many_are_fitted_at_once(all_curves, monkeypatch):
    sides = []
    for pairs in (1, 3):
        monkeypatch.setitem(connectivity.GRIDS, "smoke", replace(connectivity.GRIDS["smoke"], pairs_at_once=pairs))
        sides.append(of(all_curves(curve_steps=1), "bezier"))
    assert any(row["steps"] for row in sides[0])
    for one, other in zip(*sides, strict=True):
        assert one["steps"] == other["steps"]
        assert json.loads(one["losses_nats"]) == pytest.approx(json.loads(other["losses_nats"]), abs=1e-3)


def test_connectivity_measures_the_segment_of_inexact_solutions_and_fits_them_no_curve():
    rows = measure(connectivity, max_steps=0)
    assert not any(row["exact"] for row in of(rows, "fit"))
    for row in of(rows, "segment"):
        assert (row["both_exact"], row["missing"]) == (0, None)
        assert row["lowest_accuracy"] < 1
    for row in of(rows, "bezier"):
        assert (row["both_exact"], row["missing"]) == (0, "an end is not exact")
        assert row["accuracies"] is row["lowest_accuracy"] is row["length_ratio"] is row["steps"] is None


def test_connectivity_gives_every_curve_to_the_pair_that_it_joins(all_curves, monkeypatch):
    """Also where curves of some pairs are left out, here of those with seed 1."""

    def spoil(lm: Any, ids: torch.Tensor, config: FitConfig) -> list[FitResult]:
        return [replace(fit, exact=config.seed != 1) for fit in fit_batch(lm, ids, config)]

    monkeypatch.setattr(connectivity, "fit_batch", spoil)
    rows = all_curves()
    loss = {(row["text"], row["fit_seed"]): row["loss_nats"] for row in of(rows, "fit")}
    assert len(set(loss.values())) == len(loss), "ends are told apart by their loss"
    for row in (row for method in connectivity.CURVES for row in of(rows, method)):
        assert (row["missing"] is None) == bool(row["both_exact"]) == (1 not in (row["fit_seed"], row["other_seed"]))
        if row["both_exact"]:
            losses = json.loads(row["losses_nats"])
            ends = [loss[row["text"], row[seed]] for seed in ("fit_seed", "other_seed")]
            assert [losses[0], losses[-1]] == pytest.approx(ends, abs=1e-4)


@pytest.mark.parametrize("scale", SCALES)
def test_basin_makes_every_change_of_every_text_to_every_vector(scale):
    grid = basin.GRIDS[scale]
    for batch in basin.lay_out(scale):
        changes = [cell for cell in batch.cells if cell["method"] == "change"]
        made = Counter((c["kind"], c["amount"], c["vectors"]) for c in changes)
        texts = len({cell["text"] for cell in batch.cells})
        assert made == {
            (kind, amount, vectors): texts * (grid.draws if kind in ("noise", basin.RANDOM) else 1)
            for kind, amounts in grid.amounts.items()
            for amount in amounts
            for vectors in VECTORS
        }


def test_basin_moves_vectors_by_the_amount_and_an_amount_of_nothing_changes_nothing():
    fits = {row["text"]: row for row in of(measure(basin), "fit")}
    for row in of(measure(basin, amount=0), "change"):
        assert row["moved"] == 0
        assert row["token_accuracy"] == row["fit_accuracy"] == fits[row["text"]]["token_accuracy"]
        assert row["lost_margin_rank"] is None
    for row in of(measure(basin, amount=0.5, kind="scaling"), "change"):
        assert row["moved"] == pytest.approx(0.5)
    for row in of(measure(basin, amount=0.25, kind="noise"), "change"):
        assert row["moved"] == pytest.approx(0.25)
        assert row["token_accuracy"] == pytest.approx(row["right"].count("1") / row["tokens"])
        assert row["fit_exact"] == fits[row["text"]]["exact"]


def test_basin_projects_onto_the_random_directions_of_the_draw():
    lm = family("llama")
    for draw in (0, 2):
        rows = measure(basin, draw=draw)
        kept = {row["text"]: vectors for row, vectors in rows if row["method"] == "fit"}
        for row in of(rows, "change"):
            if "projection" in row["kind"]:
                ways = random_directions(lm, draw) if row["kind"] == basin.RANDOM else principal_directions(lm)
                change = Change("projection", row["amount"], row["vectors"])
                (held,) = decode_changed(lm, [kept[row["text"]]], ids_of([row]), [change], [ways])
                assert row["moved"] == pytest.approx(held.moved)
                assert row["right"] == "".join(str(int(one)) for one in held.right)


def test_basin_s_noise_begins_below_the_radii_that_it_is_to_find():
    for scale in ("laptop", "paper"):
        amounts, draws = basin.GRIDS[scale].amounts, basin.GRIDS[scale].draws
        assert min(amounts["noise"]) == 0.01
        assert draws > 1
        # A share s of random directions is about s of a squared length: the least moves by no more than 0.05.
        assert min(amounts["projection"]) ** 0.5 < 0.05
        assert amounts["projection"] == amounts[basin.RANDOM], "the control is of the same ranks"


def test_basin_s_fits_reach_the_margin_and_only_exact_ones_tell_what_goes_first():
    rows = measure(basin, tokens=2, max_steps=300, margin=1.0)
    for row in of(rows, "fit"):
        assert row["exact"], "the tiny model solves two tokens"
        assert (row["min_margin"] >= 1) == (row["stop_reason"] == "accuracy")
    lost = [row for row in of(rows, "change") if "0" in row["right"] and "1" in row["right"]]
    assert lost
    assert all(row["lost_margin_rank"] in (0, 1) for row in lost), "of two tokens either the first or the last goes"
    assert all(row["lost_margin_rank"] is None for row in of(measure(basin, max_steps=0), "change"))


def test_roles_swap_is_scored_against_both_texts_and_with_itself_is_its_own_decode():
    rows, lm = measure(roles, max_steps=40), family("llama")
    whole = [(row, vectors) for row, vectors in rows if row["method"] == "fit" and row["chunk_start"] == 0]
    first = {(row["source"], row["text"]): row for row, _ in whole}
    kept = {(row["source"], row["text"]): vectors for row, vectors in whole}
    swaps = of(rows, "swap")
    unswapped = [row for row in swaps if row["own"]]
    assert [(row["source"], row["text"]) for row in unswapped] == list(first)
    for row in swaps:
        of_e, of_m = (row["source"], row["text"]), (row["m_source"], row["m_text"])
        assert row["own"] == (of_e == of_m)
        assert row["both_exact"] == first[of_e]["exact"] * first[of_m]["exact"]
        decoded = decode(lm, replace(kept[of_e], m=kept[of_m].m)).ids
        for name, (kind, number) in (("e", of_e), ("m", of_m)):
            ids = lm.encode(text(kind, number))[: row["chunk_tokens"]]
            assert row[f"{name}_accuracy"] == pytest.approx((decoded == ids).float().mean().item())
        for column in ("e_overlap", "m_overlap", "distinct"):
            assert 0 <= row[column] <= 1
        controls = [key for key in first if key not in (of_e, of_m) and key[0] in (of_e[0], of_m[0])]
        ids = [lm.encode(text(*key))[: row["chunk_tokens"]] for key in controls]
        shares = [(decoded == control_ids).float().mean().item() for control_ids in ids]
        assert row["other_accuracy"] == (pytest.approx(sum(shares) / len(shares)) if shares else None)
    for row in unswapped:
        assert row["e_accuracy"] == row["m_accuracy"] == first[row["source"], row["text"]]["token_accuracy"]
        assert row["e_overlap"] == row["m_overlap"] >= row["e_accuracy"]


def test_roles_are_the_same_in_whatever_portions_they_are_looked_at(monkeypatch):
    whole = measure(roles, max_steps=300)
    monkeypatch.setattr(roles, "AT_ONCE", 3)
    monkeypatch.setattr("prototokens.geometry.attention.TEXTS_AT_ONCE", 1)
    again = measure(roles, max_steps=300)
    assert of(again, "swap") == of(whole, "swap")
    for row, other in zip(of(again, "attention"), of(whole, "attention"), strict=True):
        assert row["texts"] == other["texts"] > 1
        heads = [torch.tensor(json.loads(one["heads"])) for one in (row, other)]
        assert torch.allclose(*heads, atol=2e-4), "rounded to 4 digits"


def test_roles_probes_stand_beside_their_controls_and_say_why_there_is_none(monkeypatch):
    def missing() -> None:
        raise InputError("no teacher here")

    rows = measure(roles)
    chunks = len(of(rows, "fit"))
    for row in of(rows, "probe"):
        assert row["rows"] == chunks
        assert (row["score"] is None) == (row["missing"] is not None)
        if row["score"] is not None:
            assert 0 <= row["beaten"] <= 1
            assert row["chance"] == {"words": 0.5, "length": 0, "source": 0.5, "teacher": 0}[row["target"]]
    monkeypatch.setattr(roles, "load_teacher", missing)
    before = {(row["target"], row["features"]): row["score"] for row in of(rows, "probe")}
    for row in of(measure(roles), "probe"):
        if row["target"] == "teacher":
            assert (row["score"], row["missing"]) == (None, "no teacher here")
        else:
            assert row["score"] == before[row["target"], row["features"]]


def test_roles_attention_is_a_share_for_each_head_and_missing_where_a_model_has_none():
    config = family("llama").model.config
    for row in of(measure(roles, max_steps=300), "attention"):
        heads = json.loads(row["heads"])
        assert len(heads) == config.num_hidden_layers
        assert {len(layer) for layer in heads} == {config.num_attention_heads}
        flat = [head for layer in heads for head in layer]
        assert 0 <= min(flat) <= row["attention"] <= max(flat) == row["attention_top"] <= 1
        assert 0 < row["even"] < 1
    for row in of(measure(roles, name="mamba", max_steps=300), "attention"):
        assert row["heads"] is None
        assert "gives no attention weights" in row["missing"]


def test_reading_both_vectors_of_an_exact_text_begins_with_its_first_token():
    rows = [row for row, _ in measure(reading, tokens=10, text_tokens=2, max_steps=300)]
    assert all(row["exact"] for row in rows), "the tiny model solves two tokens"
    assert all(row["first_right"] for row in rows if row["part"] == "both" and not (row["bos"] or row["sampled"]))
    columns = [f"{m}_{w}_{o}" for m in ("tfidf", "semantic") for w in ("own", "other") for o in ("text", "context")]
    assert all(0 <= row[column] <= 2 for row in rows for column in columns)


def test_reading_s_control_knows_the_first_token_and_nothing_of_the_vectors(monkeypatch):
    first = [[row for row, _ in measure(reading, max_steps=n) if row["part"] == "first"] for n in (0, 4)]
    for unfitted, fitted in zip(*first, strict=True):
        assert unfitted["first_right"] == 1
        for column in ("reading", "reading_accuracy", "tfidf_own_text", "semantic_auc_context"):
            assert unfitted[column] == fitted[column]
    monkeypatch.setattr(family("llama"), "bos_id", None)
    for row, _ in measure(reading, max_steps=0):
        assert (row["reading"] is None) == (row["tfidf_own_text"] is None) == bool(row["bos"])


def test_structure_with_no_further_loss_is_the_library_s_fit():
    rows = [row for row, _ in measure(structure, hold=0)]
    window = ids_of(rows)
    chunks = torch.stack([ids[3 * row["chunk"] :][:3] for row, ids in zip(rows, window, strict=True)])
    again = fit_batch(family("llama"), chunks, recipe(rows[0], start="vocabulary"))
    assert [row["loss_nats"] for row in rows] == [fit.loss for fit in again]


def test_structure_s_losses_bring_vectors_to_what_they_pull_at():
    ways = {}
    for number, batch in enumerate(structure.lay_out("smoke")):
        head = (batch.cells[0]["loss"], batch.cells[0]["vector"])
        ways[head] = [row for row, _ in measure(structure, number, hold=40, max_steps=60)]
    plain = ways["none", "none"]
    for (loss, vector), rows in ways.items():
        assert all(row["steps"] >= 40 for row in rows), "no fit is done before the further loss was at work"
        for row, other in zip(rows, plain, strict=True):
            assert 1 <= row["rank_e"] <= row["candidates"] == len(rows) - 1
            for control in ("rank_text", "rank_teacher"):
                assert row[control] == other[control], "it knows nothing of the fit"
        controls = [plain, *(ways[loss, other] for other in "em" if loss != "none" and other != vector)]
        for other in controls:
            if loss == "anchor":
                assert mean(rows, f"anchor_cosine_{vector}") > mean(other, f"anchor_cosine_{vector}")
            if loss == "relational":
                assert mean(rows, f"relation_error_{vector}") < mean(other, f"relation_error_{vector}")


def mean(rows: list[dict[str, Any]], column: str) -> float:
    return sum(row[column] for row in rows) / len(rows)
