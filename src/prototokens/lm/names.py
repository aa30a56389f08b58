"""What a model can be called: the alias of the built-in one, a path, or a Hub id."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError, UnknownModelError

BUILT_IN = "smollm2-135m"
CHOICES = f"a model is {BUILT_IN!r}, a folder, a .gguf file, or a Hub id such as 'EleutherAI/pythia-160m'"


def local_path(name: str, revision: str | None = None) -> Path | None:
    """The folder or file that a name means; None for the alias, and for what may be a Hub id.

    Raises:
        UnknownModelError: the name can be neither a path nor a Hub id.
        InputError: a revision is asked for of what is not on the Hub.
    """
    try:
        path = None if name == BUILT_IN else Path(name).expanduser()
        is_here = path is not None and (path.is_dir() or path.is_file())
    except (OSError, RuntimeError, ValueError) as error:  # too long, of an unknown user, with a null byte
        reason = getattr(error, "strerror", None) or error
        raise UnknownModelError(f"unknown model {name[:80]!r}: {reason}; {CHOICES}") from None
    if revision is not None and (name == BUILT_IN or is_here):
        raise InputError(f"revision {revision!r} is for Hub ids; {name!r} has none")
    return path if is_here else None
