"""Calibration and temperature scaling compared with scikit-learn, slow loops and examples worked by hand."""

from fractions import Fraction
from math import log

import hypothesis.strategies as st
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis.extra.numpy import arrays
from scipy.special import softmax

from fmcli.metrics.calibration import (
    apply_temperature,
    calibration,
    calibration_of_probabilities,
    fit_temperature,
    reliability_bins,
)

EXACT = {"rel": 1e-9, "abs": 1e-12}
seeds = pytest.mark.parametrize("seed", range(5))
every_binning = pytest.mark.parametrize("binning", ["width", "mass"])


def random_logits(seed, n_samples=200, n_classes=4):
    rng = np.random.default_rng(seed)
    return 2 * rng.normal(size=(n_samples, n_classes)).astype(np.float32), rng.integers(0, n_classes, n_samples)


def random_probabilities(seed, n_samples=200, n_classes=4):
    logits, y_true = random_logits(seed, n_samples, n_classes)
    return softmax(logits.astype(np.float64), axis=1), y_true


def vote_shares(seed, n_samples=200, n_members=5):
    """Return probabilities with few different values, so that many images have equal confidence, some of them 1."""
    rng = np.random.default_rng(seed)
    votes = rng.multinomial(n_members, [0.7, 0.2, 0.1], size=n_samples)
    return rng.permuted(votes, axis=1) / n_members, rng.integers(0, 3, n_samples)


def as_binary(confidence):
    """Return the probabilities of two classes, given the probabilities of the first."""
    return np.stack([confidence, 1 - np.asarray(confidence)], axis=1)


# --- calibration -----------------------------------------------------------------------------------------


def slow_calibration_error(probabilities, y_true, bins):
    total = 0.0
    for index in range(bins):
        inside = [
            (row.max(), row.argmax() == label)
            for row, label in zip(probabilities, y_true, strict=True)
            if index / bins < row.max() <= (index + 1) / bins
        ]
        if inside:
            confidence = sum(sure for sure, _ in inside) / len(inside)
            accuracy = sum(right for _, right in inside) / len(inside)
            total += len(inside) / len(y_true) * abs(accuracy - confidence)
    return total


@seeds
@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_equals_a_slow_loop(seed, bins):
    probabilities, y_true = random_probabilities(seed)
    error = reliability_bins(probabilities, y_true, bins=bins).ece
    assert error == pytest.approx(slow_calibration_error(probabilities, y_true, bins), **EXACT)


def test_calibration_error_by_hand():
    # Bins (0.5, 0.75] and (0.75, 1] of four: two images with 0.6, one correct; two with 0.9, both correct.
    probabilities = np.array([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1], [0.9, 0.1]])
    error = reliability_bins(probabilities, np.array([0, 1, 0, 0]), bins=4).ece
    assert error == pytest.approx((2 * abs(0.6 - 0.5) + 2 * abs(0.9 - 1.0)) / 4)


def test_a_confidence_on_the_edge_of_two_bins_is_in_the_lower():
    # 0.75 is in (0.5, 0.75], with 0.6, and not in (0.75, 1]: their gaps have opposite signs and cancel.
    error = reliability_bins(np.array([[0.75, 0.25], [0.6, 0.4]]), np.array([0, 1]), bins=4).ece
    assert error == pytest.approx(abs((1 - 0.75) + (0 - 0.6)) / 2)


@pytest.mark.parametrize(("right", "error"), [(True, 0.0), (False, 1.0)])
def test_certain_answers_have_the_extreme_calibration_errors(right, error):
    y_true = np.array([0, 1, 2, 3])
    probabilities = np.eye(4)[y_true if right else (y_true + 1) % 4]
    assert reliability_bins(probabilities, y_true).ece == error


