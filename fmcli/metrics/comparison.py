"""Whether a difference is real: intervals and tests, for classifiers on the same images and for repeated runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, chdtrc, ndtri, stdtr, stdtrit  # scipy.stats has the same and takes 0.4 s to import

from fmcli.errors import UsageError
from fmcli.metrics.arrays import Labels

_NO_ERROR = 1e-12  # standard errors below this are rounding


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Whether two classifiers differ on the same images.

    Args:
        only_first: Images that only the first gets right.
        only_second: Images that only the second gets right.
        difference: Accuracy of the first minus that of the second.
        p_value: Of McNemar's exact test.
        interval: The difference's 95 % interval (bootstrap).
    """

    only_first: int
    only_second: int
    difference: float
    p_value: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class CochranTest:
    """Whether any of several classifiers differs from the others on the same images.

    Args:
        statistic: Cochran's Q, at least 0.
        p_value: By the chi-squared distribution with n_members - 1 degrees of freedom.
    """

    statistic: float
    p_value: float


@dataclass(frozen=True, slots=True)
class CrossedTest:
    """Whether what was estimated on images by members, both of them samples, differs from 0.

    Args:
        p_value: Of Student's t, two-sided.
        interval: The estimate's 95 % interval, or that of another confidence.
    """

    p_value: float
    interval: tuple[float, float]


# --- intervals --------------------------------------------------------------------------------------------


