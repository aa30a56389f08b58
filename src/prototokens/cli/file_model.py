"""The model that a file belongs to. It is fetched from the Hub only if the user agrees."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..errors import InputError, UnknownModelError
from .exits import printable
from .options import FileModelOptions, ModelOptions

if TYPE_CHECKING:
    from ..lm.frozen import FrozenLM
    from ..lm.identity import Identity


def load_file_model(named: FileModelOptions, needed: Identity, file: Path) -> tuple[FrozenLM, ModelOptions]:
    """Load the model that a file belongs to, or the one that the user names instead.

    Args:
        named: the user's options.
        needed: the model that the file names.
        file: the file, for messages.

    Returns:
        The model, and the options that load it again.

    Raises:
        InputError: it cannot be loaded, or it is not on this machine and the user did not agree to fetch it.
    """
    if named.model is not None:
        options = ModelOptions(named.model, named.loading)
        return options.load(), options
    loading = replace(named.loading, revision=named.loading.revision or needed.revision)
    options = ModelOptions(needed.name, loading)
    _agree_to_download(options, file)
    try:
        return options.load(), options
    except UnknownModelError as error:
        raise InputError(f"{error}; {file} needs {needed.name}: say with --model where it lies now") from None


def _agree_to_download(model: ModelOptions, file: Path) -> None:
    """Ask before a file of someone else starts a download.

    Raises:
        InputError: the answer is no, or there is no terminal to ask at.
    """
    from ..lm.download import download_size, would_download

    name, revision = model.model, model.loading.revision
    if not would_download(name, revision):
        return
    size = download_size(name, revision)
    told = printable(f"{file} needs {name}, which is not on this machine")
    how_large = "size unknown: the Hub cannot be reached" if size is None else f"{size / 1e6:,.0f} MB from the Hub"
    if not _at_a_terminal():
        raise InputError(f"{told}; fetch it ({how_large}) with --model {name}, or name another place of it")
    if not typer.confirm(f"{told}. Fetch it ({how_large})?", err=True):
        raise InputError(f"{told}, and is not fetched; name another place of it with --model")


def _at_a_terminal() -> bool:
    return all(getattr(stream, "isatty", lambda: False)() for stream in (sys.stdin, sys.stderr))
