"""The page of scenes: one HTML file that contains its style, its script and its values, and fetches nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..files.atomic import new_file
from ..pages.rendering import render
from .scenes import Scene

_TITLE = "prototokens"


def build_page(scenes: Sequence[Scene]) -> str:
    """The page of scenes as HTML. It shows their last frames also where scripts are off.

    Raises:
        InputError: there is no scene, or jinja2 is not installed.
    """
    if not scenes:
        raise InputError("a page needs at least one scene")
    title = scenes[0].title if len(scenes) == 1 else f"{_TITLE}: {', '.join(scene.kind for scene in scenes)}"
    return render(
        "view",
        "page.html.jinja",
        styles=("page.css",),
        scripts=("map.js", "player.js"),
        filters={"classes": _classes, "exact": _exact},
        title=title,
        scenes=scenes,
    )


def write_page(path: str | os.PathLike[str], scenes: Sequence[Scene], *, overwrite: bool = False) -> Path:
    """Write the page of scenes to a file, which appears whole or not at all.

    Raises:
        InputError: see `build_page`; or the file exists (and `overwrite` is not set), or cannot be written.
    """
    page = build_page(scenes)
    with new_file(path, overwrite=overwrite) as temporary:
        Path(temporary).write_bytes(page.encode("utf-8", "replace"))
    return Path(path)


def _exact(text: str) -> str:
    """A text in which carriage returns outlast the browser's reading, escaped."""
    from markupsafe import Markup, escape

    return Markup(str(escape(text)).replace("\r", "&#13;"))


def _classes(text: str) -> str:
    """Classes of a token that has no text of its own, or a line break."""
    return " part" if not text else " break" if "\n" in text else ""
