"""What loading a model would fetch from the Hub, asked before anything is fetched."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from .hub import UNUSED_FILES
from .names import BUILT_IN, local_path
from .sources import weight_files


def would_download(name: str, revision: str | None = None) -> bool:
    """Whether `load_lm` would fetch this model: it is a Hub id, and its files are not all in the Hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        if name == BUILT_IN or local_path(name) is not None:
            return False
    except InputError:  # no name of a model
        return False
    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except HFValidationError:
        return False
    except Exception:  # of the Hub client, for whatever is not in its cache
        return True
    try:
        return not ((folder / "config.json").is_file() and weight_files(folder, name))
    except InputError:  # a shard that is named is missing
        return True


def download_size(name: str, revision: str | None = None) -> int | None:
    """Bytes of the files on the Hub that `load_lm` would fetch, or None where the Hub does not tell."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils._paths import filter_repo_objects

    try:
        files = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=10).siblings or []
    except Exception:  # of the Hub client or of its HTTP library, which change with their versions
        return None
    sizes = {file.rfilename: file.size or 0 for file in files}
    return sum(sizes[path] for path in filter_repo_objects(sizes, ignore_patterns=UNUSED_FILES))
