"""Rules that add up a score that each member gives each class: majority, soft, geometric and Borda voting."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from scipy.special import softmax

from fmcli.ensemble.rules.vote import (
    Floats,
    Logits,
    Vote,
    check_vote,
    count_votes,
    decide,
    log_probabilities_of,
    normalize_weights,
    probabilities_of,
)

MemberScores = Callable[[Logits], Floats]
"""Maps one member's logits (n_samples, n_classes) to the scores that it adds to each class."""


def additive_vote(
    logits: Logits, member_scores: MemberScores, tie: str, weights: Sequence[float] | None = None
) -> Vote:
    """Add up the weighted scores of all members; the class with the highest sum wins.

    Args:
        logits: (n_members, n_samples, n_classes).
        member_scores: Scores that one member adds.
        tie: Tie rule, see `majority_vote`.
        weights: One per member; None for equal weights.

    Raises:
        UsageError: The logits have another shape or are not finite, the weights do not fit, or the tie rule is unknown.
    """
    check_vote(logits, tie)
    shares = normalize_weights(weights, len(logits))
    scores = np.zeros(logits.shape[1:], order="F")
    probabilities = np.zeros(logits.shape[1:], order="F")
    for member, share in zip(logits, shares, strict=True):  # bounds memory to the temporaries of one member
        scores += share * member_scores(member)
        probabilities += share * probabilities_of(member)
    choices = logits.argmax(axis=2)  # (n_members, n_samples)
    labels, ties = decide(scores, probabilities, choices[shares > 0], tie)
    return Vote(labels, count_votes(choices, logits.shape[2]), scores, probabilities, ties)


def one_hot_choices(logits: Logits) -> Floats:
    """Return 1 for a member's likeliest class and 0 for the other classes, (n_samples, n_classes)."""
    return np.asarray(np.eye(logits.shape[1])[logits.argmax(axis=1)])


def majority_vote(logits: Logits, *, tie: str = "probability", weights: Sequence[float] | None = None) -> Vote:
    """Count each member's likeliest class as one vote; the class with the most votes wins.

    This is plurality voting: with three or more classes, the winner may have less than half of the votes.

    Args:
        logits: (n_members, n_samples, n_classes).
        tie: Tie rule. `probability`: the tied class with the highest mean probability wins. `lowest`: the tied class
            with the lowest label. `first`: the class chosen by the first member that chose one of the tied classes.
        weights: Weight of each member's vote; by default, all are equal.

    Raises:
        UsageError: The logits have another shape or are not finite, the weights do not fit, or the tie rule is unknown.

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
        tie: Tie rule, see `majority_vote`. Tied classes have equal probabilities here, so `probability` picks the
            lowest label.
        weights: Weight of each member; by default, all are equal.

    Raises:
        UsageError: See `majority_vote`.

    Example:
        >>> import numpy as np
        >>> soft_vote(np.array([[[2.0, 0, 0]], [[0, 3.0, 0]]])).labels
        array([1])
    """
    return additive_vote(logits, probabilities_of, tie, weights)


def geometric_vote(logits: Logits, *, tie: str = "probability", weights: Sequence[float] | None = None) -> Vote:
    """Average the members' log-probabilities. A class that one member finds very unlikely rarely wins.

    Args:
        logits: (n_members, n_samples, n_classes).
        tie: Tie rule, see `majority_vote`. If geometric means are equal, `probability` compares arithmetic means.
        weights: Weight of each member; by default, all are equal.

    Returns:
        The vote. Its probabilities are the geometric means, scaled to sum to 1.

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
    """Return a member's points (n_samples, n_classes): 0 for its least likely class, 1 for the next, and so on."""
    from scipy.stats import rankdata  # takes 0.4 s to import, and only this rule needs it

    return np.asarray(rankdata(logits, axis=1) - 1)


def borda_vote(logits: Logits, *, tie: str = "probability", weights: Sequence[float] | None = None) -> Vote:
    """Rank the classes for each member. A class gets one point for each class that the member finds less likely.

    Args:
        logits: (n_members, n_samples, n_classes). Classes with equal logits share the points of their ranks.
        tie: Tie rule, see `majority_vote`.
        weights: Weight of each member; by default, all are equal.

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
"""Scores that a member adds, for each rule whose scores are sums over members."""
