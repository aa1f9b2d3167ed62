"""A voting rule is one new file and its name in one list."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fmcli
from fmcli.ensemble.predictions import save_predictions
from tests.ensemble.test_predictions import random_members

TESTS = Path(__file__).parent.parent
MAXIMUM = '''
"""Voting by the highest probability."""

import numpy as np

from fmcli.ensemble.rules.base import VotingRule
from fmcli.ensemble.rules.vote import Logits, Vote, probabilities_of


class Maximum(VotingRule):
    """Let the most certain member decide: the class with the highest probability of any member wins."""

    probability_meaning = "the highest probability of any member, scaled to sum to 1"
    probability_decides = True

    def combine(self, logits: Logits) -> Vote:
        """Vote by the highest probability; see `VotingRule.combine`."""
        highest = np.max([probabilities_of(member) for member in logits], axis=0)
        return self.decide(logits, highest, highest / highest.sum(axis=1, keepdims=True))
'''


@pytest.fixture(scope="module")
def run_with_maximum(tmp_path_factory):
    """Return a function that runs a Python module with a copy of fmcli that has the rule `maximum`."""
    folder = tmp_path_factory.mktemp("maximum")
    package = shutil.copytree(Path(fmcli.__file__).parent, folder / "fmcli", ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copytree(TESTS / "ensemble", folder / "tests" / "ensemble")
    shutil.copy(TESTS / "helpers.py", folder / "tests")
    (package / "ensemble" / "rules" / "maximum.py").write_text(MAXIMUM, "utf-8")
    choices = package / "choices.py"
    choices.write_text(
        choices.read_text("utf-8").replace('    "stacking",\n', '    "stacking",\n    "maximum",\n'), "utf-8"
    )

    def run(*words):
        done = subprocess.run(
            [sys.executable, "-m", *map(str, words)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_a_new_rule_evaluates_with_true_sentences(run_with_maximum, tmp_path):
    for member in random_members(seed=1, n_members=3, split="test"):
        save_predictions(tmp_path / member.member / "test.safetensors", member)
    shown = run_with_maximum("fmcli", "ensemble", "evaluate", tmp_path, "--vote", "maximum")
    assert "Maximum vote of 3 members on test" in shown
    assert "The vote's probability is the highest probability of any member, scaled to sum to 1." in shown
    assert "Contribution" in shown


def test_a_new_rule_has_the_tested_properties(run_with_maximum):
    options = ("-q", "-p", "no:cacheprovider", "-k", "maximum")
    run_with_maximum("pytest", "tests/ensemble/test_rule_properties.py", *options)
