"""A member, or a vote beside its members, judged on one split."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from fmcli.ensemble.combiner import Combiner, CrossFitted, cross_fit, cross_fitted_probabilities
from fmcli.metrics import (
    Calibration,
    ClassificationReport,
    CochranTest,
    CoverageCurve,
    PairedTest,
    PairwiseDiversity,
    apply_temperature,
    calibration,
    calibration_of_probabilities,
    classification_report,
    cochran_q_test,
    coverage_curve,
    mcnemar_test,
    pairwise_diversity,
)
from fmcli.predictions import Predictions, stack_logits
from fmcli.voting import Floats, Labels, Logits, Vote

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
        vote: The ensemble, its probabilities as the rule gives them.
        rule: What combined them, with what was given and learnt.
        calibrated: How far the vote's probabilities can be trusted after temperature scaling; None where there was
            nothing to learn the temperature from.
        cross_fitted: What was learnt was learnt on these very images, in folds, so that none judged itself.
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
        np.exp(logits.max(axis=1) - logsumexp(logits, axis=1)),
        choices == predictions.labels,
    )


def evaluate_vote(vote: Vote, y_true: Labels, class_names: Sequence[str], *, name: str = "vote") -> Evaluation:
    """Score what an ensemble answers.

    Args:
        vote: From a combiner.
        y_true: (n_samples,).
        class_names: In label order.
        name: What to call it.
    """
    confidence = np.take_along_axis(vote.probabilities, vote.labels[:, None], axis=1)[:, 0]
    return Evaluation(
        name,
        classification_report(y_true, vote.labels, class_names=class_names),
        calibration_of_probabilities(vote.probabilities, y_true),
        confidence,
        vote.labels == y_true,
    )


def evaluate_ensemble(
    predictions: Sequence[Predictions], rule: Combiner, *, learnt_here: Combiner | None = None
) -> EnsembleEvaluation:
    """Combine members and set the vote beside each of them.

    Args:
        predictions: One entry a member, all on the same images.
        rule: How to combine them, with all that it learnt.
        learnt_here: Where it learnt on these very images, the rule as it was before; that is then done again in
            folds, so that no image is answered by what was learnt from it.

    Raises:
        CheckpointError: Members do not match.
        UsageError: The rule lacks something, or does not fit the members.
    """
    logits = stack_logits(predictions)
    first = predictions[0]
    y_true = first.labels
    combine: Combiner | CrossFitted = replace(rule, temperature=1.0)
    if learnt_here is not None and learnt_here.learns:
        combine = cross_fit(learnt_here, logits, y_true)
    vote = combine(logits)
    if learnt_here is None:
        scaled = apply_temperature(vote.probabilities, rule.temperature)
    else:
        scaled = cross_fitted_probabilities(vote.probabilities, y_true)
    with ThreadPoolExecutor() as threads:  # numpy works outside Python's lock
        members = tuple(threads.map(evaluate_member, predictions))
    best = max(range(len(members)), key=lambda place: members[place].report.accuracy)
    choices = np.stack([member.choices for member in predictions])
    return EnsembleEvaluation(
        split=first.split,
        members=members,
        vote=evaluate_vote(vote, y_true, first.class_names),
        rule=rule,
        calibrated=calibration_of_probabilities(scaled, y_true) if rule.temperature != 1 else None,
        cross_fitted=learnt_here is not None,
        n_ties=int(vote.ties.sum()),
        best_member=members[best].name,
        gain=mcnemar_test(y_true, vote.labels, predictions[best].choices),
        losses=_losses(combine, logits, y_true, vote),
        diversity=pairwise_diversity(y_true, choices),
        agreement=cochran_q_test(y_true, choices) if len(choices) > 1 else None,
    )


def _losses(combine: Combiner | CrossFitted, logits: Logits, y_true: Labels, vote: Vote) -> tuple[float | None, ...]:
    """Return by how much the vote's accuracy falls without each member."""
    n_members = len(logits)
    if not 1 < n_members <= MOST_LEFT_OUT:
        return (None,) * n_members
    accuracy = float((vote.labels == y_true).mean())
    losses: list[float | None] = []
    for place in range(n_members):
        rest = combine.without(place)
        without = None if rest is None else rest(np.delete(logits, place, axis=0)).labels
        losses.append(None if without is None else accuracy - float((without == y_true).mean()))
    return tuple(losses)
