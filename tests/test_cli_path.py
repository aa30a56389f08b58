"""`path`: what is decoded between two files, and one line for every mistake."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from families import RECIPE, save_model
from prototokens import Stop, decode, fit, load, load_lm, save
from prototokens.cli import app as cli
from prototokens.geometry.paths import segment


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in a folder; two solutions of one text, one of a longer text, and vectors that hold nothing."""
    folder = tmp_path_factory.mktemp("files")
    for name in ("llama", "gpt2"):
        save_model(name, folder / name)
    lm, other = load_lm(str(folder / "llama")), load_lm(str(folder / "gpt2"))
    random = replace(RECIPE, start="vocabulary", perturbation=0.0)
    for name, text, seed in (("a", "abc", 0), ("again", "abc", 1), ("other", "Yes.", 0)):
        result = fit(lm, lm.encode(text), replace(random, seed=seed))
        assert result.exact
        save(folder / name, result.tokens)
    lost = replace(random, stop=Stop(max_steps=0))
    save(folder / "lost", fit(lm, lm.encode("xyz"), lost).tokens)
    save(folder / "arranged", fit(lm, lm.encode("abc"), replace(lost, arrangement="e,m*n")).tokens)
    save(folder / "foreign", fit(other, other.encode("abc"), lost).tokens)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], files: Path):
    """Run the command in the folder of the files: exit code, stdout, and stderr without loading and progress."""
    monkeypatch.chdir(files)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prototokens", "path", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capfd.readouterr()
        return stop.value.code, out, "".join(x for x in err.splitlines(True) if not x.startswith(("loading", "step ")))

    return call


def record(run: Any, *arguments: object) -> dict[str, Any]:
    code, out, err = run(*arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_the_way_from_one_solution_to_another_begins_and_ends_with_the_text(run):
    told = record(run, "a", "again", "--points", 5)
    assert [p["tau"] for p in told["points"]] == [0, 0.25, 0.5, 0.75, 1]
    assert [told["points"][i]["text"] for i in (0, -1)] == ["abc", "abc"]
    assert (told["kind"], told["vectors"], told["same_text"], told["steps"]) == ("segment", "both", True, None)
    assert told["ratio"] == pytest.approx(1)
    assert told["lowest_accuracy"] == min(p["token_accuracy_first"] for p in told["points"])
    losses = [p["loss_first"] for p in told["points"]]
    assert told["barrier"] == pytest.approx(max(losses) - (losses[0] + losses[-1]) / 2)
    for point in told["points"]:
        assert point["token_accuracy_first"] == point["token_accuracy_last"]


def test_a_fitted_curve_is_no_worse_than_the_segment(run):
    line = record(run, "a", "again", "--points", 17)
    for kind, inner in (("bezier", 1), ("chain", 2)):
        curve = record(
            run, "a", "again", "--points", 17, "--fit", "--kind", kind, "--inner", inner, "--max-steps", 30, "--seed", 3
        )
        assert (curve["kind"], curve["same_text"]) == (kind, True)
        assert curve["lowest_accuracy"] >= line["lowest_accuracy"]
        assert curve["ratio"] > 1
        assert 0 < curve["steps"] <= 30
        assert curve["token_positions"] > curve["backward_positions"] > 0
        assert curve["stop_reason"] in ("accuracy", "steps")
        assert curve["points"][0]["text"] == curve["points"][-1]["text"] == "abc"


def test_texts_of_different_lengths_turn_into_each_other(run, files):
    told = record(run, "a", "other", "--points", 3)
    first, _, last = told["points"]
    assert first["text"].startswith("abc")
    assert len(first["text"]) == 4
    assert last["text"] == "Yes."
    assert (first["token_accuracy_first"], last["token_accuracy_last"]) == (1, 1)
    assert not told["same_text"]
    assert told["barrier"] is told["lowest_accuracy"] is None


@pytest.mark.parametrize("vectors", ["e", "m"])
def test_one_vector_alone_can_move(run, files, vectors):
    lm, a, b = load_lm(str(files / "llama")), load(files / "a"), load(files / "again")
    told = record(run, "a", "again", "--vectors", vectors, "--points", 2)
    assert told["barrier"] is None, "the last place is no solution"
    swapped = replace(a, **{vectors: getattr(b, vectors)})
    assert told["points"][0]["text"] == "abc"
    assert told["points"][1]["text"] == decode(lm, swapped).text
    assert told["vectors"] == vectors


def test_arithmetic_beyond_the_ends(run, files):
    lm, a, b = load_lm(str(files / "llama")), load(files / "a"), load(files / "other")
    told = record(run, "a", "other", "--from", -0.5, "--to", 1.5, "--points", 3)
    assert [p["tau"] for p in told["points"]] == [-0.5, 0.5, 1.5]
    e, m = segment(a, b).point(1.5)
    assert torch.allclose(e, a.e + 1.5 * (b.e - a.e), atol=1e-5)
    assert told["points"][2]["text"] == decode(lm, replace(b, e=e, m=m)).text
    assert record(run, "a", "again", "--to", 2)["barrier"] is None


def test_people_get_a_line_for_each_place(run):
    code, out, err = run("a", "again", "--points", 3, "--fit", "--max-steps", 2)
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].split() == ["tau", "as", "first", "as", "last", "text"]
    assert lines[1].split() == ["0.000", "1.000", "1.000", '"abc"']
    assert lines[3].split() == ["1.000", "1.000", "1.000", '"abc"']
    assert lines[4].startswith("bezier: length ")
    assert lines[5].startswith("lowest accuracy ")
    assert lines[6].startswith("fitted in 2 steps, ")
    assert len(run("a", "other", "--points", 3)[1].splitlines()) == 5


