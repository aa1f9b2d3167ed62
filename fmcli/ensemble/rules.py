"""Combination rules: the logits of several members in, one answer for each image out.

Every rule is a pure function over logits of shape (n_members, n_samples, n_classes). Most add up a score that each
member gives each class (`MEMBER_SCORES`), which is what lets members be weighted, left out and chosen one by one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from fmcli.errors import UsageError, did_you_mean

Logits = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]
Floats = NDArray[np.float64]
_SAME = 1e-12  # sums that differ by less do so by rounding, which depends on the order of members and classes


@dataclass(frozen=True, slots=True)
class Vote:
    """What an ensemble answers.

    Args:
        labels: int64 (n_samples,), the class that won.
        votes: int64 (n_samples, n_classes), how many members chose each class.
        scores: float64 (n_samples, n_classes), what the rule compares; the winner has the most, ties aside.
        probabilities: float64 (n_samples, n_classes), each row adding up to 1. Of rules that count votes or ranks, the
            mean of the members' probabilities.
        ties: bool (n_samples,), where several classes shared the highest score and the tie rule decided.
    """

    labels: Labels
    votes: NDArray[np.int64]
    scores: Floats
    probabilities: Floats
    ties: NDArray[np.bool_]


# --- what a member gives each class ----------------------------------------------------------------------


def _choice_scores(logits: Logits) -> Floats:
    return np.asarray(np.eye(logits.shape[1])[logits.argmax(axis=1)])


def _probability_scores(logits: Logits) -> Floats:
    return np.asarray(softmax(_by_class(logits), axis=1))


def _log_probability_scores(logits: Logits) -> Floats:
    return np.asarray(log_softmax(_by_class(logits), axis=1))


def _by_class(logits: Logits) -> Floats:
    """Return logits as float64, class after class in memory: sums over a few classes are several times as fast so."""
    return np.asfortranarray(logits, dtype=np.float64)


def _rank_scores(logits: Logits) -> Floats:
    from scipy.stats import rankdata  # 0.4 s, for one rule

    return np.asarray(rankdata(logits, axis=1) - 1)


MEMBER_SCORES: dict[str, Callable[[Logits], Floats]] = {
    "majority": _choice_scores,
    "soft": _probability_scores,
    "geometric": _log_probability_scores,
    "borda": _rank_scores,
}
"""From one member's logits (n_samples, n_classes) to what it adds to each class's score, by rule."""


# --- rules -----------------------------------------------------------------------------------------------


def majority_vote(logits: Logits, *, tie: str = "probability", weights: Sequence[float] | None = None) -> Vote:
    """Let each member choose its likeliest class; the class with the most votes wins.

    This is plurality voting: with three or more classes the winner may have less than half of the votes.

    Args:
        logits: (n_members, n_samples, n_classes).
        tie: Which of the tied classes wins: `probability`, the highest mean probability; `lowest`, the lowest
            label; `first`, the choice of the first member that chose one of them.
        weights: How much each member's vote counts; by default, all the same.

    Returns:
        The vote.

    Raises:
        UsageError: The logits are not of that shape or not finite, the weights do not fit, or the tie rule is unknown.

    References:
        Kuncheva, "Combining Pattern Classifiers", 2nd edition 2014, chapter 4.

    Example:
        >>> logits = np.array([[[2.0, 0, 0]], [[0, 3.0, 0]], [[0, 1.0, 0]]])
        >>> majority_vote(logits).labels
        array([1])
        >>> majority_vote(logits, weights=[3, 1, 1]).labels
        array([0])
    """
    return _additive_vote("majority", logits, tie, weights)


def soft_vote(logits: Logits, *, tie: str = "probability", weights: Sequence[float] | None = None) -> Vote:
    """Average the members' probabilities; the likeliest class wins.

    Args:
        logits: (n_members, n_samples, n_classes).
        tie: As in `majority_vote`; where probabilities are equal to within rounding, `probability` means the lowest
            label.
        weights: How much each member counts; by default, all the same.

    Raises:
        UsageError: As in `majority_vote`.

    Example:
        >>> soft_vote(np.array([[[2.0, 0, 0]], [[0, 3.0, 0]]])).labels
        array([1])
    """
    return _additive_vote("soft", logits, tie, weights)


def geometric_vote(logits: Logits, *, tie: str = "probability", weights: Sequence[float] | None = None) -> Vote:
    """Average the members' log-probabilities: a class that one member rules out hardly wins.

    Args:
        logits: (n_members, n_samples, n_classes).
        tie: As in `majority_vote`: where geometric means are equal, `probability` means the highest arithmetic mean.
        weights: How much each member counts; by default, all the same.

    Returns:
        The vote; its probabilities are the geometric mean, scaled to add up to 1.

    Raises:
        UsageError: As in `majority_vote`.

    References:
        Genest and Zidek, "Combining probability distributions", Statistical Science 1986: the logarithmic pool.

    Example:
        >>> geometric_vote(np.log([[[0.6, 0.4]], [[0.1, 0.9]]])).probabilities.round(3)
        array([[0.29, 0.71]])
    """
    vote = _additive_vote("geometric", logits, tie, weights)
    return Vote(vote.labels, vote.votes, vote.scores, np.asarray(softmax(vote.scores, axis=1)), vote.ties)


def borda_vote(logits: Logits, *, tie: str = "probability", weights: Sequence[float] | None = None) -> Vote:
    """Let each member rank the classes: a point for each class that it holds to be less likely.

    Args:
        logits: (n_members, n_samples, n_classes). Classes of equal logits share the points of their ranks.
        tie: As in `majority_vote`.
        weights: How much each member counts; by default, all the same.

    Raises:
        UsageError: As in `majority_vote`.

    References:
        Ho, Hull and Srihari, "Decision combination in multiple classifier systems", IEEE TPAMI 1994.

    Example:
        >>> borda_vote(np.array([[[2.0, 1, 0]], [[0, 1.0, 2]], [[0, 2.0, 1]]])).labels
        array([1])
    """
    return _additive_vote("borda", logits, tie, weights)


def two_level_vote(logits: Logits, *, groups: Sequence[str], tie: str = "probability") -> Vote:
    """Vote by majority within each group of members, then by majority over the groups' answers.

    Args:
        logits: (n_members, n_samples, n_classes).
        groups: Each member's group, such as its kernel size; groups stand in the order of their first members.
        tie: As in `majority_vote`, in both rounds. In the second, `probability` asks for the mean over the groups of
            their members' mean, and `first` for the first group that answered with one of the tied classes.

    Returns:
        The vote; its scores are how many groups answered with each class.

    Raises:
        UsageError: The logits are not of that shape or not finite, there is not one group a member, or the tie rule
            is unknown.

    References:
        An, Lee, Park, Yang and So, "An ensemble of simple convolutional neural network models for MNIST digit
        recognition", arXiv 2008.10400: the heterogeneous ensemble.

    Example:
        >>> logits = np.eye(3)[[[0], [0], [1], [2], [1]]]  # five members, one image
        >>> two_level_vote(logits, groups=["3", "3", "5", "5", "7"]).labels
        array([1])
    """
    _check(logits, tie)
    if len(groups) != len(logits):
        raise UsageError(f"there must be a group for each of {len(logits)} members; got {len(groups)}")
    order = list(dict.fromkeys(groups))
    rounds = [_additive_vote("majority", logits[[one == group for one in groups]], tie, None) for group in order]
    probabilities = np.mean([one.probabilities for one in rounds], axis=0)
    answers = np.stack([one.labels for one in rounds])  # (n_groups, n_samples)
    scores = np.eye(logits.shape[2])[answers].sum(axis=0)
    labels, ties = _decide(scores, probabilities, answers, tie)
    return Vote(labels, _count_votes(logits.argmax(axis=2), logits.shape[2]), scores, probabilities, ties)


def stacking_vote(logits: Logits, *, coefficients: Floats, intercepts: Floats, tie: str = "probability") -> Vote:
    """Let a multinomial logistic regression answer, from all members' log-probabilities.

    Args:
        logits: (n_members, n_samples, n_classes).
        coefficients: (n_classes, n_members · n_classes), learnt on other images.
        intercepts: (n_classes,).
        tie: As in `soft_vote`.

    Raises:
        UsageError: The logits are not of that shape or not finite, or the coefficients are not.

    References:
        Wolpert, "Stacked generalization", Neural Networks 1992; Ting and Witten, "Issues in stacked generalization",
        JAIR 1999.
    """
    _check(logits, tie)
    n_members, n_samples, n_classes = logits.shape
    if coefficients.shape != (n_classes, n_members * n_classes) or intercepts.shape != (n_classes,):
        raise UsageError(
            f"stacking was learnt for other members: its coefficients are {coefficients.shape}, "
            f"and {n_members} members of {n_classes} classes need {(n_classes, n_members * n_classes)}"
        )
    scores = np.tile(intercepts.astype(np.float64), (n_samples, 1))
    for member, part in zip(logits, np.split(coefficients, n_members, axis=1), strict=True):
        scores += stacking_features(member) @ part.T
    probabilities = np.asarray(softmax(scores, axis=1))
    choices = logits.argmax(axis=2)
    labels, ties = _decide(scores, probabilities, choices, tie)
    return Vote(labels, _count_votes(choices, n_classes), scores, probabilities, ties)


def stacking_features(logits: Logits) -> Floats:
    """Return what stacking learns from: a member's log-probabilities, those below e⁻³⁰ as that."""
    return np.maximum(_log_probability_scores(logits), -30.0)


