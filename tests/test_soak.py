"""Short forms of `soak.py`: what must not get lost, a few rounds each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.parametrize(
    ("trial", "rounds"),
    [
        ("kills", 3),
        ("side-by-side", 2),
        ("points", 2),
        ("full-disks", 3),
        ("signals", 4),
        ("races", 1),
        ("paths", 2000),
    ],
)
def test_nothing_is_lost(trial, rounds):
    command = [sys.executable, "-m", "tests.soak", trial, str(rounds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["problems"] == []
