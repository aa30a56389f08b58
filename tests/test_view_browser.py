"""Pages of `view` in a real browser: no error, nothing fetched, and slider, keys and map move the tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from archives import BLOCKS, TEXT, packed
from browser import BROWSER, Page, browsing
from encoders import random_encoder
from families import ONE, RECIPE, family
from prototokens import decode, fit
from prototokens.archive.archive import write_archive
from prototokens.arrangements import blocks
from prototokens.fitting.trace import Trace, TraceRecorder
from prototokens.view.archives import scene_of_archive
from prototokens.view.encoders import scene_of_encoder
from prototokens.view.fits import scene_of_fit
from prototokens.view.page import write_page
from prototokens.view.races import Race, scene_of_decode
from prototokens.view.scenes import Scene
from prototokens.view.ways import scene_of_way

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium: apt-get install chromium")

PHONE, DESKTOP = 375, 1280
NASTY = "<b>&é"
SEEN = "[...document.querySelectorAll('.tokens')].map(x => [...x.children].map(y => y.textContent).join(''))"
PIXEL = """((n, length, frame, place, colour) => {
  const canvas = document.querySelector("canvas"), probe = document.createElement("i");
  const x = place * canvas.width / length + 2, y = frame * canvas.height / n + 2;
  const [red, green, blue] = canvas.getContext("2d").getImageData(Math.floor(x), Math.floor(y), 1, 1).data;
  probe.style.color = colour;
  document.body.append(probe);
  return [`rgb(${red}, ${green}, ${blue})`, getComputedStyle(probe).color];
})"""
STATUS = "document.querySelector('.status').textContent"


def scenes(folder: Path) -> dict[str, Scene]:
    """A scene of every kind."""
    lm = family("llama")
    recorder = TraceRecorder()
    few = replace(ONE, arrangement=blocks(2), restarts=2, stop=replace(ONE.stop, max_steps=8, margin=1e9))
    fit(lm, lm.encode(NASTY), few, trace=recorder)
    first, last = (fit(lm, lm.encode(text), RECIPE).tokens for text in ("abc", "Yes."))
    race = Race(decode(lm, first, scores=True), lm.encode("xyz"), 0.05, 0.4, 5)
    return {
        "fit": scene_of_fit(recorder.trace(lm)),
        "decode": scene_of_decode(lm, first, race),
        "path": scene_of_way(lm, first, last, 5),
        "archive": scene_of_archive(lm, write_archive(folder / "a.proto", packed(BLOCKS))),
        "encoder": scene_of_encoder(lm, random_encoder(lm), lm.encode("ab")),
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Scene]]:
    """The pages of one scene each, and one of all."""
    folder = tmp_path_factory.mktemp("pages")
    made = scenes(folder)
    for name, scene in made.items():
        write_page(folder / f"{name}.html", [scene])
    write_page(folder / "all.html", list(made.values()))
    return folder, made


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browsing(tmp_path_factory.mktemp("browser")) as page:
        page.look(DESKTOP)
        yield page


@pytest.fixture
def opened(browser: Page, made: tuple[Path, dict[str, Scene]]) -> Any:
    def visit(name: str, width: int = DESKTOP, scheme: str = "light") -> Page:
        browser.look(width, scheme=scheme)
        browser.open(made[0] / f"{name}.html")
        return browser

    return visit


def texts(scene: Scene, frame: int, film: int = 0) -> list[str]:
    """What the lanes hold in a frame."""
    return ["".join(lane.texts[frame if lane.shown is None else 0]) for lane in scene.films[film].lanes]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_no_page_scrolls_sideways_fetches_or_complains(opened: Any, width: int, scheme: str) -> None:
    page = opened("all", width, scheme)
    assert page.ask("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
    assert page.ask("document.body.scrollWidth") <= width
    outside = "[...document.querySelectorAll('body *')].filter(x => !x.closest('.scroll') && !x.closest('.unseen') && "
    outside += "x.getBoundingClientRect().right > innerWidth + 1).map(x => x.outerHTML.slice(0, 80))"
    assert page.ask(outside) == []
    ground = page.ask("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}[scheme]
    assert (page.problems, page.fetched) == ([], [])


@pytest.mark.parametrize("name", ["fit", "decode", "path"])
def test_the_right_text_stands_at_the_end_and_the_slider_moves_it(
    opened: Any, made: tuple[Path, dict[str, Scene]], name: str
) -> None:
    page, scene = opened(name), made[1][name]
    film = scene.films[0]
    assert page.ask(SEEN) == texts(scene, -1)
    assert page.ask(STATUS) == film.status[-1]
    for frame in (0, 3, len(film.status) - 1):
        slide = f"(s => {{ s.value = {frame}; s.dispatchEvent(new Event('input')); }})(document.querySelector('input'))"
        page.ask(slide)
        assert page.ask(SEEN) == texts(scene, frame)
        assert page.ask(STATUS) == film.status[frame]
        assert page.ask("document.querySelector('input').getAttribute('aria-valuetext')") == film.status[frame]
        shown = page.ask(
            "[...document.querySelectorAll('.tokens')].map(x => x.querySelectorAll('.t:not(.later)').length)"
        )
        assert shown == [len(lane.frame(frame)[0]) for lane in film.lanes]
        for number, lane in enumerate(film.lanes):
            seen = page.ask(f"[...document.querySelectorAll('.tokens')[{number}].children].map(x => x.className)")
            for classes, letter in zip(seen, lane.frame(frame)[1], strict=False):
                assert {scene.marks[letter].colour, scene.marks[letter].pattern} <= set(classes.split())
    assert page.problems == []


def test_keys_move_the_slider_and_play(opened: Any, made: tuple[Path, dict[str, Scene]]) -> None:
    page, status = opened("fit"), made[1]["fit"].films[0].status
    page.press("Tab")
    page.press("Tab")
    assert page.ask("document.activeElement.type") == "range"
    for key, frame in (("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", -1)):
        page.press(key)
        assert page.ask(STATUS) == status[frame], key
    page.press(" ")
    assert page.ask("document.querySelector('.play').textContent") == "Pause"
    page.press(" ")
    assert page.ask("document.querySelector('.play').textContent") == "Play"


def test_playing_goes_through_all_frames_and_ends_with_the_last(
    opened: Any, made: tuple[Path, dict[str, Scene]]
) -> None:
    page, scene = opened("decode"), made[1]["decode"]
    seen = page.ask(
        "new Promise(done => {const seen = [], status = document.querySelector('.status');"
        "new MutationObserver(() => {seen.push(status.textContent);"
        "if (document.querySelector('.play').textContent === 'Play') done(seen)}).observe(document.querySelector("
        "'.stage'), {childList: true, subtree: true, characterData: true});"
        "document.querySelector('.play').click()})"
    )
    status = list(scene.films[0].status)
    numbers = [status.index(line) for line in seen]
    while numbers[0] == len(status) - 1:  # as it was before the first frame
        numbers.pop(0)
    assert numbers == sorted(numbers)
    assert numbers[-1] == len(status) - 1
    assert len(set(numbers)) > 3


def test_a_click_on_the_map_goes_to_its_frame(opened: Any, made: tuple[Path, dict[str, Scene]]) -> None:
    page, status = opened("path"), made[1]["path"].films[0].status
    page.ask("document.querySelector('canvas').scrollIntoView({block: 'center'})")
    box = page.ask(
        "(r => [r.left, r.top, r.width, r.height])(document.querySelector('canvas').getBoundingClientRect())"
    )
    for frame in (1, 3):
        page.click(box[0] + box[2] / 2, box[1] + box[3] * (frame + 0.5) / len(status))
        assert page.ask(STATUS) == status[frame]


def test_the_map_has_the_colours_of_its_tokens(opened: Any, made: tuple[Path, dict[str, Scene]]) -> None:
    """A pixel near the corner of a cell, in either scheme, is its mark's colour."""
    scene = made[1]["fit"]
    film = scene.films[0]
    for scheme in ("light", "dark"):
        page = opened("fit", scheme=scheme)
        n, length = len(film.status), len(film.wanted)
        for frame, place in ((0, 0), (n - 1, length - 1), (n // 2, 2)):
            colour = scene.marks[film.lanes[0].marks[frame][place]].colour
            pixel, wanted = page.ask(PIXEL + f"({n}, {length}, {frame}, {place}, 'var(--{colour})')")
            assert pixel == wanted


def test_another_restart_is_another_film(opened: Any, made: tuple[Path, dict[str, Scene]]) -> None:
    page, scene = opened("fit"), made[1]["fit"]
    page.ask("(s => { s.value = 1; s.dispatchEvent(new Event('change')); })(document.querySelector('select'))")
    assert page.ask(SEEN) == texts(scene, -1, film=1)
    assert page.ask(STATUS) == scene.films[1].status[-1]


def test_the_table_follows_the_slider(opened: Any, made: tuple[Path, dict[str, Scene]]) -> None:
    page, film = opened("fit"), made[1]["fit"].films[0]
    page.ask("document.querySelector('summary').click()")
    page.ask("new Promise(requestAnimationFrame)")
    cells = "[...document.querySelectorAll('.tokenwise tbody tr')].map(r => [...r.children].map(c => c.textContent))"
    for frame in (-1, 0):
        rows = page.ask(cells)
        assert [row[0] for row in rows] == [str(number + 1) for number in range(len(film.wanted))]
        marks = made[1]["fit"].marks
        assert [row[-1] for row in rows] == [marks[letter].words for letter in film.lanes[0].marks[frame]]
        page.press("Tab")
        page.ask("document.querySelector('input').focus()")
        page.press("Home")


def test_pages_that_stand_still_show_their_text_without_a_player(opened: Any) -> None:
    page = opened("archive")
    assert page.ask(SEEN) == [TEXT]
    assert page.ask("document.querySelectorAll('input, button').length") == 0
    assert page.problems == []


def test_a_script_of_somebody_else_does_not_run(browser: Page, made: tuple[Path, dict[str, Scene]]) -> None:
    page = (made[0] / "fit.html").read_text("utf-8")
    (made[0] / "foreign.html").write_text(
        page.replace("</main>", "<script>document.title = 'run'</script></main>"), "utf-8"
    )
    browser.open(made[0] / "foreign.html")
    assert browser.ask("document.title") != "run"
    assert any("Content Security Policy" in problem for problem in browser.problems)


def test_a_long_fit_of_many_tokens_stays_quick_and_fits_a_phone(browser: Page, tmp_path: Path) -> None:
    n, length = 300, 512
    ids = torch.randint(0, 9, (n, 1, length), generator=torch.Generator().manual_seed(0))
    margins = torch.where(ids == 0, 1.0, -1.0)
    trace = Trace(
        torch.zeros(length, dtype=torch.long), torch.arange(n), ids, margins, torch.ones(n, 1), 0, 8, "m,(e,m*7)",
        "steps", family("llama").identity, ("tok ",) * length, {token: f"{token} " for token in range(9)},
    )  # fmt: skip
    path = write_page(tmp_path / "long.html", [scene_of_fit(trace)])
    assert path.stat().st_size < 3_000_000
    browser.look(PHONE)
    browser.open(path)
    assert browser.ask("document.documentElement.scrollWidth") == PHONE
    milliseconds = browser.ask(
        "(() => { const s = document.querySelector('input'), t = performance.now(); for (let i = 0; i < 20; i++) "
        "{ s.value = i * 10; s.dispatchEvent(new Event('input')); } return performance.now() - t; })()"
    )
    assert milliseconds < 20 * 400
    assert browser.problems == []
