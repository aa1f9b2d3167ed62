"""Code that the voting rules share: the result of a vote, tie rules, weights and checks of the input."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from fmcli.errors import UsageError

Logits = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]
Floats = NDArray[np.float64]
_SCORE_TOLERANCE = 1e-12  # sums differ by less if members or classes are added in a different order


@dataclass(frozen=True, slots=True)
class Vote:
    """The result of a vote.

    Args:
        labels: int64 (n_samples,), the winning class of each image.
        votes: int64 (n_samples, n_classes), the number of members that chose each class.
        scores: float64 (n_samples, n_classes). The class with the highest score wins; the tie rule decides between
            classes with equal scores.
        probabilities: float64 (n_samples, n_classes); each row sums to 1. For rules that count votes or ranks, the mean
            of the members' probabilities.
        ties: bool (n_samples,), whether several classes have the highest score.
    """

    labels: Labels
    votes: NDArray[np.int64]
    scores: Floats
    probabilities: Floats
    ties: NDArray[np.bool_]


def probabilities_of(logits: Logits) -> Floats:
    """Return the softmax of one member's logits, float64 (n_samples, n_classes)."""
    return np.asarray(softmax(_as_columns(logits), axis=1))


def log_probabilities_of(logits: Logits) -> Floats:
    """Return the log-softmax of one member's logits, float64 (n_samples, n_classes)."""
    return np.asarray(log_softmax(_as_columns(logits), axis=1))


def _as_columns(logits: Logits) -> Floats:
    """Return logits as float64 in column-major order, which makes sums over a few classes several times faster."""
    return np.asfortranarray(logits, dtype=np.float64)


def normalize_weights(weights: Sequence[float] | None, n_members: int) -> Floats:
    """Scale weights so that they sum to 1, float64 (n_members,).

    Args:
        weights: One per member. Each must be at least 0, and at least one above 0. None for equal weights.
        n_members: Number of members.

    Raises:
        UsageError: The number of weights is wrong, one is negative or not finite, or all are 0.

    Example:
        >>> normalize_weights([3, 1], 2)
        array([0.75, 0.25])
    """
    if weights is None:
        return np.full(n_members, 1 / n_members)
    values = np.array(weights, dtype=np.float64)
    if values.shape != (n_members,):
        raise UsageError(f"{n_members} members need {n_members} weights; got {len(weights)}", remedies=["weights"])
    if not np.isfinite(values).all() or values.min() < 0 or values.max() == 0:
        raise UsageError(
            f"weights must be 0 or larger, at least one above 0; got {', '.join(f'{weight:g}' for weight in weights)}",
            hint="a member with weight 0 does not vote",
            remedies=["weights"],
        )
    values /= values.max()  # keeps the sum of huge weights finite
    return np.asarray(values / values.sum())


def decide(scores: Floats, probabilities: Floats, choices: Labels, tie: str) -> tuple[Labels, NDArray[np.bool_]]:
    """Return the winning class of each image, int64 (n_samples,), and whether it was tied, bool (n_samples,).

    Args:
        scores: float64 (n_samples, n_classes).
        probabilities: float64 (n_samples, n_classes), for the tie rule `probability`.
        choices: int64 (n_voters, n_samples), the class that each voter chose, for the tie rule `first`.
        tie: Tie rule, see `VotingRule`.
    """
    highest = scores.max(axis=1, keepdims=True)
    leading = scores >= highest - _SCORE_TOLERANCE * np.maximum(1, np.abs(highest))
    labels = TIE_RULES[tie](leading, probabilities, choices)
    return labels.astype(np.int64), leading.sum(axis=1) > 1


def _highest_probability(leading: NDArray[np.bool_], probabilities: Floats, _: Labels) -> Labels:
    leaders = np.where(leading, probabilities, -1.0)
    return np.asarray((leaders > leaders.max(axis=1, keepdims=True) - _SCORE_TOLERANCE).argmax(axis=1))


def _lowest_label(leading: NDArray[np.bool_], _: Floats, __: Labels) -> Labels:
    return np.asarray(leading.argmax(axis=1))


def _first_member(leading: NDArray[np.bool_], probabilities: Floats, choices: Labels) -> Labels:
    chose_leader = np.take_along_axis(leading.T, choices, axis=0)  # (n_voters, n_samples)
    first = chose_leader.argmax(axis=0)
    chosen = np.asarray(choices[first, np.arange(choices.shape[1])])
    # With sums of ranks or probabilities, the tied classes can be classes that no voter chose.
    return np.where(chose_leader.any(axis=0), chosen, _highest_probability(leading, probabilities, choices))


TIE_RULES: dict[str, Callable[[NDArray[np.bool_], Floats, Labels], Labels]] = {
    "probability": _highest_probability,
    "lowest": _lowest_label,
    "first": _first_member,
}


def count_votes(choices: Labels, n_classes: int) -> NDArray[np.int64]:
    """Count the members that chose each class, int64 (n_samples, n_classes).

    Args:
        choices: int64 (n_members, n_samples), the class that each member chose.
        n_classes: Number of classes.
    """
    votes = np.zeros((choices.shape[1], n_classes), dtype=np.int64)
    samples = np.arange(choices.shape[1])
    for choice in choices:
        votes[samples, choice] += 1
    return votes


def check_logits(logits: Logits) -> None:
    """Check the shape and the values of members' logits.

    Raises:
        UsageError: The logits do not have the shape (n_members, n_samples, n_classes), or are not finite.
    """
    if logits.ndim != 3 or 0 in (logits.shape[0], logits.shape[2]):
        raise UsageError(
            "logits must have the shape (n_members, n_samples, n_classes) with at least one member and one class; "
            f"got {logits.shape}"
        )
    for index, member in enumerate(logits):
        if not np.isfinite(member).all():
            raise UsageError(
                f"logits must be finite; member {index + 1} gave NaN or infinity", hint="train that member again"
            )
