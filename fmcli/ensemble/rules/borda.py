"""Borda counts."""

import numpy as np

from fmcli.ensemble.rules.additive import AdditiveRule
from fmcli.ensemble.rules.vote import Floats, Logits


class Borda(AdditiveRule):
    """Let each member rank the classes and give them points; the class with the most points wins.

    A class gets one point from a member for each class that the member finds less probable.

    References:
        Ho, Hull and Srihari, "Decision combination in multiple classifier systems", IEEE TPAMI 1994.

    Example:
        >>> Borda().combine(np.array([[[2.0, 1, 0]], [[0, 1.0, 2]], [[0, 2.0, 1]]])).labels
        array([1])
    """

    scores_are_points = True

    def member_scores(self, logits: Logits) -> Floats:
        """Return 0 points for the least probable class, 1 for the next, and so on; float64 (n_samples, n_classes).

        Classes with equal logits share the points of their ranks equally.
        """
        from scipy.stats import rankdata  # takes 0.4 s to import, and only this rule needs it

        return np.asarray(rankdata(logits, axis=1) - 1)
