"""Confidence intervals and significance tests for classifiers on the same images and for repeated runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, chdtrc, ndtri, stdtr, stdtrit  # importing scipy.stats takes 0.4 s

from fmcli.errors import UsageError
from fmcli.metrics.arrays import Labels

_N_RESAMPLES = 10_000  # for the bootstrap
_ROUNDING_ERROR = 1e-12  # smaller estimates and standard errors are 0 except for rounding


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Result of testing whether two classifiers have the same accuracy on the same images.

    Args:
        only_first: Number of images that only the first classifier predicts correctly.
        only_second: Number of images that only the second classifier predicts correctly.
        difference: Accuracy of the first classifier minus accuracy of the second.
        p_value: The p-value of McNemar's exact test.
        interval: 95 % confidence interval of the difference; see `bootstrap_interval`.
    """

    only_first: int
    only_second: int
    difference: float
    p_value: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class CochranTest:
    """Result of testing whether several classifiers have the same accuracy on the same images.

    Args:
        statistic: Cochran's Q, at least 0. Larger values mean larger differences.
        p_value: The p-value, from the chi-squared distribution with n_members - 1 degrees of freedom.
    """

    statistic: float
    p_value: float


@dataclass(frozen=True, slots=True)
class CrossedTest:
    """Result of testing whether an estimate from a sample of members and a sample of images differs from 0.

    Args:
        p_value: The two-sided p-value of a t-test.
        interval: Confidence interval of the estimate.
    """

    p_value: float
    interval: tuple[float, float]


# --- intervals --------------------------------------------------------------------------------------------


