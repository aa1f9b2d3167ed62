"""A member, or a vote beside its members, judged on one split."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from fmcli.ensemble.ballot import Ballot
from fmcli.ensemble.combiner import Combiner
from fmcli.ensemble.predictions import Predictions
from fmcli.ensemble.rules import Floats, Labels, Vote
from fmcli.metrics import (
    Calibration,
    ClassificationReport,
    CochranTest,
    CoverageCurve,
    PairedTest,
    PairwiseDiversity,
    calibration,
    calibration_of_probabilities,
    classification_report,
    cochran_q_test,
    coverage_curve,
    mcnemar_test,
    pairwise_diversity,
)

MOST_LEFT_OUT = 100
"""Members, up to which the vote is also taken without each of them."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """One classifier on one split.

    Args:
        name: A member's name, or `vote`.
        report: Its scores.
        calibration: How far its probabilities can be trusted.
        confidence: float64 (n_samples,), how probable it holds its own answers to be.
        correct: bool (n_samples,), where it is right.
    """

    name: str
    report: ClassificationReport
    calibration: Calibration
    confidence: Floats
    correct: NDArray[np.bool_]

    @property
    def coverage(self) -> CoverageCurve:
        """How accurate it is when the images that it is least sure of are set aside."""
        return coverage_curve(self.confidence, self.correct)


@dataclass(frozen=True, slots=True, eq=False)
class EnsembleEvaluation:
    """A vote beside its members.

    Args:
        split: What it was evaluated on.
        members: Each member, in order.
        vote: The ensemble: calibration of what the rule gives, coverage by the probabilities that `predict` gives.
        rule: What combined them, with what was given and learnt.
        calibrated: How far the vote's probabilities can be trusted after temperature scaling; None where there was
            nothing to learn the temperature from.
        cross_fitted: How to combine was learnt on these very images, in folds, so that none judged itself.
        n_ties: On how many images the tie rule decided.
        best_member: Name of the member with the highest accuracy on this split, the first if several.
        gain: The vote against that member.
        losses: For each member, by how much the vote's accuracy falls without it; None where that is not known.
        diversity: How much members differ, pair by pair.
        agreement: Whether all members are right equally often; None of a single one.
    """

    split: str
    members: tuple[Evaluation, ...]
    vote: Evaluation
    rule: Combiner
    calibrated: Calibration | None
    cross_fitted: bool
    n_ties: int
    best_member: str
    gain: PairedTest
    losses: tuple[float | None, ...]
    diversity: PairwiseDiversity
    agreement: CochranTest | None


def evaluate_member(predictions: Predictions) -> Evaluation:
    """Score one member's predictions."""
    logits, choices = np.asfortranarray(predictions.logits, dtype=np.float64), predictions.choices
    return Evaluation(
        predictions.member,
        classification_report(predictions.labels, choices, class_names=predictions.class_names),
        calibration(logits, predictions.labels),
        softmax(logits, axis=1).max(axis=1),
        choices == predictions.labels,
    )


def evaluate_vote(
    vote: Vote,
    y_true: Labels,
    class_names: Sequence[str],
    *,
    name: str = "vote",
    given: Floats | None = None,
) -> Evaluation:
    """Score what an ensemble answers.

    Args:
        vote: From a combiner.
        y_true: (n_samples,).
        class_names: In label order.
        name: What to call it.
        given: float64 (n_samples, n_classes), the probabilities that `predict` gives, if they are others.
    """
    given = vote.probabilities if given is None else given
    confidence = np.take_along_axis(given, vote.labels[:, None], axis=1)[:, 0]
    return Evaluation(
        name,
        classification_report(y_true, vote.labels, class_names=class_names),
        calibration_of_probabilities(vote.probabilities, y_true),
        confidence,
        vote.labels == y_true,
    )


def evaluate_ensemble(ballot: Ballot) -> EnsembleEvaluation:
    """Set a vote beside each of its members."""
    predictions, vote = ballot.predictions, ballot.vote
    first = predictions[0]
    y_true = first.labels
    with ThreadPoolExecutor() as threads:  # numpy works outside Python's lock
        members = tuple(threads.map(evaluate_member, predictions))
    best = max(range(len(members)), key=lambda place: members[place].report.accuracy)
    choices = np.stack([member.choices for member in predictions])
    is_calibrated = ballot.rule.temperature != 1
    return EnsembleEvaluation(
        split=first.split,
        members=members,
        vote=evaluate_vote(vote, y_true, first.class_names, given=ballot.given),
        rule=ballot.rule,
        calibrated=calibration_of_probabilities(ballot.calibrated, y_true) if is_calibrated else None,
        cross_fitted=ballot.cross_fitted,
        n_ties=int(vote.ties.sum()),
        best_member=members[best].name,
        gain=mcnemar_test(y_true, vote.labels, predictions[best].choices),
        losses=_losses(ballot),
        diversity=pairwise_diversity(y_true, choices),
        agreement=cochran_q_test(y_true, choices) if len(choices) > 1 else None,
    )


def _losses(ballot: Ballot) -> tuple[float | None, ...]:
    """Return by how much the vote's accuracy falls without each member."""
    n_members, y_true = len(ballot.predictions), ballot.predictions[0].labels
    if not 1 < n_members <= MOST_LEFT_OUT:
        return (None,) * n_members
    accuracy = float((ballot.vote.labels == y_true).mean())
    losses: list[float | None] = []
    for place in range(n_members):
        rest = ballot.combine.without(place)
        without = None if rest is None else rest(np.delete(ballot.logits, place, axis=0)).labels
        losses.append(None if without is None else accuracy - float((without == y_true).mean()))
    return tuple(losses)
