"""Evaluate members and their vote on one split."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from fmcli.ensemble.combiner import Combiner
from fmcli.ensemble.predictions import Predictions
from fmcli.ensemble.rules.vote import Floats, Labels, Vote
from fmcli.ensemble.voting import VotingResult
from fmcli.metrics.calibration import Calibration, calibration, calibration_of_probabilities
from fmcli.metrics.classification import ClassificationReport, classification_report
from fmcli.metrics.comparison import CochranTest, PairedTest, cochran_q_test, mcnemar_test
from fmcli.metrics.coverage import CoverageCurve, coverage_curve
from fmcli.metrics.diversity import PairwiseDiversity, pairwise_diversity

MAX_MEMBERS_TO_LEAVE_OUT = 100
"""The contributions of members are not computed for larger ensembles."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Scores of one classifier on one split.

    Args:
        name: Name of the member, or `vote`.
        report: Accuracy, precision, recall and similar scores.
        calibration: Calibration of the probabilities.
        confidence: float64 (n_samples,), the probability of each predicted class.
        correct: bool (n_samples,), whether each prediction is correct.
    """

    name: str
    report: ClassificationReport
    calibration: Calibration
    confidence: Floats
    correct: NDArray[np.bool_]

    @property
    def coverage(self) -> CoverageCurve:
        """For each share of the images, the accuracy on the images with the highest confidence."""
        return coverage_curve(self.confidence, self.correct)


@dataclass(frozen=True, slots=True, eq=False)
class EnsembleEvaluation:
    """Scores of a vote and of its members.

    Args:
        split: The split that was evaluated.
        members: One entry per member, in order.
        vote: Scores of the vote. The calibration is measured on the probabilities before temperature scaling; the
            coverage uses the probabilities that `predict` outputs.
        combiner: The fitted voting rule with its temperature.
        calibrated: Calibration of the vote after temperature scaling; None if no temperature was fitted.
        cross_fitted: Whether each image was classified by a rule that was fitted to other images of this split.
        n_ties: Number of images that the tie rule decided.
        best_member: Name of the most accurate member on this split; the first one if several are equally accurate.
        gain: Test whether the vote is as accurate as the best member.
        contributions: Accuracy that the vote loses if a member is removed, one per member; None if unknown.
        diversity: Differences between each pair of members.
        agreement: Test whether all members are equally accurate; None for a single member.
    """

    split: str
    members: tuple[Evaluation, ...]
    vote: Evaluation
    combiner: Combiner
    calibrated: Calibration | None
    cross_fitted: bool
    n_ties: int
    best_member: str
    gain: PairedTest
    contributions: tuple[float | None, ...]
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
    output_probabilities: Floats | None = None,
) -> Evaluation:
    """Score a vote.

    Args:
        vote: The vote.
        y_true: True labels, int64 (n_samples,).
        class_names: Names in label order.
        name: Name of the vote.
        output_probabilities: The probabilities that `predict` outputs, float64 (n_samples, n_classes). Default:
            `vote.probabilities`.
    """
    if output_probabilities is None:
        output_probabilities = vote.probabilities
    confidence = np.take_along_axis(output_probabilities, vote.labels[:, None], axis=1)[:, 0]
    return Evaluation(
        name,
        classification_report(y_true, vote.labels, class_names=class_names),
        calibration_of_probabilities(vote.probabilities, y_true),
        confidence,
        vote.labels == y_true,
    )


def evaluate_ensemble(result: VotingResult) -> EnsembleEvaluation:
    """Score a vote and each of its members."""
    predictions, vote = result.predictions, result.vote
    first = predictions[0]
    y_true = first.labels
    with ThreadPoolExecutor() as threads:  # in parallel, because numpy releases the interpreter lock
        members = tuple(threads.map(evaluate_member, predictions))
    best = max(range(len(members)), key=lambda index: members[index].report.accuracy)
    choices = np.stack([member.choices for member in predictions])
    is_calibrated = result.combiner.temperature != 1
    return EnsembleEvaluation(
        split=first.split,
        members=members,
        vote=evaluate_vote(vote, y_true, first.class_names, output_probabilities=result.output_probabilities),
        combiner=result.combiner,
        calibrated=calibration_of_probabilities(result.calibrated, y_true) if is_calibrated else None,
        cross_fitted=result.cross_fitted,
        n_ties=int(vote.ties.sum()),
        best_member=members[best].name,
        gain=mcnemar_test(y_true, vote.labels, predictions[best].choices),
        contributions=_contributions(result),
        diversity=pairwise_diversity(y_true, choices),
        agreement=cochran_q_test(y_true, choices) if len(choices) > 1 else None,
    )


def _contributions(result: VotingResult) -> tuple[float | None, ...]:
    """Return the accuracy that the vote loses if a member is removed, for each member."""
    n_members, y_true = len(result.predictions), result.predictions[0].labels
    if not 1 < n_members <= MAX_MEMBERS_TO_LEAVE_OUT:
        return (None,) * n_members
    accuracy = float((result.vote.labels == y_true).mean())

    def contribution(index: int) -> float | None:
        voter = result.voter.without(index)
        if voter is None:
            return None
        return accuracy - float((voter(np.delete(result.logits, index, axis=0)).labels == y_true).mean())

    return tuple(map(contribution, range(n_members)))
