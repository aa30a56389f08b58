"""The order of the house: imports point one way, the front door is light, files and functions are small."""

import ast
import subprocess
import sys
from collections.abc import Collection, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import prototokens

SOURCE = Path(prototokens.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION, USUAL_FUNCTION = 400, 80, 40

# A file may import what stands in a line above its own.
ORDER = (
    "errors",
    "arrangements metrics files pages",
    "lm",
    "texts proto_tokens",
    "decoding",
    "fitting",
    "baselines drafting encoder geometry",
    "archive",
    "runners",
    "study",
    "report view",
    "cli",
    "__main__",
)
RANK = {room: rank for rank, line in enumerate(ORDER) for room in line.split()}
ENTRANCES = {"__init__", "__main__"}
FORBIDDEN = {"utils", "common", "helpers", "core", "registry", "base"}


def room(path: Path) -> str:
    """The module, or the folder of modules, that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_names(tree: ast.AST, path: Path) -> Iterator[tuple[str, int]]:
    """The dotted names of this package that a file imports, in functions too, with the lines that do.

    Type hints alone don't count.
    """
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
            if name.split(".")[0] == "prototokens" and node not in for_hints:
                yield name, node.lineno


def imports(tree: ast.AST, path: Path) -> Iterator[tuple[str, int]]:
    """The rooms that a file imports, with the lines that do."""
    for name, line in imported_names(tree, path):
        parts = name.split(".")
        yield parts[1] if len(parts) > 1 else "__init__", line


def module_name(path: Path) -> str:
    """The dotted name of a file; a folder's `__init__` has the folder's."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(("prototokens", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def module_of(name: str, modules: Collection[str]) -> str | None:
    """The module that an imported name is, or lies in."""
    return next((module for module in (name, name.rpartition(".")[0]) if module in modules), None)


def circle(graph: dict[str, set[str]]) -> tuple[str, ...] | None:
    """Nodes of a circle in a graph, or None where it has none."""
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return tuple(error.args[1])
    return None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    if room(path) == "__init__":
        return
    assert room(path) in RANK, f"{path.name}: give it a place in ORDER"
    for imported, line in imports(ast.parse(path.read_text()), path):
        assert imported in RANK, f"{path.name}:{line} imports the name {imported!r} from the package's front door"
        inside = imported == room(path) and path.parent != SOURCE
        assert inside or RANK[imported] < RANK[room(path)], f"{path.name}:{line} imports {imported}: the wrong way"


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Within a room too, and in functions too: a circle would be two files that are one."""
    modules = {module_name(path) for path in FILES}
    graph = {
        module_name(path): {module_of(name, modules) for name, _ in imported_names(ast.parse(path.read_text()), path)}
        for path in FILES
        if room(path) != "__init__"
    }
    graph = {module: {each for each in needed if each} for module, needed in graph.items()}
    assert circle(graph) is None
    assert sum(map(len, graph.values())) > len(FILES)  # the walk does find imports


def test_a_circle_is_seen() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": set()}
    assert circle(graph) is None
    assert set(circle(graph | {"c": {"a"}}) or ()) == {"a", "b", "c"}
    modules = {"prototokens.files", "prototokens.files.record"}
    assert module_of("prototokens.files.record", modules) == "prototokens.files.record"
    assert module_of("prototokens.files.record.name", modules) == "prototokens.files.record"
    assert module_of("prototokens.files.name", modules) == "prototokens.files"


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
    block = text[text.index("`errors ←") + 1 :].split("`")[0]
    told = [[room.strip() for room in step.split(",")] for step in block.split("←")]
    rank = {room: place for place, rooms in enumerate(told) for room in rooms}
    missing = {room(path) for path in FILES} - ENTRANCES - set(rank)
    assert not missing
    for path in FILES:
        for imported, line in imports(ast.parse(path.read_text()), path):
            if room(path) not in ENTRANCES and imported != room(path):
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


def function_lengths(path: Path) -> dict[str, int]:
    """Lines of each function of a file."""
    return {
        f"{path.name}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_and_functions_are_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST_FILE
    assert {name: lines for name, lines in function_lengths(path).items() if lines > LONGEST_FUNCTION} == {}


def test_nine_functions_of_ten_are_short() -> None:
    lengths = [lines for path in FILES for lines in function_lengths(path).values()]
    assert sum(lines < USUAL_FUNCTION for lines in lengths) >= 0.9 * len(lengths)
