"""The Hugging Face Hub: which files of a model are fetched, and what its errors mean to a user."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import InputError, UnknownModelError
from .names import CHOICES

UNUSED_FILES = ["*/*", "*.bin", "*.pt", "*.pth", "*.gguf", "*.msgpack", "*.h5", "*.onnx"]
"""Patterns of what is never fetched: subfolders, and weights in other formats."""
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def hub_errors(name: str, revision: str | None) -> Iterator[None]:
    """Say what the Hub client's errors mean while the block fetches files of a model.

    Raises:
        UnknownModelError: there is no such model, or the Hub cannot be reached.
        InputError: it has no such revision or no configuration, is granted on request, or cannot be stored.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except HFValidationError:
        raise UnknownModelError(f"unknown model {name[:80]!r}: {CHOICES}") from None
    except GatedRepoError:
        raise InputError(f"{name}: the Hub grants it on request; ask there, then run: hf auth login") from None
    except RevisionNotFoundError:
        raise InputError(f"{name}: the Hub has no revision {revision!r} of it") from None
    except RepositoryNotFoundError:
        raise UnknownModelError(f"unknown model {name!r}: neither here nor on the Hub; {CHOICES}") from None
    except LocalEntryNotFoundError:
        raise UnknownModelError(
            f"unknown model {name!r}: not on this machine, and the Hub cannot be reached; {CHOICES}"
        ) from None
    except EntryNotFoundError:
        raise InputError(f"{name}: holds no model (there is no config.json)") from None
    except Exception as error:  # the Hub client raises its HTTP library's errors, which change with its versions
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise InputError(f"{name}: cannot be stored in the Hub's cache ({error.strerror}); set HF_HOME") from None
        reason = f"the Hub cannot be reached ({type(error).__name__})"
        raise UnknownModelError(f"unknown model {name!r}: not on this machine, and {reason}; {CHOICES}") from None
