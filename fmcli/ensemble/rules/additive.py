"""Rules in which each member gives each class a score, and the highest sum wins: majority, soft, geometric, Borda."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from scipy.special import softmax

from fmcli.ensemble.rules.vote import (
    Floats,
    Logits,
    Vote,
    check_logits,
    count_votes,
    decide,
    log_probabilities_of,
    normalize_weights,
    probabilities_of,
)

MemberScores = Callable[[Logits], Floats]
"""Function from one member's logits to the scores that it gives the classes, both (n_samples, n_classes)."""


def additive_vote(
    logits: Logits, member_scores: MemberScores, tie: str, weights: Sequence[float] | None = None
) -> Vote:
    """Add up the weighted scores of all members; the class with the highest sum wins.

    Args:
        logits: (n_members, n_samples, n_classes).
        member_scores: Function that returns the scores of one member.
        tie: Tie rule, see `majority_vote`.
        weights: One per member; None for equal weights.

    Raises:
        UsageError: The logits have the wrong shape or are not finite, or the weights are invalid.
    """
    check_logits(logits)
    shares = normalize_weights(weights, len(logits))
    scores = np.zeros(logits.shape[1:], order="F")
    probabilities = np.zeros(logits.shape[1:], order="F")
    for member, share in zip(logits, shares, strict=True):  # one member at a time, to save memory
        scores += share * member_scores(member)
        probabilities += share * probabilities_of(member)
    choices = logits.argmax(axis=2)  # (n_members, n_samples)
    labels, ties = decide(scores, probabilities, choices[shares > 0], tie)
    return Vote(labels, count_votes(choices, logits.shape[2]), scores, probabilities, ties)


def one_hot_choices(logits: Logits) -> Floats:
    """Return 1 for the member's most probable class and 0 for all other classes, float64 (n_samples, n_classes)."""
    return np.asarray(np.eye(logits.shape[1])[logits.argmax(axis=1)])


def majority_vote(logits: Logits, *, tie: str = "probability", weights: Sequence[float] | None = None) -> Vote:
    """Give each member one vote, for its most probable class; the class with the most votes wins.

    This is plurality voting: with more than two classes, the winner may have less than half of the votes.

    Args:
        logits: (n_members, n_samples, n_classes).
        tie: Tie rule. `probability`: the tied class with the highest mean probability wins. `lowest`: the tied class
            with the lowest label wins. `first`: the members are asked in order; the first one that chose a tied class
            decides.
        weights: Weight of each member's vote. Default: equal weights.

    Raises:
        UsageError: The logits have the wrong shape or are not finite, or the weights are invalid.

    References:
        Kuncheva, "Combining Pattern Classifiers", 2nd edition 2014, chapter 4.

    Example:
        >>> logits = np.array([[[2.0, 0, 0]], [[0, 3.0, 0]], [[0, 1.0, 0]]])
        >>> majority_vote(logits).labels
        array([1])
        >>> majority_vote(logits, weights=[3, 1, 1]).labels
        array([0])
    """
    return additive_vote(logits, one_hot_choices, tie, weights)


def soft_vote(logits: Logits, *, tie: str = "probability", weights: Sequence[float] | None = None) -> Vote:
    """Average the members' probabilities; the class with the highest mean wins.

    Args:
        logits: (n_members, n_samples, n_classes).
        tie: Tie rule, see `majority_vote`. Tied classes have equal mean probabilities here, so `probability` picks the
            lowest label.
        weights: Weight of each member. Default: equal weights.

    Raises:
        UsageError: See `majority_vote`.

    References:
        Kuncheva, "Combining Pattern Classifiers", 2nd edition 2014, chapter 5.

    Example:
        >>> import numpy as np
        >>> soft_vote(np.array([[[2.0, 0, 0]], [[0, 3.0, 0]]])).labels
        array([1])
    """
    return additive_vote(logits, probabilities_of, tie, weights)


def geometric_vote(logits: Logits, *, tie: str = "probability", weights: Sequence[float] | None = None) -> Vote:
    """Average the members' log-probabilities; the class with the highest mean wins.

    A class that one member finds very unlikely rarely wins.

    Args:
        logits: (n_members, n_samples, n_classes).
        tie: Tie rule, see `majority_vote`. If geometric means are equal, `probability` compares arithmetic means.
        weights: Weight of each member. Default: equal weights.

    Returns:
        The vote. Its probabilities are the geometric means of the members' probabilities, scaled to sum to 1.

    Raises:
        UsageError: See `majority_vote`.

    References:
        Genest and Zidek, "Combining probability distributions", Statistical Science 1986: the logarithmic pool.

    Example:
        >>> geometric_vote(np.log([[[0.6, 0.4]], [[0.1, 0.9]]])).probabilities.round(3)
        array([[0.29, 0.71]])
    """
    vote = additive_vote(logits, log_probabilities_of, tie, weights)
    return replace(vote, probabilities=np.asarray(softmax(vote.scores, axis=1)))


def borda_points(logits: Logits) -> Floats:
    """Return one member's points: 0 for its least probable class, 1 for the next, and so on; (n_samples, n_classes)."""
    from scipy.stats import rankdata  # takes 0.4 s to import, and only this rule needs it

    return np.asarray(rankdata(logits, axis=1) - 1)


def borda_vote(logits: Logits, *, tie: str = "probability", weights: Sequence[float] | None = None) -> Vote:
    """Let each member rank the classes and give them points; the class with the most points wins.

    A class gets one point from a member for each class that the member finds less probable.

    Args:
        logits: (n_members, n_samples, n_classes). Classes with equal logits share the points of their ranks equally.
        tie: Tie rule, see `majority_vote`.
        weights: Weight of each member. Default: equal weights.

    Raises:
        UsageError: See `majority_vote`.

    References:
        Ho, Hull and Srihari, "Decision combination in multiple classifier systems", IEEE TPAMI 1994.

    Example:
        >>> borda_vote(np.array([[[2.0, 1, 0]], [[0, 1.0, 2]], [[0, 2.0, 1]]])).labels
        array([1])
    """
    return additive_vote(logits, borda_points, tie, weights)


MEMBER_SCORES: dict[str, MemberScores] = {
    "majority": one_hot_choices,
    "soft": probabilities_of,
    "geometric": log_probabilities_of,
    "borda": borda_points,
}
"""For each rule whose scores are sums over members: the scores of one member."""
