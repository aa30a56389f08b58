"""A folder of plain English text for training, made from what a package index installs: 20 million tokens or more.

Documentation, dictionaries, scripture, novels, essays, and the speeches of the train split. The
packages are fetched with `apt-get download`, as it is configured, and are read without being installed. HTML, POD and
dictionary files become paragraphs of running text. Code, tables, lists of names and other languages are left out, and
so is every paragraph that came before. No paragraph of a speech of the test split gets in, whatever package quotes it.
Nothing of it belongs to the project: the folder is ignored by git, and the texts keep the licences of their packages.

    python benchmarks/make_corpus.py --output .cache/corpus
    prototokens encoder train --source .cache/corpus ...

Running it again changes nothing, unless this file or the settings changed.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import html
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath

from prototokens.errors import InputError
from prototokens.texts.corpora import documents

PACKAGES = {
    "literature": "r-cran-janeaustenr sword-text-web cfi-en fortunes anarchism crawl-common debian-history",
    "dictionaries": "dict-gcide wordnet-base dict-foldoc dict-jargon dict-devil",
    "languages": "python3.11-doc perl-doc rust-web-doc erlang-doc racket-doc tcl8.6-doc r-doc-html abs-guide",
    "systems": "postgresql-doc-15 sqlite3-doc git-doc apache2-doc exim4-doc-html postfix-doc bind9-doc linux-doc-6.1"
    " debian-handbook debian-policy debian-reference-en debian-faq debian-kernel-handbook developers-reference"
    " installation-guide-amd64 aptitude-doc-en debmake-doc maint-guide ubuntu-packaging-guide-html freedombox-doc-en"
    " emacs-common-non-dfsg zsh-doc samba-doc cmake-doc gitmagic mh-book",
    "applications": "gimp-help-en gnome-user-docs gnome-devel-docs libreoffice-help-en-us lilypond-doc-html"
    " gnucash-docs mate-user-guide png-definitive-guide csound-doc imagemagick-6-doc ffmpeg-doc jmeter-help"
    " renpy-doc gnuplot-doc octave-doc maxima-doc gap-doc giac-doc",
    "libraries": "python-django-doc python-sqlalchemy-doc python-astropy-doc python-scipy-doc python-pandas-doc"
    " twisted-doc libboost1.81-doc ghc-doc neutron-doc keystone-doc",
}
"""The packages by kind of text. One that the index does not have is left out, and is told."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LANGUAGE = re.compile(r"[/._-](?!en\b)(?:[a-z]{2}(?:[-_][A-Za-z]{2})?)(?=/|\.(?:html|page|txt)|\.gz$|$)")
_NO_LANGUAGE = _names("py md js db io os ui fs vm mm if is of on to up in dz")
_COMMON = _names(
    "the of and to a in is that for it as was with be by on not he his this are or from at which but have an they"
    " you her she all would there had been one so we i my your will can may if has do no more when its their who what"
)
_PIECE_CHARACTERS = 1_000_000
_BLOCK_TAGS = _names(
    "p div li dd dt td th h1 h2 h3 h4 h5 h6 title section article blockquote br tr item body verse chapter"
)
_SKIPPED_TAGS = _names(
    "script style pre code-block nav header footer note screen listing select button svg math figure"
)


class _Paragraphs(HTMLParser):
    """The running text of HTML and its kin (Mallard pages, OSIS), one string a block; code and navigation left out."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.paragraphs: list[str] = []
        self._text: list[str] = []
        self._skipped: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SKIPPED_TAGS:
            self._skipped.append(tag)
            self._text.append(" ")
        elif tag in _BLOCK_TAGS:
            self._break()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _BLOCK_TAGS:
            self._break()

    def handle_endtag(self, tag: str) -> None:
        if self._skipped:
            if tag in self._skipped:
                del self._skipped[self._skipped.index(tag) :]
        elif tag in _BLOCK_TAGS:
            self._break()

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self._text.append(data)

    def close(self) -> None:
        super().close()
        self._break()

    def _break(self) -> None:
        if self._text:
            self.paragraphs.append("".join(self._text))
            self._text.clear()


def _text_of(raw: bytes) -> str:
    """Bytes as text; what is no UTF-8 is Latin-1, as old packages are."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def html_paragraphs(raw: bytes) -> list[str]:
    """The paragraphs of an HTML, XHTML, Mallard or OSIS file."""
    parser = _Paragraphs()
    parser.feed(_text_of(raw))
    parser.close()
    return parser.paragraphs


