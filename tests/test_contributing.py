"""The examples in docs/contributing.md work when they are added to a copy of the package."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fmcli
from tests.helpers import draw_quadrants, write_idx_folder

PACKAGE = Path(fmcli.__file__).parent
TESTS = Path(__file__).parent
GUIDE = (PACKAGE.parent / "docs" / "contributing.md").read_text("utf-8")
EXAMPLES = dict(re.findall(r"^## Add (.*?)\n(.*?)(?=^## )", GUIDE, re.DOTALL | re.MULTILINE))

NEW_FILE = re.compile(r"^`(\S+)`:\n\n```\w+\n(.*?)^```", re.DOTALL | re.MULTILINE)
CHANGE = re.compile(r"^```diff\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^\$ fmcli (.*)$", re.MULTILINE)

SMALL_RECIPE = """
[data]
source = "idx:drawn"

[model]
family = "kernel-cnn"
kernel_size = 3
widths = [4]

[optimizer]
name = "adamw"
lr = 1e-3

[trainer]
epochs = 1
batch_size = 10
"""


def apply_change(folder: Path, change: str) -> None:
    """Change the only file of the package that contains the unchanged and the removed lines of a diff."""
    before = "".join(line[1:] for line in change.splitlines(keepends=True) if line[0] in " -")
    after = "".join(line[1:] for line in change.splitlines(keepends=True) if line[0] in " +")
    found = [path for path in folder.rglob("*.py") if before in path.read_text("utf-8")]
    assert len(found) == 1, f"{found} contain:\n{before}"
    text = found[0].read_text("utf-8")
    assert text.count(before) == 1, before
    found[0].write_text(text.replace(before, after), "utf-8")


@pytest.fixture
def workplace(tmp_path):
    """Return a folder with a copy of the package, images, a recipe, and predictions of two members."""
    shutil.copytree(PACKAGE, tmp_path / "fmcli", ignore=shutil.ignore_patterns("__pycache__"))
    images, labels = draw_quadrants(40)
    write_idx_folder(tmp_path / "drawn", images, labels)
    (tmp_path / "small.toml").write_text(SMALL_RECIPE, "utf-8")
    (tmp_path / "predictions").mkdir()
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        np.save(tmp_path / "predictions" / f"{name}.npy", generator.dirichlet(np.ones(4), size=40))
    np.save(tmp_path / "labels.npy", labels.astype(np.int64))
    return tmp_path


def add_example(folder: Path, name: str) -> list[str]:
    """Add an example of the guide to a copy of the package. Return the words of its command."""
    example = EXAMPLES[name]
    for path, text in NEW_FILE.findall(example):
        assert not (folder / path).exists()
        (folder / path).write_text(text, "utf-8")
    for change in CHANGE.findall(example):
        apply_change(folder / "fmcli", change)
    [command] = COMMAND.findall(example)
    return shlex.split(command)


def run_python(folder: Path, *words: str) -> str:
    """Run a Python module with the package in a folder, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_works(workplace, name):
    command = add_example(workplace, name)
    shown = run_python(workplace, "fmcli", *command)
    if name == "a voting rule":
        assert "Maximum vote of 2 members" in shown
        assert "The vote's probability is the highest probability of its members, scaled" in " ".join(shown.split())


def test_new_rule_is_tested_like_all_others(workplace):
    add_example(workplace, "a voting rule")
    shutil.copytree(TESTS / "ensemble", workplace / "tests" / "ensemble")
    shutil.copy(TESTS / "helpers.py", workplace / "tests")
    options = ("-q", "-p", "no:cacheprovider", "-k", "maximum")
    assert " passed" in run_python(workplace, "pytest", "tests/ensemble/test_rule_properties.py", *options)


def test_guide_has_an_example_of_each_extension():
    assert list(EXAMPLES) == ["a network family", "a voting rule", "a data source", "an executor", "a command"]
