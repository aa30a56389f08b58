"""The report's page and files: complete, escaped, the same for the same rows, accessible, and made without torch."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from prototokens import InputError
from prototokens.cli import app as cli
from prototokens.pages import rendering
from prototokens.report.drawing import PALETTE
from prototokens.report.exhibit import Figure, Table
from prototokens.report.exhibits import EXHIBITS
from prototokens.report.page import Report, build_report, number, write_report
from prototokens.study import STUDIES
from prototokens.study.cells import BoundCell
from prototokens.study.store import Store
from study_rows import every_study, row

VOID = {"meta", "link", "br", "input"}
NASTY = "<script>alert('&\"')</script> $x_1$"


@pytest.fixture(scope="module")
def full() -> Report:
    return build_report(every_study())


@pytest.fixture(scope="module")
def empty() -> Report:
    return build_report([])


class Page(HTMLParser):
    """Tags with their attributes, visible text, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if "style" not in self.open else ""

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_every_exhibit_is_on_the_page_and_in_the_files(full: Report) -> None:
    page = Page(full.page)
    ids = {attributes.get("id") for attributes in page.all("section")}
    assert ids == {"coverage", "provenance", *(exhibit.name for exhibit in EXHIBITS)}
    for exhibit in EXHIBITS:
        assert exhibit.title in page.text
        assert exhibit.study in STUDIES
    assert set(full.tables) == {f"{e.name}.csv" for e in EXHIBITS if isinstance(e, Table)}
    names = {e.name for e in EXHIBITS if isinstance(e, Figure)}
    assert set(full.figures) == {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    assert {exhibit.study for exhibit in EXHIBITS} == set(STUDIES)
    assert len({exhibit.name for exhibit in EXHIBITS}) == len(EXHIBITS)
    assert full.missing == ()
    assert "Missing." not in page.text


def test_an_empty_store_gives_a_page_that_says_what_is_missing(empty: Report) -> None:
    text = " ".join(Page(empty.page).text.split())
    for study in STUDIES:
        assert f"{study}: not run: prototokens study {study} --store STORE" in text
    assert text.count("Missing.") == len(EXHIBITS)
    assert "Nothing has been measured yet" in text
    assert "507.5 ± 105.9" in text  # what was published is there all the same
    assert empty.figures == {}
    assert len(empty.missing) == len(STUDIES)


def test_unfinished_and_failed_cells_are_named() -> None:
    rows = [row("cost"), row("cost", text=1, status="failed", error="out of memory")]
    report = build_report(rows, [{"study": "cost", "planned": 4}])
    text = " ".join(Page(report.page).text.split())
    assert "1 cell done, 1 failed, 4 left to run" in text
    assert "out of memory (1 cell)" in text
    assert "Incomplete." in text


def test_text_is_escaped_everywhere() -> None:
    names = {"model": NASTY, "recipe": NASTY, "source": NASTY, "torch": NASTY, "corpus": NASTY}
    rows = [made | names for made in every_study()]
    rows.append(row("cost", status="failed", error=NASTY, text=9))
    report = build_report(rows)
    page = Page(report.page)
    assert "<script" not in report.page
    assert not page.all("script")
    assert NASTY in page.text
    assert page.open == []


def test_the_same_rows_give_the_same_bytes_in_any_order(full: Report) -> None:
    again = build_report(every_study()[::-1])
    assert again.page == full.page
    assert again.figures == full.figures
    assert again.tables == full.tables


def test_the_page_is_one_file_with_nothing_to_fetch(full: Report) -> None:
    page = Page(full.page)
    assert page.open == []
    policy = next(x for x in page.all("meta") if x.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'")
    addresses = [x[name] for _, x in page.tags for name in ("src", "href", "xlink:href") if name in x]
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert not re.findall(r"url\((?!#)", full.page)
    assert "@import" not in full.page


def test_the_page_can_be_read_without_seeing_it(full: Report) -> None:
    page = Page(full.page)
    ids = [x["id"] for _, x in page.tags if x.get("id")]
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(x.get("scope") in ("col", "colgroup", "row") for x in page.all("th"))
    pictures = [x for x in page.all("div") if x.get("role") == "img"]
    assert len(pictures) == len(page.all("svg")) == len(page.all("figure"))
    assert all(len(x["aria-label"]) > 60 and "Nothing" not in x["aria-label"] for x in pictures)
    for target in [x["href"][1:] for x in page.all("a")] + [
        x["aria-labelledby"] for _, x in page.tags if "aria-labelledby" in x
    ]:
        assert target in ids
    for x in page.all("div"):
        if "scroll" in (x.get("class") or ""):  # what scrolls can be reached and scrolled with the keyboard
            assert x["tabindex"] == "0"
            assert x.get("aria-label") or x.get("aria-labelledby")
    assert any(x.get("name") == "viewport" and "width=device-width" in x["content"] for x in page.all("meta"))


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """WCAG 2.2: (L1 + 0.05) / (L2 + 0.05), the lighter first."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_stand_out_in_light_dark_and_print() -> None:
    css = (Path(rendering.__file__).parent / "frame.css").read_text()
    themes = [
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    ]
    assert len(themes) == 3
    for theme in themes:
        for text, ground in (
            ("text", "ground"), ("quiet", "ground"), ("link", "ground"), ("paper-text", "paper-ground"),
            ("warn-text", "warn-ground"),
        ):  # fmt: skip
            assert contrast(theme[text], theme[ground]) >= 4.5, (text, theme)
        assert all(contrast(colour, theme["ground"]) >= 3 for colour in PALETTE)


def test_files_of_figures_are_whole(full: Report) -> None:
    for name, content in full.figures.items():
        if name.endswith(".svg"):
            assert ElementTree.fromstring(content).tag.endswith("svg")
            assert b"currentColor" not in content
        else:
            assert content.startswith(b"\x89PNG")
            assert content.rstrip(b"\x00").endswith(b"IEND\xaeB`\x82")


@pytest.mark.parametrize(
    ("value", "decimals", "shown"),
    [
        (0.5, 3, "0.500"), (1.0, 3, "1.000"), (0.99996, 3, "0.99996"), (0.0004, 2, "0.0004"), (0.0, 2, "0.00"),
        (1632.4, 0, "1,632"), (0.99, 2, "0.99"), (1.0001, 2, "1.00"), (0.6, 0, "1"),
        (0.9999999, 3, "0.999999900"), (1 - 1e-15, 3, "1.000"), (-4e-14, 3, "0.000"), (-0.0004, 2, "-0.0004"),
    ],
)  # fmt: skip
def test_rounding_hides_neither_a_miss_nor_a_trace(value: float, decimals: int, shown: str) -> None:
    assert number(value, decimals) == shown


def test_files_are_written_all_or_none(full: Report, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    written = write_report(full, page, figures=tmp_path / "a" / "figures", tables=tmp_path / "tables")
    assert len(written) == 1 + len(full.figures) + len(full.tables)
    assert page.read_text("utf-8") == full.page
    assert (tmp_path / "a" / "figures" / "figure-1.svg").read_bytes() == full.figures["figure-1.svg"]
    assert (tmp_path / "tables" / "table-1.csv").read_text("utf-8") == full.tables["table-1.csv"]
    with pytest.raises(InputError, match=r"table-1\.csv: exists already"):
        write_report(full, tmp_path / "other.html", tables=tmp_path / "tables")
    assert not (tmp_path / "other.html").exists()
    write_report(full, page, overwrite=True)
    with pytest.raises(InputError, match="this folder cannot be made"):
        write_report(full, tmp_path / "other.html", tables=page / "tables")


def fill(path: Path) -> None:
    """A store with one cell done, one failed and one planned."""
    with Store.open(path, write=True) as store:
        settings = {
            key: row("cost")[key] for key in ("scale", "model", "recipe", "source", "seed", "tokens", "max_steps")
        }
        store.plan(BoundCell(f"key{i}", "cost", "batch", i, settings | {"text": i}) for i in range(3))
        results = {
            key: row("cost")[key] for key in ("seconds", "steps", "exact", "token_positions", "backward_positions")
        }
        store.finish("key0", results, {"device": "cpu", "versions": {"torch": "2.13.0"}})
        store.fail("key1", "RuntimeError: no luck", {"device": "cpu"})


def test_a_store_becomes_a_page_without_torch(tmp_path: Path) -> None:
    fill(tmp_path / "study.sqlite")
    script = (
        "import sys\n"
        "from prototokens.cli import app as cli\n"
        "sys.argv = ['prototokens', 'report', 'study.sqlite', '-o', 'page.html', '--tables', 'csv']\n"
        "try:\n    cli.main()\nexcept SystemExit as stop:\n    code = stop.code\n"
        "print(code, sorted({'torch', 'transformers', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert lines[0] == "saved: page.html"
    resumes = "prototokens study cost --store study.sqlite --scale laptop"
    assert "missing: cost: 1 cell done, 1 failed, 1 left to run: " + resumes in lines
    assert lines[-1] == "0 []"
    text = Page((tmp_path / "page.html").read_text("utf-8")).text
    assert "RuntimeError: no luck" in text
    assert "torch 2.13.0" in text


def test_errors_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["prototokens", "report", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        return err

    Path("text.sqlite").write_text("no store " * 100)
    Path("taken.html").write_text("mine")
    assert run("none.sqlite").startswith("error: none.sqlite: no such store")
    assert run("text.sqlite").startswith("error: text.sqlite: not a store")
    assert run("text.sqlite", "-o", "taken.html").startswith("error: taken.html: exists already")
    assert run("text.sqlite", "-o", "no/page.html").startswith("error: no/page.html: there is no folder no")
    assert Path("taken.html").read_text() == "mine"


@pytest.mark.parametrize("library", ["matplotlib", "jinja2"])
def test_a_missing_library_is_named(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        InputError, match=rf"a report needs {library}; install it with: pip install 'prototokens\[report\]'"
    ):
        build_report([])
