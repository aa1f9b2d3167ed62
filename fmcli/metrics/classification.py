"""What a classifier gets right, class by class: reports, confusions, precision against recall."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcli.metrics.arrays import Floats, Labels
from fmcli.metrics.comparison import wilson_interval


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Precision, recall and F1 in [0, 1], and how many images they are from.

    A score that would divide by zero (a class that is never predicted, or has no image) is 0.
    """

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class ClassificationReport:
    """How predictions compare with the truth.

    Args:
        class_names: In label order.
        classes: The scores of each class, in label order.
        macro: The plain mean over the classes.
        weighted: The mean over the classes, weighted by support.
        accuracy: In [0, 1].
        interval: The accuracy's 95 % interval (Wilson).
        confusion: int64 (n_classes, n_classes), rows the true class, columns the predicted one.
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
    """Precision against recall of one class, as the probability that is asked for falls.

    Args:
        precision: float64 (n_points,), in [0, 1].
        recall: float64 (n_points,), falling from 1 to 0.
        average_precision: The area below the curve, in [0, 1].
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    average_precision: float


@dataclass(frozen=True, slots=True)
class Confusion:
    """A true class taken for another, and how often."""

    actual: str
    predicted: str
    count: int


def classification_report(y_true: Labels, y_pred: Labels, *, class_names: Sequence[str]) -> ClassificationReport:
    """Score predicted labels against true ones, class by class.

    Args:
        y_true: (n_samples,), in 0 … n_classes - 1.
        y_pred: (n_samples,), likewise.
        class_names: In label order.

    Returns:
        The report.

    Example:
        >>> y_true, y_pred = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
        >>> report = classification_report(y_true, y_pred, class_names=["cat", "dog"])
        >>> report.accuracy, report.classes[0].recall, report.classes[1].recall
        (0.75, 0.5, 1.0)
    """
    # Counted here, once, rather than by scikit-learn's functions: an ensemble may have thousands of members.
    confusion = _confusion_matrix(y_true, y_pred, len(class_names))
    right, support, predicted = np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall, f1 = _ratio(right, predicted), _ratio(right, support), _ratio(2 * right, support + predicted)
    scores = np.stack([precision, recall, f1])  # (3, n_classes)
    correct = int(right.sum())
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
    """Divide counts; what would be divided by zero is 0."""
    return np.asarray(numerator / np.maximum(denominator, 1), dtype=np.float64)


def most_frequent_confusions(report: ClassificationReport, *, most: int = 5) -> tuple[Confusion, ...]:
    """Return the pairs of true and predicted class that were mixed up most often, the most frequent first."""
    wrong = report.confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    names = report.class_names
    return tuple(Confusion(names[i], names[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j])


def precision_recall_curves(probabilities: Floats, y_true: Labels) -> tuple[PrecisionRecallCurve, ...]:
    """Return the curve of every class against all others, in label order.

    Args:
        probabilities: (n_samples, n_classes).
        y_true: (n_samples,); each class has an image at least: without one, a curve is not defined.

    References:
        Davis and Goadrich, "The relationship between precision-recall and ROC curves", ICML 2006. The area is the
        sum over steps in recall, each times the precision there, without interpolation.

    Example:
        >>> likely = np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.3, 0.7]])
        >>> [round(curve.average_precision, 4) for curve in precision_recall_curves(likely, np.array([0, 0, 1, 1]))]
        [0.8333, 0.8333]
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve  # slow to import, for figures alone

    curves = []
    for label in range(probabilities.shape[1]):
        is_class, likelihood = y_true == label, probabilities[:, label]
        precision, recall, _ = precision_recall_curve(is_class, likelihood, drop_intermediate=True)
        area = float(average_precision_score(is_class, likelihood))
        curves.append(PrecisionRecallCurve(precision, recall, area))
    return tuple(curves)