def wilson_interval(correct: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval that a proportion lies in.

    Args:
        correct: How many of n.
        n: At least 1.
        confidence: In (0, 1).

    Returns:
        The lower and upper end, in [0, 1].

    References:
        E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.

    Example:
        >>> low, high = wilson_interval(940, 1000)
        >>> round(low, 4), round(high, 4)
        (0.9235, 0.9531)
    """
    z = float(ndtri((1 + confidence) / 2))
    shrunk, share = n + z**2, correct / n
    middle = (correct + z**2 / 2) / shrunk
    half = z * math.sqrt(n * share * (1 - share) + z**2 / 4) / shrunk
    return (0.0 if correct == 0 else middle - half), (1.0 if correct == n else middle + half)


def mean_interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval that the mean of repeated measurements lies in.

    Args:
        values: Two or more, such as accuracies over seeds.
        confidence: In (0, 1).

    Returns:
        The lower and upper end.

    References:
        "Student" (W. S. Gosset), "The probable error of a mean", Biometrika 1908.

    Example:
        >>> low, high = mean_interval([0.93, 0.94, 0.95])
        >>> round(low, 4), round(high, 4)
        (0.9152, 0.9648)
    """
    return _student_interval(fmean(values), stdev(values) / math.sqrt(len(values)), len(values) - 1, confidence)


def _jackknife_variance(deleted: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Return the variance that the samples add, and its degrees of freedom, the fewest that it can have."""
    sizes = [len(sample) for sample in deleted]
    if min(sizes, default=0) < 2:
        raise UsageError(f"a jackknife needs one or more samples, each of two elements at least; got sizes {sizes}")
    # (n - 1) / n times the sum of squares, which is n times the plain variance.
    return sum((len(sample) - 1) * float(np.var(sample)) for sample in deleted), min(sizes) - 1


def crossed_test(
    deleted: Sequence[Sequence[float]], by_image: Sequence[float] | NDArray[np.float64], *, confidence: float = 0.95
) -> CrossedTest:
    """Test whether the mean over images of what members make of them differs from 0.

    Members and images are two samples that are crossed: each member sees each image. The variance over the members
    that might have been trained is the jackknife's; that over the images that might have been taken is that of a
    mean. They are summed, and Student's t has the degrees of freedom of the sum by Satterthwaite's formula. Each of
    the two contains what members and images vary together, which so counts twice: the interval is a little too wide.

    Args:
        deleted: The mean over images without one member: `deleted[k][i]` without member i of sample k, such as those of
            one kernel size. At least one sample, each of two members or more.
        by_image: (n_samples,), of each image, from all members; its mean is the estimate. Two images at least.
        confidence: In (0, 1), of the interval.

    Raises:
        UsageError: There are too few members or images.

    References:
        Arvesen, "Jackknifing U-statistics", Annals of Mathematical Statistics 1969: ensembles drawn from one pool share
        members, so that their accuracies are no independent measurements, but the members are. Owen, "The pigeonhole
        bootstrap", Annals of Applied Statistics 2007, on variances of crossed samples; Satterthwaite, "An approximate
        distribution of estimates of variance components", Biometrics 1946.

    Example:
        >>> found = crossed_test([[0.025, 0.03, 0.035]], [0.03] * 100)  # of images, no variance
        >>> tuple(round(end, 4) for end in found.interval)
        (0.0052, 0.0548)
    """
    of_members, degrees = _jackknife_variance(deleted)
    n_images = len(by_image)
    if n_images < 2:
        raise UsageError(f"a variance over images needs two at least; got {n_images}")
    estimate, of_images = float(np.mean(by_image)), float(np.var(by_image, ddof=1)) / n_images
    variance = of_members + of_images
    error = math.sqrt(variance)
    if error < _NO_ERROR:
        return CrossedTest(1.0 if abs(estimate) < _NO_ERROR else 0.0, (estimate, estimate))
    freedom = variance**2 / (of_members**2 / degrees + of_images**2 / (n_images - 1))
    p_value = float(2 * stdtr(freedom, -abs(estimate) / error))
    return CrossedTest(p_value, _student_interval(estimate, error, freedom, confidence))


def _student_interval(estimate: float, error: float, degrees: float, confidence: float) -> tuple[float, float]:
    half = float(stdtrit(degrees, (1 + confidence) / 2)) * error
    return estimate - half, estimate + half


def bootstrap_difference(
    y_true: Labels,
    first: Labels,
    second: Labels,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile interval of the difference between two classifiers' accuracies on the same images.

    Images are resampled with replacement, each with both answers. All that a resample tells of the difference is how
    many of its images only the first, or only the second, gets right; these counts follow a multinomial law, so they
    are drawn from it at once: the same law exactly, without a resample of images ever being made.

    Args:
        y_true: (n_samples,).
        first: (n_samples,), labels of one classifier.
        second: (n_samples,), labels of the other.
        confidence: In (0, 1).
        resamples: How many.
        seed: Of the resampling.

    Returns:
        The lower and upper end, in [-1, 1].

    References:
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.

    Example:
        >>> truth = np.zeros(100, dtype=int)
        >>> bootstrap_difference(truth, truth, np.repeat([1, 0], [20, 80]))
        (0.12, 0.28)
    """
    only_first, only_second = _count_one_sided(y_true, first, second)
    return _bootstrap_interval(only_first, only_second, len(y_true), confidence, resamples, seed)


def _bootstrap_interval(
    only_first: int, only_second: int, n: int, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    parts = np.array([only_first, only_second, n - only_first - only_second]) / n
    counts = np.random.default_rng(seed).multinomial(n, parts, size=resamples)  # (resamples, 3)
    tail = (1 - confidence) / 2
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / n, [tail, 1 - tail])
    return float(low), float(high)


# --- tests ------------------------------------------------------------------------------------------------


def mcnemar_test(y_true: Labels, first: Labels, second: Labels) -> PairedTest:
    """Test whether two classifiers are right equally often, on the same images.

    Args:
        y_true: (n_samples,).
        first: (n_samples,), labels of one classifier.
        second: (n_samples,), labels of the other.

    Returns:
        The test, with `bootstrap_difference`'s interval.

    References:
        McNemar 1947, in its exact binomial form; Dietterich, "Approximate statistical tests for comparing
        supervised classification learning algorithms", Neural Computation 1998.

    Example:
        >>> truth = np.zeros(10, dtype=int)
        >>> result = mcnemar_test(truth, truth, np.array([1] * 6 + [0] * 4))
        >>> result.only_first, result.p_value
        (6, 0.03125)
    """
    only_first, only_second = _count_one_sided(y_true, first, second)
    n = only_first + only_second
    return PairedTest(
        only_first=only_first,
        only_second=only_second,
        difference=(only_first - only_second) / len(y_true),
        p_value=min(1.0, 2 * float(bdtr(min(only_first, only_second), n, 0.5))) if n else 1.0,
        interval=_bootstrap_interval(only_first, only_second, len(y_true)),
    )


def _count_one_sided(y_true: Labels, first: Labels, second: Labels) -> tuple[int, int]:
    """Count the images that only the first, and that only the second, gets right."""
    first_right, second_right = first == y_true, second == y_true
    return int((first_right & ~second_right).sum()), int((second_right & ~first_right).sum())


def cochran_q_test(y_true: Labels, choices: Labels) -> CochranTest:
    """Test whether several classifiers are all right equally often, on the same images.

    For two it is McNemar's test in its approximate form, without a correction for continuity.

    Args:
        y_true: (n_samples,).
        choices: (n_members, n_samples), each member's label of each image; two members at least.

    Returns:
        The test. Where all members are right on the same images, the statistic is 0 and the p-value 1.

    Raises:
        UsageError: There are fewer than two members.

    References:
        Cochran, "The comparison of percentages in matched samples", Biometrika 1950; Looney, "A statistical technique
        for comparing the accuracies of several classifiers", Pattern Recognition Letters 1988.

    Example:
        >>> truth = np.zeros(6, dtype=int)
        >>> result = cochran_q_test(truth, np.array([[0] * 6, [0, 0, 0, 0, 1, 1], [0, 1, 1, 1, 1, 1]]))
        >>> round(result.statistic, 4), round(result.p_value, 4)
        (7.6, 0.0224)
    """
    n_members = len(choices)
    if n_members < 2:
        raise UsageError(f"Cochran's Q test compares two members at least; got {n_members}")
    right = choices == y_true
    of_member, of_image = right.sum(axis=1), right.sum(axis=0)
    total = int(of_member.sum())
    spread = n_members * total - int((of_image**2).sum())
    if not spread:
        return CochranTest(0.0, 1.0)
    statistic = (n_members - 1) * (n_members * int((of_member**2).sum()) - total**2) / spread
    return CochranTest(statistic, float(chdtrc(n_members - 1, statistic)))


def holm_correction(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjust the p-values of several tests, so that all may be judged together.

    Where those below a level are called real, the chance that any of them is not stays below that level.

    Args:
        p_values: Of each test, in [0, 1].

    Returns:
        The adjusted ones, in the same order, in [0, 1].

    References:
        Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.

    Example:
        >>> holm_correction([0.04, 0.01, 0.5])
        (0.08, 0.03, 0.5)
    """
    order = np.argsort(p_values, kind="stable")
    stepped = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return tuple(adjusted.tolist())