def test_a_file_and_itself(run):
    assert "segment: length 0.00, its ends are the same" in run("a", "a", "--points", 2)[1]
    assert "times that of the segment" not in run("a", "again", "--points", 2)[1], "of itself"
    told = record(run, "a", "a", "--points", 2)
    assert (told["length"], told["ratio"], told["lowest_accuracy"], told["barrier"]) == (0, None, 1, 0)


MISTAKES = {
    "no file": (("nowhere", "a"), "nowhere: no such file"),
    "one file": (("a",), "Missing argument 'last'"),
    "points": (("a", "again", "--points", 1), "--points is 1; it must be at least 2"),
    "range": (("a", "again", "--from", 1, "--to", 0), "--from is 1 and --to 0; --from must be below --to"),
    "infinite": (("a", "again", "--to", "inf"), "--from is 0 and --to inf; both must be numbers"),
    "vectors": (("a", "again", "--vectors", "x"), "vectors is 'x'; it must be one of: both e m"),
    "kind": (("a", "again", "--fit", "--kind", "x"), "unknown kind of curve 'x'; choose one of: bezier chain"),
    "segment": (("a", "again", "--fit", "--kind", "segment"), "a segment has nothing to fit"),
    "many points": (("a", "again", "--points", 10**9), "--points is 1000000000; it must be at least 2 and at most"),
    "many inner": (("a", "again", "--fit", "--inner", 10**9), "--inner is 1000000000; it must be at least 1 and at"),
    "steps of no curve": (("a", "again", "--max-steps", 7), "are for curves that are fitted: give --fit too"),
    "inner": (("a", "again", "--fit", "--inner", 0), "inner is 0; it must be at least 1"),
    "steps": (("a", "again", "--fit", "--max-steps", -1), "max_steps is -1; it must be at least 0"),
    "one vector": (("a", "again", "--fit", "--vectors", "e"), "not with --vectors e"),
    "two texts": (("a", "other", "--fit"), "these files hold two texts"),
    "two models": (("a", "foreign"), "a path needs proto-tokens of one model; these belong to"),
    "two arrangements": (("a", "arranged"), "these have 'm,e,m*(n-1)' and 'e,m*n'"),
    "unread": (("lost", "lost", "--fit"), "neither of two solutions decodes to their text"),
    "model": (("a", "again", "--model", "gpt2"), "these proto-tokens belong to"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
