"""Geometric voting."""

from fmcli.ensemble.rules.additive import AdditiveRule
from fmcli.ensemble.rules.vote import Floats, Logits, log_probabilities_of


class Geometric(AdditiveRule):
    """Average the members' log-probabilities; the class with the highest mean wins.

    A class that one member finds very unlikely rarely wins. The vote's probabilities are the geometric means of the
    members' probabilities, scaled to sum to 1. If geometric means are equal, the tie rule `probability` compares
    arithmetic means.

    References:
        Genest and Zidek, "Combining probability distributions", Statistical Science 1986: the logarithmic pool.

    Example:
        >>> import numpy as np
        >>> Geometric().combine(np.log([[[0.6, 0.4]], [[0.1, 0.9]]])).probabilities.round(3)
        array([[0.29, 0.71]])
    """

    probability_decides = True
    scores_are_log_probabilities = True

    @property
    def probability_meaning(self) -> str:
        """End of the sentence `The vote's probability is …`."""
        return f"the {'' if self.weights is None else 'weighted '}geometric mean of its members' probabilities"

    def member_scores(self, logits: Logits) -> Floats:
        """Return the member's log-probabilities, float64 (n_samples, n_classes)."""
        return log_probabilities_of(logits)
