"""Scores, intervals, calibration, diversity and paired tests: arrays in, numbers out.

What scikit-learn and scipy have is taken from there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest, t
from sklearn.metrics import average_precision_score, precision_recall_curve, precision_recall_fscore_support

Labels = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]


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


@dataclass(frozen=True, slots=True)
class ReliabilityBins:
    """How often the likeliest class is right, by how likely it was said to be.

    Args:
        edges: float64 (n_bins + 1,), of the bins (low, high] of confidence.
        counts: int64 (n_bins,), how many images each bin has.
        confidence: float64 (n_bins,), the mean probability of the likeliest class; NaN in an empty bin.
        accuracy: float64 (n_bins,), how often that class is the true one; NaN in an empty bin.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def ece(self) -> float:
        """The expected calibration error: the mean over the images of their bin's gap, in [0, 1]."""
        return float(np.nansum(self.counts * np.abs(self.accuracy - self.confidence)) / self.counts.sum())


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far probabilities can be trusted.

    Args:
        loss: Mean negative log-likelihood of the true class, in nats.
        brier: Mean squared distance between probabilities and the one-hot truth, in [0, 2].
        ece: Expected calibration error, in [0, 1].
    """

    loss: float
    brier: float
    ece: float


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Whether two classifiers differ on the same images.

    Args:
        only_first: Images that only the first gets right.
        only_second: Images that only the second gets right.
        difference: Accuracy of the first minus that of the second.
        p_value: Of McNemar's exact test.
    """

    only_first: int
    only_second: int
    difference: float
    p_value: float


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
    labels = np.arange(len(class_names))
    columns = precision_recall_fscore_support(y_true, y_pred, labels=labels, zero_division=0.0)
    classes = tuple(
        ClassScores(float(precision), float(recall), float(f1), int(support))
        for precision, recall, f1, support in zip(*columns, strict=True)
    )
    correct = int((y_true == y_pred).sum())
    return ClassificationReport(
        class_names=tuple(class_names),
        classes=classes,
        macro=_average(y_true, y_pred, labels, "macro"),
        weighted=_average(y_true, y_pred, labels, "weighted"),
        accuracy=correct / len(y_true),
        interval=wilson_interval(correct, len(y_true)),
        confusion=_confusion_matrix(y_true, y_pred, len(labels)),
    )


def _confusion_matrix(y_true: Labels, y_pred: Labels, n_classes: int) -> NDArray[np.int64]:
    """Count (true, predicted) pairs; scikit-learn's own warns of a data set with one class."""
    pairs = np.bincount(y_true * n_classes + y_pred, minlength=n_classes**2)
    return pairs.reshape(n_classes, n_classes).astype(np.int64)


