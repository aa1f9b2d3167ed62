"""The Makefile: make help lists every target, and make demo announces its steps."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parent.parent / "Makefile"
pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="needs make")


def run_make(*words):
    command = ["make", "--no-print-directory", "-f", MAKEFILE, *words]
    environment = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    return subprocess.run(
        command, env=environment, cwd=MAKEFILE.parent, capture_output=True, text=True, check=True
    ).stdout


def test_help_lists_every_target_and_is_the_default():
    [targets] = re.findall(r"^\.PHONY: (.*)$", MAKEFILE.read_text("utf-8"), re.MULTILINE)
    shown = run_make("help")
    assert [line.split()[1] for line in shown.splitlines()] == targets.split()
    assert run_make() == shown


def test_demo_announces_its_steps_and_ends_with_three_commands():
    words = run_make("--dry-run", "demo")
    assert re.findall(r"Step (\d) of 4", words) == ["1", "2", "3", "4"]
    assert words.index("--plan") < words.index("Step 4 of 4")
    assert len(re.findall(r"'fmcli ", words.partition("Next, try:")[2])) == 3
