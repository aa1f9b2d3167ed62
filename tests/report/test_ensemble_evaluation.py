"""Sentences in the report of a vote."""

import pytest

from fmcli.ensemble import Combiner, combine_predictions, evaluate_ensemble
from fmcli.report.ensemble_evaluation import ensemble_document
from tests.ensemble.test_predictions import make_predictions
from tests.helpers import make_combiner

MEAN = "The vote's probability is the mean of its members' probabilities"


def notes_of(combiner: Combiner, logits) -> str:
    """Return the notes of a report on one image for members with these logits."""
    members = [make_predictions([row], [0], f"m{index}") for index, row in enumerate(logits)]
    document = ensemble_document(evaluate_ensemble(combine_predictions(members, combiner)), None)
    return "\n".join(note for sheet in document.sheets for note in sheet.notes)


@pytest.mark.parametrize(
    ("vote", "tie", "choices", "expected"),
    [
        ("majority", "probability", [0, 0, 1], f"{MEAN}; it did not decide the vote."),
        ("majority", "probability", [0, 1, 2], f"{MEAN}; it decided only ties."),
        ("majority", "first", [0, 1, 2], f"{MEAN}; it did not decide the vote."),
        ("soft", "probability", [0, 1, 2], f"{MEAN}."),
        ("borda", "lowest", [0, 1, 2], "Ties: 1 (decided by lowest)."),
        ("two-level", "lowest", [0, 1, 1], "Ties between groups: 1 (decided by lowest)."),
        (
            "two-level",
            "lowest",
            [0, 1, 1],
            "is the mean of its groups' mean probabilities; it did not decide the vote.",
        ),
    ],
)
def test_report_says_what_decided_the_vote(vote, tie, choices, expected):
    logits = [[3.0 * (k == choice) for k in range(3)] for choice in choices]
    assert expected in notes_of(make_combiner(vote, tie, groups=("3", "5", "5")), logits)


@pytest.mark.parametrize("vote", ["majority", "soft", "geometric", "borda"])
def test_report_names_the_mean_weighted_if_members_have_weights(vote):
    notes = notes_of(make_combiner(vote, weights=(2.0, 1.0)), [[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    assert "The vote's probability is the weighted " in notes