@seeds
def test_calibration_equals_scikit_learn(seed):
    logits, y_true = random_logits(seed)
    probabilities = softmax(logits.astype(np.float64), axis=1)
    result = calibration(logits, y_true)
    labels = np.arange(4)
    assert result.loss == pytest.approx(sklearn.metrics.log_loss(y_true, probabilities, labels=labels), **EXACT)
    brier = sklearn.metrics.brier_score_loss(y_true, probabilities, labels=labels, scale_by_half=False)
    assert result.brier == pytest.approx(brier, **EXACT)
    assert result.ece == reliability_bins(probabilities, y_true, bins=15, binning="width").ece
    assert result.ece_equal_mass == reliability_bins(probabilities, y_true, bins=15, binning="mass").ece
    of_probabilities = calibration_of_probabilities(probabilities, y_true)
    assert of_probabilities.loss == pytest.approx(result.loss, **EXACT)
    assert (of_probabilities.brier, of_probabilities.ece) == (result.brier, result.ece)
    assert of_probabilities.ece_equal_mass == result.ece_equal_mass


def test_calibration_by_hand():
    result = calibration_of_probabilities(np.array([[0.8, 0.2], [0.3, 0.7]]), np.array([0, 0]))
    assert result.loss == pytest.approx(-(log(0.8) + log(0.3)) / 2)
    assert result.brier == pytest.approx(((0.2**2 + 0.2**2) + (0.7**2 + 0.7**2)) / 2)
    assert result.ece == pytest.approx((abs(0.8 - 1) + abs(0.7 - 0)) / 2)


def test_loss_is_finite_if_the_true_class_has_the_probability_0():
    assert calibration(np.array([[2000.0, 0.0]]), np.array([1])).loss == pytest.approx(2000)
    result = calibration_of_probabilities(np.array([[1.0, 0.0]]), np.array([1]))
    assert result.brier == pytest.approx(2)
    assert 700 < result.loss < 710  # from the smallest normal number


# --- bins of equal mass -----------------------------------------------------------------------------------


def slow_mass_bin(confidence, bins, index):
    """Return the bin of an image from the middle rank of all images with its confidence, in exact fractions."""
    below = sum(other < confidence[index] for other in confidence)
    equal = sum(other == confidence[index] for other in confidence)
    return int(Fraction(bins * (2 * below + equal), 2 * len(confidence)))


@seeds
@pytest.mark.parametrize("bins", [1, 4, 15])
@pytest.mark.parametrize("draw", [random_probabilities, vote_shares])
def test_bins_of_equal_mass_equal_a_slow_loop(seed, bins, draw):
    probabilities, y_true = draw(seed)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == y_true
    bin_of = np.array([slow_mass_bin(confidence, bins, index) for index in range(len(y_true))])
    result = reliability_bins(probabilities, y_true, bins=bins, binning="mass")
    gaps = 0.0
    for index in range(bins):
        inside = bin_of == index
        assert result.counts[index] == inside.sum()
        if inside.any():
            low, high = result.edges[index : index + 2]
            assert ((low < confidence[inside]) & (confidence[inside] <= high)).all()
            assert result.confidence[index] == pytest.approx(confidence[inside].mean(), **EXACT)
            assert result.accuracy[index] == pytest.approx(right[inside].mean(), **EXACT)
            gaps += inside.sum() * abs(confidence[inside].mean() - right[inside].mean())
        else:
            assert np.isnan([result.confidence[index], result.accuracy[index]]).all()
    assert result.ece == pytest.approx(gaps / len(y_true), **EXACT)


@given(n_samples=st.integers(1, 100), bins=st.integers(1, 20))
def test_bins_of_equal_mass_differ_by_at_most_one_image_if_all_confidences_differ(n_samples, bins):
    confidence = np.linspace(0.5, 0.9, n_samples)
    counts = reliability_bins(as_binary(confidence), np.zeros(n_samples, int), bins=bins, binning="mass").counts
    assert counts.sum() == n_samples
    assert counts.max() - counts.min() <= 1


def test_bins_of_equal_mass_by_hand():
    # Two bins of three: 0.6, 0.7, 0.7 (two correct) and 0.8, 0.9, 1 (two correct).
    probabilities = as_binary([0.7, 0.9, 0.6, 1.0, 0.7, 0.8])
    result = reliability_bins(probabilities, np.array([0, 0, 1, 0, 0, 1]), bins=2, binning="mass")
    assert result.edges.tolist() == [0, 0.7, 1]
    assert result.counts.tolist() == [3, 3]
    assert result.confidence == pytest.approx([2 / 3, 0.9])
    assert result.accuracy == pytest.approx([2 / 3, 2 / 3])
    assert result.ece == pytest.approx((0 + 0.9 - 2 / 3) / 2)


