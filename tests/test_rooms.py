"""Imports flow one way through the rooms of the package, and no folder is crowded."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lrp

FOLDER = Path(lrp.__file__).parent

# from the ground up: a room imports from those above it in this list, and a file from others of its row
ORDER = [
    {"maps"},
    {"rules"},
    {"engine"},
    {"composites"},
    {"functional", "twins", "layers", "sequential", "conversion", "compiling"},
    {"patterns", "trace", "weights"},
    {"plot"},
    {"explanation"},
    {"evaluate", "concepts", "verification"},
    {"lrp"},
]


def name_of(path: Path) -> str:
    """The dotted name of a file: a folder's is that of its contents page."""
    parts = ("lrp", *path.relative_to(FOLDER).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(FOLDER.rglob("*.py"))}


def imported(name: str) -> Iterator[str]:
    """The files of the package that a file imports, wherever in it the import stands."""
    package = name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            names = (f"{source}.{alias.name}" for alias in node.names)
            yield from (found for found in (n if n in FILES else source for n in names) if found in FILES)


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else name


def level(name: str) -> int:
    return next(i for i, rooms in enumerate(ORDER) if room(name) in rooms)


@pytest.mark.parametrize("name", FILES)
def test_imports_flow_one_way(name: str) -> None:
    backward = [other for other in imported(name) if room(other) != room(name) and level(other) > level(name)]
    assert not backward, f"{name} imports {backward}"


def test_imports_have_no_circle() -> None:
    graph = {name: set(imported(name)) for name in FILES}
    assert set(TopologicalSorter(graph).static_order()) == set(FILES)  # a circle is an error that shows it
    assert {"lrp.rules", "lrp.composites"} <= graph["lrp"]


def test_no_folder_has_more_than_a_dozen_files() -> None:
    folders = {path.parent for path in FILES.values()}
    crowded = {str(folder): n for folder in folders if (n := len(list(folder.glob("*.py")))) > 12}
    assert not crowded
