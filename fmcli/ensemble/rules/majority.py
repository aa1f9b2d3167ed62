"""Majority voting."""

import numpy as np

from fmcli.ensemble.rules.additive import AdditiveRule
from fmcli.ensemble.rules.vote import Floats, Logits


class Majority(AdditiveRule):
    """Give each member one vote, for its most probable class; the class with the most votes wins.

    This is plurality voting: with more than two classes, the winner may have less than half of the votes.

    References:
        Kuncheva, "Combining Pattern Classifiers", 2nd edition 2014, chapter 4.

    Example:
        >>> logits = np.array([[[2.0, 0, 0]], [[0, 3.0, 0]], [[0, 1.0, 0]]])
        >>> Majority().combine(logits).labels
        array([1])
        >>> Majority(weights=(3, 1, 1)).combine(logits).labels
        array([0])
    """

    scores_are_points = True

    def member_scores(self, logits: Logits) -> Floats:
        """Return 1 for the member's most probable class and 0 for all other classes, float64 (n_samples, n_classes)."""
        return np.asarray(np.eye(logits.shape[1])[logits.argmax(axis=1)])
