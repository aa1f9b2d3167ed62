"""Metrics held to scikit-learn, to scipy, to closed forms and to slow loops."""

from math import comb, log, sqrt

import numpy as np
import pytest
import sklearn.metrics
from scipy.special import softmax
from scipy.stats import norm

from fmcli.metrics import (
    Confusion,
    calibration,
    calibration_of_probabilities,
    classification_report,
    expected_calibration_error,
    mcnemar_test,
    most_frequent_confusions,
    pairwise_disagreement,
    wilson_interval,
)

EXACT = {"rel": 1e-9, "abs": 1e-12}
NAMES = ("coat", "bag", "shirt", "dress")
seeds = pytest.mark.parametrize("seed", range(5))


def random_labels(seed, n_samples=200, n_classes=4, right=0.6):
    rng = np.random.default_rng(seed)
    y_true = rng.integers(0, n_classes, n_samples)
    y_pred = np.where(rng.random(n_samples) < right, y_true, rng.integers(0, n_classes, n_samples))
    return y_true, y_pred


def random_logits(seed, n_samples=200, n_classes=4):
    rng = np.random.default_rng(seed)
    return 2 * rng.normal(size=(n_samples, n_classes)).astype(np.float32), rng.integers(0, n_classes, n_samples)


# --- the classification report ---------------------------------------------------------------------------


@seeds
def test_report_equals_scikit_learn(seed):
    y_true, y_pred = random_labels(seed)
    report = classification_report(y_true, y_pred, class_names=NAMES)
    expected = sklearn.metrics.classification_report(y_true, y_pred, target_names=NAMES, output_dict=True)
    ours = dict(zip(NAMES, report.classes, strict=True)) | {
        "macro avg": report.macro,
        "weighted avg": report.weighted,
    }
    for name, scores in ours.items():
        assert scores.precision == pytest.approx(expected[name]["precision"], **EXACT)
        assert scores.recall == pytest.approx(expected[name]["recall"], **EXACT)
        assert scores.f1 == pytest.approx(expected[name]["f1-score"], **EXACT)
        assert scores.support == expected[name]["support"]
    assert report.accuracy == pytest.approx(expected["accuracy"], **EXACT)
    assert report.class_names == NAMES


@seeds
def test_confusion_has_a_row_for_each_true_class_and_a_column_for_each_predicted(seed):
    y_true, y_pred = random_labels(seed)
    expected = np.zeros((4, 4), dtype=int)
    for true, predicted in zip(y_true, y_pred, strict=True):
        expected[true, predicted] += 1
    report = classification_report(y_true, y_pred, class_names=NAMES)
    np.testing.assert_array_equal(report.confusion, expected)
    assert report.confusion.dtype == np.int64


def test_report_by_hand():
    y_true, y_pred = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2, 2])
    report = classification_report(y_true, y_pred, class_names=("a", "b", "c"))
    assert report.confusion.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert [scores.precision for scores in report.classes] == pytest.approx([1, 1 / 2, 1 / 2])
    assert [scores.recall for scores in report.classes] == pytest.approx([2 / 3, 1 / 2, 1])
    assert [scores.f1 for scores in report.classes] == pytest.approx([4 / 5, 1 / 2, 2 / 3])
    assert [scores.support for scores in report.classes] == [3, 2, 1]
    assert report.macro.recall == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert report.weighted.recall == pytest.approx((3 * 2 / 3 + 2 / 2 + 1) / 6)
    assert report.accuracy == pytest.approx(4 / 6)
    assert report.interval == wilson_interval(4, 6)


def test_a_class_without_images_and_a_class_never_predicted_score_zero_without_a_warning():
    y_true, y_pred = np.array([0, 0, 1]), np.array([0, 2, 0])  # no image of 2 or 3; 1 and 3 never predicted
    report = classification_report(y_true, y_pred, class_names=NAMES)
    triples = [(scores.precision, scores.recall, scores.f1) for scores in report.classes]
    assert triples == [(0.5, 0.5, 0.5), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)]
    assert [scores.support for scores in report.classes] == [2, 1, 0, 0]
    assert report.macro.f1 == pytest.approx(0.5 / 4)
    assert report.weighted.f1 == pytest.approx(0.5 * 2 / 3)
    assert report.confusion.shape == (4, 4)


