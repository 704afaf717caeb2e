"""The structure of the package, held over its syntax trees: floors, circles, names; and that the docs name it all."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import icelite
from icelite.errors import ErrorKind

PACKAGE = Path(icelite.__file__).parent
PROJECT = PACKAGE.parent
# Bottom first: a module imports from its own floor and those below.
FLOORS = [
    {"errors", "types", "config", "credentials", "storage"},
    {"keys", "metadata", "conflicts", "cf", "budget", "expansion", "interrupts", "retry", "drafts"},
    {"objects", "virtual", "vfs"},
    {"catalog"},
    {"change_set", "payload", "store", "session"},
    {"ops"},
    {"repository"},
    {"formats", "virtualizarr", "archive"},
    {
        "accessors",
        "distributed",
        "snapshots",
        "xarray",
        "dask",
        "native",
        "kerchunk",
        "icechunk",
        "web",
        "display",
        "cli",
        "__main__",
    },
    {"__init__"},
]
MOST_LINES = 600


def module_of(path: Path) -> str:
    """The dotted name below the package; a package's own module has the package's name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


TREES = {module_of(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
LINES = {module_of(path): path.read_text().count("\n") for path in PACKAGE.rglob("*.py")}


def imported(module: str) -> Iterator[str]:
    """Modules of the package that one imports, anywhere in it, for types too."""
    is_package = any(other.startswith(f"{module}.") for other in TREES)
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [name for alias in node.names for name in (f"{node.module}.{alias.name}", node.module or "")]
        elif isinstance(node, ast.ImportFrom):
            pytest.fail(f"{module} imports relatively")
        else:
            continue
        for name in names:
            found = name.removeprefix("icelite.")
            is_part = is_package and found.startswith(f"{module}.")  # its own, which it hands on
            if name.startswith("icelite.") and found in TREES and found != module and not is_part:
                yield found


EDGES = {module: set(imported(module)) for module in TREES}


def floor(module: str) -> int:
    return next(number for number, names in enumerate(FLOORS) if module.split(".")[0] in names)


@pytest.mark.parametrize("module", TREES)
def test_every_module_stands_on_a_floor_and_imports_downward(module: str) -> None:
    above = {other for other in EDGES[module] if floor(other) > floor(module)}
    assert above == set()


def test_no_module_imports_itself_in_a_circle() -> None:
    """A package stands for its parts where it hands on what they define."""
    graph = {module: set(targets) for module, targets in EDGES.items()}
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> None:
        if module in way:
            pytest.fail(" -> ".join([*way[way.index(module) :], module]))
        if module not in done:
            for target in sorted(graph[module]):
                visit(target, [*way, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])


def test_a_class_name_is_used_once() -> None:
    places = defaultdict(list)
    for module, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(module)
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


# Of a class that is the door to everything, docstrings are half of the file.
DOORS = {"repository.repository"}


def lines_without_docstrings(module: str) -> int:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    nodes = [node for node in ast.walk(TREES[module]) if isinstance(node, kinds)]
    docs = [node.body[0] for node in nodes if ast.get_docstring(node) is not None]
    return LINES[module] - sum((doc.end_lineno or doc.lineno) + 1 - doc.lineno for doc in docs)


def test_modules_are_of_a_size_to_be_read() -> None:
    sizes = {module: lines_without_docstrings(module) if module in DOORS else lines for module, lines in LINES.items()}
    assert {module: lines for module, lines in sizes.items() if lines > MOST_LINES} == {}


def documents() -> str:
    pages = [*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md")]
    return "\n".join(page.read_text() for page in pages if page.name != "CHANGELOG.md")


def test_the_docs_name_every_public_name_and_every_kind_of_error() -> None:
    text = documents()
    missing = [name for name in icelite.__all__ if name not in text]
    missing += [kind.value for kind in ErrorKind if f"`{kind.value}`" not in text]
    assert missing == []
