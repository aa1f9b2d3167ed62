"""How members differ from each other on the same images."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcli.metrics.arrays import Labels

Matrix = NDArray[np.float64]

_BLOCK = 2**14  # images at a time: bounds the memory, and float32 counts them exactly (it would up to 2**24)


@dataclass(frozen=True, slots=True)
class PairwiseDiversity:
    """Every member against every other.

    Each matrix is symmetric; its diagonal compares a member with itself. The means are over the pairs of different
    members, without those where a measure is not defined; NaN where it is defined for none, as for one member.

    Args:
        disagreement: float64 (n_members, n_members), on what part of the images the labels differ, in [0, 1].
        q_statistic: float64 (n_members, n_members), Yule's Q of being right, in [-1, 1]: 0 where two members are
            right independently, above where they tend to be right on the same images, below where on different ones.
            NaN where it would divide by zero: one of the two is always right, or always wrong.
        double_fault: float64 (n_members, n_members), on what part of the images both are wrong, in [0, 1].
        kappa: float64 (n_members, n_members), Cohen's kappa of the labels, in [-1, 1]: 1 where they agree on every
            image, 0 where as often as chance has it. NaN where both always give one and the same label.
    """

    disagreement: Matrix
    q_statistic: Matrix
    double_fault: Matrix
    kappa: Matrix

    @property
    def mean_disagreement(self) -> float:
        """The mean over pairs; 0 for one member, as it never disagrees with itself."""
        return _mean_over_pairs(self.disagreement) if len(self.disagreement) > 1 else 0.0

    @property
    def mean_q_statistic(self) -> float:
        """The mean over the pairs that have one; NaN where none has."""
        return _mean_over_pairs(self.q_statistic)

    @property
    def mean_double_fault(self) -> float:
        """The mean over pairs; NaN for one member."""
        return _mean_over_pairs(self.double_fault)

    @property
    def mean_kappa(self) -> float:
        """The mean over the pairs that have one; NaN where none has."""
        return _mean_over_pairs(self.kappa)


def pairwise_diversity(y_true: Labels, choices: Labels) -> PairwiseDiversity:
    """Compare every member with every other, by what they answer and by where they are right.

    Args:
        y_true: (n_samples,).
        choices: (n_members, n_samples), each member's label of each image.

    Returns:
        The measures, a matrix each.

    References:
        Kuncheva and Whitaker, "Measures of diversity in classifier ensembles and their relationship with the ensemble
        accuracy", Machine Learning 2003, for Q and double fault; Skalak 1996 for disagreement, here of labels, where
        Kuncheva and Whitaker take that of being right; Cohen, "A coefficient of agreement for nominal scales",
        Educational and Psychological Measurement 1960, and Margineantu and Dietterich, "Pruning adaptive boosting",
        ICML 1997, for kappa of two members' labels.

    Example:
        >>> result = pairwise_diversity(np.array([0, 0, 0, 0]), np.array([[0, 0, 1, 1], [0, 1, 0, 2]]))
        >>> result.mean_disagreement, result.mean_q_statistic, result.mean_double_fault
        (0.75, 0.0, 0.25)
    """
    n_samples = choices.shape[1]
    both_right = _count_shared(choices == y_true)
    right = np.diag(both_right)
    only_first = right[:, None] - both_right
    both_wrong = n_samples - right[None, :] - only_first
    same, opposite = both_right * both_wrong, only_first * only_first.T
    agreements, by_chance = _count_agreements(choices)
    return PairwiseDiversity(
        disagreement=(n_samples - agreements) / n_samples,
        q_statistic=_ratio(same - opposite, same + opposite),
        double_fault=both_wrong / n_samples,
        kappa=_ratio(n_samples * agreements - by_chance, n_samples**2 - by_chance),
    )


def pairwise_disagreement(choices: Labels) -> float:
    """Return the mean, over all pairs of members, of the part of images on which the two differ.

    Args:
        choices: (n_members, n_samples), each member's label of each image.

    Returns:
        In [0, 1]; 0 for one member.

    References:
        Skalak, "The sources of increased accuracy for two proposed boosting algorithms", 1996.

    Example:
        >>> pairwise_disagreement(np.array([[0, 1], [0, 0], [0, 1]]))
        0.3333333333333333
    """
    if len(choices) == 1:
        return 0.0
    n_samples = choices.shape[1]
    agreements, _ = _count_agreements(choices)
    return _mean_over_pairs((n_samples - agreements) / n_samples)


def _count_agreements(choices: Labels) -> tuple[Matrix, Matrix]:
    """Count, for each pair of members, the images they label alike, and n_samples times those chance would give."""
    varied = choices[:, (choices != choices[0]).any(axis=0)]  # on the other images all agree
    agreements = np.full((len(choices), len(choices)), float(choices.shape[1] - varied.shape[1]))
    by_chance = np.zeros_like(agreements)
    for label in np.unique(choices):
        agreements += _count_shared(varied == label)
        of_each = (choices == label).sum(axis=1)
        by_chance += np.outer(of_each, of_each)
    return agreements, by_chance


def _count_shared(marks: NDArray[np.bool_]) -> Matrix:
    """Count, for each pair of rows, the columns that are marked in both."""
    n_members, n_samples = marks.shape
    shared = np.zeros((n_members, n_members))
    for start in range(0, n_samples, _BLOCK):
        block = marks[:, start : start + _BLOCK].astype(np.float32)
        shared += block @ block.T
    return shared


def _ratio(numerator: Matrix, denominator: Matrix) -> Matrix:
    """Divide; NaN where by zero. Both hold whole numbers below 2**53, so that zero is exact."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator != 0)


def _mean_over_pairs(matrix: NDArray[Any]) -> float:
    pairs = matrix[np.triu_indices(len(matrix), k=1)]
    defined = pairs[~np.isnan(pairs)]
    return float(defined.mean()) if defined.size else float("nan")
