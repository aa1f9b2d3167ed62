"""How far probabilities can be trusted: calibration, and a temperature that mends it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax

from fmcli.errors import UsageError, did_you_mean
from fmcli.metrics.arrays import Floats, Labels

_BINS = 15  # of the expected calibration error, as in Guo et al.
_TINY = np.finfo(np.float64).tiny  # what a probability of 0 counts as: its logarithm is finite
_TEMPERATURES = (0.05, 20.0)  # within these a temperature is sought
_SAME = 1e-12  # losses that differ by less do so by rounding


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
        ece: Expected calibration error, in [0, 1], over 15 bins of equal width.
        ece_equal_mass: The same over 15 bins of as many images each.
    """

    loss: float
    brier: float
    ece: float
    ece_equal_mass: float


# --- measures ---------------------------------------------------------------------------------------------


def calibration(logits: Floats, y_true: Labels) -> Calibration:
    """Measure how well a member's probabilities fit the truth.

    Args:
        logits: (n_samples, n_classes).
        y_true: (n_samples,).

    Returns:
        The measures.

    Example:
        >>> result = calibration(np.log([[0.8, 0.2], [0.4, 0.6]]), np.array([0, 1]))
        >>> round(result.loss, 4), round(result.brier, 4), round(result.ece, 4)
        (0.367, 0.2, 0.3)
    """
    by_class = np.asfortranarray(logits, dtype=np.float64)  # sums over few columns: faster so
    below = by_class - by_class.max(axis=1, keepdims=True)
    relative = np.exp(below)  # scipy's log_softmax gives the same and takes five times as long
    totals = relative.sum(axis=1, keepdims=True)
    loss = (np.log(totals[:, 0]) - below[np.arange(len(y_true)), y_true]).mean()
    return _calibration(relative / totals, y_true, float(loss))


def calibration_of_probabilities(probabilities: Floats, y_true: Labels) -> Calibration:
    """Measure how well probabilities, such as an ensemble's mean, fit the truth.

    Args:
        probabilities: (n_samples, n_classes), each row adding up to 1.
        y_true: (n_samples,).

    Returns:
        The measures.

    Example:
        >>> result = calibration_of_probabilities(np.array([[0.8, 0.2], [0.4, 0.6]]), np.array([0, 1]))
        >>> round(result.loss, 4), round(result.brier, 4), round(result.ece, 4)
        (0.367, 0.2, 0.3)
    """
    chosen = probabilities[np.arange(len(y_true)), y_true]
    loss = -np.log(np.maximum(chosen, _TINY)).mean()
    return _calibration(probabilities, y_true, float(loss))


def _calibration(probabilities: Floats, y_true: Labels, loss: float) -> Calibration:
    chosen = probabilities[np.arange(len(y_true)), y_true]
    answers = _confidence_and_right(probabilities, y_true)
    return Calibration(
        loss=loss,
        brier=float(((probabilities**2).sum(axis=1) - 2 * chosen + 1).mean()),
        ece=_sort_into_bins(*answers, bins=_BINS, binning="width").ece,
        ece_equal_mass=_sort_into_bins(*answers, bins=_BINS, binning="mass").ece,
    )


def expected_calibration_error(
    probabilities: Floats, y_true: Labels, *, bins: int = _BINS, binning: str = "width"
) -> float:
    """Return the mean distance between confidence and accuracy over bins.

    Args:
        probabilities: (n_samples, n_classes).
        y_true: (n_samples,).
        bins: How many.
        binning: `width` or `mass`; see `reliability_bins`.

    Returns:
        In [0, 1].

    Raises:
        UsageError: There is no such binning.

    References:
        Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", ICML 2017, for bins of equal
        width; Nixon, Dusenberry, Zhang, Jerfel and Tran, "Measuring calibration in deep learning", CVPR Workshops
        2019, for bins of equal mass.

    Example:
        >>> expected_calibration_error(np.array([[0.8, 0.2], [0.8, 0.2]]), np.array([0, 1]))
        0.30000000000000004
    """
    return reliability_bins(probabilities, y_true, bins=bins, binning=binning).ece


def reliability_bins(
    probabilities: Floats, y_true: Labels, *, bins: int = _BINS, binning: str = "width"
) -> ReliabilityBins:
    """Sort images into bins by the probability of their likeliest class.

    Args:
        probabilities: (n_samples, n_classes).
        y_true: (n_samples,).
        bins: How many.
        binning: `width`, bins of equal width; `mass`, bins of as many images each, to within one. Images of equal
            confidence are never parted, so that the order of images does not matter: all go to the bin that the
            middle of their ranks falls into, and many of them leave bins beside theirs empty.

    Returns:
        The bins, empty ones too. Bins of equal mass end at the highest confidence in them, the last one at 1.

    Raises:
        UsageError: There is no such binning.

    References:
        Niculescu-Mizil and Caruana, "Predicting good probabilities with supervised learning", ICML 2005; bins of equal
        width are those of Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", ICML 2017;
        those of equal mass are called adaptive in Nixon et al., "Measuring calibration in deep learning", CVPR
        Workshops 2019.

    Example:
        >>> result = reliability_bins(np.array([[0.8, 0.2], [0.8, 0.2]]), np.array([0, 1]), bins=2)
        >>> result.counts, result.confidence, result.accuracy
        (array([0, 2]), array([nan, 0.8]), array([nan, 0.5]))
    """
    if binning not in BINNINGS:
        raise UsageError(f"unknown binning {binning!r}; {did_you_mean(binning, list(BINNINGS))}")
    return _sort_into_bins(*_confidence_and_right(probabilities, y_true), bins=bins, binning=binning)