def test_images_of_equal_confidence_share_a_bin_of_equal_mass():
    # The middles of ranks 0 to 1, 1 to 4 and 4 to 6 are 0.5, 2.5 and 5 of 6: bins 0, 1 and 2 of three.
    probabilities = as_binary([0.6, 0.7, 0.7, 0.7, 1.0, 1.0])
    result = reliability_bins(probabilities, np.zeros(6, int), bins=3, binning="mass")
    assert result.counts.tolist() == [1, 3, 2]
    # With six bins, 0.7 is in the third and 1 in the sixth; the neighbouring bins have no width.
    result = reliability_bins(probabilities, np.zeros(6, int), bins=6, binning="mass")
    assert result.counts.tolist() == [1, 0, 3, 0, 0, 2]
    assert result.edges.tolist() == [0, 0.6, 0.6, 0.7, 0.7, 0.7, 1]


@every_binning
@seeds
@pytest.mark.parametrize("draw", [random_probabilities, vote_shares])
def test_bins_do_not_depend_on_the_order_of_images_or_on_class_names(binning, seed, draw):
    probabilities, y_true = draw(seed)
    expected = reliability_bins(probabilities, y_true, binning=binning)
    rng = np.random.default_rng(seed)
    images, classes = rng.permutation(len(y_true)), rng.permutation(probabilities.shape[1])
    # In a tie, the class with the lowest label wins, so the order of classes matters.
    renamed = (probabilities[:, classes], np.argsort(classes)[y_true]) if draw is random_probabilities else None
    for other in ((probabilities[images], y_true[images]), renamed):
        if other is not None:
            result = reliability_bins(*other, binning=binning)
            np.testing.assert_array_equal(result.counts, expected.counts)
            np.testing.assert_array_equal(result.edges, expected.edges)
            np.testing.assert_allclose(result.accuracy, expected.accuracy, rtol=1e-12)
            assert result.ece == pytest.approx(expected.ece, **EXACT)


@every_binning
def test_the_error_with_one_bin_is_the_difference_between_the_means(binning):
    probabilities, y_true = random_probabilities(0)
    gap = abs(probabilities.max(axis=1).mean() - (probabilities.argmax(axis=1) == y_true).mean())
    assert reliability_bins(probabilities, y_true, bins=1, binning=binning).ece == pytest.approx(gap, **EXACT)


# --- temperature -----------------------------------------------------------------------------------------


def loss_at(probabilities, y_true, temperature):
    return calibration_of_probabilities(apply_temperature(probabilities, temperature), y_true).loss


def overconfident(seed, n_samples=500):
    logits, _ = random_logits(seed, n_samples)
    likely = softmax(logits.astype(np.float64), axis=1)
    y_true = np.array([np.random.default_rng([seed, i]).choice(4, p=row) for i, row in enumerate(likely)])
    return softmax(2.5 * logits.astype(np.float64), axis=1), y_true


@seeds
@pytest.mark.parametrize("draw", [overconfident, random_probabilities])
def test_temperature_is_the_best_of_a_fine_grid(seed, draw):
    probabilities, y_true = draw(seed)
    grid = np.geomspace(0.05, 20, 300)
    losses = [loss_at(probabilities, y_true, temperature) for temperature in grid]
    best = int(np.argmin(losses))
    temperature = fit_temperature(probabilities, y_true)
    assert grid[max(best - 1, 0)] <= temperature <= grid[min(best + 1, len(grid) - 1)]
    assert loss_at(probabilities, y_true, temperature) <= min(losses) + 1e-9


@seeds
def test_the_loss_has_the_slope_0_at_the_fitted_temperature(seed):
    # The derivative of the loss by 1 / T is 0: the mean log-probability of the true class equals its expectation.
    probabilities, y_true = overconfident(seed)
    logs = np.log(probabilities)
    fitted = apply_temperature(probabilities, fit_temperature(probabilities, y_true))
    expected = (fitted * logs).sum(axis=1).mean()
    assert logs[np.arange(len(y_true)), y_true].mean() == pytest.approx(expected, abs=1e-6)