def plain_paragraphs(raw: bytes) -> list[str]:
    """The paragraphs of plain text, which blank lines or percent signs part."""
    return re.split(r"\n(?:%+|\s*)\n", _text_of(raw))


def pod_paragraphs(raw: bytes) -> list[str]:
    """The paragraphs of Perl's documentation, without commands, code and marks: `L<text|address>` is `text`."""
    found = []
    for paragraph in plain_paragraphs(raw):
        if not paragraph.startswith(("=", " ", "\t")):
            for _ in range(3):  # marks may lie within each other
                paragraph = re.sub(r"[A-Z]<(?:<+ )?(?:([^<>|]*)\|)?([^<>]*?)(?: >+)?>", _pod_mark, paragraph)
            found.append(paragraph)
    return found


def _pod_mark(match: re.Match[str]) -> str:
    if match[0].startswith("E<"):
        return html.unescape(f"&{match[2]};")
    return "" if match[0].startswith(("X<", "Z<")) else match[1] or match[2]


def dict_paragraphs(raw: bytes) -> list[str]:
    """The entries of a dictionary of the DICT protocol, without pronunciation, references' braces and sources."""
    text = _text_of(gzip.decompress(raw))
    text = re.sub(r"\\[^\\\n]*\\,?|\[(?:1913 Webster|PJC|WordNet[^\]]*)[^\]]*\]|[{}]", "", text)
    return re.split(r"\n\s*\n", text)


def wordnet_paragraphs(raw: bytes) -> list[str]:
    """The glosses of WordNet, each behind the words that it defines."""
    found = []
    for line in _text_of(raw).splitlines():
        fields, _, gloss = line.partition(" | ")
        parts = fields.split(" ")
        if gloss and len(parts) > 4:
            names = [parts[4 + 2 * i].replace("_", " ") for i in range(int(parts[3], 16))]
            found.append(f"{', '.join(names)}: {gloss}")
    return found


def r_paragraphs(raw: bytes) -> list[str]:
    """The paragraphs of the character vectors in a lazy-load database of R: lengths and zlib streams in turn."""
    found: list[str] = []
    while len(raw) > 4:
        stream = zlib.decompressobj()
        values = stream.decompress(raw[4:])
        raw = stream.unused_data
        # One line of text is a CHARSXP: flags that end in 0x09, the length, the bytes.
        lines, position = [], values.find(b"\x00\x04\x00\x09")
        while position >= 0:
            start = position + 8
            length = int.from_bytes(values[position + 4 : start], "big")
            lines.append(values[start : start + length].decode("latin-1"))
            position = values.find(b"\x00\x04\x00\x09", start + length)
        found += "\n".join(lines).split("\n\n")
    return found


def sword_paragraphs(raw: bytes) -> list[str]:
    """The paragraphs of a SWORD module: zlib streams of OSIS, one behind the other."""
    found: list[str] = []
    while raw:
        stream = zlib.decompressobj()
        verses = [" ".join(text.split()) for text in html_paragraphs(stream.decompress(raw))]
        verses = [text for text in verses if text]
        found += [" ".join(verses[i : i + 5]) for i in range(0, len(verses), 5)]
        raw = stream.unused_data.lstrip(b"\0")
    return found


READERS: tuple[tuple[str, Callable[[bytes], list[str]]], ...] = (
    (r"\.x?html?(\.en)?(\.gz)?$|\.page$", html_paragraphs),
    (r"\.pod$", pod_paragraphs),
    (r"\.dict\.dz$", dict_paragraphs),
    (r"/wordnet/data\.(noun|verb|adj|adv)$", wordnet_paragraphs),
    (r"/Rdata\.rdb$", r_paragraphs),
    (r"\.bzz$", sword_paragraphs),
    (r"/fortunes/\w+$|/(doc|descript|Documentation)/.*\.(txt|rst|md)(\.gz)?$", plain_paragraphs),
)
"""What reads a file of a package, by the end of its name; other files are left out."""


