"""Intervals and paired tests compared with statsmodels, mlxtend, scipy, closed forms and slow loops."""

from math import comb, sqrt

import numpy as np
import pytest
import sklearn.metrics
from mlxtend import evaluate as mlxtend
from scipy.stats import norm, ttest_1samp
from scipy.stats import t as student_t
from statsmodels.stats import contingency_tables
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from fmcli.errors import UsageError
from fmcli.metrics.comparison import (
    bootstrap_interval,
    cochran_q_test,
    crossed_test,
    holm_correction,
    mcnemar_test,
    mean_interval,
    wilson_interval,
)

EXACT = {"rel": 1e-9, "abs": 1e-12}
seeds = pytest.mark.parametrize("seed", range(5))


def random_choices(seed, n_members=2, n_samples=200, n_classes=4, right=0.6):
    """Return true labels and the labels of members with increasing accuracy."""
    rng = np.random.default_rng(seed)
    y_true = rng.integers(0, n_classes, n_samples)
    shape = (n_members, n_samples)
    sure = rng.random(shape) < right + 0.05 * np.arange(n_members)[:, None]
    return y_true, np.where(sure, y_true, rng.integers(0, n_classes, shape))


# --- intervals -------------------------------------------------------------------------------------------


def wilson_by_formula(correct, n, confidence):
    z = norm.ppf((1 + confidence) / 2)
    p = correct / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return middle - half, middle + half


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
@pytest.mark.parametrize(("correct", "n"), [(0, 1), (1, 1), (0, 50), (1, 50), (25, 50), (50, 50), (9134, 10000)])
def test_wilson_interval_equals_its_formula(correct, n, confidence):
    expected = wilson_by_formula(correct, n, confidence)
    interval = wilson_interval(correct, n, confidence=confidence)
    assert interval == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert 0 <= interval[0] <= correct / n <= interval[1] <= 1


@pytest.mark.parametrize("confidence", [0.5, 0.95])
@pytest.mark.parametrize(("correct", "n"), [(0, 7), (3, 7), (7, 7), (940, 1000)])
def test_wilson_interval_equals_statsmodels(correct, n, confidence):
    expected = proportion_confint(correct, n, alpha=1 - confidence, method="wilson")
    assert wilson_interval(correct, n, confidence=confidence) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@seeds
@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_mean_interval_equals_scipy(seed, confidence):
    values = np.random.default_rng(seed).normal(size=seed + 2)
    expected = ttest_1samp(values, 0).confidence_interval(confidence)
    assert mean_interval(values.tolist(), confidence=confidence) == pytest.approx(tuple(expected), **EXACT)


# --- the jackknife ---------------------------------------------------------------------------------------


def jackknife_interval(estimate, deleted, confidence=0.95):
    """Return the interval of a crossed test without variance over images, so that only members vary."""
    return crossed_test(deleted, [estimate] * 2, confidence=confidence).interval


def means_without_each(values):
    return [np.delete(values, index).mean() for index in range(len(values))]


@seeds
def test_the_jackknife_interval_of_a_mean_is_the_interval_of_the_mean(seed):
    values = np.random.default_rng(seed).normal(size=2 + 3 * seed)
    interval = jackknife_interval(values.mean(), [means_without_each(values)], confidence=0.9)
    assert interval == pytest.approx(mean_interval(values.tolist(), confidence=0.9), rel=1e-12, abs=1e-12)


@seeds
def test_the_jackknife_of_a_difference_between_means_has_the_usual_standard_error(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=9), 3 * rng.normal(size=14)
    difference = first.mean() - second.mean()
    deleted = [
        [mean - second.mean() for mean in means_without_each(first)],
        [first.mean() - mean for mean in means_without_each(second)],
    ]
    low, high = jackknife_interval(difference, deleted)
    error = sqrt(first.var(ddof=1) / 9 + second.var(ddof=1) / 14)
    unit = mean_interval(
        np.arange(9.0).tolist()
    )  # half its width is Student's t with 8 degrees of freedom times the error
    half = (unit[1] - unit[0]) / 2 / (np.arange(9.0).std(ddof=1) / 3) * error
    assert (low, high) == pytest.approx((difference - half, difference + half), rel=1e-12, abs=1e-12)


def test_jackknife_by_hand():
    # 1/2 ((-1)² + 1²) + 2/3 (1² + 0 + (-1)²) = 1 + 4/3; with one degree of freedom, the upper quartile is 1.
    low, high = jackknife_interval(10.0, [[4.0, 6.0], [1.0, 2.0, 3.0]], confidence=0.5)
    assert (low, high) == pytest.approx((10 - sqrt(7 / 3), 10 + sqrt(7 / 3)))


