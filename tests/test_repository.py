"""The files around the code: the change log, the citation, and the names in docs/architecture.md."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import fmcli
from tests.test_architecture import PACKAGES

ROOT = Path(__file__).parent.parent
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
PATH = re.compile(r"([\w.-]+/)*[\w-]+\.(?:py|toml|md)|([\w.-]+/)+[\w-]*")
REFERENCES = [
    (path, name)
    for path, _, name in (quoted.partition(":") for quoted in re.findall(r"`([^`\n]+)`", ARCHITECTURE))
    if PATH.fullmatch(path) and not path.startswith("RUN/")
]


def find_path(path: str) -> Path | None:
    """Return a path of the repository or of the package, or None if it does not exist."""
    return next((folder / path for folder in (ROOT, ROOT / "fmcli") if (folder / path).exists()), None)


@cache
def definitions(path: Path) -> frozenset[str]:
    """Return the names that a module defines: functions, classes, constants, and methods as Class.method."""
    names = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        match node:
            case ast.FunctionDef(name=name):
                names.add(name)
            case ast.ClassDef(name=name, body=body):
                names |= {name, *(f"{name}.{one.name}" for one in body if isinstance(one, ast.FunctionDef))}
            case ast.Assign(targets=targets):
                names |= {ast.unparse(target) for target in targets}
            case ast.AnnAssign(target=target):
                names.add(ast.unparse(target))
    return frozenset(names)


@pytest.mark.parametrize(("path", "name"), REFERENCES, ids=[":".join(one) for one in REFERENCES])
def test_files_and_functions_of_the_architecture_exist(path, name):
    found = find_path(path)
    assert found is not None
    assert not name or name in definitions(found)


def test_architecture_lists_the_packages_in_order():
    assert tuple(re.findall(r"^\| `(\w+)` \|", ARCHITECTURE, re.MULTILINE)) == PACKAGES


def test_architecture_names_enough_files():
    assert len(REFERENCES) > 60


def test_change_log_has_one_section_for_this_version():
    sections = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert [section.split("]")[0] for section in sections] == [f"[{fmcli.__version__}"]


def test_citation_has_this_version():
    assert f"\nversion: {fmcli.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