def paragraphs_of(name: str, raw: bytes) -> list[str]:
    """The paragraphs of a file of a package; none if its name tells no reader, or another language than English."""
    if any(match[0][1:] not in _NO_LANGUAGE for match in _LANGUAGE.finditer(name) if match[0][0] != "-"):
        return []
    for pattern, read in READERS:
        if re.search(pattern, name):
            packed = name.endswith(".gz")
            return read(gzip.decompress(raw) if packed else raw)
    return []


def running_text(paragraph: str) -> str | None:
    """A paragraph on one line, or None if it is short, or is code, a table, a list of names or another language."""
    text = " ".join(paragraph.replace("\N{PILCROW SIGN}", "").replace("\N{ZERO WIDTH SPACE}", "").split())
    if len(text) < 60:
        return None
    letters = sum(c.isalpha() or c in " ,.'" for c in text)
    if letters < 0.9 * len(text) or sum(c.isascii() for c in text) < 0.97 * len(text):
        return None
    tokens = text.lower().split()
    common = sum(token.strip(".,;:'\"()") in _COMMON for token in tokens)
    return text if common >= 0.2 * len(tokens) and len(text) < 12 * len(tokens) else None


def fetch(package: str, folder: Path) -> Path | None:
    """The .deb of a package, fetched into a folder unless it is there; None if the index does not have it."""
    known = sorted(folder.glob(f"{package}_*.deb"))
    if known:
        return known[0]
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "partial"  # a file that is half fetched must not look like one that is whole
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    done = subprocess.run(["apt-get", "-q", "download", package], cwd=partial, capture_output=True, check=False)
    files = list(partial.glob("*.deb"))
    if done.returncode or not files:
        return None
    return files[0].rename(folder / files[0].name)


def members(deb: Path) -> Iterator[tuple[str, bytes]]:
    """The regular files of a package, with their names, in the order of the archive."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            for member in archive:
                wanted = member.isfile() and any(re.search(pattern, member.name) for pattern, _ in READERS)
                file = archive.extractfile(member) if wanted else None
                if file is not None:
                    yield member.name, file.read()


class Corpus:
    """Pieces of plain text in a folder, without a paragraph twice."""

    def __init__(self, folder: Path, refused: list[str]) -> None:
        self.folder = folder
        self.seen = {self._key(text) for text in refused}

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
    """Make the folder beside its place and put it there when it is whole."""
    settings = {
        "packages": packages,
        "limit": limit,
        "made_by": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
    }
    manifest = output / "sources.json"
    if manifest.exists() and json.loads(manifest.read_text())["settings"] == settings:
        print(f"{output} is there already: {json.loads(manifest.read_text())['tokens']:,} tokens")
        return
    if output.exists() and not manifest.exists() and any(output.iterdir()):
        raise InputError(f"{output} holds other files: name a new folder")
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise InputError(f"{tool} is missing: the packages are those of Debian and its kin, make the corpus there")
    fresh = output.with_name(output.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    corpus = Corpus(fresh, speeches("test"))
    sources = {"speeches": {"kind": "speeches", "characters": corpus.add("speeches", iter(speeches("train")), limit)}}
    missing = []
    for kind, names in packages.items():
        for name in names.split():
            deb = fetch(name, cache)
            if deb is None:
                missing.append(name)
                continue
            sources[name] = {"kind": kind, "characters": corpus.add(name, package_paragraphs(deb), limit)}
            print(f"{kind:14} {name:28} {sources[name]['characters']:12,} characters", flush=True)
    counts = count_tokens(fresh)
    for name, source in sources.items():
        source["tokens"] = counts.get(name, 0)
    summary = {"settings": settings, "tokens": sum(counts.values()), "missing": missing, "sources": sources}
    (fresh / "sources.json").write_text(json.dumps(summary, indent=1))
    shutil.rmtree(output, ignore_errors=True)
    fresh.rename(output)
    print(json.dumps({"tokens": summary["tokens"], "missing": missing, "output": str(output)}))


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
