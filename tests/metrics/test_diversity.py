"""Pairwise diversity compared with scikit-learn, DESlib, slow loops and examples worked by hand."""

from dataclasses import fields
from itertools import product

import numpy as np
import pytest
from deslib.util import diversity as deslib
from sklearn.metrics import cohen_kappa_score

from fmcli.metrics.diversity import PairwiseDiversity, pairwise_diversity

EXACT = {"rel": 1e-9, "abs": 1e-12}
MEASURES = [field.name for field in fields(PairwiseDiversity)]
seeds = pytest.mark.parametrize("seed", range(5))


def random_choices(seed, n_members=4, n_samples=150, n_classes=4, right=0.6):
    """Return true labels and the labels of members that share some mistakes, as trained members do."""
    rng = np.random.default_rng(seed)
    y_true = rng.integers(0, n_classes, n_samples)
    shared = rng.integers(0, n_classes, n_samples)
    shape = (n_members, n_samples)
    own = np.where(rng.random(shape) < 0.5, shared, rng.integers(0, n_classes, shape))
    return y_true, np.where(rng.random(shape) < right, y_true, own)


def pairs_of(choices):
    return product(range(len(choices)), repeat=2)


def assert_same(result, expected):
    for name in MEASURES:
        one, other = getattr(result, name), getattr(expected, name)
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12, err_msg=name)
        mean = f"mean_{name}"
        assert getattr(result, mean) == pytest.approx(getattr(expected, mean), nan_ok=True, **EXACT)


# --- disagreement ----------------------------------------------------------------------------------------


def mean_disagreement(choices):
    return pairwise_diversity(np.zeros(choices.shape[1], dtype=int), choices).mean_disagreement


@seeds
def test_disagreement_equals_a_slow_loop(seed):
    choices = np.random.default_rng(seed).integers(0, 3, (4, 30))
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    differ = [sum(a != b for a, b in zip(choices[i], choices[j], strict=True)) / 30 for i, j in pairs]
    assert mean_disagreement(choices) == pytest.approx(sum(differ) / len(pairs), **EXACT)


@pytest.mark.parametrize("n_members", [1, 2, 5])
def test_members_that_agree_do_not_disagree(n_members):
    assert mean_disagreement(np.tile([0, 1, 2], (n_members, 1))) == 0


def test_members_that_never_agree():
    assert mean_disagreement(np.array([[0, 1], [1, 2], [2, 0]])) == 1


# --- the matrices ----------------------------------------------------------------------------------------


@seeds
def test_matrices_equal_slow_loops(seed):
    y_true, choices = random_choices(seed)
    result = pairwise_diversity(y_true, choices)
    n = len(y_true)
    for i, j in pairs_of(choices):
        truth = list(zip(choices[i] == y_true, choices[j] == y_true, strict=True))
        n11, n10, n01, n00 = (truth.count(pair) for pair in product([True, False], repeat=2))
        agree = sum(a == b for a, b in zip(choices[i], choices[j], strict=True)) / n
        chance = sum((choices[i] == k).sum() * (choices[j] == k).sum() for k in range(4)) / n**2
        assert result.disagreement[i, j] == pytest.approx(1 - agree, **EXACT)
        assert result.q_statistic[i, j] == pytest.approx((n11 * n00 - n10 * n01) / (n11 * n00 + n10 * n01), **EXACT)
        assert result.double_fault[i, j] == pytest.approx(n00 / n, **EXACT)
        assert result.kappa[i, j] == pytest.approx((agree - chance) / (1 - chance), **EXACT)


@seeds
def test_q_and_double_fault_equal_deslib(seed):
    y_true, choices = random_choices(seed)
    result = pairwise_diversity(y_true, choices)
    for name, measure in (("q_statistic", deslib.Q_statistic), ("double_fault", deslib.double_fault)):
        for i, j in pairs_of(choices):
            assert getattr(result, name)[i, j] == pytest.approx(measure(y_true, choices[i], choices[j]), **EXACT)
        sums = deslib.compute_pairwise_diversity(y_true, choices.T, measure)  # sums over the pairs of each member
        assert getattr(result, f"mean_{name}") == pytest.approx(np.mean(sums) / (len(choices) - 1), **EXACT)


@seeds
def test_disagreement_equals_deslib_for_two_classes(seed):
    # DESlib compares whether members are correct. With two classes, labels differ only if exactly one of them is
    # correct; with more classes, they can also differ if both are wrong.
    y_true, choices = random_choices(seed, n_classes=2)
    ours = pairwise_diversity(y_true, choices).disagreement
    for i, j in pairs_of(choices):
        assert ours[i, j] == pytest.approx(deslib.disagreement_measure(y_true, choices[i], choices[j]), **EXACT)
    y_true, choices = random_choices(seed, n_classes=5)
    ours = pairwise_diversity(y_true, choices).disagreement
    for i, j in pairs_of(choices):
        both_wrong = ((choices[i] != y_true) & (choices[j] != y_true) & (choices[i] != choices[j])).mean()
        theirs = deslib.disagreement_measure(y_true, choices[i], choices[j])
        assert ours[i, j] == pytest.approx(theirs + both_wrong, **EXACT)


