"""Accuracy on the most confident predictions, for each share of the images that is kept (coverage)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fmcli.metrics.arrays import Floats

_TOLERANCE = 1e-12  # smaller differences are rounding errors, such as between 3 / 10 and 3 * 0.1


@dataclass(frozen=True, slots=True)
class CoverageCurve:
    """Accuracy by coverage.

    Each point of the curve keeps the images whose confidence is at least a threshold. Images with equal confidence are
    kept or left out together.

    Args:
        thresholds: All different confidences, in ascending order, float64 (n_points,).
        coverage: Share of the images that is kept, which decreases from 1, float64 (n_points,).
        accuracy: Accuracy on the kept images in [0, 1], float64 (n_points,).
    """

    thresholds: NDArray[np.float64]
    coverage: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def aurc(self) -> float:
        """Area under the risk-coverage curve, in [0, 1]; lower is better.

        Each image gives one error rate: the error rate on the images with at least the same confidence. The area is
        the mean of these error rates.
        """
        steps = -np.diff(self.coverage, append=0.0)
        return float((steps * (1 - self.accuracy)).sum())


def coverage_curve(confidence: Floats, correct: NDArray[np.bool_]) -> CoverageCurve:
    """Compute the accuracy on the images whose confidence is at least a threshold, for all thresholds.

    Args:
        confidence: Confidence of each prediction, (n_samples,), such as the probability of the predicted class or the
            share of members that voted for it.
        correct: Whether each prediction is correct, bool (n_samples,).

    References:
        Geifman and El-Yaniv, "Selective classification for deep neural networks", NeurIPS 2017. Geifman, Uziel and
        El-Yaniv, "Bias-reduced uncertainty estimation for deep neural classifiers", ICLR 2019, defines the area `aurc`;
        here, images with equal confidence are one point of the curve.

    Example:
        >>> curve = coverage_curve(np.array([0.9, 0.6, 0.8, 0.6]), np.array([True, False, True, True]))
        >>> curve.thresholds, curve.coverage, curve.accuracy
        (array([0.6, 0.8, 0.9]), array([1.  , 0.5 , 0.25]), array([0.75, 1.  , 1.  ]))
        >>> curve.aurc
        0.125
    """
    thresholds, group, sizes = np.unique(confidence, return_inverse=True, return_counts=True)
    right = np.bincount(group, weights=correct)
    # Sums from the end: each threshold keeps its own images and all images with a higher confidence.
    kept, kept_right = (np.cumsum(values[::-1])[::-1] for values in (sizes, right))
    return CoverageCurve(thresholds.astype(np.float64), kept / len(confidence), kept_right / kept)


def accuracy_at_coverage(curve: CoverageCurve, coverage: float) -> float:
    """Return the accuracy on the most confident predictions, for a given share of the images.

    Args:
        curve: Curve from `coverage_curve`.
        coverage: Share of the images in (0, 1]. More images are kept if they have the same confidence as the last one.

    Returns:
        The accuracy in [0, 1].

    Example:
        >>> curve = coverage_curve(np.array([0.9, 0.6, 0.8, 0.6]), np.array([True, False, True, True]))
        >>> accuracy_at_coverage(curve, 0.5), accuracy_at_coverage(curve, 0.6)
        (1.0, 0.75)
    """
    return float(curve.accuracy[_index_at(curve, coverage)])


def threshold_at_coverage(curve: CoverageCurve, coverage: float) -> float:
    """Return the highest confidence threshold that keeps at least a given share of the images.

    Args:
        curve: Curve from `coverage_curve`.
        coverage: Share of the images in (0, 1].

    Example:
        >>> threshold_at_coverage(coverage_curve(np.array([0.9, 0.6, 0.8, 0.6]), np.ones(4, dtype=bool)), 0.5)
        0.8
    """
    return float(curve.thresholds[_index_at(curve, coverage)])


def _index_at(curve: CoverageCurve, coverage: float) -> int:
    return int(np.flatnonzero(curve.coverage >= coverage - _TOLERANCE)[-1])
