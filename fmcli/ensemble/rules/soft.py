"""Soft voting."""

from collections.abc import Sequence

from fmcli.ensemble.rules.vote import Logits, Vote, additive_vote, probabilities_of


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