@seeds
def test_kappa_equals_scikit_learn(seed):
    y_true, choices = random_choices(seed)
    kappa = pairwise_diversity(y_true, choices).kappa
    for i, j in pairs_of(choices):
        assert kappa[i, j] == pytest.approx(cohen_kappa_score(choices[i], choices[j]), **EXACT)


def test_more_images_than_one_block():
    y_true, choices = random_choices(0, n_members=3, n_samples=40_000)
    result = pairwise_diversity(y_true, choices)
    wrong = choices != y_true
    assert result.disagreement[0, 1] == pytest.approx((choices[0] != choices[1]).mean(), **EXACT)
    assert result.double_fault[1, 2] == pytest.approx((wrong[1] & wrong[2]).mean(), **EXACT)
    assert result.kappa[0, 2] == pytest.approx(cohen_kappa_score(choices[0], choices[2]), **EXACT)


def test_diversity_by_hand():
    # Both are correct on three images, only the first on two, only the second on one, neither on two.
    y_true = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    choices = np.array([[0, 0, 0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0, 1, 2]])
    result = pairwise_diversity(y_true, choices)
    chance = (5 * 3 + 3 * 4 + 0 * 1) / 64  # from how often each member chooses 0, 1 and 2
    kappa = (4 / 8 - chance) / (1 - chance)
    assert result.disagreement.tolist() == [[0, 4 / 8], [4 / 8, 0]]
    assert result.q_statistic.tolist() == [[1, (3 * 2 - 2 * 1) / (3 * 2 + 2 * 1)], [0.5, 1]]
    assert result.double_fault.tolist() == [[3 / 8, 2 / 8], [2 / 8, 4 / 8]]
    np.testing.assert_allclose(result.kappa, [[1, kappa], [kappa, 1]], rtol=1e-12)
    means = (result.mean_disagreement, result.mean_q_statistic, result.mean_double_fault, result.mean_kappa)
    assert means == pytest.approx((0.5, 0.5, 0.25, kappa))


# --- properties ------------------------------------------------------------------------------------------


@seeds
def test_matrices_are_symmetric_and_within_their_ranges(seed):
    y_true, choices = random_choices(seed)
    result = pairwise_diversity(y_true, choices)
    for name in MEASURES:
        matrix = getattr(result, name)
        assert (matrix.shape, matrix.dtype) == ((4, 4), np.float64)
        np.testing.assert_array_equal(matrix, matrix.T)
        assert matrix.max() <= 1
        assert matrix.min() >= (-1 if name in {"q_statistic", "kappa"} else 0)
    np.testing.assert_allclose(np.diag(result.double_fault), (choices != y_true).mean(axis=1), rtol=1e-12)


@seeds
def test_the_order_of_images_does_not_matter(seed):
    y_true, choices = random_choices(seed)
    order = np.random.default_rng(seed).permutation(len(y_true))
    assert_same(pairwise_diversity(y_true[order], choices[:, order]), pairwise_diversity(y_true, choices))


@seeds
def test_renamed_classes_change_nothing(seed):
    y_true, choices = random_choices(seed)
    new_name = np.random.default_rng(seed).permutation(4)
    assert_same(pairwise_diversity(new_name[y_true], new_name[choices]), pairwise_diversity(y_true, choices))


@seeds
def test_rows_and_columns_are_in_the_order_of_members(seed):
    y_true, choices = random_choices(seed)
    order = np.random.default_rng(seed).permutation(len(choices))
    expected = pairwise_diversity(y_true, choices)
    moved = PairwiseDiversity(*(getattr(expected, name)[np.ix_(order, order)] for name in MEASURES))
    assert_same(pairwise_diversity(y_true, choices[order]), moved)


@seeds
def test_identical_members(seed):
    y_true, choices = random_choices(seed, n_members=1)
    result = pairwise_diversity(y_true, np.repeat(choices, 3, axis=0))
    np.testing.assert_array_equal(result.disagreement, np.zeros((3, 3)))
    np.testing.assert_array_equal(result.q_statistic, np.ones((3, 3)))
    np.testing.assert_array_equal(result.kappa, np.ones((3, 3)))
    np.testing.assert_allclose(result.double_fault, (choices != y_true).mean(), rtol=1e-12)


def test_one_member_has_no_pairs():
    y_true, choices = random_choices(0, n_members=1)
    result = pairwise_diversity(y_true, choices)
    assert result.disagreement.tolist() == [[0]]
    assert result.q_statistic.tolist() == result.kappa.tolist() == [[1]]
    assert result.mean_disagreement == 0
    assert np.isnan([result.mean_q_statistic, result.mean_double_fault, result.mean_kappa]).all()


def test_members_that_are_always_correct_have_no_q_and_are_left_out_of_means():
    y_true, choices = random_choices(0, n_members=2)
    result = pairwise_diversity(y_true, np.vstack([choices, y_true]))
    assert np.isnan(result.q_statistic).tolist() == [[False, False, True], [False, False, True], [True, True, True]]
    assert result.mean_q_statistic == result.q_statistic[0, 1]
    assert result.mean_double_fault == pytest.approx(result.double_fault[0, 1] / 3)


def test_members_that_always_predict_the_same_class_have_no_kappa():
    y_true = np.array([0, 0, 1, 1])
    result = pairwise_diversity(y_true, np.array([[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]))
    assert np.isnan(result.kappa).tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    assert result.mean_kappa == 0  # 0 expected and 0 observed agreements count as chance level
