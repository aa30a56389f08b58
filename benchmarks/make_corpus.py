"""A folder of plain English text for training, made from what a package index installs: 20 million tokens or more.

Documentation, dictionaries, scripture, novels, essays, and the speeches of the train split. The packages are fetched
with `apt-get download`, as it is configured, and are read without being installed. HTML, POD and dictionary files
become paragraphs of running text. Code, tables, lists of names and other languages are left out, and so is every
paragraph that came before. No whole paragraph of a speech of the test split gets in, whatever package quotes it.
Nothing of it belongs to the project: the folder is ignored by git, and the texts keep the licences of their packages.

    python benchmarks/make_corpus.py --output .cache/corpus
    prototokens encoder train --source .cache/corpus ...

Running it again changes nothing. After an interruption it goes on with the package that it was at.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from corpus_readers import READERS, paragraphs_of, plain_paragraphs, running_text
from prototokens.errors import InputError
from prototokens.texts.corpora import documents

VERSION, MANIFEST = 1, "sources.json"
PACKAGES = {
    "literature": "r-cran-janeaustenr sword-text-web cfi-en fortunes anarchism crawl-common debian-history",
    "dictionaries": "dict-gcide wordnet-base dict-foldoc dict-jargon dict-devil",
    "languages": "python3.11-doc perl-doc r-doc-html abs-guide",
    "systems": "postgresql-doc-15 sqlite3-doc git-doc apache2-doc exim4-doc-html postfix-doc bind9-doc debian-handbook"
    " debian-policy debian-reference-en debian-faq debian-kernel-handbook developers-reference installation-guide-amd64"
    " aptitude-doc-en debmake-doc maint-guide ubuntu-packaging-guide-html freedombox-doc-en zsh-doc samba-doc cmake-doc"
    " gitmagic mh-book",
    "applications": "gimp-help-en gnome-user-docs gnome-devel-docs libreoffice-help-en-us gnucash-docs"
    " png-definitive-guide csound-doc imagemagick-6-doc ffmpeg-doc jmeter-help renpy-doc gnuplot-doc octave-doc"
    " maxima-doc gap-doc giac-doc",
    "libraries": "python-django-doc python-sqlalchemy-doc python-astropy-doc python-scipy-doc twisted-doc neutron-doc"
    " keystone-doc erlang-doc racket-doc rust-web-doc linux-doc-6.1",
}
"""The packages by kind of text. One that the index does not have is left out, and is told."""

_PIECE_CHARACTERS = 1_000_000


def fetch(package: str, folder: Path) -> Path | None:
    """The .deb of a package, fetched into a folder unless it is there whole; None if the index does not have it.

    Raises:
        InputError: it cannot be fetched for another reason.
    """
    for known in sorted(folder.glob(f"{package}_*.deb")):
        if is_whole(known):
            return known
        print(f"{known} is damaged: it is fetched anew", flush=True)
        known.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "partial"  # a file that is half fetched must not look like one that is whole
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    done = subprocess.run(
        ["apt-get", "-q", "download", package], cwd=partial, capture_output=True, check=False, text=True
    )
    files = list(partial.glob("*.deb"))
    if done.returncode or not files:
        if "Unable to locate package" in done.stderr or "no installation candidate" in done.stderr:
            return None
        said = " ".join(done.stderr.split())[:200]
        raise InputError(f"{package} cannot be fetched ({said}): try apt-get update, then the same command")
    return files[0].rename(folder / files[0].name)


def is_whole(deb: Path) -> bool:
    """Whether all of a package can be read; a download of another program's may have been cut off."""
    command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    return not subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode


