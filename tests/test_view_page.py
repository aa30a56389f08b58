"""Pages of `view`: escaped, whole, and readable without colours and without seeing them."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from archives import BLOCKS, packed
from encoders import random_encoder
from families import ONE, budget
from prototokens import FrozenLM, InputError, decode, fit
from prototokens.archive.archive import write_archive
from prototokens.arrangements import blocks
from prototokens.pages import rendering
from prototokens.view.archives import MARKS as ARCHIVE_MARKS
from prototokens.view.archives import scene_of_archive
from prototokens.view.encoders import scene_of_encoder
from prototokens.view.fits import scene_of_fit
from prototokens.view.page import build_page, write_page
from prototokens.view.races import Race, scene_of_decode
from prototokens.view.scenes import Curve, Film, Lane, Mark, Scene, Table
from prototokens.view.ways import scene_of_way
from test_report_page import Page, contrast
from traces import traced, unfolded

NASTY = "</script><script>alert('&\"')</script> <b>\n"


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


def test_what_looks_like_html_is_text_wherever_it_stands() -> None:
    lanes = [Lane(NASTY, [[NASTY, "\r\n"], ["a", NASTY]], ["VR", "RV"])]
    film = Film(
        NASTY,
        lanes,
        ["x", NASTY],
        NASTY,
        ["0", NASTY],
        1.0,
        [Curve(NASTY, [1.0, 2.0], 2.0)],
        [1, 2],
        NASTY,
        [NASTY, "b"],
    )
    table = Table(NASTY, (NASTY, "b"), [(NASTY, NASTY)], (NASTY, NASTY))
    marks = {"V": Mark(NASTY, "blue-1"), "R": Mark("x", "orange-1", "wave")}
    scene = Scene("fit", NASTY, [NASTY], [film, film], marks, NASTY, [table], NASTY)
    html = build_page([scene, scene])
    page = Page(html)
    assert page.open == []
    assert len(page.all("script")) == 2 + 1
    assert not page.all("b")
    assert page.text.count("alert('&\"')") >= 2 * 9
    (first, _) = re.findall(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)
    assert unfolded(json.loads(first)["films"][0]["lanes"][0]) == [[NASTY, "\r\n"], ["a", NASTY]]


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
    colours = [[dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", text)) for text in sheet] for sheet in texts]
    return [frame | view for frame, view in zip(colours[0][:2], colours[1], strict=True)]


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