def _confidence_and_right(probabilities: Floats, y_true: Labels) -> tuple[Floats, Floats]:
    """Return how likely each image's likeliest class is held to be, and 1 where it is the true one, else 0."""
    return probabilities.max(axis=1), (probabilities.argmax(axis=1) == y_true).astype(np.float64)


def _sort_into_bins(confidence: Floats, right: Floats, *, bins: int, binning: str) -> ReliabilityBins:
    index, edges = BINNINGS[binning](confidence, bins)
    counts = np.bincount(index, minlength=bins).astype(np.int64)
    filled = np.where(counts, counts, np.nan)
    sums = (np.bincount(index, weights=values, minlength=bins) for values in (confidence, right))
    return ReliabilityBins(edges, counts, *(total / filled for total in sums))


def _bin_by_width(confidence: Floats, bins: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    # Bins are (low, high], as in the reference.
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    return index, np.linspace(0, 1, bins + 1)


def _bin_by_mass(confidence: Floats, bins: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    values, group, sizes = np.unique(confidence, return_inverse=True, return_counts=True)
    twice_middle = 2 * np.cumsum(sizes) - sizes  # of the ranks that a group of equals takes, whole in halves
    bin_of = bins * twice_middle // (2 * len(confidence))
    n_values_up_to = np.searchsorted(bin_of, np.arange(bins), side="right")
    edges = np.concatenate([[0.0], values])[np.concatenate([[0], n_values_up_to])]
    edges[-1] = 1.0
    return bin_of[group], edges


BINNINGS: dict[str, Callable[[Floats, int], tuple[NDArray[np.int64], NDArray[np.float64]]]] = {
    "width": _bin_by_width,
    "mass": _bin_by_mass,
}


# --- temperature ------------------------------------------------------------------------------------------


def fit_temperature(probabilities: Floats, y_true: Labels) -> float:
    """Return the temperature under which probabilities fit the truth best, by mean negative log-likelihood.

    A temperature above 1 makes probabilities less sure, one below 1 surer. Choose it on images that it is not judged
    on. The loss has one minimum, as it is convex in the temperature's inverse.

    Args:
        probabilities: (n_samples, n_classes), a member's or an ensemble's; 0 counts as the least normal float64.
        y_true: (n_samples,).

    Returns:
        In [0.05, 20], close to an end where the best is beyond, as where all images are right; 1 where none is better.

    References:
        Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", ICML 2017.

    Example:
        >>> likely = np.array([[0.9, 0.1]] * 4)  # of which three are right: 0.75 would be true to that
        >>> round(fit_temperature(likely, np.array([0, 0, 0, 1])), 4)
        2.0
    """
    from scipy.optimize import minimize_scalar  # 0.4 s, for what is learnt alone

    logs = _logarithms(probabilities)
    chosen = logs[np.arange(len(y_true)), y_true]

    def loss(log_temperature: float) -> float:
        inverse = np.exp(-log_temperature)
        return float((logsumexp(inverse * logs, axis=1) - inverse * chosen).mean())

    found = minimize_scalar(loss, bounds=np.log(_TEMPERATURES), method="bounded", options={"xatol": 1e-8})
    return float(np.exp(found.x)) if found.fun < loss(0.0) - _SAME else 1.0


def apply_temperature(probabilities: Floats, temperature: float) -> NDArray[np.float64]:
    """Return probabilities to the power of 1 / temperature, normalised: the softmax of logits divided by it.

    The likeliest class stays the likeliest.

    Args:
        probabilities: (n_samples, n_classes); 0 counts as the least normal float64.
        temperature: Above 0; 1 changes nothing.

    Returns:
        float64 (n_samples, n_classes), each row adding up to 1.

    Raises:
        UsageError: The temperature is not above 0.

    References:
        Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", ICML 2017.

    Example:
        >>> apply_temperature(np.array([[0.9, 0.1]]), 2.0).round(4)
        array([[0.75, 0.25]])
    """
    if not temperature > 0:
        raise UsageError(f"a temperature must be above 0; got {temperature}")
    return np.asarray(softmax(_logarithms(probabilities) / temperature, axis=1))


def _logarithms(probabilities: Floats) -> NDArray[np.float64]:
    return np.log(np.maximum(probabilities.astype(np.float64), _TINY))
