"""Rendering: templates of a room inside the frame that all pages share."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from importlib.resources import files as package_files
from typing import Any

from ..errors import InputError

_HOME = "pages"


def render(
    room: str,
    template: str,
    *,
    styles: tuple[str, ...] = (),
    scripts: tuple[str, ...] = (),
    filters: Mapping[str, Callable[..., Any]] | None = None,
    tests: Mapping[str, Callable[..., bool]] | None = None,
    **values: Any,
) -> str:
    """Fill in a template that extends `frame.html.jinja`: one HTML file that contains its style and its script.

    The page's policy lets the browser fetch nothing, and run no other script than these. All values are escaped.

    Args:
        room: the folder of the package that holds the template, its styles and its scripts.
        template: name of the template.
        styles: names of style sheets, after the frame's own.
        scripts: names of scripts, which run in this order, as one.
        filters: further filters of the template.
        tests: further tests of the template.
        values: what the template is filled in with.

    Raises:
        InputError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise InputError(f"a {room} needs jinja2; install it with: pip install 'prototokens[report]'") from error
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: _text(_HOME if name.startswith("frame.") else room, name)),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    environment.tests.update(tests or {})
    script = "".join(_text(room, name) for name in scripts)
    return environment.get_template(template).render(
        css="".join([_text(_HOME, "frame.css"), *(_text(room, name) for name in styles)]),
        script=script,
        script_policy=f"; script-src 'sha256-{_digest(script)}'" if script else "",
        **values,
    )


def _text(room: str, name: str) -> str:
    return (package_files(f"prototokens.{room}") / name).read_text("utf-8")


def _digest(script: str) -> str:
    """The hash by which a policy names an inline script."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
