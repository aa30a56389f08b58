"""The corpus of the benchmarks: running text of any kind of file, no paragraph twice, and nothing that judges."""

from __future__ import annotations

import gzip
import importlib
import os
import random
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prototokens import InputError
from prototokens.texts.corpora import Document

LONG = "This is a sentence of a book that is long enough to be kept, and it says what it has to say."
OTHER = "There was an old man who lived by the sea, and all of his days were spent on the boats of the harbour."


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
        yield importlib.import_module("make_corpus")


@pytest.fixture
def readers(script: Any) -> Any:
    return importlib.import_module("corpus_readers")


@pytest.mark.parametrize(
    ("name", "raw", "paragraphs"),
    [
        ("/doc/a.html", b"<p>One <b>two</b>.<pre>x = 1</pre><div>Three</div><script>f()</script>",
         ["One two.", "Three"]),
        ("/doc/a.html", b"<!-- nothing -->", []),
        ("/help/C/x.page", b"<?xml version='1.0' encoding='UTF-8'?><page><p>One</p><p>Two</p></page>", ["One", "Two"]),
        ("/pod/a.pod", b"=head1 X\n\nUse C<$x> and L<this|perlop>.\n\n  code();\n\nE<lt>ok",
         ["Use $x and this.", "<ok"]),
        ("/dictd/a.dict.dz", gzip.compress(b"Word \\Word\\, n.\n   A {thing}. [1913 Webster]\n\nNext", mtime=0),
         ["Word  n. A thing.", "Next"]),
        ("/wordnet/data.noun", b"00592652 04 n 02 generalship 0 general_ship 0 000 | the office",
         ["generalship, general ship: the office"]),
        ("/x/Rdata.rdb", b"\0\0\0\0" + zlib.compress(b"\0\4\0\x09\0\0\0\3One\0\4\0\x09\0\0\0\0\0\4\0\x09\0\0\0\3Two"),
         ["One", "Two"]),
        ("/x/nt.bzz", zlib.compress(b"<verse>In the</verse><note>x</note> beginning<p/>was") + b"\0\0",
         ["In the beginning was"]),
        ("/games/fortunes/art", b"One\n%\nTwo", ["One", "Two"]),
        ("/doc/a.txt.gz", gzip.compress(b"One\n\nTwo", mtime=0), ["One", "Two"]),
        ("/doc/de/a.html", b"<p>Eins", []),
        ("/doc/a.fr.html", b"<p>Un", []),
        ("/bin/a", b"no text", []),
    ],
)  # fmt: skip
def test_files_become_paragraphs(readers: Any, name: str, raw: bytes, paragraphs: list[str]) -> None:
    read = [" ".join(text.split()) for text in readers.paragraphs_of(name, raw)]
    assert [text for text in read if text] == [" ".join(text.split()) for text in paragraphs]


def test_only_running_english_is_kept(readers: Any) -> None:
    assert readers.running_text(f"  {LONG[:40]}\n {LONG[40:]}") == f"{LONG[:40]} {LONG[40:]}"
    for text in (
        "Too short.",
        "for (i = 0; i < n; i++) { a[i] = b[i] + c[i]; } // the end of the loop is here, and it is the end of it",
        "Das ist ein langer deutscher Satz, der nicht in den Korpus kommt, weil er nicht englisch geschrieben ist.",
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon",
    ):
        assert readers.running_text(text) is None


