"""Calibration of probabilities, and temperature scaling."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax

from fmcli.metrics.arrays import Floats, Labels

_N_BINS = 15  # as in Guo et al., see `reliability_bins`
_MIN_PROBABILITY = np.finfo(np.float64).tiny  # replaces 0, because the logarithm of 0 is infinite
_TEMPERATURE_BOUNDS = (0.05, 20.0)
_LOSS_TOLERANCE = 1e-12  # smaller differences between losses are rounding errors


@dataclass(frozen=True, slots=True)
class ReliabilityBins:
    """Accuracy by confidence. The confidence of a prediction is the probability of the most probable class.

    Args:
        edges: Edges of the bins in ascending order, float64 (n_bins + 1,). A bin includes its upper edge, but not its
            lower edge.
        counts: Number of images in each bin, int64 (n_bins,).
        confidence: Mean confidence in each bin, float64 (n_bins,); NaN for an empty bin.
        accuracy: Accuracy in each bin, float64 (n_bins,); NaN for an empty bin.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def ece(self) -> float:
        """Expected calibration error in [0, 1].

        It is the mean over bins of the distance between accuracy and mean confidence, weighted by the number of images.
        """
        return float(np.nansum(self.counts * np.abs(self.accuracy - self.confidence)) / self.counts.sum())


@dataclass(frozen=True, slots=True)
class Calibration:
    """Calibration measures; lower is better.

    Args:
        loss: Mean negative log-likelihood of the true class in nats.
        brier: Mean squared distance between the probabilities and the one-hot labels, in [0, 2].
        ece: Expected calibration error with 15 bins of equal width, in [0, 1].
        ece_equal_mass: Expected calibration error with 15 bins of about the same number of images, in [0, 1].
    """

    loss: float
    brier: float
    ece: float
    ece_equal_mass: float


# --- measures ---------------------------------------------------------------------------------------------


def calibration(logits: Floats, y_true: Labels) -> Calibration:
    """Measure the calibration of logits, whose softmax gives the probabilities.

    Args:
        logits: (n_samples, n_classes).
        y_true: True labels, int64 (n_samples,).

    References:
        - Brier score: Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review
          1950.
        - Expected calibration error: see `reliability_bins`.

    Example:
        >>> result = calibration(np.log([[0.8, 0.2], [0.4, 0.6]]), np.array([0, 1]))
        >>> round(result.loss, 4), round(result.brier, 4), round(result.ece, 4)
        (0.367, 0.2, 0.3)
    """
    by_class = np.asfortranarray(logits, dtype=np.float64)  # sums over few columns are faster in column-major order
    below = by_class - by_class.max(axis=1, keepdims=True)
    relative = np.exp(below)  # scipy's log_softmax gives the same result but takes five times longer
    totals = relative.sum(axis=1, keepdims=True)
    loss = (np.log(totals[:, 0]) - below[np.arange(len(y_true)), y_true]).mean()
    return _calibration(relative / totals, y_true, float(loss))


def calibration_of_probabilities(probabilities: Floats, y_true: Labels) -> Calibration:
    """Measure the calibration of probabilities, such as the mean of an ensemble's members; see `calibration`.

    Args:
        probabilities: Class probabilities, (n_samples, n_classes); each row sums to 1.
        y_true: True labels, int64 (n_samples,).

    Example:
        >>> result = calibration_of_probabilities(np.array([[0.8, 0.2], [0.4, 0.6]]), np.array([0, 1]))
        >>> round(result.loss, 4), round(result.brier, 4), round(result.ece, 4)
        (0.367, 0.2, 0.3)
    """
    chosen = probabilities[np.arange(len(y_true)), y_true]
    loss = -np.log(np.maximum(chosen, _MIN_PROBABILITY)).mean()
    return _calibration(probabilities, y_true, float(loss))


def _calibration(probabilities: Floats, y_true: Labels, loss: float) -> Calibration:
    chosen = probabilities[np.arange(len(y_true)), y_true]
    binned = _confidence_and_correct(probabilities, y_true)
    return Calibration(
        loss=loss,
        brier=float(((probabilities**2).sum(axis=1) - 2 * chosen + 1).mean()),
        ece=_sort_into_bins(*binned, bins=_N_BINS, binning="width").ece,
        ece_equal_mass=_sort_into_bins(*binned, bins=_N_BINS, binning="mass").ece,
    )


