"""Diversity: how much the predictions of ensemble members on the same images differ."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcli.metrics.arrays import Labels

Matrix = NDArray[np.float64]

_BLOCK_SIZE = 2**14  # images per block, to save memory; float32 has all integers up to 2**24


@dataclass(frozen=True, slots=True)
class PairwiseDiversity:
    """Diversity of each pair of members.

    Each measure is a symmetric matrix, float64 (n_members, n_members). The diagonal compares each member with itself.
    The mean of a measure is over the pairs of different members for which it is defined.

    Args:
        disagreement: Share of the images on which the two labels differ, in [0, 1].
        q_statistic: Yule's Q, in [-1, 1]: positive if two members tend to be correct on the same images, negative if on
            different images, and 0 if their mistakes are independent. NaN if one of them is always or never correct.
        double_fault: Share of the images on which both members are wrong, in [0, 1].
        kappa: Cohen's kappa, in [-1, 1]: 1 if two members predict the same label for all images, and 0 if they agree as
            often as by chance. NaN if both always predict the same class.
    """

    disagreement: Matrix
    q_statistic: Matrix
    double_fault: Matrix
    kappa: Matrix

    @property
    def mean_disagreement(self) -> float:
        """Mean over pairs; 0 for a single member."""
        return _mean_over_pairs(self.disagreement) if len(self.disagreement) > 1 else 0.0

    @property
    def mean_q_statistic(self) -> float:
        """Mean over pairs; NaN if no pair has a Q."""
        return _mean_over_pairs(self.q_statistic)

    @property
    def mean_double_fault(self) -> float:
        """Mean over pairs; NaN for a single member."""
        return _mean_over_pairs(self.double_fault)

    @property
    def mean_kappa(self) -> float:
        """Mean over pairs; NaN if no pair has a kappa."""
        return _mean_over_pairs(self.kappa)


def pairwise_diversity(y_true: Labels, choices: Labels) -> PairwiseDiversity:
    """Compute the diversity of each pair of members.

    Args:
        y_true: True labels, int64 (n_samples,).
        choices: Predicted labels of each member, int64 (n_members, n_samples).

    References:
        - Q statistic and double fault: Kuncheva and Whitaker, "Measures of diversity in classifier ensembles and their
          relationship with the ensemble accuracy", Machine Learning 2003.
        - Disagreement: Skalak, "The sources of increased accuracy for two proposed boosting algorithms", AAAI Workshop
          1996. Here, members disagree if their labels differ; in Kuncheva and Whitaker, if only one of them is correct.
        - Kappa: Cohen, "A coefficient of agreement for nominal scales", Educational and Psychological Measurement
          1960; Margineantu and Dietterich, "Pruning adaptive boosting", ICML 1997.

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


def _count_agreements(choices: Labels) -> tuple[Matrix, Matrix]:
    """Count the images on which each pair of members has the same label.

    Returns:
        The counts, and n_samples times the counts that are expected by chance; both float64 (n_members, n_members).
    """
    varied = choices[:, (choices != choices[0]).any(axis=0)]  # all members agree on the other images
    agreements = np.full((len(choices), len(choices)), float(choices.shape[1] - varied.shape[1]))
    by_chance = np.zeros_like(agreements)
    for label in np.unique(choices):
        agreements += _count_shared(varied == label)
        n_chosen = (choices == label).sum(axis=1)
        by_chance += np.outer(n_chosen, n_chosen)
    return agreements, by_chance


def _count_shared(flags: NDArray[np.bool_]) -> Matrix:
    """Count for each pair of members (rows) the images (columns) for which both flags are true."""
    n_members, n_samples = flags.shape
    shared = np.zeros((n_members, n_members))
    for start in range(0, n_samples, _BLOCK_SIZE):
        block = flags[:, start : start + _BLOCK_SIZE].astype(np.float32)
        shared += block @ block.T
    return shared


def _ratio(numerator: Matrix, denominator: Matrix) -> Matrix:
    """Divide; return NaN where the denominator is 0. Both arrays are integers below 2**53, so 0 is exact."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator != 0)


def _mean_over_pairs(matrix: NDArray[Any]) -> float:
    pairs = matrix[np.triu_indices(len(matrix), k=1)]
    defined = pairs[~np.isnan(pairs)]
    return float(defined.mean()) if defined.size else float("nan")
