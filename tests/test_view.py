"""Pages of `view`: what the scenes say is what the files hold; escaped, whole, and readable without colours."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from archives import BLOCKS, NOTHING, TEXT, packed
from encoders import random_encoder
from families import ONE, RECIPE, budget, build, family, tokenizer
from prototokens import FrozenLM, InputError, decode, fit, save
from prototokens.archive.archive import write_archive
from prototokens.arrangements import blocks
from prototokens.cli import app as cli
from prototokens.files.record import record_kind, write_record
from prototokens.fitting.trace import Trace, TraceRecorder, save_trace
from prototokens.geometry.paths import segment
from prototokens.geometry.profiles import even_taus, profile
from prototokens.pages import rendering
from prototokens.view.archives import MARKS as ARCHIVE_MARKS
from prototokens.view.archives import scene_of_archive
from prototokens.view.encoders import scene_of_encoder
from prototokens.view.fits import scene_of_fit
from prototokens.view.page import build_page, write_page
from prototokens.view.races import Race, run_race, scene_of_decode
from prototokens.view.scenes import Film, Lane, Mark, Scene, thinned
from prototokens.view.ways import scene_of_way
from test_report_page import Page, contrast

NASTY = "</script><script>alert('&\"')</script> <b>\n"


def traced(lm: FrozenLM, text: str, **changes: Any) -> tuple[Any, Trace]:
    recorder = TraceRecorder()
    result = fit(lm, lm.encode(text), replace(ONE, **changes), trace=recorder)
    return result, recorder.trace(lm)


def unfolded(lane: dict[str, Any]) -> list[list[str]]:
    """The texts of every frame, as the page's script unfolds them."""
    rows = [list(lane["first"])]
    for change in lane["changes"]:
        row = list(rows[-1])
        for place, number in zip(change[::2], change[1::2], strict=True):
            row[place] = number
        rows.append(row)
    return [[lane["words"][number] for number in row] for row in rows]


# Scenes.


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


def test_what_the_script_unfolds_is_every_frame(llama: FrozenLM) -> None:
    (film,) = scene_of_fit(traced(llama, "né!", stop=replace(ONE.stop, max_steps=9))[1]).films
    assert unfolded(film.to_json()["lanes"][0]) == [list(texts) for texts in film.lanes[0].texts]


def test_a_loss_that_is_not_a_number_is_left_out() -> None:
    film = scene_of_fit(spoiled()).films[0]
    assert film.to_json()["curves"][0]["values"] == [1.0, None]
    json.dumps(film.to_json(), allow_nan=False)