def reliability_bins(
    probabilities: Floats, y_true: Labels, *, bins: int = _N_BINS, binning: Literal["width", "mass"] = "width"
) -> ReliabilityBins:
    """Sort images into bins by confidence, the probability of the most probable class.

    Args:
        probabilities: Class probabilities, (n_samples, n_classes).
        y_true: True labels, int64 (n_samples,).
        bins: Number of bins. Default: 15.
        binning: `width` for bins of equal width, `mass` for bins whose numbers of images differ by at most one. Images
            with equal confidence are always in the same bin, the bin of their middle rank. If there are many of them,
            the numbers differ by more, and the bins next to this bin can be empty.

    Returns:
        All bins, including empty ones. With `mass`, a bin ends at the highest confidence in it, and the last bin at 1.

    References:
        - Reliability diagrams: Niculescu-Mizil and Caruana, "Predicting good probabilities with supervised learning",
          ICML 2005.
        - Equal width: Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", ICML 2017.
        - Equal mass, called adaptive: Nixon et al., "Measuring calibration in deep learning", CVPR Workshops 2019.

    Example:
        >>> result = reliability_bins(np.array([[0.8, 0.2], [0.8, 0.2]]), np.array([0, 1]), bins=2)
        >>> result.counts, result.confidence, result.accuracy
        (array([0, 2]), array([nan, 0.8]), array([nan, 0.5]))
    """
    return _sort_into_bins(*_confidence_and_correct(probabilities, y_true), bins=bins, binning=binning)


def _confidence_and_correct(probabilities: Floats, y_true: Labels) -> tuple[Floats, Floats]:
    """Return the confidence of each prediction, and 1.0 if it is correct or 0.0 if not; both (n_samples,)."""
    return probabilities.max(axis=1), (probabilities.argmax(axis=1) == y_true).astype(np.float64)


def _sort_into_bins(confidence: Floats, correct: Floats, *, bins: int, binning: str) -> ReliabilityBins:
    index, edges = (_bin_by_width if binning == "width" else _bin_by_mass)(confidence, bins)
    counts = np.bincount(index, minlength=bins).astype(np.int64)
    filled = np.where(counts, counts, np.nan)
    sums = (np.bincount(index, weights=values, minlength=bins) for values in (confidence, correct))
    return ReliabilityBins(edges, counts, *(total / filled for total in sums))


def _bin_by_width(confidence: Floats, bins: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    # As in Guo et al., a bin includes its upper edge.
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    return index, np.linspace(0, 1, bins + 1)


def _bin_by_mass(confidence: Floats, bins: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    values, group, sizes = np.unique(confidence, return_inverse=True, return_counts=True)
    twice_middle = 2 * np.cumsum(sizes) - sizes  # integers: twice the middle rank of the images with each confidence
    bin_of = bins * twice_middle // (2 * len(confidence))
    n_values_up_to = np.searchsorted(bin_of, np.arange(bins), side="right")
    edges = np.concatenate([[0.0], values])[np.concatenate([[0], n_values_up_to])]
    edges[-1] = 1.0
    return bin_of[group], edges


# --- temperature ------------------------------------------------------------------------------------------


def fit_temperature(probabilities: Floats, y_true: Labels) -> float:
    """Return the temperature that minimizes the mean negative log-likelihood of the true classes.

    A temperature above 1 lowers the confidence; a temperature below 1 raises it. Fit it to some images and evaluate it
    on different images. The loss is convex in the inverse of the temperature, so it has a single minimum.

    Args:
        probabilities: Class probabilities of a member or an ensemble, (n_samples, n_classes). The smallest normal
            float64 replaces 0.
        y_true: True labels, int64 (n_samples,).

    Returns:
        The temperature in [0.05, 20]. If the minimum is outside this range, for example because all predictions are
        correct, the result is close to an end of the range. If no temperature is better than 1, it is 1.

    References:
        Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", ICML 2017.

    Example:
        >>> likely = np.array([[0.9, 0.1]] * 4)  # three of four are correct, so 0.75 would be calibrated
        >>> round(fit_temperature(likely, np.array([0, 0, 0, 1])), 4)
        2.0
    """
    from scipy.optimize import minimize_scalar  # takes 0.4 s to import, and only fitting needs it

    logs = _logarithms(probabilities)
    chosen = logs[np.arange(len(y_true)), y_true]

    def loss(log_temperature: float) -> float:
        inverse = np.exp(-log_temperature)
        return float((logsumexp(inverse * logs, axis=1) - inverse * chosen).mean())

    found = minimize_scalar(loss, bounds=np.log(_TEMPERATURE_BOUNDS), method="bounded", options={"xatol": 1e-8})
    return float(np.exp(found.x)) if found.fun < loss(0.0) - _LOSS_TOLERANCE else 1.0


def apply_temperature(probabilities: Floats, temperature: float) -> NDArray[np.float64]:
    """Raise probabilities to the power of 1 / temperature and scale them to sum to 1.

    The result is softmax(logits / temperature). The most probable class stays the same.

    Args:
        probabilities: Class probabilities, (n_samples, n_classes). The smallest normal float64 replaces 0.
        temperature: Temperature above 0; 1 changes nothing.

    Returns:
        Probabilities, float64 (n_samples, n_classes); each row sums to 1.

    References:
        Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", ICML 2017.

    Example:
        >>> apply_temperature(np.array([[0.9, 0.1]]), 2.0).round(4)
        array([[0.75, 0.25]])
    """
    return np.asarray(softmax(_logarithms(probabilities) / temperature, axis=1))


def _logarithms(probabilities: Floats) -> NDArray[np.float64]:
    return np.log(np.maximum(probabilities.astype(np.float64), _MIN_PROBABILITY))