VOTING_RULES: dict[str, Callable[..., Vote]] = {
    "majority": majority_vote,
    "weighted-majority": majority_vote,
    "soft": soft_vote,
    "weighted-soft": soft_vote,
    "geometric": geometric_vote,
    "borda": borda_vote,
    "two-level": two_level_vote,
    "stacking": stacking_vote,
}


# --- how a rule decides ----------------------------------------------------------------------------------


def _additive_vote(rule: str, logits: Logits, tie: str, weights: Sequence[float] | None) -> Vote:
    _check(logits, tie)
    shares = normalize_weights(weights, len(logits))
    member_scores = MEMBER_SCORES[rule]
    scores = np.zeros(logits.shape[1:], order="F")
    probabilities = np.zeros(logits.shape[1:], order="F")
    for member, share in zip(logits, shares, strict=True):  # one at a time: memory for one, however many there are
        scores += share * member_scores(member)
        probabilities += share * _probability_scores(member)
    choices = logits.argmax(axis=2)  # (n_members, n_samples)
    labels, ties = _decide(scores, probabilities, choices[shares > 0], tie)
    return Vote(labels, _count_votes(choices, logits.shape[2]), scores, probabilities, ties)


def normalize_weights(weights: Sequence[float] | None, n_members: int) -> Floats:
    """Return members' weights as parts of 1.

    Args:
        weights: One a member, none negative, one positive at least; None for all the same.
        n_members: How many there are.

    Raises:
        UsageError: They are not so.

    Example:
        >>> normalize_weights([3, 1], 2)
        array([0.75, 0.25])
    """
    if weights is None:
        return np.full(n_members, 1 / n_members)
    values = np.array(weights, dtype=np.float64)
    if values.shape != (n_members,):
        raise UsageError(
            f"there must be a weight for each of {n_members} members; got {len(weights)}",
            hint="give them in the members' order, e.g. --weights 2,1,1",
        )
    if not np.isfinite(values).all() or values.min() < 0 or values.max() == 0:
        raise UsageError(
            f"weights must be 0 or more, and not all 0; got {', '.join(f'{weight:g}' for weight in weights)}",
            hint="one for each member, in order: 2,1,1; a member with 0 does not vote",
        )
    values /= values.max()  # so that the sum of huge ones is finite
    return np.asarray(values / values.sum())