def spoiled() -> Trace:
    """A trace whose last loss is NaN."""
    ids = torch.tensor([[[0, 1]], [[0, 0]]])
    return Trace(
        torch.tensor([0, 1]), torch.arange(2), ids, torch.tensor([[[2.0, 1]], [[torch.nan] * 2]]),
        torch.tensor([[1.0], [torch.nan]]), 0, None, "e,m*n", "nonfinite", family("llama").identity, ("a", "b"),
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
    held = archive.vectors
    parts = (held.int8, held.scale, held.float16, held.float32)
    assert total[3] == sum(part.nbytes for part in parts) + len(held)  # and a byte for the dtype of each
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


# The page.


@pytest.fixture(scope="module")
def scenes(llama: FrozenLM, tmp_path_factory: pytest.TempPathFactory) -> list[Scene]:
    """A scene of every kind, of texts that need escaping."""
    folder = tmp_path_factory.mktemp("scenes")
    tokens = fit(llama, llama.encode(NASTY), budget(ONE, max_steps=0)).tokens
    path = write_archive(folder / "a", packed(BLOCKS))
    return [
        scene_of_fit(traced(llama, NASTY, arrangement=blocks(8), stop=replace(ONE.stop, max_steps=4))[1]),
        scene_of_decode(llama, tokens, Race(decode(llama, tokens, scores=True), llama.encode(NASTY), 0.1, 0.8, 5)),
        scene_of_way(llama, tokens, tokens, 3, (NASTY, NASTY)),
        scene_of_archive(llama, path),
        scene_of_encoder(llama, random_encoder(llama), llama.encode("<b>")),
    ]


def test_text_is_escaped_and_every_value_comes_back(scenes: list[Scene]) -> None:
    html = build_page(scenes)
    page = Page(html)
    assert page.open == []
    assert len(re.findall("<script", html)) == len(re.findall("</script>", html)) == 1 + 3  # and data of what plays
    data = re.findall(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)
    lanes = [json.loads(each)["films"][0]["lanes"][0] for each in data]
    assert ["".join(unfolded(lane)[-1]) for lane in lanes] == [
        "".join(scene.films[0].lanes[0].texts[-1]) for scene in scenes if not scene.is_still
    ]


def test_the_page_is_one_file_that_may_fetch_nothing_and_run_one_script(scenes: list[Scene]) -> None:
    html = build_page(scenes)
    page = Page(html)
    (policy,) = (x["content"] for x in page.all("meta") if x.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert f"script-src 'sha256-{rendering._digest(script)}'" in policy
    assert not re.findall(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", html)
    addresses = [x[name] for _, x in page.tags for name in ("src", "href") if name in x]
    assert all(address.startswith(("#", "data:")) for address in addresses)


def test_the_page_can_be_read_without_seeing_it(scenes: list[Scene]) -> None:
    page = Page(build_page(scenes))
    ids = [x["id"] for _, x in page.tags if x.get("id")]
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(x.get("scope") in ("col", "row") for x in page.all("th"))
    assert all(len(x["aria-label"]) > 60 for x in page.all("canvas"))
    assert all(x["aria-labelledby"] in ids for _, x in page.tags if "aria-labelledby" in x)
    for x in page.all("div"):
        if "scroll" in (x.get("class") or ""):
            assert x["tabindex"] == "0"
    assert len(page.all("h1")) == 1
    assert len(Page(build_page(scenes[:1])).all("h1")) == 1


def test_marks_differ_without_their_colours(scenes: list[Scene]) -> None:
    for scene in scenes:
        words = [mark.words for _, mark in scene.legend()]
        assert len(set(words)) == len(words)
        kinds = {mark.colour.split("-")[0]: mark.pattern for _, mark in scene.legend()}
        if len(scene.films[0].lanes) == 1:  # lanes have headings
            assert len(set(kinds.values())) == len(kinds), "another colour has another pattern"
        legend = " ".join(Page(build_page([scene])).text.split())
        assert all(word in legend for word in words)


def themes() -> list[dict[str, str]]:
    """The colours of light and of dark."""
    sheets = [
        (Path(rendering.__file__).parent / "frame.css").read_text(),
        (Path(rendering.__file__).parents[1] / "view" / "page.css").read_text(),
    ]
    texts = [re.findall(r":root \{(.*?)\}", sheet, re.DOTALL) for sheet in sheets]
    both = [[dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", text)) for text in found] for found in texts]
    return [frame | view for frame, view in zip(both[0][:2], both[1], strict=True)]


COLOURS = ("blue-1", "blue-2", "blue-3", "orange-1", "orange-2", "orange-3", "grey", "plain")

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
BLINDNESS = {
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def lab(colour: str, matrix: list[list[float]]) -> torch.Tensor:
    """CIE L*a*b* of a colour as someone with that kind of vision sees it."""
    parts = torch.tensor([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = torch.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    linear = (torch.tensor(matrix).float() @ linear).clamp(0, 1)
    to_xyz = torch.tensor([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    t = to_xyz @ linear / torch.tensor([0.9505, 1.0, 1.089])
    f = torch.where(t > 0.008856, t ** (1 / 3), 7.787 * t + 16 / 116)
    return torch.stack([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_stands_out_on_every_colour(theme: int) -> None:
    colours = themes()[theme]
    assert all(contrast(colours["text"], colours[name]) >= 4.5 for name in COLOURS)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("blindness", BLINDNESS)
def test_blue_and_orange_differ_for_every_kind_of_colour_vision(theme: int, blindness: str) -> None:
    colours = themes()[theme]
    for number in (2, 3):
        blue, orange = (lab(colours[f"{name}-{number}"], BLINDNESS[blindness]) for name in ("blue", "orange"))
        assert (blue - orange).norm() > 20, (number, blindness)


def test_a_page_is_written_whole_or_not_at_all(scenes: list[Scene], tmp_path: Path) -> None:
    path = write_page(tmp_path / "page.html", scenes[:1])
    assert path.read_text("utf-8") == build_page(scenes[:1])
    with pytest.raises(InputError, match="exists already"):
        write_page(path, scenes)
    with pytest.raises(InputError, match="at least one scene"):
        write_page(path, [], overwrite=True)
    assert path.read_text("utf-8") == build_page(scenes[:1])


def test_text_that_utf_8_cannot_hold_is_written(tmp_path: Path) -> None:
    film = Film("", [Lane("", [["\ud800", "\x00"]], ["VV"])], ["x"], "", [""], 0.0)
    write_page(tmp_path / "page.html", [Scene("archive", "\ud800", [], [film], ARCHIVE_MARKS)])
    assert "<h1" in (tmp_path / "page.html").read_text("utf-8")
    assert Mark("x", "grey").pattern == "none"


# The command.


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and a file of every kind."""
    folder = tmp_path_factory.mktemp("files")
    for name in ("llama", "gpt2"):
        build(name).save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    lm = named(folder / "llama")
    for name, text in (("a", "abc"), ("b", "Yes.")):
        result, trace = traced(lm, text, stop=replace(ONE.stop, max_steps=2))
        save(folder / name, result.tokens)
        save_trace(folder / f"{name}.trace", trace)
    foreign = named(folder / "gpt2")
    save(folder / "foreign", fit(foreign, foreign.encode("abc"), budget(ONE, max_steps=0)).tokens)
    write_archive(folder / "archive", replace(packed(BLOCKS), model=lm.identity))
    write_record(folder / "odd", "something else", {}, {}, overwrite=False)
    random_encoder(lm).save_pretrained(folder / "encoder")
    return folder


def named(folder: Path) -> FrozenLM:
    from prototokens import load_lm

    return load_lm(str(folder))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], files: Path, tmp_path: Path):
    """Run the command in the folder of the files: exit code, stdout, stderr."""
    monkeypatch.chdir(files)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prototokens", "view", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capfd.readouterr()
        return stop.value.code, out, "".join(x for x in err.splitlines(True) if not x.startswith("loading"))

    return call


@pytest.mark.parametrize(
    ("arguments", "kinds"),
    [
        (["a.trace"], ["fit"]),
        (["a"], ["decode"]),
        (["a", "b", "--points", "3"], ["path"]),
        (["archive"], ["archive"]),
        (["--encoder", "encoder", "--text", "abc", "--tokens", "2", "--model", "llama"], ["encoder"]),
        (["b.trace", "a", "archive", "a.trace", "b", "--encoder", "encoder", "--text", "ab"],
         ["fit", "archive", "fit", "path", "encoder"]),
    ],
)  # fmt: skip
def test_what_a_file_is_decides_what_is_drawn(run: Any, tmp_path: Path, arguments: list[str], kinds: list[str]) -> None:
    page = tmp_path / "page.html"
    code, out, err = run(*arguments, "-o", page)
    assert (code, err) == (0, "")
    assert out.startswith(f"saved: {page} (")
    assert out.rstrip().endswith(": " + ", ".join(kinds))
    assert re.findall(r'<section [^>]*data-kind="(\w+)"', page.read_text("utf-8")) == kinds


def test_a_trace_needs_no_model(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prototokens.lm.loading.load_lm", None)
    assert run("a.trace", "-o", tmp_path / "page.html")[0] == 0


MISTAKES = {
    "nothing": ((), "there is nothing to draw: give at least one file, or --encoder and --text"),
    "no file": (("nowhere",), "nowhere: no such file"),
    "kind": (("odd",), "odd: holds something else; view draws"),
    "three": (("a", "b", "foreign"), "3 files of proto-tokens; view draws one, or the way between two"),
    "points": (("a", "b", "--points", 1), "--points is 1; it must be at least 2 and at most 1000"),
    "two models": (("a", "foreign"), "a path needs proto-tokens of one model; these belong to"),
    "model": (("a", "--model", "gpt2"), "these proto-tokens belong to"),
    "text alone": (("a", "--text", "x"), "--encoder and --text go together: give both, or neither"),
    "tokens": (("a", "--tokens", 2), "--tokens cuts the encoder's text: give --encoder and --text too"),
    "no tokens": (("--encoder", "encoder", "--text", "x", "--tokens", 0), "--tokens is 0; it must be at least 1"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_leaves_no_page(run: Any, tmp_path: Path, arguments: Any, message: str) -> None:
    code, out, err = run(*arguments, "-o", tmp_path / "page.html")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_is_there_is_replaced_only_if_asked(run: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("mine")
    code, _, err = run("a.trace", "-o", page)
    assert (code, page.read_text()) == (2, "mine")
    assert "exists already" in err
    assert run("a.trace", "-o", page, "--force")[0] == 0
    assert page.read_text("utf-8").startswith("<!doctype html>")


def test_the_kind_of_a_file_is_told(files: Path) -> None:
    assert [record_kind(files / name) for name in ("a", "a.trace", "archive", "odd")] == [
        "proto-tokens", "trace", "archive", "something else",
    ]  # fmt: skip