@seeds
def test_the_order_of_samples_and_elements_does_not_change_the_jackknife(seed):
    rng = np.random.default_rng(seed)
    samples = [rng.normal(size=n) for n in (4, 7, 5)]
    expected = jackknife_interval(1.0, samples)
    shuffled = [rng.permutation(samples[k]) for k in rng.permutation(3)]
    assert jackknife_interval(1.0, shuffled) == pytest.approx(expected, **EXACT)


def test_a_sample_without_variance_adds_no_variance_but_can_lower_the_degrees_of_freedom():
    varied = [1.0, 2.0, 4.0]
    alone = jackknife_interval(0.0, [varied])
    assert jackknife_interval(0.0, [varied, [2.0] * 3]) == alone
    assert jackknife_interval(0.0, [varied, [2.0] * 2])[1] > alone[1]


def test_jackknife_intervals_cover_the_true_value():
    # The estimate is a product of the means of two independent samples; the true value is 1 * 2.
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        first, second = rng.normal(1, 1, 12), rng.normal(2, 1, 15)
        deleted = [
            [mean * second.mean() for mean in means_without_each(first)],
            [first.mean() * mean for mean in means_without_each(second)],
        ]
        low, high = jackknife_interval(first.mean() * second.mean(), deleted)
        covered += low <= 2 <= high
    assert 0.93 <= covered / 400 <= 0.99


def crossed_samples(rng, n_members, n_images, of_member, of_image, of_both):
    """Return a random value for each member and image, (n_members, n_images)."""
    return (
        of_member * rng.normal(size=(n_members, 1))
        + of_image * rng.normal(size=n_images)
        + of_both * rng.normal(size=(n_members, n_images))
    )


@seeds
def test_crossed_variances_add_up(seed):
    values = crossed_samples(np.random.default_rng(seed), 8, 50, 0.2, 1, 0.5)
    by_member, by_image = values.mean(axis=1), values.mean(axis=0)
    found = crossed_test([means_without_each(by_member)], by_image)
    parts = by_member.var(ddof=1) / 8, by_image.var(ddof=1) / 50
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 7 + parts[1] ** 2 / 49)
    law = student_t(freedom, values.mean(), sqrt(sum(parts)))
    assert found.interval == pytest.approx(law.interval(0.95), **EXACT)
    assert found.p_value == pytest.approx(2 * min(law.cdf(0), law.sf(0)), **EXACT)


@pytest.mark.parametrize("scales", [(0.3, 0.2, 0.2), (0.05, 2.0, 0.2), (0.3, 0.05, 0.2), (0.1, 1.0, 0.5)])
def test_intervals_of_the_crossed_test_cover_the_true_value(scales):
    rng = np.random.default_rng(0)
    found = []
    for _ in range(600):
        values = crossed_samples(rng, 7, 60, *scales)
        found.append(crossed_test([means_without_each(values.mean(axis=1))], values.mean(axis=0)))
    assert 0.93 <= np.mean([one.interval[0] <= 0 <= one.interval[1] for one in found]) <= 0.99
    assert [one.p_value >= 0.05 for one in found] == [one.interval[0] <= 0 <= one.interval[1] for one in found]


def test_a_crossed_test_without_variance_is_certain():
    still = [[0.0, 0.0], [0.0, 0.0, 0.0]]
    assert (crossed_test(still, np.zeros(9)).p_value, crossed_test(still, np.ones(9)).p_value) == (1, 0)
    assert crossed_test(still, np.ones(9)).interval == (1, 1)


def test_a_crossed_test_with_one_image_is_refused():
    with pytest.raises(UsageError, match="at least two images; got 1"):
        crossed_test([[1.0, 2.0]], [1.0])


# --- the bootstrap ---------------------------------------------------------------------------------------


def bootstrap_difference(y_true, first, second, **settings):
    """Return the interval for the labels of two classifiers."""
    first_right, second_right = first == y_true, second == y_true
    counts = (first_right & ~second_right).sum(), (second_right & ~first_right).sum()
    return bootstrap_interval(*counts, len(y_true), **settings)


def slow_bootstrap(y_true, first, second, confidence, resamples):
    """Resample images with replacement, one resample at a time."""
    rng = np.random.default_rng(123)
    differences = []
    for _ in range(resamples):
        images = rng.integers(0, len(y_true), len(y_true))
        differences.append((first[images] == y_true[images]).mean() - (second[images] == y_true[images]).mean())
    return np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])


