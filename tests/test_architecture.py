"""Packages import only packages below them, and no module makes a forbidden call."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import fmcli
from fmcli.choices import RULE_NAMES

PACKAGE = Path(fmcli.__file__).parent
TESTS = Path(__file__).parent
ROOT = "fmcli"

# Top to bottom. A package imports only packages below it.
PACKAGES = (
    "cli",
    "report",
    "experiments",
    "training",
    "members",
    "checkpoints",
    "ensemble",
    "networks",
    "data",
    "recipe",
    "metrics",
    "storage",
    "hardware",
)
LOOSE_MODULES = ("events", "choices", "errors")  # below every package
LAYERS = ("__main__", *PACKAGES, *LOOSE_MODULES)
WITHOUT_TORCH = {"ensemble", "recipe", "metrics", "storage", *LOOSE_MODULES}

CLI_MAY_IMPORT_AT_TOP = {
    "typer",
    "typer.core",
    "fmcli.choices",
    "fmcli.errors",
    "fmcli.events",
    "fmcli.hardware.device",
    "fmcli.storage.atomic",
    "fmcli.recipe",
    "fmcli.cli",
}
ENSEMBLE_MAY_IMPORT = {"recipe", "metrics", "storage", *LOOSE_MODULES}
REPORT_MAY_IMPORT = ENSEMBLE_MAY_IMPORT | {"ensemble", "experiments"}


@dataclass(frozen=True)
class Import:
    target: str  # a module, such as fmcli.data.loader
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


def package_of(module: str) -> str:
    """Return the package or loose module that a module belongs to; empty for `fmcli` itself."""
    return module.split(".")[1] if "." in module else ""


@cache
def imports(module: str) -> tuple[Import, ...]:
    top = {id(node) for node in tree(module).body}
    found: list[Import] = []
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, id(node) in top, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively"
            source = str(node.module)
            inner = {alias.name for alias in node.names if f"{source}.{alias.name}" in modules()}
            found += [Import(f"{source}.{name}", id(node) in top, node.lineno) for name in sorted(inner)]
            if len(inner) < len(node.names):
                found.append(Import(source, id(node) in top, node.lineno))
    return tuple(found)


def own_imports(module: str) -> Iterator[tuple[Import, str]]:
    """Yield the imports of other modules of fmcli, each with its package."""
    for one in imports(module):
        if one.target.split(".")[0] == ROOT and package_of(one.target):
            yield one, package_of(one.target)


def imports_torch(module: str) -> bool:
    return any(one.target.split(".")[0] == "torch" for one in imports(module))


def modules_of(*packages: str) -> list[str]:
    return [module for module in modules() if package_of(module) in packages]


def test_packages_are_those_listed():
    assert {package_of(module) for module in modules()} - {""} == set(LAYERS)


def test_tests_have_a_folder_for_each_package():
    folders = {path.name for path in TESTS.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= {*PACKAGES, "docs"}


def test_modules_import_only_packages_below():
    def is_allowed(module: str, imported: str) -> bool:
        package = package_of(module)
        return imported == package or imported in (LAYERS[LAYERS.index(package) + 1 :] if package else ())

    assert not [
        f"{module}, line {one.line}: {one.target}"
        for module in modules()
        for one, imported in own_imports(module)
        if not is_allowed(module, imported)
    ]


@pytest.mark.parametrize("package", LAYERS)
def test_modules_of_one_package_have_no_import_cycle(package):
    graph = {
        module: {one.target for one, other in own_imports(module) if other == package} for module in modules_of(package)
    }
    assert not find_cycle(graph)


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in done:
            for other in sorted(graph.get(module, ())):
                if cycle := visit(other, [*path, module]):
                    return cycle
            done.add(module)
        return []

    return next((cycle for module in graph if (cycle := visit(module, []))), [])


def test_cycles_are_found():
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("module", modules_of("ensemble"))
def test_ensembles_need_neither_networks_nor_data(module):
    assert {package for _, package in own_imports(module)} - {"ensemble"} <= ENSEMBLE_MAY_IMPORT


@pytest.mark.parametrize("module", modules_of("report"))
def test_reports_use_only_values(module):
    assert {package for _, package in own_imports(module)} - {"report"} <= REPORT_MAY_IMPORT
    experiments = {one.target for one, package in own_imports(module) if package == "experiments"}
    assert experiments <= {"fmcli.experiments.results"}
    assert not imports_torch(module)


@pytest.mark.parametrize("module", modules_of("cli"))
def test_commands_import_nothing_slow_at_the_top(module):
    top = {one.target for one in imports(module) if one.at_top}
    outside = {name for name in top if name.split(".")[0] not in sys.stdlib_module_names}
    allowed = CLI_MAY_IMPORT_AT_TOP | {ROOT}
    assert not [name for name in outside - allowed if not name.startswith(("fmcli.recipe.", "fmcli.cli."))]


@pytest.mark.parametrize("library", ["rich", "matplotlib"])
def test_only_report_imports_rich_and_matplotlib(library):
    users = {
        package_of(module) for module in modules() for one in imports(module) if one.target.split(".")[0] == library
    }
    assert users == {"report"}


def test_arrays_and_recipes_are_handled_without_torch():
    without = modules_of(*WITHOUT_TORCH)
    assert not [module for module in without if imports_torch(module)]
    program = f"import sys, {', '.join(without)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


FORBIDDEN_CALLS = {"print", "eval", "exec", "compile", "input"}
FORBIDDEN_ATTRIBUTES = {"torch.load", "torch.save"}
FORBIDDEN_LIBRARIES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


@pytest.fixture(scope="module")
def calls() -> list[tuple[str, str, ast.Call]]:
    """Every call: its module, its function, and the call."""
    nodes = [(module, node) for module in modules() for node in ast.walk(tree(module))]
    return [(module, ast.unparse(node.func), node) for module, node in nodes if isinstance(node, ast.Call)]


def test_library_never_prints_pickles_or_evaluates_text(calls):
    assert not [(module, function) for module, function, _ in calls if function in FORBIDDEN_CALLS]
    for module in modules():
        attributes = {ast.unparse(node) for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute)}
        assert attributes.isdisjoint(FORBIDDEN_ATTRIBUTES), module
        assert FORBIDDEN_LIBRARIES.isdisjoint(one.target.split(".")[0] for one in imports(module)), module


def test_arrays_are_never_read_with_pickle(calls):
    for module, function, call in calls:
        if function in {"np.load", "numpy.load"}:
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert given.get("allow_pickle") == "False", module


RULES_MAY_BE_NAMED_IN = ("fmcli.choices", "fmcli.ensemble.rules")
CONTAINERS = ast.Compare | ast.Dict | ast.Set | ast.List | ast.Tuple | ast.Subscript
AFFIX_METHODS = {"startswith", "endswith", "removeprefix", "removesuffix"}


def compared_rule_names(code: ast.AST) -> set[int]:
    """Return the lines that compare text with the name of a voting rule, or list names of rules."""
    lines = set()
    for node in ast.walk(code):
        texts: list[ast.AST] = []
        if isinstance(node, ast.match_case):
            texts = list(ast.walk(node.pattern))
        elif isinstance(node, CONTAINERS):
            texts = list(ast.iter_child_nodes(node))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in AFFIX_METHODS:
            affixes = [argument for argument in node.args if isinstance(argument, ast.Constant)]
            lines |= {one.lineno for one in affixes for name in RULE_NAMES if name.startswith(str(one.value))}
        lines |= {text.lineno for text in texts if isinstance(text, ast.Constant) and text.value in RULE_NAMES}
    return lines


def test_only_rules_know_their_names():
    found = {
        module: compared_rule_names(tree(module))
        for module in modules()
        if not module.startswith(RULES_MAY_BE_NAMED_IN)
    }
    assert not {module: lines for module, lines in found.items() if lines}


@pytest.mark.parametrize(
    "line",
    [
        "vote == 'soft'",
        "'stacking' != rule.name",
        "vote in ('x', 'borda')",
        "PHRASES = {'soft': 1}",
        "names.get(vote, [1, 'two-level'])",
        "rules['soft'](logits)",
        "vote.startswith('weighted-')",
        "match vote:\n case 'x' | 'stacking' if a: pass",
    ],
)
def test_names_of_rules_are_found(line):
    assert compared_rule_names(ast.parse(line))


def test_a_default_rule_may_be_named():
    assert not compared_rule_names(ast.parse("make_rule('soft'); Remedy('vote', 'majority'); vote: str = 'soft'"))


def attributes_set_by(statements: list[ast.stmt]) -> set[str]:
    """Return the attributes of `self` that statements set."""
    found = [node for one in statements for node in ast.walk(one) if isinstance(node, ast.Attribute)]
    return {node.attr for node in found if isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"}


def created_late(source: ast.Module) -> set[str]:
    """Return `Class.attribute` for attributes that a method other than `__init__` creates."""
    late = set()
    for one in (node for node in ast.walk(source) if isinstance(node, ast.ClassDef)):
        methods = {method.name: method.body for method in one.body if isinstance(method, ast.FunctionDef)}
        fields = {ast.unparse(field.target) for field in one.body if isinstance(field, ast.AnnAssign)}
        fields |= attributes_set_by(methods.pop("__init__", []))
        late |= {f"{one.name}.{name}" for body in methods.values() for name in attributes_set_by(body) - fields}
    return late


def test_late_attributes_are_found():
    early = "class A:\n x: int\n def __init__(self):\n  self.y = 1\n def f(self):\n  self.x, self.y = 1, 2"
    assert created_late(ast.parse(early)) == set()
    assert created_late(ast.parse(early + "\n  self.z += 1\n  self.y.a = 1")) == {"A.z"}


def test_attributes_are_created_in_init():
    assert not {module: late for module in modules() if (late := created_late(tree(module)))}