@seeds
def test_report_does_not_depend_on_the_order_of_images(seed):
    y_true, y_pred = random_labels(seed)
    order = np.random.default_rng(seed).permutation(len(y_true))
    first = classification_report(y_true, y_pred, class_names=NAMES)
    second = classification_report(y_true[order], y_pred[order], class_names=NAMES)
    assert (first.classes, first.interval) == (second.classes, second.interval)


@seeds
def test_renamed_classes_have_renamed_scores(seed):
    y_true, y_pred = random_labels(seed)
    new_name = np.random.default_rng(seed).permutation(4)
    first = classification_report(y_true, y_pred, class_names=NAMES)
    second = classification_report(new_name[y_true], new_name[y_pred], class_names=NAMES)
    assert [second.classes[k] for k in new_name] == list(first.classes)
    np.testing.assert_array_equal(second.confusion[np.ix_(new_name, new_name)], first.confusion)
    assert second.macro.f1 == pytest.approx(first.macro.f1, **EXACT)


def test_most_frequent_confusions_are_sorted_and_leave_out_what_is_right_or_never_happened():
    y_true = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2])
    y_pred = np.array([0, 1, 1, 2, 1, 0, 0, 0, 2])
    report = classification_report(y_true, y_pred, class_names=("a", "b", "c"))
    assert most_frequent_confusions(report) == (
        Confusion("a", "b", 2),
        Confusion("b", "a", 2),
        Confusion("a", "c", 1),
        Confusion("c", "a", 1),
    )
    assert most_frequent_confusions(report, most=1) == (Confusion("a", "b", 2),)


def test_confusions_that_are_equally_frequent_come_in_label_order():
    y_true, y_pred = (labels.ravel() for labels in np.indices((8, 8)))  # every pair once
    report = classification_report(y_true, y_pred, class_names=tuple("abcdefgh"))
    pairs = [(confusion.actual, confusion.predicted) for confusion in most_frequent_confusions(report, most=100)]
    assert pairs == [(true, predicted) for true in "abcdefgh" for predicted in "abcdefgh" if true != predicted]


def test_a_perfect_classifier_has_no_confusions():
    y_true, _ = random_labels(0)
    report = classification_report(y_true, y_true, class_names=NAMES)
    assert most_frequent_confusions(report) == ()
    assert report.macro == report.weighted


# --- the interval ----------------------------------------------------------------------------------------


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


# --- calibration -----------------------------------------------------------------------------------------


def slow_calibration_error(probabilities, y_true, bins):
    total = 0.0
    for place in range(bins):
        inside = [
            (row.max(), row.argmax() == label)
            for row, label in zip(probabilities, y_true, strict=True)
            if place / bins < row.max() <= (place + 1) / bins
        ]
        if inside:
            confidence = sum(sure for sure, _ in inside) / len(inside)
            accuracy = sum(right for _, right in inside) / len(inside)
            total += len(inside) / len(y_true) * abs(accuracy - confidence)
    return total


@seeds
@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_equals_its_slow_twin(seed, bins):
    logits, y_true = random_logits(seed)
    probabilities = softmax(logits.astype(np.float64), axis=1)
    error = expected_calibration_error(probabilities, y_true, bins=bins)
    assert error == pytest.approx(slow_calibration_error(probabilities, y_true, bins), **EXACT)


def test_calibration_error_by_hand():
    # Bins (0.5, 0.75] and (0.75, 1] of four: two images of 0.6, one right; two of 0.9, both right.
    probabilities = np.array([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1], [0.9, 0.1]])
    error = expected_calibration_error(probabilities, np.array([0, 1, 0, 0]), bins=4)
    assert error == pytest.approx((2 * abs(0.6 - 0.5) + 2 * abs(0.9 - 1.0)) / 4)


def test_a_confidence_on_the_edge_of_two_bins_is_in_the_lower():
    # 0.75 is in (0.5, 0.75], with 0.6, and not in (0.75, 1]: their gaps of opposite sign make up for each other.
    error = expected_calibration_error(np.array([[0.75, 0.25], [0.6, 0.4]]), np.array([0, 1]), bins=4)
    assert error == pytest.approx(abs((1 - 0.75) + (0 - 0.6)) / 2)


