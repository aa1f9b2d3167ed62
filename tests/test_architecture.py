"""The house of design.md: what may import what, and what is nowhere done."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import fmcli

PACKAGE = Path(fmcli.__file__).parent
ROOT = "fmcli"

FLOORS = (
    ("errors", "choices"),
    ("reading", "seals"),
    ("files", "locks", "cores", "events", "libraries", "recipe"),
    ("voting", "metrics", "predictions", "history"),
    (
        "data",
        "augment",
        "models",
        "optim",
        "device",
        "generators",
        "tensors",
        "ensemble",
        "folders",
        "foreign",
        "systems",
        "trials",
    ),
    ("checkpoint", "ensemble_file"),
    ("trainer", "inference", "pack", "parallel", "recipe_images", "sharing"),
    ("run", "pool", "report"),
    ("reproduce", "search", "compose", "soup"),
    ("cli",),
    ("__main__",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

CLI_MAY_IMPORT_AT_TOP = {
    "typer",
    "fmcli.choices",
    "fmcli.hardware.device",
    "fmcli.errors",
    "fmcli.storage.atomic",
    "fmcli.recipe",
    "fmcli.cli",
}
ENSEMBLE_MAY_SEE = {room for rooms in FLOORS[:4] for room in rooms}
REPORT_MAY_SEE = ENSEMBLE_MAY_SEE | {"ensemble", "systems", "trials"}


@dataclass(frozen=True)
class Import:
    target: str  # the module, e.g. fmcli.data.loader
    names: tuple[str, ...]  # what is taken out of it that is no module
    at_top: bool
    line: int


@cache
def modules() -> dict[str, Path]:
    return {dotted_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def dotted_name(path: Path) -> str:
    parts = [ROOT, *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text("utf-8"))


def room_of(module: str) -> str:
    """The room of fmcli that a module belongs to; the package's own __init__ holds only the version."""
    return module.split(".")[1] if "." in module else ""


@cache
def imports(module: str) -> tuple[Import, ...]:
    top = {id(node) for node in tree(module).body}
    found: list[Import] = []
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, (), id(node) in top, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively"
            source = str(node.module)
            inner = {alias.name for alias in node.names if f"{source}.{alias.name}" in modules()}
            found += [Import(f"{source}.{name}", (), id(node) in top, node.lineno) for name in sorted(inner)]
            names = tuple(alias.name for alias in node.names if alias.name not in inner)
            if names:
                found.append(Import(source, names, id(node) in top, node.lineno))
    return tuple(found)


def own_imports(module: str) -> Iterator[tuple[Import, str]]:
    """Imports of other modules of fmcli, each with its room."""
    for one in imports(module):
        if one.target.split(".")[0] == ROOT and room_of(one.target):
            yield one, room_of(one.target)


def test_every_room_has_a_floor():
    assert {room_of(module) for module in modules()} - {""} == set(FLOOR_OF)


@pytest.mark.parametrize("module", modules())
def test_modules_import_strictly_lower_floors(module):
    room = room_of(module)
    wrong = [
        f"line {one.line}: {one.target}"
        for one, other in own_imports(module)
        if other != room and (not room or FLOOR_OF[other] >= FLOOR_OF[room])
    ]
    assert not wrong


@pytest.mark.parametrize("room", FLOOR_OF)
def test_modules_of_one_room_do_not_import_each_other_in_circles(room):
    graph = {
        module: {one.target for one, other in own_imports(module) if other == room}
        for module in modules()
        if room_of(module) == room
    }
    assert not find_circle(graph)


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in done:
            for other in sorted(graph.get(module, ())):
                if circle := visit(other, [*path, module]):
                    return circle
            done.add(module)
        return []

    return next((circle for module in graph if (circle := visit(module, []))), [])


def test_circles_are_found():
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("module", [module for module in modules() if room_of(module) in ("ensemble", "foreign")])
def test_ensembles_and_other_tools_never_see_a_network(module):
    assert {room for _, room in own_imports(module)} - {room_of(module)} <= ENSEMBLE_MAY_SEE
    assert not [one for one in imports(module) if one.target.split(".")[0] == "torch"]


@pytest.mark.parametrize("module", [module for module in modules() if room_of(module) == "report"])
def test_report_sees_only_values(module):
    seen = {room for _, room in own_imports(module)} - {"report"}
    assert seen <= REPORT_MAY_SEE
    assert not [one for one in imports(module) if one.target.split(".")[0] == "torch"]


@pytest.mark.parametrize("module", [module for module in modules() if room_of(module) == "cli"])
def test_commands_load_nothing_heavy_before_they_are_called(module):
    outside = {
        one.target for one in imports(module) if one.at_top and one.target.split(".")[0] not in sys.stdlib_module_names
    }
    allowed = CLI_MAY_IMPORT_AT_TOP | {ROOT}
    assert {
        name for name in outside if name not in allowed and not name.startswith(("fmcli.recipe.", "fmcli.cli."))
    } == set()


@pytest.mark.parametrize("library", ["rich", "matplotlib"])
def test_only_report_knows_the_libraries_that_show_things(library):
    knowing = {
        room_of(module) for module in modules() if any(one.target.split(".")[0] == library for one in imports(module))
    }
    assert knowing == {"report"}


def test_lower_floors_never_load_torch():
    lower = [module for module in modules() if room_of(module) in ENSEMBLE_MAY_SEE]
    assert not [
        (module, one.line) for module in lower for one in imports(module) if one.target.split(".")[0] == "torch"
    ]
    program = f"import sys, {', '.join(lower)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("module", modules())
def test_library_never_prints_pickles_or_runs_text(module):
    called = {
        node.func.id
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert called.isdisjoint({"print", "eval", "exec", "compile", "input"})
    libraries = {one.target.split(".")[0] for one in imports(module)}
    assert libraries.isdisjoint({"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"})
    attributes = {ast.unparse(node) for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute)}
    assert attributes.isdisjoint({"torch.load", "torch.save"})


@pytest.mark.parametrize("module", modules())
def test_arrays_are_never_read_with_pickle(module):
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"np.load", "numpy.load"}:
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("allow_pickle") == "False"
