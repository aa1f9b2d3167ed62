"""Geometric voting."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.special import softmax

from fmcli.ensemble.rules.vote import Logits, Vote, additive_vote, log_probabilities_of


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
