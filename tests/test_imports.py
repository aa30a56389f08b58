"""The order of the house: imports point one way, the front door is light, files and functions are small."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import prototokens

SOURCE = Path(prototokens.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION = 400, 80

# A file may import what stands in a line above its own.
ORDER = (
    "errors",
    "arrangements metrics files",
    "lm",
    "texts proto_tokens",
    "decoding",
    "fitting",
    "baselines encoder geometry",
    "archive",
    "runners",
    "study",
    "report",
    "cli",
)
RANK = {room: rank for rank, line in enumerate(ORDER) for room in line.split()}
FORBIDDEN = {"utils", "common", "helpers", "core", "registry", "base"}


def room(path: Path) -> str:
    """The module, or the folder of modules, that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(tree: ast.AST, path: Path) -> Iterator[tuple[str, int]]:
    """The rooms that a file imports, in functions too, with the lines that do; type hints alone don't count."""
    for_hints = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    package = ("prototokens", *path.relative_to(SOURCE).parent.parts)
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) + 1 - node.level] if node.level else ()
            home = ".".join([*parts, *([node.module] if node.module else [])])
            names = [f"{home}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "prototokens" and node not in for_hints:
                yield parts[1] if len(parts) > 1 else "__init__", node.lineno


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    if room(path) == "__init__":
        return
    assert room(path) in RANK, f"{path.name}: give it a place in ORDER"
    for imported, line in imports(ast.parse(path.read_text()), path):
        assert imported in RANK, f"{path.name}:{line} imports the name {imported!r} from the package's front door"
        inside = imported == room(path) and path.parent != SOURCE
        assert inside or RANK[imported] < RANK[room(path)], f"{path.name}:{line} imports {imported}: the wrong way"


def test_the_walk_sees_every_kind_of_import() -> None:
    def seen(text: str, path: str = "decoding.py") -> list[str]:
        return [name for name, _ in imports(ast.parse(text), SOURCE / path)]

    assert seen("from .lm import FrozenLM\nfrom . import cli\nimport prototokens.proto_tokens as t") == [
        "lm",
        "cli",
        "proto_tokens",
    ]
    assert seen("def f():\n    from prototokens.lm.frozen import x") == ["lm"]
    assert seen("from prototokens import fit, load") == ["fit", "load"]
    assert seen("from ..lm import x\nfrom .cells import y\nfrom .. import z", "study/run.py") == ["lm", "study", "z"]
    assert seen("import torch\nfrom torch import lm") == []
    assert seen("if TYPE_CHECKING:\n    from .cli import x") == []


def test_contributing_tells_the_same_order() -> None:
    text = (SOURCE.parents[1] / "CONTRIBUTING.md").read_text()
    block = next(part for part in text.split("```") if part.strip().startswith("errors ←"))
    told = [[room.strip() for room in step.split(",")] for step in block.split("←")]
    rank = {room: place for place, rooms in enumerate(told) for room in rooms}
    missing = {room(path) for path in FILES} - {"__init__"} - set(rank)
    assert not missing
    for path in FILES:
        for imported, line in imports(ast.parse(path.read_text()), path):
            if room(path) != "__init__" and imported != room(path):
                assert rank[imported] < rank[room(path)], f"{path.name}:{line} imports {imported}"


def test_no_room_is_for_leftovers() -> None:
    assert not FORBIDDEN & {path.stem for path in FILES}


def test_the_package_is_imported_without_torch() -> None:
    script = (
        "import sys, prototokens, prototokens.errors\n"
        "dir(prototokens), prototokens.__version__ if hasattr(prototokens, '__version__') else None\n"
        "print(sorted({'torch', 'transformers', 'safetensors', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_front_door_is_one_list_told_three_times() -> None:
    hinted = {
        alias.name: node.module
        for node in ast.walk(ast.parse((SOURCE / "__init__.py").read_text()))
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    homes = {name: module for module, names in prototokens._HOME.items() for name in names}
    assert hinted == homes
    assert sorted(prototokens.__all__) == sorted(homes)
    assert len(set(prototokens.__all__)) == len(prototokens.__all__)
    assert dir(prototokens) == prototokens.__all__ or dir(prototokens) == sorted(prototokens.__all__)
    for name, module in homes.items():
        value = getattr(prototokens, name)
        assert value is getattr(sys.modules[f"prototokens.{module}"], name)
        if isinstance(value, type) or callable(value):
            assert value.__module__ == f"prototokens.{module}"
    with pytest.raises(AttributeError, match="module 'prototokens' has no attribute 'nothing'"):
        prototokens.nothing  # noqa: B018


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_and_functions_are_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, f"{path.name}: {node.name}"
