"""Combining members: predictions in, the vote and what can be said of it out. No network in sight."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fmcli.errors import UsageError, did_you_mean
from fmcli.metrics import (
    Calibration,
    ClassificationReport,
    PairedTest,
    calibration,
    calibration_of_probabilities,
    classification_report,
    mcnemar_test,
    pairwise_disagreement,
)
from fmcli.predictions import Predictions, stack_logits
from fmcli.recipe.specs import (
    EnsembleSpec,
)
from fmcli.voting import VOTING_RULES, Logits, Vote


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One classifier on one split.

    Args:
        name: A member's name, or `vote`.
        report: Its scores.
        calibration: How far its probabilities can be trusted.
    """

    name: str
    report: ClassificationReport
    calibration: Calibration


@dataclass(frozen=True, slots=True)
class EnsembleEvaluation:
    """A vote beside its members.

    Args:
        split: What it was evaluated on.
        members: Each member, in order.
        vote: The ensemble.
        spec: The rules that were applied.
        n_ties: On how many images the tie rule decided.
        disagreement: Mean pairwise disagreement of the members, in [0, 1].
        best_member: Name of the member with the highest accuracy on this split, the first if several.
        gain: The vote against that member.
    """

    split: str
    members: tuple[Evaluation, ...]
    vote: Evaluation
    spec: EnsembleSpec
    n_ties: int
    disagreement: float
    best_member: str
    gain: PairedTest


def combine(logits: Logits, spec: EnsembleSpec) -> Vote:
    """Apply a recipe's voting rule.

    Args:
        logits: (n_members, n_samples, n_classes).
        spec: Rule and tie rule.

    Raises:
        UsageError: There is no such rule, or the logits are not fit for it.
    """
    if spec.vote not in VOTING_RULES:
        raise UsageError(f"unknown voting rule {spec.vote!r}; {did_you_mean(spec.vote, list(VOTING_RULES))}")
    return VOTING_RULES[spec.vote](logits, tie=spec.tie)


def choose_rules(recipes: Sequence[EnsembleSpec], *, vote: str | None = None, tie: str | None = None) -> EnsembleSpec:
    """Return how to vote: as the members' recipes agree, or as asked for.

    Args:
        recipes: The rules of each member's recipe.
        vote: A rule that takes their place.
        tie: A tie rule that takes its place.

    Raises:
        UsageError: The recipes differ and nothing was asked for.
    """
    first = recipes[0]
    for what, asked in (("vote", vote), ("tie", tie)):
        named = sorted({str(getattr(recipe, what)) for recipe in recipes})
        if asked is None and len(named) > 1:
            raise UsageError(
                f"the members' recipes have different {what} rules: {', '.join(named)}",
                hint=f"choose one with --{what}",
            )
    return EnsembleSpec.model_validate({"vote": str(vote or first.vote), "tie": str(tie or first.tie)})


def evaluate_member(predictions: Predictions) -> Evaluation:
    """Score one member's predictions."""
    return Evaluation(
        predictions.member,
        classification_report(predictions.labels, predictions.choices, class_names=predictions.class_names),
        calibration(predictions.logits, predictions.labels),
    )


def evaluate_ensemble(predictions: Sequence[Predictions], spec: EnsembleSpec) -> EnsembleEvaluation:
    """Combine members and set the vote beside each of them.

    Args:
        predictions: One entry a member, all on the same images.
        spec: Rule and tie rule.

    Raises:
        CheckpointError: Members do not match.
        UsageError: There is no such rule.
    """
    logits = stack_logits(predictions)
    vote = combine(logits, spec)
    first = predictions[0]
    members = tuple(evaluate_member(member) for member in predictions)
    best = max(range(len(members)), key=lambda index: members[index].report.accuracy)
    return EnsembleEvaluation(
        split=first.split,
        members=members,
        vote=Evaluation(
            "vote",
            classification_report(first.labels, vote.labels, class_names=first.class_names),
            calibration_of_probabilities(vote.probabilities, first.labels),
        ),
        spec=spec,
        n_ties=int(vote.ties.sum()),
        disagreement=pairwise_disagreement(np.stack([member.choices for member in predictions])),
        best_member=members[best].name,
        gain=mcnemar_test(first.labels, vote.labels, predictions[best].choices),
    )
