"""Stacking: a logistic regression combines the members."""

import numpy as np
from scipy.special import softmax

from fmcli.ensemble.rules.vote import Floats, Logits, Vote, check_logits, count_votes, decide, log_probabilities_of
from fmcli.errors import UsageError

_MIN_LOG_PROBABILITY = -30.0


def stacking_features(logits: Logits) -> Floats:
    """Return one member's inputs to stacking: log-probabilities, at least -30, float64 (n_samples, n_classes)."""
    return np.maximum(log_probabilities_of(logits), _MIN_LOG_PROBABILITY)


def stacking_vote(logits: Logits, *, coefficients: Floats, intercepts: Floats, tie: str = "probability") -> Vote:
    """Apply a multinomial logistic regression to all members' log-probabilities.

    Args:
        logits: (n_members, n_samples, n_classes).
        coefficients: float64 (n_classes, n_members · n_classes), fitted to other images.
        intercepts: float64 (n_classes,).
        tie: Tie rule, see `additive.soft_vote`.

    Raises:
        UsageError: The logits have the wrong shape or are not finite, or the coefficients have the wrong shape.

    References:
        Wolpert, "Stacked generalization", Neural Networks 1992; Ting and Witten, "Issues in stacked generalization",
        JAIR 1999.
    """
    check_logits(logits)
    n_members, n_samples, n_classes = logits.shape
    if coefficients.shape != (n_classes, n_members * n_classes) or intercepts.shape != (n_classes,):
        raise UsageError(
            f"stacking was fitted to other members: its coefficients have shape {coefficients.shape}, "
            f"but {n_members} members with {n_classes} classes need {(n_classes, n_members * n_classes)}"
        )
    scores = np.tile(intercepts.astype(np.float64), (n_samples, 1))
    for member, part in zip(logits, np.split(coefficients, n_members, axis=1), strict=True):
        scores += stacking_features(member) @ part.T
    probabilities = np.asarray(softmax(scores, axis=1))
    choices = logits.argmax(axis=2)
    labels, ties = decide(scores, probabilities, choices, tie)
    return Vote(labels, count_votes(choices, n_classes), scores, probabilities, ties)
