"""Laws of free memory: what a control group lets a process have counts, wherever its bound is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from families import family
from prototokens.fitting import memory
from prototokens.fitting.control_groups import free_of_group


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2 = {"proc/self/cgroup": "0::/user/job\n", "sys/fs/cgroup/user/job/memory.max": "1000\n"}
V1 = {"proc/self/cgroup": "9:cpu,memory:/job\n3:cpuset:/\n", "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "1000"}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        (V2 | {"sys/fs/cgroup/user/job/memory.current": "300\n"}, 700),
        (V2 | {"sys/fs/cgroup/user/job/memory.current": "1300"}, 0),
        (V2 | {"sys/fs/cgroup/user/job/memory.current": "300", "sys/fs/cgroup/user/job/memory.max": "max\n"}, None),
        (
            V2
            | {"sys/fs/cgroup/user/job/memory.current": "300", "sys/fs/cgroup/user/memory.max": "500"}
            | {"sys/fs/cgroup/user/memory.current": "450"},
            50,
        ),
        (
            V2
            | {"sys/fs/cgroup/user/job/memory.current": "300"}
            | {"sys/fs/cgroup/user/job/memory.stat": "anon 100\ninactive_file 150\n"},
            850,
        ),
        ({**V2, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "9", "sys/fs/cgroup/memory.current": "2"}, 7),
        (V1 | {"sys/fs/cgroup/memory/job/memory.usage_in_bytes": "400"}, 600),
        (
            {"proc/self/cgroup": "4:memory:/out/of/sight\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000"}
            | {"sys/fs/cgroup/memory/memory.usage_in_bytes": "100"},
            900,
        ),
        ({"proc/self/cgroup": "0::/../..\nnonsense\n"}, None),
        ({}, None),
    ],
)
def test_the_tightest_bound_counts(tmp_path: Path, files: dict[str, str], free: int | None) -> None:
    assert free_of_group(write(tmp_path, files)) == free


@pytest.mark.parametrize(
    ("system", "group", "free"), [(10, 3, 3), (3, 10, 3), (3, None, 3), (None, 3, 3), (None, None, None)]
)
def test_free_memory_is_the_smaller_of_system_and_group(
    monkeypatch: pytest.MonkeyPatch, system: int | None, group: int | None, free: int | None
) -> None:
    monkeypatch.setattr(memory, "_free_of_system", lambda: system)
    monkeypatch.setattr(memory, "free_of_group", lambda _: group)
    assert memory.free_bytes(family("gpt2")) == free
