"""What a Linux control group lets a process have: containers and job schedulers bound memory by it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

_FILES = {  # limit and use of memory, in bytes
    "v2": ("memory.max", "memory.current"),
    "v1": ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}


def free_of_group(root: Path) -> int | None:
    """Memory that is left to this process's control group and those above it, in bytes; None without a bound.

    File caches that the kernel would give back count as free.

    Args:
        root: where `proc` and `sys` lie, `/` but for tests.
    """
    left = [
        free
        for version, folder in _groups(root)
        for place in (folder, *folder.parents)
        if place.is_relative_to(root / "sys/fs/cgroup")
        if (free := _left_in(place, version)) is not None
    ]
    return min(left, default=None)


def _groups(root: Path) -> list[tuple[str, Path]]:
    """The process's groups that bound memory: version and folder."""
    mount = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return []
    groups = []
    for line in lines:
        _, controllers, path = line.split(":", 2) if line.count(":") > 1 else ("", "?", "")
        parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
        if controllers == "":
            groups.append(("v2", mount.joinpath(*parts)))
        elif "memory" in controllers.split(","):
            groups.append(("v1", (mount / "memory").joinpath(*parts)))
    return groups


def _left_in(folder: Path, version: str) -> int | None:
    """Bytes that a group has left; None where it has no bound or does not exist here."""
    limit_name, use_name = _FILES[version]
    try:
        limit, used = (int((folder / name).read_text()) for name in (limit_name, use_name))
    except (OSError, ValueError):  # no such file, or the word "max"
        return None
    return max(0, limit - max(0, used - _file_cache(folder)))


def _file_cache(folder: Path) -> int:
    """Bytes of files that are cached and were not used of late, which the kernel gives back at once."""
    try:
        entries = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(entries.get("total_inactive_file") or entries.get("inactive_file") or 0)
    except (OSError, ValueError):
        return 0
