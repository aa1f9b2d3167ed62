"""Accuracy by coverage compared with slow loops and examples worked by hand."""

from math import ceil

import numpy as np
import pytest

from fmcli.metrics.coverage import accuracy_at_coverage, coverage_curve

EXACT = {"rel": 1e-9, "abs": 1e-12}
seeds = pytest.mark.parametrize("seed", range(5))


def sure_and_right(seed, ties):
    """Return the confidence of 200 images, with few different values if `ties`, and whether each is correct."""
    rng = np.random.default_rng(seed)
    confidence = rng.integers(5, 11, 200) / 10 if ties else rng.uniform(0.5, 1, 200)
    return confidence, rng.random(200) < confidence


@seeds
@pytest.mark.parametrize("ties", [True, False])
def test_coverage_curve_equals_a_slow_loop(seed, ties):
    confidence, correct = sure_and_right(seed, ties)
    curve = coverage_curve(confidence, correct)
    assert curve.thresholds.tolist() == sorted(set(confidence))
    for threshold, coverage, accuracy in zip(curve.thresholds, curve.coverage, curve.accuracy, strict=True):
        kept = [right for sure, right in zip(confidence, correct, strict=True) if sure >= threshold]
        assert coverage == pytest.approx(len(kept) / len(correct), **EXACT)
        assert accuracy == pytest.approx(sum(kept) / len(kept), **EXACT)
    errors = [1 - np.mean([correct[confidence >= sure]]) for sure in confidence]
    assert curve.aurc == pytest.approx(np.mean(errors), **EXACT)


@seeds
@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("coverage", [1e-9, 0.1, 3 * 0.1, 0.5, 0.95, 1.0])
def test_accuracy_at_coverage_equals_a_slow_loop(seed, ties, coverage):
    confidence, correct = sure_and_right(seed, ties)
    n_kept = ceil(round(coverage * len(correct), 9))
    threshold = sorted(confidence, reverse=True)[n_kept - 1]
    expected = np.mean(correct[confidence >= threshold])
    assert accuracy_at_coverage(coverage_curve(confidence, correct), coverage) == pytest.approx(expected, **EXACT)


@seeds
def test_coverage_curve_does_not_depend_on_the_order_of_images(seed):
    confidence, correct = sure_and_right(seed, ties=True)
    order = np.random.default_rng(seed).permutation(len(correct))
    first, second = coverage_curve(confidence, correct), coverage_curve(confidence[order], correct[order])
    for name in ("thresholds", "coverage", "accuracy"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@seeds
def test_coverage_depends_only_on_the_order_of_confidences(seed):
    confidence, correct = sure_and_right(seed, ties=True)
    first, second = coverage_curve(confidence, correct), coverage_curve(5 * confidence - 7, correct)
    np.testing.assert_array_equal(first.coverage, second.coverage)
    np.testing.assert_array_equal(first.accuracy, second.accuracy)


def test_images_of_equal_confidence_are_all_kept():
    curve = coverage_curve(np.full(4, 0.5), np.array([True, False, False, False]))
    assert (curve.thresholds.tolist(), curve.coverage.tolist(), curve.accuracy.tolist()) == ([0.5], [1], [0.25])
    assert accuracy_at_coverage(curve, 0.01) == 0.25
    assert curve.aurc == 0.75


@pytest.mark.parametrize(("correct", "area"), [([1, 1, 1, 1], 0), ([0, 0, 0, 0], 1), ([0, 1, 1, 1], 1 / 16)])
def test_area_under_the_risk_coverage_curve_by_hand(correct, area):
    curve = coverage_curve(np.array([0.6, 0.7, 0.8, 0.9]), np.array(correct, dtype=bool))
    assert curve.aurc == pytest.approx(area)
