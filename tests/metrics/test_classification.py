"""The classification report compared with scikit-learn, slow loops and examples worked by hand."""

import numpy as np
import pytest
import sklearn.metrics

from fmcli.metrics.classification import Confusion, classification_report, most_frequent_confusions
from fmcli.metrics.comparison import wilson_interval

EXACT = {"rel": 1e-9, "abs": 1e-12}
NAMES = ("coat", "bag", "shirt", "dress")
seeds = pytest.mark.parametrize("seed", range(5))


def random_labels(seed, n_samples=200, n_classes=4, right=0.6):
    rng = np.random.default_rng(seed)
    y_true = rng.integers(0, n_classes, n_samples)
    y_pred = np.where(rng.random(n_samples) < right, y_true, rng.integers(0, n_classes, n_samples))
    return y_true, y_pred


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


def test_most_frequent_confusions_are_sorted_and_contain_only_mistakes():
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