def wilson_interval(correct: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion, such as an accuracy.

    Args:
        correct: Number of correct images.
        n: Number of images, at least 1.
        confidence: Confidence level in (0, 1). Default: 0.95.

    Returns:
        The lower and the upper end, in [0, 1].

    References:
        E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.

    Example:
        >>> low, high = wilson_interval(940, 1000)
        >>> round(low, 4), round(high, 4)
        (0.9235, 0.9531)
    """
    z = float(ndtri((1 + confidence) / 2))
    total, share = n + z**2, correct / n
    middle = (correct + z**2 / 2) / total
    half = z * math.sqrt(n * share * (1 - share) + z**2 / 4) / total
    return (0.0 if correct == 0 else middle - half), (1.0 if correct == n else middle + half)


def mean_interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the confidence interval of a mean, from Student's t-distribution.

    Args:
        values: At least two independent measurements, such as the accuracies of runs with different seeds.
        confidence: Confidence level in (0, 1). Default: 0.95.

    Returns:
        The lower and the upper end.

    References:
        "Student" (W. S. Gosset), "The probable error of a mean", Biometrika 1908.

    Example:
        >>> low, high = mean_interval([0.93, 0.94, 0.95])
        >>> round(low, 4), round(high, 4)
        (0.9152, 0.9648)
    """
    return _student_interval(fmean(values), stdev(values) / math.sqrt(len(values)), len(values) - 1, confidence)


def crossed_test(
    deleted: Sequence[Sequence[float]], by_image: Sequence[float] | NDArray[np.float64], *, confidence: float = 0.95
) -> CrossedTest:
    """Test whether an estimate over members and images differs from 0, such as a difference between two accuracies.

    Members and images are two random samples, and each member predicts each image (crossed samples). The estimate
    therefore has two variances. The variance over members comes from the jackknife: the estimate is repeated without
    each member. The variance over images is the variance of a mean. The test is a t-test with the sum of both, and with
    Satterthwaite's degrees of freedom. Some members are better on some images (interaction). This is part of both
    variances, so the interval is slightly too wide.

    Args:
        deleted: The estimates without one member: `deleted[k][i]` leaves out member i of sample k, for example of one
            kernel size. There is at least one sample, and each has at least two members.
        by_image: The estimate for each image, from all members, float64 (n_samples,). The mean over images is the
            estimate that is tested.
        confidence: Confidence level in (0, 1). Default: 0.95.

    Raises:
        UsageError: There are fewer than two images.

    References:
        - Jackknife: Arvesen, "Jackknifing U-statistics", Annals of Mathematical Statistics 1969. It leaves out members,
          which are independent. Ensembles drawn from one pool share members, so their accuracies are not independent.
        - Crossed samples: Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007.
        - Degrees of freedom: Satterthwaite, "An approximate distribution of estimates of variance components",
          Biometrics 1946.

    Example:
        >>> found = crossed_test([[0.025, 0.03, 0.035]], [0.03] * 100)  # no variance over images
        >>> tuple(round(end, 4) for end in found.interval)
        (0.0052, 0.0548)
    """
    n_images = len(by_image)
    if n_images < 2:
        raise UsageError(f"the test needs at least two images; got {n_images}")
    # The jackknife variance of a sample is (n - 1) / n times the sum of squared deviations, which is n times np.var.
    member_variance = sum((len(sample) - 1) * float(np.var(sample)) for sample in deleted)
    degrees = min(map(len, deleted)) - 1
    estimate, image_variance = float(np.mean(by_image)), float(np.var(by_image, ddof=1)) / n_images
    variance = member_variance + image_variance
    error = math.sqrt(variance)
    if error < _ROUNDING_ERROR:
        return CrossedTest(1.0 if abs(estimate) < _ROUNDING_ERROR else 0.0, (estimate, estimate))
    freedom = variance**2 / (member_variance**2 / degrees + image_variance**2 / (n_images - 1))
    p_value = float(2 * stdtr(freedom, -abs(estimate) / error))
    return CrossedTest(p_value, _student_interval(estimate, error, freedom, confidence))


def _student_interval(estimate: float, error: float, degrees: float, confidence: float) -> tuple[float, float]:
    half = float(stdtrit(degrees, (1 + confidence) / 2)) * error
    return estimate - half, estimate + half


def bootstrap_interval(
    only_first: int, only_second: int, n: int, *, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Return the bootstrap percentile interval of the difference between two accuracies on the same images.

    The bootstrap repeatedly draws n images with replacement and computes the difference for them. The difference only
    depends on two counts: the images that only the first classifier predicts correctly, and the images that only the
    second predicts correctly. The counts have a multinomial distribution, so they are drawn instead of the images.

    Args:
        only_first: Number of images that only the first classifier predicts correctly.
        only_second: Number of images that only the second classifier predicts correctly.
        n: Number of images.
        confidence: Confidence level in (0, 1). Default: 0.95.
        seed: Seed of the bootstrap. Default: 0.

    Returns:
        The lower and the upper end, in [-1, 1].

    References:
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.

    Example:
        >>> bootstrap_interval(20, 0, 100)
        (0.12, 0.28)
    """
    shares = np.array([only_first, only_second, n - only_first - only_second]) / n
    counts = np.random.default_rng(seed).multinomial(n, shares, size=_N_RESAMPLES)  # (n_resamples, 3)
    tail = (1 - confidence) / 2
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / n, [tail, 1 - tail])
    return float(low), float(high)


# --- tests ------------------------------------------------------------------------------------------------


def mcnemar_test(y_true: Labels, first: Labels, second: Labels) -> PairedTest:
    """Test whether two classifiers have the same accuracy on the same images: McNemar's exact test.

    The test uses only the images that exactly one of the classifiers predicts correctly. If both classifiers are
    equally accurate, either of them is the correct one with probability one half (a binomial test).

    Args:
        y_true: True labels, int64 (n_samples,).
        first: Labels that the first classifier predicts, int64 (n_samples,).
        second: Labels that the second classifier predicts, int64 (n_samples,).

    References:
        McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
        Psychometrika 1947; Dietterich, "Approximate statistical tests for comparing supervised classification learning
        algorithms", Neural Computation 1998.

    Example:
        >>> truth = np.zeros(10, dtype=int)
        >>> result = mcnemar_test(truth, truth, np.array([1] * 6 + [0] * 4))
        >>> result.only_first, result.p_value
        (6, 0.03125)
    """
    first_right, second_right = first == y_true, second == y_true
    only_first = int((first_right & ~second_right).sum())
    only_second = int((second_right & ~first_right).sum())
    n = only_first + only_second
    return PairedTest(
        only_first=only_first,
        only_second=only_second,
        difference=(only_first - only_second) / len(y_true),
        p_value=min(1.0, 2 * float(bdtr(min(only_first, only_second), n, 0.5))) if n else 1.0,
        interval=bootstrap_interval(only_first, only_second, len(y_true)),
    )


def cochran_q_test(y_true: Labels, choices: Labels) -> CochranTest:
    """Test whether several classifiers have the same accuracy on the same images: Cochran's Q test.

    For two classifiers, it is the same as McNemar's asymptotic test without continuity correction.

    Args:
        y_true: True labels, int64 (n_samples,).
        choices: Predicted labels of at least two members, int64 (n_members, n_samples).

    Returns:
        The test. If all members are correct on the same images, the statistic is 0 and the p-value is 1.

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
    correct = choices == y_true
    by_member, by_image = correct.sum(axis=1), correct.sum(axis=0)
    total = int(by_member.sum())
    spread = n_members * total - int((by_image**2).sum())
    if not spread:
        return CochranTest(0.0, 1.0)
    statistic = (n_members - 1) * (n_members * int((by_member**2).sum()) - total**2) / spread
    return CochranTest(statistic, float(chdtrc(n_members - 1, statistic)))


def holm_correction(p_values: Sequence[float]) -> tuple[float, ...]:
    """Correct p-values for the number of tests by Holm's method.

    If all adjusted p-values below 0.05 are called significant, the probability of any false claim is at most 5 %
    (family-wise error rate).

    Args:
        p_values: The p-value of each test, in [0, 1].

    Returns:
        The adjusted p-values, in [0, 1], in the same order.

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
