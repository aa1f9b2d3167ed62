"""Soft voting."""

from fmcli.ensemble.rules.additive import AdditiveRule
from fmcli.ensemble.rules.vote import Floats, Logits, probabilities_of


class Soft(AdditiveRule):
    """Average the members' probabilities; the class with the highest mean wins.

    References:
        Kuncheva, "Combining Pattern Classifiers", 2nd edition 2014, chapter 5.

    Example:
        >>> import numpy as np
        >>> Soft().combine(np.array([[[2.0, 0, 0]], [[0, 3.0, 0]]])).labels
        array([1])
    """

    probability_decides = True

    def member_scores(self, logits: Logits) -> Floats:
        """Return the member's probabilities, float64 (n_samples, n_classes)."""
        return probabilities_of(logits)
