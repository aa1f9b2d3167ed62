"""Majority voting."""

from collections.abc import Sequence

import numpy as np

from fmcli.ensemble.rules.vote import Floats, Logits, Vote, additive_vote


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