@given(
    votes=arrays(np.int64, st.tuples(st.integers(1, 12), st.integers(2, 4)), elements=st.integers(0, 5)),
    data=st.data(),
)
def test_fitting_never_raises_the_loss_even_with_probabilities_of_0(votes, data):
    probabilities = (votes + (votes.sum(axis=1, keepdims=True) == 0)) / 1.0
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    y_true = np.array(data.draw(st.lists(st.integers(0, votes.shape[1] - 1), min_size=len(votes), max_size=len(votes))))
    temperature = fit_temperature(probabilities, y_true)
    assert 0.05 <= temperature <= 20
    before = calibration_of_probabilities(probabilities, y_true).loss
    assert loss_at(probabilities, y_true, temperature) <= before + 1e-9


@pytest.mark.parametrize("temperature", [0.5, 0.8, 1.0, 1.5, 3.0])
def test_fitting_recovers_the_temperature_that_was_applied_to_calibrated_probabilities(temperature):
    rng = np.random.default_rng(0)
    calibrated = rng.dirichlet(np.ones(5), size=20_000)
    y_true = (calibrated.cumsum(axis=1) < rng.random((20_000, 1))).sum(axis=1).clip(0, 4)
    assert fit_temperature(apply_temperature(calibrated, temperature), y_true) == pytest.approx(
        1 / temperature, rel=0.03
    )
    # On the same images, the result is exact.
    fitted = fit_temperature(calibrated, y_true)
    again = fit_temperature(apply_temperature(calibrated, temperature), y_true)
    assert again * temperature == pytest.approx(fitted, rel=1e-5)


@seeds
def test_temperature_does_not_depend_on_the_order_of_images_or_on_class_names(seed):
    probabilities, y_true = overconfident(seed)
    rng = np.random.default_rng(seed)
    images, classes = rng.permutation(len(y_true)), rng.permutation(4)
    expected = fit_temperature(probabilities, y_true)
    assert fit_temperature(probabilities[images], y_true[images]) == pytest.approx(expected, rel=1e-6)
    assert fit_temperature(probabilities[:, classes], np.argsort(classes)[y_true]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("label", "end"), [(0, 0.05), (1, 20.0)])
def test_temperature_stops_at_the_end_of_its_range(label, end):
    assert fit_temperature(as_binary([0.6, 0.55]), np.full(2, label)) == pytest.approx(end, rel=1e-6)


@pytest.mark.parametrize("likely", [0.5, 0.75])
def test_temperature_is_one_if_no_other_is_better(likely):
    # Three of four predictions are correct. Equal probabilities stay equal at every temperature.
    assert fit_temperature(as_binary([likely] * 4), np.array([0, 0, 0, 1])) == 1.0


@seeds
def test_a_temperature_divides_the_logits(seed):
    logits, _ = random_logits(seed)
    logits = logits.astype(np.float64)
    for temperature in (0.3, 1.0, 4.0):
        result = apply_temperature(softmax(logits, axis=1), temperature)
        np.testing.assert_allclose(result, softmax(logits / temperature, axis=1), rtol=1e-9)


@seeds
@pytest.mark.parametrize("draw", [random_probabilities, vote_shares])
def test_temperature_one_changes_nothing_and_temperatures_multiply(seed, draw):
    probabilities, _ = draw(seed)
    np.testing.assert_allclose(apply_temperature(probabilities, 1.0), probabilities, rtol=1e-12, atol=1e-300)
    twice = apply_temperature(apply_temperature(probabilities, 2.0), 1.5)
    np.testing.assert_allclose(twice, apply_temperature(probabilities, 3.0), rtol=1e-9)


@seeds
@pytest.mark.parametrize("temperature", [0.05, 0.5, 2.0, 20.0])
@pytest.mark.parametrize("draw", [random_probabilities, vote_shares])
def test_the_most_probable_class_stays_the_same(seed, temperature, draw):
    probabilities, _ = draw(seed)
    result = apply_temperature(probabilities.astype(np.float32), temperature)
    np.testing.assert_array_equal(result.argmax(axis=1), probabilities.argmax(axis=1))
    assert result.dtype == np.float64
    np.testing.assert_allclose(result.sum(axis=1), 1, rtol=1e-12)