@seeds
@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_bootstrap_equals_the_resampling_of_images(seed, confidence):
    y_true, (first, second) = random_choices(seed)
    interval = bootstrap_difference(y_true, first, second, confidence=confidence)
    expected = slow_bootstrap(y_true, first, second, confidence, resamples=4000)
    # The ends of 95 % intervals of 4,000 and 10,000 normal draws differ by 0.05 of their standard deviation.
    spread = ((first == y_true) * 1.0 - (second == y_true)).std() / sqrt(len(y_true))
    np.testing.assert_allclose(interval, expected, rtol=0, atol=0.2 * spread + 1 / len(y_true))


@seeds
def test_bootstrap_is_close_to_the_normal_interval_for_many_images(seed):
    y_true, (first, second) = random_choices(seed, n_samples=10_000)
    differences = (first == y_true) * 1.0 - (second == y_true)
    half = norm.ppf(0.975) * differences.std() / 100
    expected = (differences.mean() - half, differences.mean() + half)
    assert bootstrap_difference(y_true, first, second) == pytest.approx(expected, abs=0.1 * half)


@seeds
def test_bootstrap_depends_on_the_seed_but_not_on_the_order_of_images(seed):
    y_true, (first, second) = random_choices(seed)
    order = np.random.default_rng(seed).permutation(len(y_true))
    expected = bootstrap_difference(y_true, first, second, seed=seed)
    assert bootstrap_difference(y_true[order], first[order], second[order], seed=seed) == expected
    new_name = np.random.default_rng(seed).permutation(4)
    assert bootstrap_difference(new_name[y_true], new_name[first], new_name[second], seed=seed) == expected


def test_bootstrap_finds_no_difference_between_a_classifier_and_itself():
    y_true, (first, _) = random_choices(0)
    assert bootstrap_difference(y_true, first, first) == (0, 0)


def test_bootstrap_if_only_one_classifier_is_always_correct():
    truth = np.zeros(50, dtype=int)
    assert bootstrap_difference(truth, truth, truth + 1) == (1, 1)
    assert bootstrap_difference(truth, truth + 1, truth) == (-1, -1)


@seeds
def test_a_higher_confidence_level_gives_a_wider_interval(seed):
    y_true, (first, second) = random_choices(seed)
    low, high = bootstrap_difference(y_true, first, second, confidence=0.99)
    inner = bootstrap_difference(y_true, first, second, confidence=0.8)
    assert low < inner[0] < inner[1] < high


# --- McNemar's test --------------------------------------------------------------------------------------


@seeds
def test_mcnemar_equals_binomial_sums(seed):
    y_true, (first, second) = random_choices(seed, n_samples=60)
    result = mcnemar_test(y_true, first, second)
    only_first = sum(a == y != b for y, a, b in zip(y_true, first, second, strict=True))
    only_second = sum(a != y == b for y, a, b in zip(y_true, first, second, strict=True))
    n, fewer = only_first + only_second, min(only_first, only_second)
    by_hand = min(1.0, 2 * sum(comb(n, k) for k in range(fewer + 1)) / 2**n)
    assert (result.only_first, result.only_second) == (only_first, only_second)
    assert result.p_value == pytest.approx(by_hand, **EXACT)
    accuracy = sklearn.metrics.accuracy_score
    assert result.difference == pytest.approx(accuracy(y_true, first) - accuracy(y_true, second), **EXACT)


@seeds
def test_mcnemar_with_swapped_classifiers(seed):
    y_true, (first, second) = random_choices(seed)
    one, other = mcnemar_test(y_true, first, second), mcnemar_test(y_true, second, first)
    assert (one.only_first, one.only_second) == (other.only_second, other.only_first)
    assert one.difference == -other.difference
    assert one.p_value == pytest.approx(other.p_value, **EXACT)


def test_mcnemar_finds_no_difference_between_a_classifier_and_itself():
    y_true, (first, _) = random_choices(0)
    result = mcnemar_test(y_true, first, first)
    assert (result.only_first, result.only_second, result.difference, result.p_value) == (0, 0, 0.0, 1.0)
    assert result.interval == (0, 0)


def test_mcnemar_ignores_different_wrong_labels():
    result = mcnemar_test(np.array([0, 0]), np.array([1, 1]), np.array([2, 1]))
    assert (result.only_first, result.only_second) == (0, 0)


