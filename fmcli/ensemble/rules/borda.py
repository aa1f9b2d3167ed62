"""Borda voting."""

from collections.abc import Sequence

import numpy as np

from fmcli.ensemble.rules.vote import Floats, Logits, Vote, additive_vote


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