def _average(y_true: Labels, y_pred: Labels, labels: NDArray[Any], kind: str) -> ClassScores:
    scores = precision_recall_fscore_support(y_true, y_pred, labels=labels, average=kind, zero_division=0.0)
    return ClassScores(float(scores[0]), float(scores[1]), float(scores[2]), len(y_true))


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
    interval = binomtest(correct, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval that the mean of repeated measurements lies in.

    Args:
        values: Two or more, such as accuracies over seeds.
        confidence: In (0, 1).

    References:
        "Student" (W. S. Gosset), "The probable error of a mean", Biometrika 1908.

    Example:
        >>> low, high = mean_interval([0.93, 0.94, 0.95])
        >>> round(low, 4), round(high, 4)
        (0.9152, 0.9648)
    """
    half = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def most_frequent_confusions(report: ClassificationReport, *, most: int = 5) -> tuple[Confusion, ...]:
    """Return the pairs of true and predicted class that were mixed up most often, the most frequent first."""
    wrong = report.confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    names = report.class_names
    return tuple(Confusion(names[i], names[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j])


def calibration(logits: Floats, y_true: Labels) -> Calibration:
    """Measure how well a member's probabilities fit the truth.

    Args:
        logits: (n_samples, n_classes).
        y_true: (n_samples,).
    """
    logits = logits.astype(np.float64)
    loss = -log_softmax(logits, axis=1)[np.arange(len(y_true)), y_true].mean()
    return _calibration(softmax(logits, axis=1), y_true, float(loss))


def calibration_of_probabilities(probabilities: Floats, y_true: Labels) -> Calibration:
    """Measure how well probabilities, such as an ensemble's mean, fit the truth.

    Args:
        probabilities: (n_samples, n_classes), each row adding up to 1.
        y_true: (n_samples,).
    """
    chosen = probabilities[np.arange(len(y_true)), y_true]
    loss = -np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).mean()
    return _calibration(probabilities, y_true, float(loss))


def _calibration(probabilities: Floats, y_true: Labels, loss: float) -> Calibration:
    one_hot = np.eye(probabilities.shape[1])[y_true]
    brier = float(((probabilities - one_hot) ** 2).sum(axis=1).mean())
    return Calibration(loss, brier, expected_calibration_error(probabilities, y_true))


def expected_calibration_error(probabilities: Floats, y_true: Labels, *, bins: int = 15) -> float:
    """Return the mean distance between confidence and accuracy over bins of equal width.

    Args:
        probabilities: (n_samples, n_classes).
        y_true: (n_samples,).
        bins: How many.

    References:
        Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", ICML 2017.

    Example:
        >>> expected_calibration_error(np.array([[0.8, 0.2], [0.8, 0.2]]), np.array([0, 1]))
        0.30000000000000004
    """
    return reliability_bins(probabilities, y_true, bins=bins).ece


def reliability_bins(probabilities: Floats, y_true: Labels, *, bins: int = 15) -> ReliabilityBins:
    """Sort images into bins of equal width by the probability of their likeliest class.

    Args:
        probabilities: (n_samples, n_classes).
        y_true: (n_samples,).
        bins: How many.

    References:
        Niculescu-Mizil and Caruana, "Predicting good probabilities with supervised learning", ICML 2005; the bins
        are those of Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", ICML 2017.

    Example:
        >>> result = reliability_bins(np.array([[0.8, 0.2], [0.8, 0.2]]), np.array([0, 1]), bins=2)
        >>> result.counts, result.confidence, result.accuracy
        (array([0, 2]), array([nan, 0.8]), array([nan, 0.5]))
    """
    confidence = probabilities.max(axis=1)
    right = (probabilities.argmax(axis=1) == y_true).astype(np.float64)
    # Bins are (low, high], as in the reference.
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins).astype(np.int64)
    filled = np.where(counts, counts, np.nan)
    sums = (np.bincount(index, weights=values, minlength=bins) for values in (confidence, right))
    return ReliabilityBins(np.linspace(0, 1, bins + 1), counts, *(total / filled for total in sums))


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
    curves = []
    for label in range(probabilities.shape[1]):
        is_class, likelihood = y_true == label, probabilities[:, label]
        precision, recall, _ = precision_recall_curve(is_class, likelihood, drop_intermediate=True)
        area = float(average_precision_score(is_class, likelihood))
        curves.append(PrecisionRecallCurve(precision, recall, area))
    return tuple(curves)


def pairwise_disagreement(choices: Labels) -> float:
    """Return the mean, over all pairs of members, of the part of images on which the two differ.

    Args:
        choices: (n_members, n_samples), each member's label of each image.

    Returns:
        In [0, 1]; 0 for one member.

    References:
        Skalak, "The sources of increased accuracy for two proposed boosting algorithms", 1996.

    Example:
        >>> pairwise_disagreement(np.array([[0, 1], [0, 0], [0, 1]]))
        0.3333333333333333
    """
    n_members = len(choices)
    differences = [float((choices[i] != choices[j]).mean()) for i in range(n_members) for j in range(i + 1, n_members)]
    return float(np.mean(differences)) if differences else 0.0


def mcnemar_test(y_true: Labels, first: Labels, second: Labels) -> PairedTest:
    """Test whether two classifiers are right equally often, on the same images.

    Args:
        y_true: (n_samples,).
        first: (n_samples,), labels of one classifier.
        second: (n_samples,), labels of the other.

    References:
        McNemar 1947, in its exact binomial form; Dietterich, "Approximate statistical tests for comparing
        supervised classification learning algorithms", Neural Computation 1998.

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
    p_value = float(binomtest(only_first, n).pvalue) if n else 1.0
    return PairedTest(only_first, only_second, (only_first - only_second) / len(y_true), p_value)
