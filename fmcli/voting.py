"""Combination rules: the logits of several members in, one answer for each image out.

Every rule is a pure function over logits of shape (n_members, n_samples, n_classes).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from fmcli.errors import UsageError, did_you_mean

Logits = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]
_SAME = 1e-12  # sums that differ by less do so by rounding, which depends on the order of members and classes


@dataclass(frozen=True, slots=True)
class Vote:
    """What an ensemble answers.

    Args:
        labels: int64 (n_samples,), the class that won.
        votes: int64 (n_samples, n_classes), how many members chose each class.
        probabilities: float64 (n_samples, n_classes), the mean of the members' probabilities.
        ties: bool (n_samples,), where several classes shared the most votes and the tie rule decided.
    """

    labels: Labels
    votes: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    ties: NDArray[np.bool_]


def majority_vote(logits: Logits, *, tie: str = "probability") -> Vote:
    """Let each member choose its likeliest class; the class with the most votes wins.

    This is plurality voting: with three or more classes the winner may have less than half of the votes.

    Args:
        logits: (n_members, n_samples, n_classes).
        tie: Which of the tied classes wins: `probability`, the highest mean probability; `lowest`, the lowest
            label; `first`, the choice of the first member that chose one of them.

    Returns:
        The vote.

    Raises:
        UsageError: The logits are not of that shape or not finite, or the tie rule is unknown.

    References:
        Kuncheva, "Combining Pattern Classifiers", 2nd edition 2014, chapter 4.

    Example:
        >>> logits = np.array([[[2.0, 0, 0]], [[0, 3.0, 0]], [[0, 1.0, 0]]])
        >>> majority_vote(logits).labels
        array([1])
    """
    _check(logits)
    if tie not in TIE_RULES:
        raise UsageError(f"unknown tie rule {tie!r}; {did_you_mean(tie, list(TIE_RULES))}")
    votes = _count_votes(logits)
    probabilities = _mean_probability(logits)
    leading = votes == votes.max(axis=1, keepdims=True)
    labels = TIE_RULES[tie](leading, probabilities, logits)
    return Vote(labels.astype(np.int64), votes, probabilities, leading.sum(axis=1) > 1)


def soft_vote(logits: Logits, *, tie: str = "probability") -> Vote:
    """Average the members' probabilities; the likeliest class wins, the lowest label where several are.

    Args:
        logits: (n_members, n_samples, n_classes).
        tie: Ignored: where probabilities are equal, to within rounding, the lowest label wins.

    Returns:
        The vote; its `ties` are all False.

    Raises:
        UsageError: The logits are not of that shape or not finite.

    Example:
        >>> soft_vote(np.array([[[2.0, 0, 0]], [[0, 3.0, 0]]])).labels
        array([1])
    """
    _check(logits)
    probabilities = _mean_probability(logits)
    labels = _likeliest(probabilities).astype(np.int64)
    return Vote(labels, _count_votes(logits), probabilities, np.zeros(len(labels), dtype=np.bool_))


def _highest_probability(leading: NDArray[np.bool_], probabilities: NDArray[np.float64], _: Logits) -> Labels:
    return _likeliest(np.where(leading, probabilities, -1.0))


def _lowest_label(leading: NDArray[np.bool_], _: NDArray[np.float64], __: Logits) -> Labels:
    return np.asarray(leading.argmax(axis=1))


def _first_member(leading: NDArray[np.bool_], _: NDArray[np.float64], logits: Logits) -> Labels:
    choices = logits.argmax(axis=2)  # (n_members, n_samples)
    in_lead = np.take_along_axis(leading.T, choices, axis=0)  # (n_members, n_samples)
    first = in_lead.argmax(axis=0)
    return np.asarray(choices[first, np.arange(choices.shape[1])])


TIE_RULES: dict[str, Callable[[NDArray[np.bool_], NDArray[np.float64], Logits], Labels]] = {
    "probability": _highest_probability,
    "lowest": _lowest_label,
    "first": _first_member,
}
VOTING_RULES: dict[str, Callable[..., Vote]] = {"majority": majority_vote, "soft": soft_vote}


def _count_votes(logits: Logits) -> NDArray[np.int64]:
    choices = logits.argmax(axis=2)  # (n_members, n_samples)
    votes = np.zeros(logits.shape[1:], dtype=np.int64)
    samples = np.arange(logits.shape[1])
    for choice in choices:
        votes[samples, choice] += 1
    return votes


def _mean_probability(logits: Logits) -> NDArray[np.float64]:
    total = np.zeros(logits.shape[1:], dtype=np.float64)
    for member in logits:  # one at a time: memory for one member, however many there are
        total += softmax(member.astype(np.float64), axis=1)
    return np.asarray(total / len(logits))


def _likeliest(probabilities: NDArray[np.float64]) -> Labels:
    """Return the class of the highest probability, the lowest label where several are."""
    return np.asarray((probabilities > probabilities.max(axis=1, keepdims=True) - _SAME).argmax(axis=1))


def _check(logits: Logits) -> None:
    if logits.ndim != 3 or 0 in (logits.shape[0], logits.shape[2]):
        raise UsageError(
            f"logits must be of shape (n_members, n_samples, n_classes) with a member and a class at least; "
            f"got {logits.shape}"
        )
    if not np.isfinite(logits).all():
        raise UsageError("logits must be finite; a member gave NaN or infinity: train it again")