def _decide(scores: Floats, probabilities: Floats, choices: Labels, tie: str) -> tuple[Labels, NDArray[np.bool_]]:
    """Return the class of the highest score of each image, and where that took the tie rule."""
    highest = scores.max(axis=1, keepdims=True)
    leading = scores >= highest - _SAME * np.maximum(1, np.abs(highest))
    labels = TIE_RULES[tie](leading, probabilities, choices)
    return labels.astype(np.int64), leading.sum(axis=1) > 1


def _highest_probability(leading: NDArray[np.bool_], probabilities: Floats, _: Labels) -> Labels:
    return _likeliest(np.where(leading, probabilities, -1.0))


def _lowest_label(leading: NDArray[np.bool_], _: Floats, __: Labels) -> Labels:
    return np.asarray(leading.argmax(axis=1))


def _first_member(leading: NDArray[np.bool_], probabilities: Floats, choices: Labels) -> Labels:
    in_lead = np.take_along_axis(leading.T, choices, axis=0)  # (n_members, n_samples)
    first = in_lead.argmax(axis=0)
    named = np.asarray(choices[first, np.arange(choices.shape[1])])
    # By ranks or probabilities, a class may lead that no member put first.
    return np.where(in_lead.any(axis=0), named, _highest_probability(leading, probabilities, choices))


TIE_RULES: dict[str, Callable[[NDArray[np.bool_], Floats, Labels], Labels]] = {
    "probability": _highest_probability,
    "lowest": _lowest_label,
    "first": _first_member,
}


def _count_votes(choices: Labels, n_classes: int) -> NDArray[np.int64]:
    """Count, from each member's label (n_members, n_samples), how many chose each class."""
    votes = np.zeros((choices.shape[1], n_classes), dtype=np.int64)
    samples = np.arange(choices.shape[1])
    for choice in choices:
        votes[samples, choice] += 1
    return votes


def _likeliest(probabilities: Floats) -> Labels:
    """Return the class of the highest probability, the lowest label where several are."""
    return np.asarray((probabilities > probabilities.max(axis=1, keepdims=True) - _SAME).argmax(axis=1))


def check_logits(logits: Logits) -> None:
    """Refuse what cannot be combined.

    Raises:
        UsageError: The logits are not of shape (n_members, n_samples, n_classes), or not finite.
    """
    if logits.ndim != 3 or 0 in (logits.shape[0], logits.shape[2]):
        raise UsageError(
            f"logits must be of shape (n_members, n_samples, n_classes) with a member and a class at least; "
            f"got {logits.shape}"
        )
    if not np.isfinite(logits).all():
        raise UsageError("logits must be finite; a member gave NaN or infinity: train it again")


def _check(logits: Logits, tie: str) -> None:
    check_logits(logits)
    if tie not in TIE_RULES:
        raise UsageError(f"unknown tie rule {tie!r}; {did_you_mean(tie, list(TIE_RULES))}")