@pytest.fixture
def deb(tmp_path: Path) -> bytes:
    """A package with one page of documentation and much that is not read."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is missing")
    for name, raw in {
        "DEBIAN/control": b"Package: a\nVersion: 1\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: a\n",
        "usr/share/doc/a/a.html": f"<p>{LONG}</p>".encode(),
        "usr/share/doc/a/b.html": random.Random(0).randbytes(60_000),
    }.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(raw)
    command = ["dpkg-deb", "--root-owner-group", "--build", tmp_path / "tree", tmp_path / "whole.deb"]
    subprocess.run(command, check=True, capture_output=True)
    return (tmp_path / "whole.deb").read_bytes()


def test_a_package_that_is_cut_off_is_fetched_anew(
    script: Any, deb: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cache, tools = tmp_path / "cache", tmp_path / "bin"
    cache.mkdir()
    tools.mkdir()
    (cache / "a_1_all.deb").write_bytes(deb[: len(deb) // 2])
    (tools / "apt-get").write_text(f"#!/bin/sh\necho $* >> '{tmp_path}/log'\ncp '{tmp_path}/whole.deb' a_1_all.deb")
    (tools / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    for _ in range(2):  # what is whole is not fetched again
        fetched = script.fetch("a", cache)
        assert fetched.read_bytes() == deb
    assert (tmp_path / "log").read_text() == "-q download a\n"
    assert capfd.readouterr() == (f"{cache / 'a_1_all.deb'} is damaged: it is fetched anew\n", "")
    assert dict(script.members(fetched))["./usr/share/doc/a/a.html"] == f"<p>{LONG}</p>".encode()


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_package_that_cannot_be_read_is_one_line(
    script: Any, deb: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str], share: float
) -> None:
    (tmp_path / "cut.deb").write_bytes(deb[: int(share * len(deb))])
    with pytest.raises(InputError, match=r"cut\.deb is damaged: the same command fetches it anew$"):
        list(script.members(tmp_path / "cut.deb"))
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def index(script: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A package index of three packages; what judges is quoted in one of them. The calls are noted."""
    packages = {"a": [LONG, OTHER, LONG], "b": [OTHER, "judged " + LONG, LONG + " More."], "c": [LONG]}
    noted: dict[str, Any] = {"packages": packages, "fetched": [], "fail": None}

    def fetch(name: str, folder: Path) -> Path | None:
        noted["fetched"].append(name)
        if name == noted["fail"]:
            raise InputError("no network")
        return Path(name) if name in packages else None

    def documents(source: str, split: str) -> list[Document]:
        return [Document("s", 1901, "judged " + LONG if split == "test" else "spoken " + LONG, split)]

    monkeypatch.setattr(script, "fetch", fetch)
    monkeypatch.setattr(script, "documents", documents)
    monkeypatch.setattr(script, "package_paragraphs", lambda deb: iter(packages[str(deb)]))
    monkeypatch.setattr(script, "count_tokens", lambda folder: {path.stem[:-2]: 7 for path in folder.glob("*.txt")})
    monkeypatch.setattr(script.shutil, "which", lambda tool: tool)
    return noted


def texts(folder: Path) -> dict[str, list[str]]:
    return {path.stem: path.read_text().rstrip("\n").split("\n\n") for path in sorted(folder.glob("*.txt"))}


def test_no_paragraph_comes_twice_and_none_that_judges(script: Any, index: dict[str, Any], tmp_path: Path) -> None:
    script.make(tmp_path / "corpus", tmp_path / "cache", {"books": "a b none"}, 1000)
    assert texts(tmp_path / "corpus") == {
        "a-0": [LONG, OTHER], "b-0": [LONG + " More."], "speeches-0": ["spoken " + LONG]
    }  # fmt: skip
    summary = script._manifest(tmp_path / "corpus")
    assert (summary["tokens"], summary["missing"]) == (21, ["none"])
    assert list(summary["sources"]) == ["speeches", "a", "b"]


def test_again_does_nothing_and_after_an_interruption_the_rest(
    script: Any, index: dict[str, Any], tmp_path: Path
) -> None:
    script.make(tmp_path / "whole", tmp_path / "cache", {"books": "a b"}, 1000)
    index["fail"], index["fetched"] = "b", []
    with pytest.raises(InputError, match="no network"):
        script.make(tmp_path / "corpus", tmp_path / "cache", {"books": "a b"}, 1000)
    (tmp_path / "corpus.new" / "b-0.txt").write_text("half of it")
    index["fail"] = None
    script.make(tmp_path / "corpus", tmp_path / "cache", {"books": "a b"}, 1000)
    assert index["fetched"] == ["a", "b", "b"]
    script.make(tmp_path / "corpus", tmp_path / "cache", {"books": "a b"}, 1000)
    assert index["fetched"] == ["a", "b", "b"]
    assert texts(tmp_path / "corpus") == texts(tmp_path / "whole")
    script.make(tmp_path / "corpus", tmp_path / "cache", {"books": "a b c"}, 1000)  # more are asked for
    assert index["fetched"] == ["a", "b", "b", "c"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(InputError, match="holds other files: name a new folder"):
        script.make(tmp_path / "mine", tmp_path / "cache", {"books": "a"}, 1000)
