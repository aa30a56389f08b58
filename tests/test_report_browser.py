"""The report in a real browser: no errors, nothing fetched, no sideways scrolling of the page on a phone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from prototokens.report.exhibit import Figure
from prototokens.report.exhibits import EXHIBITS
from prototokens.report.page import build_report
from study_rows import every_study, row

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
PHONE, DESKTOP = 390, 1280

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium: apt-get install chromium")

# Chromium's windows have a least width, frames have none; and a page without scripts is measured from outside.
FRAMES = """<!doctype html><title>measuring</title><body style="margin:0">
{frames}
<script>
addEventListener("load", () => {{
  const seen = [...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument, root = page.documentElement;
    const boxes = [...page.querySelectorAll(".scroll")];
    return {{
      width: frame.clientWidth,
      page: Math.max(root.scrollWidth, page.body.scrollWidth),
      outside: boxes.filter(box => box.getBoundingClientRect().right > frame.clientWidth).length,
      scrolled: boxes.filter(box => box.scrollWidth > box.clientWidth).length,
      captions: [...page.querySelectorAll("caption span")].filter(x => x.offsetWidth > frame.clientWidth).length,
      fetched: frame.contentWindow.performance.getEntriesByType("resource").length,
      pictures: [...page.querySelectorAll("figure svg")].filter(x => x.getBoundingClientRect().height > 100).length,
    }};
  }});
  document.body.innerHTML = "<pre>" + JSON.stringify(seen) + "</pre>";
}});
</script>
"""


OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
)  # fmt: skip


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def browse(folder: Path, page: str, *options: str) -> tuple[str, str]:
    """Open a page of the folder without a window; what the browser printed, and its log."""
    environment = os.environ | {"HOME": str(folder)}
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{page}"
        command = [str(BROWSER), *OPTIONS, f"--user-data-dir={folder / 'profile'}", *options, address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
        server.shutdown()
    return done.stdout, done.stderr


def measure(folder: Path, *frames: tuple[str, int]) -> tuple[list[dict], str]:
    """What is seen of pages in frames of some widths, and the browser's log."""
    frame = '<iframe src="{}" style="width:{}px;height:800px;border:0"></iframe>'
    (folder / "frames.html").write_text(FRAMES.format(frames="".join(frame.format(*x) for x in frames)), "utf-8")
    out, err = browse(folder, "frames.html", "--dump-dom")
    return json.loads(re.search(r"<pre>(\[.*\])</pre>", out)[1]), err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full and an empty report; in the full one a model with a long name and a failed cell."""
    path = tmp_path_factory.mktemp("pages")
    rows = [
        made | {"model": "somebody/a-model-with-a-rather-long-name-that-nobody-can-break"} for made in every_study()
    ]
    rows.append(row("cost", text=9, status="failed", error="RuntimeError: " + "x" * 400))
    (path / "full.html").write_text(build_report(rows).page, "utf-8")
    (path / "empty.html").write_text(build_report([]).page, "utf-8")
    return path


def test_the_page_fits_a_phone_and_a_desktop_and_fetches_nothing(folder: Path) -> None:
    drawn = sum(isinstance(exhibit, Figure) for exhibit in EXHIBITS)
    frames = [(page, width) for page in ("full.html", "empty.html") for width in (PHONE, DESKTOP)]
    seen, err = measure(folder, *frames)
    assert [(x["width"], x["page"]) for x in seen] == [(width, width) for _, width in frames]
    assert {(x["outside"], x["captions"], x["fetched"]) for x in seen} == {(0, 0, 0)}
    assert [x["pictures"] for x in seen] == [drawn, drawn, 0, 0]
    assert seen[0]["scrolled"] > seen[1]["scrolled"]  # wide tables scroll in their own boxes
    assert "CONSOLE" not in err


def test_what_is_wrong_with_a_page_is_seen(folder: Path) -> None:
    wrong = "<!doctype html><script>console.error('no')</script><img src='away.png'><img src='https://a.invalid/'>"
    wrong += "<p style='width:900px'>wide"
    (folder / "wrong.html").write_text(wrong)
    (seen,), err = measure(folder, ("wrong.html", PHONE))
    assert "CONSOLE" in err
    assert seen["fetched"] == 2
    assert seen["page"] > PHONE


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_drawn_in_both_schemes(folder: Path, scheme: str) -> None:
    picture = folder / f"{scheme}.png"
    theme = f"--blink-settings=preferredColorScheme={['dark', 'light'].index(scheme)}"
    _, err = browse(folder, "full.html", f"--screenshot={picture}", "--window-size=1280,2000", theme)
    assert "CONSOLE" not in err
    assert shades(picture) == scheme


def shades(picture: Path) -> str:
    """Whether a screenshot is mostly light or dark; it must hold more than a ground."""
    from PIL import Image

    with Image.open(picture) as image:
        grey = image.convert("L")
        counts = grey.histogram()
    ground = max(range(256), key=counts.__getitem__)
    assert counts[ground] < 0.99 * sum(counts)
    return "light" if ground > 127 else "dark"
