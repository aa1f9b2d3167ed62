"""Accuracy on the images with the highest confidence, by the share of images that is kept (coverage)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcli.errors import UsageError
from fmcli.metrics.arrays import Floats

_TOLERANCE = 1e-12  # coverages that differ by less are equal except for rounding, such as 3 / 10 and 3 * 0.1


@dataclass(frozen=True, slots=True)
class CoverageCurve:
    """Accuracy by coverage.

    Each point keeps the images whose confidence is at least its threshold. Images of equal confidence are kept or left
    out together.

    Args:
        thresholds: The confidences that occur in increasing order, float64 (n_points,).
        coverage: Share of the images that are kept, decreasing from 1, float64 (n_points,).
        accuracy: Accuracy on the kept images in [0, 1], float64 (n_points,).
    """

    thresholds: NDArray[np.float64]
    coverage: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def aurc(self) -> float:
        """Area under the risk-coverage curve, in [0, 1]; lower is better.

        It is the mean over all images of the error rate on the images with at least the same confidence.
        """
        steps = -np.diff(self.coverage, append=0.0)
        return float((steps * (1 - self.accuracy)).sum())


def coverage_curve(confidence: Floats, correct: NDArray[np.bool_]) -> CoverageCurve:
    """Compute the accuracy on the images whose confidence reaches a threshold, for all thresholds.

    Args:
        confidence: Confidence of each prediction, (n_samples,), such as the probability of the predicted class or the
            share of members that voted for it.
        correct: Whether each prediction is correct, bool (n_samples,).

    References:
        Geifman and El-Yaniv, "Selective classification for deep neural networks", NeurIPS 2017. The area `aurc` is
        defined in Geifman, Uziel and El-Yaniv, "Bias-reduced uncertainty estimation for deep neural classifiers",
        ICLR 2019; here, images of equal confidence count as one point.

    Example:
        >>> curve = coverage_curve(np.array([0.9, 0.6, 0.8, 0.6]), np.array([True, False, True, True]))
        >>> curve.thresholds, curve.coverage, curve.accuracy
        (array([0.6, 0.8, 0.9]), array([1.  , 0.5 , 0.25]), array([0.75, 1.  , 1.  ]))
        >>> curve.aurc
        0.125
    """
    thresholds, group, sizes = np.unique(confidence, return_inverse=True, return_counts=True)
    right = np.bincount(group, weights=correct)
    kept, kept_right = _reverse_cumsum(sizes), _reverse_cumsum(right)
    return CoverageCurve(thresholds.astype(np.float64), kept / len(confidence), kept_right / kept)


def accuracy_at_coverage(curve: CoverageCurve, coverage: float) -> float:
    """Return the accuracy on the given share of images, those with the highest confidence.

    Args:
        curve: Curve from `coverage_curve`.
        coverage: Share of the images in (0, 1]. More images are kept if they have the same confidence as the last one.

    Returns:
        The accuracy in [0, 1].

    Raises:
        UsageError: `coverage` is not in (0, 1].

    Example:
        >>> curve = coverage_curve(np.array([0.9, 0.6, 0.8, 0.6]), np.array([True, False, True, True]))
        >>> accuracy_at_coverage(curve, 0.5), accuracy_at_coverage(curve, 0.6)
        (1.0, 0.75)
    """
    return float(curve.accuracy[_index_at(curve, coverage)])


def threshold_at_coverage(curve: CoverageCurve, coverage: float) -> float:
    """Return the lowest confidence among the given share of images, those with the highest confidence.

    Args:
        curve: Curve from `coverage_curve`.
        coverage: Share of the images in (0, 1].

    Raises:
        UsageError: `coverage` is not in (0, 1].

    Example:
        >>> threshold_at_coverage(coverage_curve(np.array([0.9, 0.6, 0.8, 0.6]), np.ones(4, dtype=bool)), 0.5)
        0.8
    """
    return float(curve.thresholds[_index_at(curve, coverage)])


def _index_at(curve: CoverageCurve, coverage: float) -> int:
    if not 0 < coverage <= 1:
        raise UsageError(f"The 'coverage' parameter must be above 0 and at most 1; got {coverage}")
    return int(np.flatnonzero(curve.coverage >= coverage - _TOLERANCE)[-1])


def _reverse_cumsum(values: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(np.cumsum(values[::-1])[::-1])
