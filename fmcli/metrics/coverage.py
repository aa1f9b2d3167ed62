"""Answering only where sure: accuracy against coverage."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcli.errors import UsageError
from fmcli.metrics.arrays import Floats

_SAME = 1e-12  # coverages that differ by less do so by rounding, as 3 / 10 and 3 * 0.1


@dataclass(frozen=True, slots=True)
class CoverageCurve:
    """How accuracy grows as the least certain images are set aside.

    Each point keeps the images whose confidence is at least its threshold. Images of equal confidence are kept or set
    aside together.

    Args:
        thresholds: float64 (n_points,), each confidence that occurs, rising.
        coverage: float64 (n_points,), what part of the images is kept, falling from 1.
        accuracy: float64 (n_points,), in [0, 1], of the images that are kept.
    """

    thresholds: NDArray[np.float64]
    coverage: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def aurc(self) -> float:
        """The area under the risk-coverage curve, in [0, 1], lower is better.

        It is the mean, over all images, of the error rate of those at least as certain.
        """
        steps = -np.diff(self.coverage, append=0.0)
        return float((steps * (1 - self.accuracy)).sum())


def coverage_curve(confidence: Floats, correct: NDArray[np.bool_]) -> CoverageCurve:
    """Return the accuracy of the images whose confidence is at least a threshold, for every threshold.

    Args:
        confidence: (n_samples,), higher where more certain, such as the probability of the likeliest class or the
            share of members that voted for it.
        correct: bool (n_samples,), where the answer is right.

    Returns:
        The curve.

    References:
        Geifman and El-Yaniv, "Selective classification for deep neural networks", NeurIPS 2017; the area below is
        that of Geifman, Uziel and El-Yaniv, "Bias-reduced uncertainty estimation for deep neural classifiers",
        ICLR 2019, with equal confidences taken together.

    Example:
        >>> curve = coverage_curve(np.array([0.9, 0.6, 0.8, 0.6]), np.array([True, False, True, True]))
        >>> curve.thresholds, curve.coverage, curve.accuracy
        (array([0.6, 0.8, 0.9]), array([1.  , 0.5 , 0.25]), array([0.75, 1.  , 1.  ]))
        >>> curve.aurc
        0.125
    """
    thresholds, group, sizes = np.unique(confidence, return_inverse=True, return_counts=True)
    right = np.bincount(group, weights=correct)
    kept, kept_right = _sum_from_the_end(sizes), _sum_from_the_end(right)
    return CoverageCurve(thresholds.astype(np.float64), kept / len(confidence), kept_right / kept)


def accuracy_at_coverage(curve: CoverageCurve, coverage: float) -> float:
    """Return the accuracy of the most certain images that make up at least a part of all.

    Args:
        curve: See `coverage_curve`.
        coverage: In (0, 1]. Where images of equal confidence lie across it, all of them are kept.

    Returns:
        In [0, 1]; at coverage 1, the accuracy of all images.

    Raises:
        UsageError: The coverage is not in (0, 1].

    Example:
        >>> curve = coverage_curve(np.array([0.9, 0.6, 0.8, 0.6]), np.array([True, False, True, True]))
        >>> accuracy_at_coverage(curve, 0.5), accuracy_at_coverage(curve, 0.6)
        (1.0, 0.75)
    """
    return float(curve.accuracy[_point_at(curve, coverage)])


def threshold_at_coverage(curve: CoverageCurve, coverage: float) -> float:
    """Return the least confidence of the most certain images that make up at least a part of all.

    Args:
        curve: See `coverage_curve`.
        coverage: In (0, 1].

    Raises:
        UsageError: The coverage is not in (0, 1].

    Example:
        >>> threshold_at_coverage(coverage_curve(np.array([0.9, 0.6, 0.8, 0.6]), np.ones(4, dtype=bool)), 0.5)
        0.8
    """
    return float(curve.thresholds[_point_at(curve, coverage)])


def _point_at(curve: CoverageCurve, coverage: float) -> int:
    if not 0 < coverage <= 1:
        raise UsageError(f"a coverage must be above 0 and at most 1; got {coverage}")
    return int(np.flatnonzero(curve.coverage >= coverage - _SAME)[-1])


def _sum_from_the_end(values: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(np.cumsum(values[::-1])[::-1])
