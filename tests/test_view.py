"""Scenes of `view`: what they say is what the files hold."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from archives import BLOCKS, NOTHING, TEXT, packed
from encoders import random_encoder
from families import ONE, RECIPE, budget, counted, family
from prototokens import FrozenLM, decode, fit
from prototokens.archive.archive import write_archive
from prototokens.arrangements import blocks
from prototokens.files.record import read_record
from prototokens.fitting.trace import Trace, TraceRecorder
from prototokens.geometry.paths import segment
from prototokens.geometry.profiles import even_taus, profile
from prototokens.view import races
from prototokens.view.archives import scene_of_archive
from prototokens.view.encoders import scene_of_encoder
from prototokens.view.fits import scene_of_fit
from prototokens.view.page import build_page
from prototokens.view.races import Race, run_race, scene_of_decode
from prototokens.view.scenes import thinned
from prototokens.view.ways import scene_of_way
from traces import traced, unfolded


def test_the_frames_of_a_fit_are_its_evaluations(llama: FrozenLM) -> None:
    result, trace = traced(llama, "tree", arrangement=blocks(2))
    scene = scene_of_fit(trace)
    (film,) = scene.films
    assert len(film.status) == len(film.ticks) == len(film.lanes[0].texts) == result.steps + 1
    assert "".join(film.lanes[0].texts[-1]) == "tree"
    assert film.status[-1].startswith(f"Step {result.steps} of {result.steps}: 4 of 4 tokens right")
    assert film.ends == [2, 4]
    assert film.curves[0].values == pytest.approx(result.loss_history.tolist())
    for marks, right in zip(film.lanes[0].marks, trace.right[:, 0].tolist(), strict=True):
        assert [letter in "ABC" for letter in marks] == right
    assert [row[:3] for row in scene.tables[0].rows] == [("1", "1 to 2", "2 of 2"), ("2", "3 to 4", "2 of 2")]
    assert max(int(row[3]) for row in scene.tables[0].rows) == result.steps
    assert scene.title == f"A fit of 4 tokens: all right after {result.steps} steps"


def test_a_fit_that_is_not_exact_says_so(llama: FrozenLM) -> None:
    scene = scene_of_fit(traced(llama, "tree", stop=replace(ONE.stop, max_steps=0))[1])
    assert re.fullmatch(r"A fit of 4 tokens: [0-3] of 4 right", scene.title)
    assert "It ended because the maximum number of steps was taken." in scene.words


def test_every_restart_is_a_film_and_the_kept_one_comes_first(llama: FrozenLM) -> None:
    recorder = TraceRecorder()
    fit(llama, llama.encode("no"), RECIPE, trace=recorder)
    trace = recorder.trace(llama)
    films = scene_of_fit(trace).films
    assert len(films) == RECIPE.restarts
    assert films[0].name == f"restart {trace.kept + 1} (kept)"
    assert {film.name[:9] for film in films} == {f"restart {number}" for number in range(1, 5)}
    assert "".join(films[0].lanes[0].texts[-1]) == "no"


def test_a_long_fit_is_thinned_and_says_so() -> None:
    assert thinned(3, 5) == [0, 1, 2]
    for count, most in ((1000, 24), (25, 24)):
        kept = thinned(count, most)
        assert (len(kept), kept[0], kept[-1]) == (most, 0, count - 1)
        assert sorted(set(kept)) == kept
    n, length = 900, 4
    ids = torch.arange(length).expand(n, 1, length).contiguous()
    trace = Trace(
        torch.arange(length), torch.arange(n), ids, torch.ones(n, 1, length), torch.ones(n, 1), 0, None, "e,m*n",
        "steps", family("llama").identity, ("a", "b", "c", "d"), dict(enumerate("abcd")),
    )  # fmt: skip
    scene = scene_of_fit(trace)
    assert len(scene.films[0].status) == 400
    assert scene.films[0].ticks[-1] == "899"
    assert "400 of 900 evaluations are drawn." in scene.words


RIGHT_WHEN = (
    (True, False, True, True),
    (True, True, True, True),
    (False, False, False, True),
    (False, True, True, True),
    (False, True, True, False),
    (True, True, True, True),
)
"""Of each token, whether it is right at each of four evaluations."""


def scripted(right: torch.Tensor, margins: torch.Tensor, steps: torch.Tensor, block_length: int | None) -> Trace:
    """A trace of one restart in which tokens are right and lead as given, both (N, T); a wrong one is z."""
    n, length = right.shape
    ids = torch.where(right, torch.arange(length), length).unsqueeze(1)
    return Trace(
        torch.arange(length), steps, ids, margins.unsqueeze(1), torch.ones(n, 1), 0, block_length, "e,m*n", "steps",
        family("llama").identity, tuple("abcdef"[:length]), dict(enumerate("abcdef"[:length] + "z")),
    )  # fmt: skip


def test_what_came_right_last_is_named_with_its_step() -> None:
    right = torch.tensor(RIGHT_WHEN).T
    scene = scene_of_fit(scripted(right, torch.where(right, 1.0, -1.0), torch.arange(0, 40, 10), 2))
    came = "“c” (position 3) at step 30, “a” (position 1) at step 20, “d” (position 4) at step 10"
    assert f"The last to come right: {came}." in scene.words
    assert [row[2:] for row in scene.tables[0].rows] == [
        ("2 of 2", "20", "ab"),
        ("2 of 2", "30", "cd"),
        ("1 of 2", "not at the end", "ef"),
    ]


def test_a_colour_says_how_far_a_token_leads_or_is_behind(llama: FrozenLM) -> None:
    margins = torch.tensor([[0.5, 2.0, 9.0, -0.5, -2.0, -9.0]])
    scene = scene_of_fit(scripted(margins > 0, margins, torch.tensor([0]), None))
    leads = ["leads by less than 1 logit", "leads by 1 to 4 logits", "leads by more than 4 logits"]
    assert [scene.marks[letter].words for letter in scene.films[0].lanes[0].marks[0]] == [
        *(f"right, {lead}" for lead in leads),
        *(f"wrong, {lead.replace('leads', 'behind')}" for lead in leads),
    ]
    tokens = fit(llama, llama.encode("abc"), budget(ONE, max_steps=0)).tokens
    decoded = replace(decode(llama, tokens, scores=True), margins=margins[0, :3])
    scene = scene_of_decode(llama, tokens, Race(decoded, llama.encode("abc"), 0.1, 0.8, 5))
    assert [scene.marks[letter].words for letter in scene.films[0].lanes[0].marks[0]] == leads


def test_what_the_script_unfolds_is_every_frame(llama: FrozenLM) -> None:
    (film,) = scene_of_fit(traced(llama, "né!", stop=replace(ONE.stop, max_steps=9))[1]).films
    assert unfolded(film.to_json()["lanes"][0]) == [list(texts) for texts in film.lanes[0].texts]


@pytest.mark.parametrize("loss", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_is_left_out(loss: float) -> None:
    film = scene_of_fit(spoiled(loss)).films[0]
    assert film.to_json()["curves"][0]["most"] == 1
    assert film.to_json()["curves"][0]["values"] == [1.0, None]
    json.dumps(film.to_json(), allow_nan=False)


def spoiled(loss: float) -> Trace:
    """A trace whose last loss is not finite."""
    ids = torch.tensor([[[0, 1]], [[0, 0]]])
    return Trace(
        torch.tensor([0, 1]), torch.arange(2), ids, torch.tensor([[[2.0, 1]], [[torch.nan] * 2]]),
        torch.tensor([[1.0], [loss]]), 0, None, "e,m*n", "nonfinite", family("llama").identity, ("a", "b"),
        {0: "a", 1: "b"},
    )  # fmt: skip


def test_a_race_shows_either_way_at_its_speed(llama: FrozenLM) -> None:
    tokens = fit(llama, llama.encode("tree"), RECIPE).tokens
    decoded = decode(llama, tokens, scores=True)
    scene = scene_of_decode(llama, tokens, Race(decoded, llama.encode("abcd"), 0.1, 0.8, 5))
    (film,) = scene.films
    fast, slow = film.lanes
    assert ("".join(fast.frame(-1)[0]), "".join(slow.frame(-1)[0])) == ("tree", "abcd")
    assert fast.shown is not None
    assert slow.shown is not None
    moments = [float(tick.removesuffix(" s")) for tick in film.ticks]
    assert (moments[0], moments[-1], film.seconds) == (0, 0.8, 0.8)
    assert next(t for t, n in zip(moments, fast.shown, strict=True) if n) == pytest.approx(0.1, abs=0.01)
    assert next(t for t, n in zip(moments, slow.shown, strict=True) if n >= 2) == pytest.approx(0.4, abs=0.01)
    assert any("8.0 times as long" in words for words in scene.words)
    assert not scene.warning
    other = replace(tokens, provenance=replace(tokens.provenance, target_hash="0" * 64))
    race = Race(decode(llama, other, scores=True), llama.encode("abcd"), 0.1, 0.8, 5)
    assert "not the text that was fitted" in scene_of_decode(llama, other, race).warning


def test_a_race_is_run_in_turn_and_gives_as_many_tokens(llama: FrozenLM) -> None:
    tokens = fit(llama, llama.encode("no"), budget(ONE, max_steps=0)).tokens
    race = run_race(llama, tokens, repeats=2)
    assert race.repeats == 2
    assert race.generated_ids.shape == race.decoded.ids.shape
    assert 0 < race.ratio < float("inf")
    assert race.decoded.margins is not None


@pytest.mark.parametrize(("enough", "repeats"), [(1000, 3), (20, 2), (0, 1)])
def test_a_race_s_first_round_is_left_out_and_none_begins_too_late(
    llama: FrozenLM, monkeypatch: pytest.MonkeyPatch, enough: float, repeats: int
) -> None:
    tokens = fit(llama, llama.encode("no"), budget(ONE, max_steps=0)).tokens
    now, ran = [0.0], []

    def lasting(name: str, seconds: list[float], run: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            ran.append(name)
            now[0] += seconds.pop(0)
            return run(*arguments, **options)

        return call

    one_pass, generated = [1.0, 2.0, 9.0], [4.0, 30.0, 8.0]
    monkeypatch.setattr(races, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(races, "decode", lasting("pass", [700, 100, *one_pass], decode))  # the first reads the scores
    monkeypatch.setattr(FrozenLM, "generate", lasting("greedy", [50, *generated], FrozenLM.generate))
    race = run_race(llama, tokens, 3, enough)
    assert ran == ["pass"] + ["pass", "greedy"] * (1 + repeats)
    assert race.repeats == repeats
    assert race.decode_seconds == median(one_pass[:repeats])
    assert race.generate_seconds == median(generated[:repeats])


def test_a_way_is_what_path_computes(llama: FrozenLM) -> None:
    first, last = (fit(llama, llama.encode(text), RECIPE).tokens for text in ("abc", "Yes."))
    scene = scene_of_way(llama, first, last, 5)
    (film,) = scene.films
    ids = profile(llama, segment(first, last), even_taus(5), llama.encode("Yes.")).ids
    assert ["".join(texts) for texts in film.lanes[0].texts] == [llama.decode(row) for row in ids]
    assert film.ticks == ["0.000", "0.250", "0.500", "0.750", "1.000"]
    assert "".join(film.lanes[0].texts[0]).startswith("abc")
    assert "".join(film.lanes[0].texts[-1]) == "Yes."
    assert set(film.lanes[0].marks[0][:3]) <= set("FB")
    assert set(film.lanes[0].marks[-1]) <= set("LB")
    assert film.curves[0].values[0] == film.curves[1].values[-1] == 1
    solved = [decode(llama, each).ids.tolist() for each in (first, last)]
    agrees = {"B": [True, True], "F": [True, False], "L": [False, True], "N": [False, False]}
    for row, marks in zip(ids.tolist(), film.lanes[0].marks, strict=True):
        held = [[end[place : place + 1] == [token] for end in solved] for place, token in enumerate(row)]
        assert [agrees[letter] for letter in marks] == held
    again = scene_of_way(llama, first, first, 2).films[0]
    assert set("".join(again.lanes[0].marks)) == {"B"}


@pytest.mark.parametrize("effort", [BLOCKS, NOTHING], ids=["blocks", "residual alone"])
def test_an_archive_s_tokens_give_its_text_and_its_bytes_are_the_file_s(
    llama: FrozenLM, tmp_path: Path, effort: Any
) -> None:
    archive = packed(effort)
    path = write_archive(tmp_path / "a.proto", archive)
    scene = scene_of_archive(llama, path)
    texts, marks = scene.films[0].lanes[0].frame(-1)
    assert "".join(texts) == TEXT
    counts = Counter(marks)
    assert counts["R"] == len(archive.residual_ids)
    assert counts["R"] + counts["V"] == archive.n_tokens
    assert (counts["T"] > 0) == bool(archive.literals)
    table = scene.tables[0]
    assert len(table.rows) == len(archive)
    columns = [[int(cell.replace(",", "")) for cell in column] for column in list(zip(*table.rows, strict=True))[1:-1]]
    total = [int(cell.replace(",", "")) for cell in table.total[1:-1]]
    assert [sum(column) for column in columns] == total
    assert total[:2] == [archive.n_tokens, len(archive.residual_ids)]
    starts, residual = archive.token_starts.tolist(), archive.residual_positions.tolist()
    assert columns[0] == archive.lengths.tolist()
    assert columns[1] == [sum(a <= place < b for place in residual) for a, b in pairwise(starts)]
    held = archive.vectors
    parts = (held.int8, held.scale, held.float16, held.float32)
    assert total[3] == sum(part.nbytes for part in parts) + len(held)  # and a byte for the dtype of each
    stored, _ = read_record(path, "archive")
    assert total[4] == stored["residual_positions"].nbytes + stored["residual_ids"].nbytes
    assert total[5] == sum(stored[name].nbytes for name in ("checksums", "lengths", "own_m"))
    assert total[2] == total[3] + total[4] + total[5] < path.stat().st_size


def test_an_archive_of_literal_bytes_alone_is_shown(llama: FrozenLM, tmp_path: Path) -> None:
    for text in ("\ufffd", ""):
        path = write_archive(tmp_path / f"{len(text)}.proto", packed(NOTHING, text=text))
        scene = scene_of_archive(llama, path)
        assert "".join(scene.films[0].lanes[0].frame(-1)[0]) == text
        build_page([scene])


def test_a_long_archive_is_shown_in_part(llama: FrozenLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prototokens.view.archives.MOST_TOKENS", 6)
    archive = packed(BLOCKS)
    scene = scene_of_archive(llama, write_archive(tmp_path / "a", archive))
    texts, _ = scene.films[0].lanes[0].frame(-1)
    assert TEXT.startswith("".join(texts))
    assert 0 < len(texts) <= 6
    assert len(scene.tables[0].rows) == len(archive) > 1
    assert any(f"of {len(archive)} are shown" in words for words in scene.words)


@pytest.mark.parametrize(("most", "shown", "text"), [(4, 1, "ab"), (6, 3, "ab😀"), (1, 1, "ab"), (8, 4, "ab😀cd")])
def test_windows_are_shown_up_to_the_end_of_a_piece(
    llama: FrozenLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, shown: int, text: str
) -> None:
    monkeypatch.setattr("prototokens.view.archives.MOST_TOKENS", most)
    archive = packed(replace(NOTHING, chunk_tokens=2), text="ab😀cd")
    assert archive.pieces[:, 1].tolist() == [1, 2, 1]  # the character that takes four tokens takes two windows
    with counted(llama) as calls:
        scene = scene_of_archive(llama, write_archive(tmp_path / "a", archive))
    (film,) = scene.films
    assert "".join(film.lanes[0].frame(-1)[0]) == text
    assert film.ends == [2 * end for end in range(1, shown + 1)]
    assert calls.positions() == shown * len(archive.arrangement.layout(2).slots)
    words = f"The first {shown} window{'s' if shown > 1 else ''} of 4 are shown"
    assert any(words in sentence for sentence in scene.words) == (shown < 4)


def test_an_encoder_s_tokens_are_marked_by_what_decoding_gives(llama: FrozenLM) -> None:
    encoder, ids = random_encoder(llama), llama.encode("ab")
    scene = scene_of_encoder(llama, encoder, ids)
    decoded = decode(llama, encoder(llama, ids), scores=True)
    assert decoded.log_probs is not None
    right = (decoded.ids == ids).tolist()
    _, marks = scene.films[0].lanes[0].frame(-1)
    assert [letter in "ABC" for letter in marks] == right
    assert [row[3] for row in scene.tables[0].rows] == [f"{p:.1%}" for p in decoded.log_probs.exp().tolist()]
    assert scene.is_still


def test_an_encoder_s_colours_are_probabilities_and_its_table_has_the_text(
    llama: FrozenLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, ids = random_encoder(llama), llama.encode("abcdef")
    shares = torch.tensor([0.3, 0.7, 0.95, 0.3, 0.7, 0.95])
    decoded = decode(llama, encoder(llama, ids), scores=True)
    decoded = replace(decoded, ids=llama.encode("abcxyz"), log_probs=shares.log(), margins=torch.arange(6.0))
    monkeypatch.setattr("prototokens.view.encoders.decode", lambda *_, **__: decoded)
    scene = scene_of_encoder(llama, encoder, ids)
    texts, marks = scene.films[0].lanes[0].frame(-1)
    assert texts == list("abcxyz")
    bounds = ["below 50 %", "50 to 90 %", "above 90 %"]
    expected = [f"{kind}, probability {bound}" for kind in ("right", "wrong") for bound in bounds]
    assert [scene.marks[letter].words for letter in marks] == expected
    columns = list(zip(*scene.tables[0].rows, strict=True))
    assert columns[1] == ('"a"', '"b"', '"c"', '"d"', '"e"', '"f"')
    assert columns[2] == ("yes", "yes", "yes", 'no: "x"', 'no: "y"', 'no: "z"')
    assert columns[4] == ("0.00", "1.00", "2.00", "3.00", "4.00", "5.00")