@pytest.mark.parametrize(("right", "error"), [(True, 0.0), (False, 1.0)])
def test_certain_answers_have_the_extreme_calibration_errors(right, error):
    y_true = np.array([0, 1, 2, 3])
    probabilities = np.eye(4)[y_true if right else (y_true + 1) % 4]
    assert expected_calibration_error(probabilities, y_true) == error


@seeds
def test_calibration_equals_scikit_learn(seed):
    logits, y_true = random_logits(seed)
    probabilities = softmax(logits.astype(np.float64), axis=1)
    result = calibration(logits, y_true)
    labels = np.arange(4)
    assert result.loss == pytest.approx(sklearn.metrics.log_loss(y_true, probabilities, labels=labels), **EXACT)
    brier = sklearn.metrics.brier_score_loss(y_true, probabilities, labels=labels, scale_by_half=False)
    assert result.brier == pytest.approx(brier, **EXACT)
    assert result.ece == expected_calibration_error(probabilities, y_true)
    of_probabilities = calibration_of_probabilities(probabilities, y_true)
    assert of_probabilities.loss == pytest.approx(result.loss, **EXACT)
    assert (of_probabilities.brier, of_probabilities.ece) == (result.brier, result.ece)


def test_calibration_by_hand():
    result = calibration_of_probabilities(np.array([[0.8, 0.2], [0.3, 0.7]]), np.array([0, 0]))
    assert result.loss == pytest.approx(-(log(0.8) + log(0.3)) / 2)
    assert result.brier == pytest.approx(((0.2**2 + 0.2**2) + (0.7**2 + 0.7**2)) / 2)
    assert result.ece == pytest.approx((abs(0.8 - 1) + abs(0.7 - 0)) / 2)


def test_loss_is_finite_for_a_class_without_any_probability():
    assert calibration(np.array([[2000.0, 0.0]]), np.array([1])).loss == pytest.approx(2000)
    result = calibration_of_probabilities(np.array([[1.0, 0.0]]), np.array([1]))
    assert result.brier == pytest.approx(2)
    assert 700 < result.loss < 710  # of the smallest normal number


# --- diversity and the paired test -----------------------------------------------------------------------


@seeds
def test_disagreement_equals_its_slow_twin(seed):
    choices = np.random.default_rng(seed).integers(0, 3, (4, 30))
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    differ = [sum(a != b for a, b in zip(choices[i], choices[j], strict=True)) / 30 for i, j in pairs]
    assert pairwise_disagreement(choices) == pytest.approx(sum(differ) / len(pairs), **EXACT)


@pytest.mark.parametrize("n_members", [1, 2, 5])
def test_members_that_agree_do_not_disagree(n_members):
    assert pairwise_disagreement(np.tile([0, 1, 2], (n_members, 1))) == 0


def test_members_that_never_agree():
    assert pairwise_disagreement(np.array([[0, 1], [1, 2], [2, 0]])) == 1


@seeds
def test_mcnemar_equals_binomial_sums(seed):
    y_true, first = random_labels(seed, n_samples=60, right=0.7)
    _, second = random_labels(seed + 100, n_samples=60)
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
def test_mcnemar_turned_round(seed):
    y_true, first = random_labels(seed)
    _, second = random_labels(seed + 100)
    one, other = mcnemar_test(y_true, first, second), mcnemar_test(y_true, second, first)
    assert (one.only_first, one.only_second) == (other.only_second, other.only_first)
    assert one.difference == -other.difference
    assert one.p_value == pytest.approx(other.p_value, **EXACT)


def test_mcnemar_sees_no_difference_between_a_classifier_and_itself():
    y_true, first = random_labels(0)
    result = mcnemar_test(y_true, first, first)
    assert (result.only_first, result.only_second, result.difference, result.p_value) == (0, 0, 0.0, 1.0)


def test_mcnemar_ignores_how_two_wrong_answers_differ():
    result = mcnemar_test(np.array([0, 0]), np.array([1, 1]), np.array([2, 1]))
    assert (result.only_first, result.only_second) == (0, 0)
