"""Scores of predicted labels: accuracy, precision, recall and F1 of each class, and confusions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcli.metrics.arrays import Floats, Labels
from fmcli.metrics.comparison import wilson_interval


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Precision, recall and F1 in [0, 1], and the number of images (support).

    A score is 0 if its denominator is 0: the class is never predicted, or has no images.
    """

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class ClassificationReport:
    """Scores of predicted labels.

    Args:
        class_names: Class names in label order.
        classes: Scores of each class in label order.
        macro: Mean of the classes' scores, each class with the same weight.
        weighted: Mean of the classes' scores, weighted by support.
        accuracy: Accuracy in [0, 1].
        interval: 95 % confidence interval of the accuracy; see `comparison.wilson_interval`.
        confusion: Number of images for each true class (row) and predicted class (column), int64 (n_classes,
            n_classes).
    """

    class_names: tuple[str, ...]
    classes: tuple[ClassScores, ...]
    macro: ClassScores
    weighted: ClassScores
    accuracy: float
    interval: tuple[float, float]
    confusion: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PrecisionRecallCurve:
    """Precision and recall of one class for each threshold of its probability.

    Args:
        precision: Precision in [0, 1], float64 (n_points,).
        recall: Recall, which decreases from 1 to 0, float64 (n_points,).
        average_precision: Area under the curve, in [0, 1].
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    average_precision: float


@dataclass(frozen=True, slots=True)
class Confusion:
    """Number of images of class `actual` that were predicted as class `predicted`."""

    actual: str
    predicted: str
    count: int


def classification_report(y_true: Labels, y_pred: Labels, *, class_names: Sequence[str]) -> ClassificationReport:
    """Compute accuracy, the scores of each class, and the confusion matrix.

    Args:
        y_true: True labels from 0 to n_classes - 1, int64 (n_samples,).
        y_pred: Predicted labels from 0 to n_classes - 1, int64 (n_samples,).
        class_names: Class names in label order.

    Example:
        >>> y_true, y_pred = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
        >>> report = classification_report(y_true, y_pred, class_names=["cat", "dog"])
        >>> report.accuracy, report.classes[0].recall, report.classes[1].recall
        (0.75, 0.5, 1.0)
    """
    # scikit-learn counts again for each score, which is slow for thousands of members.
    confusion = _confusion_matrix(y_true, y_pred, len(class_names))
    hits, support, predicted = np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall, f1 = _ratio(hits, predicted), _ratio(hits, support), _ratio(2 * hits, support + predicted)
    scores = np.stack([precision, recall, f1])  # (3, n_classes)
    correct = int(hits.sum())
    return ClassificationReport(
        class_names=tuple(class_names),
        classes=tuple(_class_scores(column, count) for column, count in zip(scores.T, support, strict=True)),
        macro=_class_scores(scores.mean(axis=1), len(y_true)),
        weighted=_class_scores(scores @ support / len(y_true), len(y_true)),
        accuracy=correct / len(y_true),
        interval=wilson_interval(correct, len(y_true)),
        confusion=confusion,
    )


def _class_scores(scores: NDArray[np.float64], support: int) -> ClassScores:
    precision, recall, f1 = scores.tolist()
    return ClassScores(precision, recall, f1, int(support))


def _confusion_matrix(y_true: Labels, y_pred: Labels, n_classes: int) -> NDArray[np.int64]:
    pairs = np.bincount(y_true * n_classes + y_pred, minlength=n_classes**2)
    return pairs.reshape(n_classes, n_classes).astype(np.int64, copy=False)


def _ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> NDArray[np.float64]:
    """Divide counts; return 0 where the denominator is 0."""
    return np.asarray(numerator / np.maximum(denominator, 1), dtype=np.float64)


def most_frequent_confusions(report: ClassificationReport, *, most: int = 5) -> tuple[Confusion, ...]:
    """Return the most frequent pairs of a true and a wrong predicted class, at most `most`, in descending order."""
    wrong = report.confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    names = report.class_names
    return tuple(Confusion(names[i], names[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j])


def precision_recall_curves(probabilities: Floats, y_true: Labels) -> tuple[PrecisionRecallCurve, ...]:
    """Compute the precision-recall curve of each class against all other classes, in label order.

    The area under the curve is the sum of precision times the step in recall, without interpolation.

    Args:
        probabilities: Class probabilities, (n_samples, n_classes).
        y_true: True labels, int64 (n_samples,). There must be at least one image of each class.

    References:
        Davis and Goadrich, "The relationship between precision-recall and ROC curves", ICML 2006.

    Example:
        >>> likely = np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.3, 0.7]])
        >>> [round(curve.average_precision, 4) for curve in precision_recall_curves(likely, np.array([0, 0, 1, 1]))]
        [0.8333, 0.8333]
    """
    from sklearn import metrics  # slow to import, and only figures need it

    curves = []
    for label in range(probabilities.shape[1]):
        is_class, probability = y_true == label, probabilities[:, label]
        precision, recall, _ = metrics.precision_recall_curve(is_class, probability, drop_intermediate=True)
        area = float(metrics.average_precision_score(is_class, probability))
        curves.append(PrecisionRecallCurve(precision, recall, area))
    return tuple(curves)