@seeds
def test_mcnemar_equals_statsmodels_and_mlxtend(seed):
    y_true, (first, second) = random_choices(seed, n_samples=80)
    result = mcnemar_test(y_true, first, second)
    table = mlxtend.mcnemar_table(y_true, first, second)
    assert (result.only_first, result.only_second) == (table[0, 1], table[1, 0])
    assert result.p_value == pytest.approx(contingency_tables.mcnemar(table, exact=True).pvalue, **EXACT)
    assert result.p_value == pytest.approx(mlxtend.mcnemar(table, exact=True)[1], **EXACT)


@seeds
def test_mcnemar_has_the_bootstrap_interval(seed):
    y_true, (first, second) = random_choices(seed)
    result = mcnemar_test(y_true, first, second)
    assert result.interval == bootstrap_difference(y_true, first, second)
    assert result.interval[0] <= result.difference <= result.interval[1]


# --- Cochran's Q test ------------------------------------------------------------------------------------


@seeds
@pytest.mark.parametrize("n_members", [2, 3, 6])
def test_cochran_equals_statsmodels_and_mlxtend(seed, n_members):
    y_true, choices = random_choices(seed, n_members)
    result = cochran_q_test(y_true, choices)
    theirs = contingency_tables.cochrans_q((choices == y_true).T)
    assert (result.statistic, result.p_value) == pytest.approx((theirs.statistic, theirs.pvalue), **EXACT)
    assert (result.statistic, result.p_value) == pytest.approx(mlxtend.cochrans_q(y_true, *choices), **EXACT)


@seeds
def test_cochran_of_two_members_is_mcnemar_without_correction(seed):
    y_true, choices = random_choices(seed)
    expected = mlxtend.mcnemar(mlxtend.mcnemar_table(y_true, *choices), corrected=False)
    result = cochran_q_test(y_true, choices)
    assert (result.statistic, result.p_value) == pytest.approx(expected, **EXACT)


@seeds
def test_cochran_does_not_depend_on_the_order_of_images_or_members_or_on_class_names(seed):
    y_true, choices = random_choices(seed, n_members=4)
    rng = np.random.default_rng(seed)
    images, members, new_name = rng.permutation(len(y_true)), rng.permutation(4), rng.permutation(4)
    expected = cochran_q_test(y_true, choices)
    assert cochran_q_test(y_true[images], choices[:, images]) == expected
    assert cochran_q_test(y_true, choices[members]) == expected
    assert cochran_q_test(new_name[y_true], new_name[choices]) == expected


@seeds
def test_cochran_finds_no_difference_between_members_that_are_correct_on_the_same_images(seed):
    y_true, choices = random_choices(seed, n_members=1)
    wrong_differently = np.where(choices[0] == y_true, y_true, 3 - y_true + 4)
    result = cochran_q_test(y_true, np.stack([choices[0], choices[0], wrong_differently]))
    assert (result.statistic, result.p_value) == (0.0, 1.0)


def test_cochran_by_hand():
    # Members are correct on 6, 4 and 1 of six images; 3, 2, 2, 2, 1 and 1 members are correct on each image.
    y_true = np.zeros(6, dtype=int)
    choices = np.array([[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1], [0, 1, 1, 1, 1, 1]])
    expected = 2 * (3 * (36 + 16 + 1) - 11**2) / (3 * 11 - (9 + 4 + 4 + 4 + 1 + 1))
    assert cochran_q_test(y_true, choices).statistic == pytest.approx(expected)


# --- Holm's correction -----------------------------------------------------------------------------------


@seeds
@pytest.mark.parametrize("n_tests", [1, 2, 10])
def test_holm_equals_statsmodels(seed, n_tests):
    p_values = np.random.default_rng(seed).random(n_tests) ** 3
    p_values[: n_tests // 3] = p_values[-1]  # ties
    assert holm_correction(p_values.tolist()) == pytest.approx(multipletests(p_values, method="holm")[1], **EXACT)


@seeds
def test_holm_keeps_the_order_of_p_values(seed):
    rng = np.random.default_rng(seed)
    p_values = rng.random(8)
    order = rng.permutation(8)
    assert holm_correction(p_values[order]) == tuple(np.array(holm_correction(p_values))[order])
    assert (np.array(holm_correction(p_values)) >= p_values).all()


def test_holm_by_hand():
    # 4 · 0.01, 3 · 0.02, 2 · 0.0275, which is raised to the one before, 1 · 0.9.
    assert holm_correction([0.9, 0.02, 0.01, 0.0275]) == pytest.approx((0.9, 0.06, 0.04, 0.06))
    assert holm_correction([0.6, 0.7]) == (1, 1)
    assert holm_correction([0.3]) == (0.3,)
    assert holm_correction([]) == ()
