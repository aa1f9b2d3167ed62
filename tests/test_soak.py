"""Short forms of the trials in `soak.py`."""

import os

import pytest

from tests.processes import StartedProcess
from tests.soak import print_result


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
        ("backbones", 3),
    ],
)
def test_trial_finds_no_problem(trial, rounds):
    done = StartedProcess(print_result, trial, rounds).finish()
    assert done.status == 0, done.err
    assert done.json["problems"] == []
