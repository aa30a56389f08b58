"""What reads the files of packages: HTML, POD, dictionaries and the like as paragraphs of running English text."""

from __future__ import annotations

import gzip
import html
import re
import zlib
from collections.abc import Callable


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LANGUAGE = re.compile(r"[/._-](?!en\b)(?:[a-z]{2}(?:[-_][A-Za-z]{2})?)(?=/|\.(?:html|page|txt)|\.gz$|$)")
_NO_LANGUAGE = _names("py md js db io os ui fs vm mm if is of on to up in dz gz")
_COMMON = _names(
    "the of and to a in is that for it as was with be by on not he his this are or from at which but have an they"
    " you her she all would there had been one so we i my your will can may if has do no more when its their who what"
)
_SEPARATOR = "\u2029"  # of paragraphs
_BLOCK_TAGS = _names(
    "p div li dd dt td th h1 h2 h3 h4 h5 h6 title section article blockquote br tr item body verse chapter"
)
_SKIPPED_TAGS = _names(
    "script style pre code-block nav header footer note screen listing select button svg math figure"
)


def _text_of(raw: bytes) -> str:
    """Bytes as text; what is no UTF-8 is Latin-1, as old packages are."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def html_paragraphs(raw: bytes) -> list[str]:
    """The paragraphs of an HTML, XHTML, Mallard or OSIS file, one a block; code and navigation are left out."""
    from lxml import etree
    from lxml import html as lxml_html  # many times as fast as the standard library's parser

    whole = re.sub(r"^\s*<\?xml[^>]*>", "", _text_of(raw))  # the text is decoded already
    if not whole.strip():
        return []
    try:
        tree = lxml_html.fromstring(whole, parser=lxml_html.HTMLParser(huge_tree=True, recover=True))
    except etree.ParserError:  # nothing but comments
        return []
    etree.strip_elements(tree, etree.Comment, *_SKIPPED_TAGS, with_tail=False)
    for element in tree.iter(*_BLOCK_TAGS):
        element.text = f"{_SEPARATOR}{element.text or ''}"
        element.tail = f"{_SEPARATOR}{element.tail or ''}"
    return str(tree.text_content()).split(_SEPARATOR)


def plain_paragraphs(raw: bytes) -> list[str]:
    """The paragraphs of plain text, which blank lines or percent signs part."""
    return re.split(r"\n(?:%+|\s*)\n", _text_of(raw))


def pod_paragraphs(raw: bytes) -> list[str]:
    """The paragraphs of Perl's documentation, without commands, code and marks: `L<text|address>` is `text`."""
    paragraphs = []
    for paragraph in plain_paragraphs(raw):
        if not paragraph.startswith(("=", " ", "\t")):
            for _ in range(3):  # marks may lie within each other
                paragraph = re.sub(r"[A-Z]<(?:<+ )?(?:([^<>|]*)\|)?([^<>]*?)(?: >+)?>", _pod_mark, paragraph)
            paragraphs.append(paragraph)
    return paragraphs


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
    paragraphs = []
    for line in _text_of(raw).splitlines():
        fields, _, gloss = line.partition(" | ")
        parts = fields.split(" ")
        if gloss and len(parts) > 4:
            names = [parts[4 + 2 * i].replace("_", " ") for i in range(int(parts[3], 16))]
            paragraphs.append(f"{', '.join(names)}: {gloss}")
    return paragraphs


def r_paragraphs(raw: bytes) -> list[str]:
    """The paragraphs of the character vectors in a lazy-load database of R: lengths and zlib streams in turn."""
    paragraphs: list[str] = []
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
        paragraphs += "\n".join(lines).split("\n\n")
    return paragraphs


def sword_paragraphs(raw: bytes) -> list[str]:
    """The paragraphs of a SWORD module: zlib streams of OSIS, one behind the other."""
    paragraphs: list[str] = []
    while raw:
        stream = zlib.decompressobj()
        osis = re.sub(rb"<[^<>]*/>", b"<br>", stream.decompress(raw))  # milestones, which HTML does not close
        verses = [" ".join(text.split()) for text in html_paragraphs(b"<div>" + osis + b"</div>")]
        verses = [text for text in verses if text]
        paragraphs += [" ".join(verses[i : i + 5]) for i in range(0, len(verses), 5)]
        raw = stream.unused_data.lstrip(b"\0")
    return paragraphs


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
