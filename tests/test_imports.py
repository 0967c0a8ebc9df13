"""The one direction of imports, and modules that do without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import limelight

ROOT = Path(limelight.__file__).parent
ORDER = (
    "errors utils prompts models attention guidance generation heads textual_inversion editing evaluate viz "
    "integrations validate cli"
).split()


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file; the package itself, whose names are lazy, is left out."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if parts:
            found[".".join(parts)] = path
    return found


def targets(node: ast.AST, name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of this package that an import statement names."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names if alias.name.split(".")[0] == "limelight"]
        return {full.removeprefix("limelight").strip(".") for full in names} & known.keys()
    if not isinstance(node, ast.ImportFrom):
        return set()
    if node.level:
        package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        base = package[: len(package) - node.level + 1]
    elif node.module and node.module.split(".")[0] == "limelight":
        base = []
    else:
        return set()
    below = (node.module or "").removeprefix("limelight").strip(".")
    start = ".".join([*base, *filter(None, [below])])
    inner = {f"{start}.{alias.name}".strip(".") for alias in node.names} & known.keys()
    return inner or ({start} & known.keys())


def at_the_top(tree: ast.Module) -> list[ast.stmt]:
    """The statements that run on import: not those in functions or under TYPE_CHECKING."""
    waiting, found = list[ast.stmt](tree.body), list[ast.stmt]()
    while waiting:
        node = waiting.pop()
        found.append(node)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for field in ("body", "orelse", "finalbody"):
                waiting += getattr(node, field, [])
            for handler in getattr(node, "handlers", []):
                waiting += handler.body
    return found


@cache
def trees() -> dict[str, ast.Module]:
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in modules().items()}


@cache
def graph(top_level: bool) -> dict[str, set[str]]:
    known, found = modules(), {}
    for name, path in known.items():
        tree = trees()[name]
        nodes = at_the_top(tree) if top_level else ast.walk(tree)
        found[name] = set().union(*(targets(node, name, path, known) for node in nodes)) - {name}
    return found


def folder(name: str) -> str:
    return name.split(".")[0]


def cycle(edges: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_the_graph_sees_imports():
    edges = graph(top_level=True)
    assert "generation.plan" in edges["generation.generate"]
    assert "errors" in edges["utils.files"]
    assert cycle({"a": {"b"}, "b": {"a"}})


def test_no_module_imports_itself_through_others():
    assert cycle(graph(top_level=True)) == []


def test_no_folder_imports_itself_through_others():
    edges: dict[str, set[str]] = {}
    for name, used in graph(top_level=False).items():
        edges.setdefault(folder(name), set()).update(map(folder, used))
    assert cycle({name: used - {name} for name, used in edges.items()}) == []


def test_folders_import_only_from_those_before_them():
    against = []
    for name, used in graph(top_level=False).items():
        for other in sorted(used):
            if (
                folder(name) in ORDER
                and folder(other) in ORDER
                and ORDER.index(folder(other)) > ORDER.index(folder(name))
            ):
                against.append(f"{name} imports {other}")
    assert against == []


def test_every_folder_has_a_place_in_the_order():
    data = {"pocket", "pocket_256", "pocket_dit", "data", "__main__"}
    assert {folder(name) for name in modules()} - data == set(ORDER) - data


LIGHT = """
import limelight, sys
print([getattr(limelight, name).__name__ for name in sorted(limelight._FOLDERS)])
import limelight.errors, limelight.models.schedulers, limelight.utils.files, limelight.utils.parallel
print(sorted({"torch", "diffusers", "transformers"} & sys.modules.keys()))
"""


def test_imports_without_torch():
    """Also of folders, which are there without an import of their own."""
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str([f"limelight.{name}" for name in sorted(limelight._FOLDERS)]), "[]"]


def test_no_public_name_is_also_a_module():
    """`limelight.x` is one thing, whichever was imported first."""
    folder = Path(limelight.__file__).parent
    inside = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not inside & set(limelight._PUBLIC)
    assert set(limelight._FOLDERS) <= inside
    for name in limelight._PUBLIC:
        assert hasattr(limelight, name), name