def members(deb: Path) -> Iterator[tuple[str, bytes]]:
    """The regular files of a package, with their names, in the order of the archive.

    Raises:
        InputError: the package is damaged.
    """
    command, pipe = ["dpkg-deb", "--fsys-tarfile", str(deb)], subprocess.PIPE
    damaged = InputError(f"{deb} is damaged: the same command fetches it anew")
    with subprocess.Popen(command, stdout=pipe, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    wanted = member.isfile() and any(re.search(pattern, member.name) for pattern, _ in READERS)
                    file = archive.extractfile(member) if wanted else None
                    if file is not None:
                        yield member.name, file.read()
        except tarfile.TarError:
            raise damaged from None
        process.stdout.read()  # what pads the end, without which dpkg-deb would not succeed
        if process.wait():
            raise damaged


class Corpus:
    """Pieces of plain text in a folder, without a paragraph twice; what is there of unfinished sources is dropped."""

    def __init__(self, folder: Path, refused: list[str], finished: set[str]) -> None:
        self.folder = folder
        self.seen = {self._key(text) for text in refused}
        for path in folder.glob("*.txt"):
            if path.stem.rpartition("-")[0] in finished:
                self.seen |= {self._key(text) for text in path.read_text(encoding="utf-8").split("\n\n")}
            else:
                path.unlink()

    def add(self, name: str, paragraphs: Iterator[str], limit: int) -> int:
        """Write new paragraphs, up to about `limit` characters, as NAME-0.txt, NAME-1.txt ...; returns characters."""
        total, piece, pieces = 0, [], 0
        size = 0
        for text in paragraphs:
            key = self._key(text)
            if key in self.seen:
                continue
            self.seen.add(key)
            piece.append(text)
            size += len(text) + 2
            total += len(text) + 2
            if size >= _PIECE_CHARACTERS:
                self._write(f"{name}-{pieces}.txt", piece)
                piece, size, pieces = [], 0, pieces + 1
            if total >= limit:
                break
        if piece:
            self._write(f"{name}-{pieces}.txt", piece)
        return total

    def _write(self, name: str, piece: list[str]) -> None:
        (self.folder / name).write_text("\n\n".join(piece) + "\n", encoding="utf-8")

    @staticmethod
    def _key(text: str) -> bytes:
        return hashlib.blake2b(" ".join(text.split()).lower().encode(), digest_size=12).digest()


def package_paragraphs(deb: Path) -> Iterator[str]:
    """The running text of a package."""
    for name, raw in members(deb):
        for paragraph in paragraphs_of("/" + str(PurePosixPath(name)), raw):
            text = running_text(paragraph)
            if text is not None:
                yield text


def speeches(split: str) -> list[str]:
    """The paragraphs of the speeches of a split."""
    return [text for speech in documents("speeches", split) for text in plain_paragraphs(speech.text.encode())]


def count_tokens(folder: Path) -> dict[str, int]:
    """Tokens of the built-in model by source, the part of a file's name before its number."""
    from prototokens import load_lm

    lm = load_lm()
    counts: dict[str, int] = {}
    for path in sorted(folder.glob("*.txt")):
        source = path.stem.rpartition("-")[0]
        text = path.read_text(encoding="utf-8")
        counts[source] = counts.get(source, 0) + len(lm.encode(text))
    return counts


def make(output: Path, cache: Path, packages: dict[str, str], limit: int) -> None:
    """Make the folder beside its place, package by package, and put it there when it is whole."""
    kinds = {"speeches": "speeches"} | {name: kind for kind, group in packages.items() for name in group.split()}
    settings = {"version": VERSION, "limit": limit}
    done = _manifest(output)
    if _holds(done, settings, set(kinds)):
        print(f"{output} is there already: {done['tokens']:,} tokens")
        return
    fresh, summary = _begin(output, done, settings)
    corpus = Corpus(fresh, speeches("test"), set(summary["sources"]))
    for name, kind in kinds.items():
        if name in summary["sources"] or name in summary["missing"]:
            continue
        deb = None if name == "speeches" else fetch(name, cache)
        if deb is None and name != "speeches":
            summary["missing"].append(name)
        else:
            texts = iter(speeches("train")) if deb is None else package_paragraphs(deb)
            summary["sources"][name] = {"kind": kind, "characters": corpus.add(name, texts, limit)}
            print(f"{kind:14} {name:28} {summary['sources'][name]['characters']:12,} characters", flush=True)
        (fresh / MANIFEST).write_text(json.dumps(summary, indent=1))
    counts = count_tokens(fresh)
    for name, source in summary["sources"].items():
        source["tokens"] = counts.get(name, 0)
    summary["tokens"] = sum(counts.values())
    (fresh / MANIFEST).write_text(json.dumps(summary, indent=1))
    shutil.rmtree(output, ignore_errors=True)
    fresh.rename(output)
    print(json.dumps({"tokens": summary["tokens"], "missing": summary["missing"], "output": str(output)}))


def _begin(output: Path, done: dict[str, Any], settings: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The folder that is filled, and what it holds already: unfinished work, or a finished corpus to add to.

    Raises:
        InputError: the output is another folder, or a tool is missing.
    """
    if not done and output.exists() and any(output.iterdir()):
        raise InputError(f"{output} holds other files: name a new folder")
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise InputError(f"{tool} is missing: the packages are those of Debian and its kin, make the corpus there")
    fresh = output.with_name(output.name + ".new")
    if done and done["settings"] == settings and not fresh.exists():
        shutil.copytree(output, fresh)  # more packages are asked for: the others are not read again
    summary = _manifest(fresh)
    if not summary or summary["settings"] != settings:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        summary = {"settings": settings, "sources": {}, "missing": []}
    return fresh, summary


def _holds(done: dict[str, Any], settings: dict[str, Any], names: set[str]) -> bool:
    return bool(done) and done["settings"] == settings and names <= {*done["sources"], *done["missing"]}


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    return json.loads(path.read_text()) if path.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(".cache/corpus"))
    parser.add_argument("--cache", type=Path, default=Path(".cache/packages"), help="where fetched packages are kept")
    parser.add_argument("--limit", type=int, default=12_000_000, help="characters of one package at most")
    parser.add_argument("--kinds", nargs="+", choices=tuple(PACKAGES), default=list(PACKAGES))
    options = parser.parse_args()
    try:
        make(options.output, options.cache, {kind: PACKAGES[kind] for kind in options.kinds}, options.limit)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
