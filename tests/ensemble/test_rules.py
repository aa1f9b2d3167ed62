"""Weights, groups and ties of single voting rules, calculated by hand. `test_rule_properties` tests all rules."""

import math
from itertools import permutations
from typing import get_args

import numpy as np
import pytest

from fmcli.choices import TieRule
from fmcli.ensemble.rules import rule_class
from fmcli.ensemble.rules.borda import Borda
from fmcli.ensemble.rules.geometric import Geometric
from fmcli.ensemble.rules.majority import Majority
from fmcli.ensemble.rules.soft import Soft
from fmcli.ensemble.rules.stacking import Stacking, stacking_features
from fmcli.ensemble.rules.two_level import TwoLevel
from fmcli.ensemble.rules.vote import TIE_RULES, normalize_weights
from fmcli.errors import UsageError
from tests.ensemble.test_rule_properties import TIES, coarse_logits


def choosing(choices, n_classes=3, logit=2.0):
    """Return logits of one image for members that choose these classes."""
    return (logit * np.eye(n_classes)[choices])[:, None, :]


def test_every_tie_rule_is_implemented():
    assert set(get_args(TieRule)) == set(TIE_RULES)


# --- weights and groups ----------------------------------------------------------------------------------

weighted = pytest.mark.parametrize("vote", ["majority", "soft", "geometric", "borda"])


@weighted
@pytest.mark.parametrize("tie", TIES)
def test_a_weight_of_2_counts_a_member_twice_and_a_weight_of_0_ignores_it(vote, tie):
    logits = coarse_logits(seed=9, n_members=3)
    result = rule_class(vote)(tie=tie, weights=[2, 0, 1]).combine(logits)
    expected = rule_class(vote)(tie=tie).combine(logits[[0, 0, 2]])
    np.testing.assert_array_equal(result.labels, expected.labels)
    np.testing.assert_array_equal(result.ties, expected.ties)
    np.testing.assert_allclose(result.probabilities, expected.probabilities, rtol=1e-9)


@weighted
@pytest.mark.parametrize("scale", [1e-300, 0.3, 1e6, 1e308])
def test_the_scale_of_weights_does_not_matter(vote, scale):
    logits, weights = coarse_logits(seed=10, n_members=3), np.array([1.0, 1.0, 0.5])
    result = rule_class(vote)(weights=(scale * weights).tolist()).combine(logits)
    expected = rule_class(vote)(weights=weights.tolist()).combine(logits)
    np.testing.assert_array_equal(result.labels, expected.labels)
    np.testing.assert_array_equal(result.ties, expected.ties)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 1], "3 weights; got 2"),
        ([1, 1, 1, 1], "3 weights; got 4"),
        ([1, -1, 1], "1, -1, 1"),
        ([0, 0, 0], "at least one above 0"),
        ([1, math.nan, 1], "nan"),
        ([1, math.inf, 1], "inf"),
    ],
)
def test_invalid_weights_are_refused(weights, message):
    with pytest.raises(UsageError, match=message):
        normalize_weights(weights, 3)


def test_a_wrong_number_of_groups_is_refused():
    with pytest.raises(UsageError, match="3 groups, one per member; got 2"):
        TwoLevel(groups=["3", "5"]).combine(np.zeros((3, 1, 2)))


@pytest.mark.parametrize("shape", [(3, 9), (3, 7), (2, 6), (6,)])
def test_stacking_of_other_members_is_refused(shape):
    with pytest.raises(UsageError, match=r"fitted to other members.*\(3, 6\)"):
        Stacking(coefficients=np.zeros(shape), intercepts=np.zeros(3)).combine(np.zeros((2, 1, 3)))
    with pytest.raises(UsageError, match="fitted to other members"):
        Stacking(coefficients=np.zeros((3, 6)), intercepts=np.zeros(2)).combine(np.zeros((2, 1, 3)))


@pytest.mark.parametrize("seed", range(5))
def test_the_first_member_of_a_group_decides_its_ties_in_any_order_of_groups(seed):
    logits, groups = coarse_logits(seed), ["3", "3", "5", "5", "7"]
    expected = TwoLevel(groups=groups, tie="first").combine(logits)
    moved = [4, 2, 3, 0, 1]  # whole groups
    result = TwoLevel(groups=[groups[index] for index in moved], tie="first").combine(logits[moved])
    np.testing.assert_array_equal(result.scores, expected.scores)
    np.testing.assert_array_equal(result.labels[~expected.ties], expected.labels[~expected.ties])


# --- ties by hand ----------------------------------------------------------------------------------------

# Three members choose three classes. The sums of probabilities are 0.1 + 0.3 + 0.5 = 0.9 for class 0,
# 0.2 + 0.6 + 0.2 = 1.0 for class 1 and 0.7 + 0.1 + 0.3 = 1.1 for class 2. The first member chooses class 2.
THREE_WAYS = np.log([[[0.1, 0.2, 0.7]], [[0.3, 0.6, 0.1]], [[0.5, 0.2, 0.3]]])


@pytest.mark.parametrize(("tie", "winner"), [("probability", 2), ("lowest", 0), ("first", 2)])
@pytest.mark.parametrize("vote", ["majority", "two-level"])
def test_three_way_tie_by_hand(vote, tie, winner):
    parameters = {"groups": ["3", "5", "7"]} if vote == "two-level" else {}  # one member per group
    result = rule_class(vote)(tie=tie, **parameters).combine(THREE_WAYS)
    assert result.votes.tolist() == [[1, 1, 1]]
    np.testing.assert_allclose(result.probabilities, [[0.9 / 3, 1.0 / 3, 1.1 / 3]], rtol=1e-12)
    assert result.ties.tolist() == [True]
    assert result.labels.tolist() == [winner]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_tie_rule_first_depends_only_on_the_order_of_members(order):
    choice_of = [2, 1, 0]
    assert Majority(tie="first").combine(THREE_WAYS[list(order)]).labels.tolist() == [choice_of[order[0]]]


def test_the_first_member_with_a_positive_weight_decides():
    assert Majority(tie="first", weights=[0, 1, 1]).combine(THREE_WAYS).labels.tolist() == [1]


# Two members each choose classes 0 and 2. Only the first member chooses class 1, with the highest probability.
@pytest.mark.parametrize(("tie", "winner"), [("probability", 2), ("lowest", 0), ("first", 2)])
def test_a_class_outside_the_tie_cannot_win_it(tie, winner):
    rows = [[0.01, 0.98, 0.01], [0.1, 0.2, 0.7], [0.4, 0.35, 0.25], [0.4, 0.35, 0.25], [0.1, 0.2, 0.7]]
    vote = Majority(tie=tie).combine(np.log(rows)[:, None, :])
    assert vote.votes.tolist() == [[2, 1, 2]]
    assert vote.probabilities[0].argmax() == 1
    assert vote.ties.tolist() == [True]
    assert vote.labels.tolist() == [winner]


# Weights 3, 2, 1: the first member's vote equals the sum of the other two, which agree.
@pytest.mark.parametrize(("tie", "winner"), [("probability", 1), ("lowest", 0), ("first", 0)])
def test_a_tie_of_weights_by_hand(tie, winner):
    vote = Majority(weights=[3, 2, 1], tie=tie).combine(np.log([[[0.6, 0.4]], [[0.1, 0.9]], [[0.4, 0.6]]]))
    np.testing.assert_allclose(vote.scores, [[0.5, 0.5]])
    # (3 · 0.6 + 2 · 0.1 + 1 · 0.4) / 6 = 0.4
    np.testing.assert_allclose(vote.probabilities, [[0.4, 0.6]])
    assert (vote.ties.tolist(), vote.labels.tolist()) == ([True], [winner])


# Points 0, 1, 2 and 2, 1, 0: each class has two points, and no member puts class 1 first.
@pytest.mark.parametrize(("tie", "winner"), [("probability", 1), ("lowest", 0), ("first", 2)])
def test_a_tie_of_ranks_by_hand(tie, winner):
    vote = Borda(tie=tie).combine(np.log([[[0.1, 0.4, 0.5]], [[0.45, 0.4, 0.15]]]))
    np.testing.assert_allclose(vote.scores, [[1, 1, 1]])
    assert (vote.ties.tolist(), vote.labels.tolist()) == ([True], [winner])


def test_a_class_can_win_by_ranks_without_being_first_for_any_member():
    logits = np.log([[[0.5, 0.4, 0.06, 0.04]], [[0.06, 0.4, 0.5, 0.04]], [[0.06, 0.4, 0.04, 0.5]]])
    for tie in TIES:
        assert Borda(tie=tie).combine(logits).labels.tolist() == [1]


# Classes 0 and 1 tie at the geometric mean of 0.2 and 0.3. Each member's first class has almost no probability for
# the other member.
@pytest.mark.parametrize("tie", TIES)
def test_a_tie_of_geometric_means_between_classes_without_votes(tie):
    vote = Geometric(tie=tie).combine(np.log([[[0.2, 0.2, 0.6, 1e-9]], [[0.3, 0.3, 1e-9, 0.4]]]))
    assert vote.ties.tolist() == [True]
    assert vote.labels.tolist() == [0]


def test_geometric_means_that_tie_go_to_the_higher_arithmetic_mean():
    # 0.3 · 0.3 = 0.1 · 0.9, but 0.3 + 0.3 < 0.1 + 0.9.
    vote = Geometric().combine(np.log([[[0.3, 0.1, 0.6]], [[0.3, 0.9, 1e-9]]]))
    assert (vote.ties.tolist(), vote.labels.tolist()) == ([True], [1])


# In group 3 (three members), class 0 wins by 2 to 1. In group 5 (two members), the classes tie. With `probability`,
# class 1 wins in group 5, and the groups tie. For class 0, the groups' means are (0.8 + 0.7 + 0.1) / 3 and 0.3; the
# mean of both is 0.417.
@pytest.mark.parametrize(("tie", "scores", "winner"), [("probability", [1, 1], 1), ("lowest", [2, 0], 0)])
def test_ties_within_and_between_groups_by_hand(tie, scores, winner):
    rows = [[0.8, 0.2], [0.7, 0.3], [0.1, 0.9], [0.55, 0.45], [0.05, 0.95]]
    vote = TwoLevel(groups=["3", "3", "3", "5", "5"], tie=tie).combine(np.log(rows)[:, None, :])
    assert vote.scores.tolist() == [scores]
    assert vote.votes.tolist() == [[3, 2]]
    np.testing.assert_allclose(vote.probabilities[0, 0], (1.6 / 3 + 0.3) / 2)
    assert vote.labels.tolist() == [winner]


def test_the_first_group_decides_between_groups():
    # The first member chooses 2, but its group answers 1. Group 5 answers 0.
    logits = choosing([2, 1, 0, 1])
    assert TwoLevel(groups=["3", "3", "5", "3"], tie="first").combine(logits).labels.tolist() == [1]


def test_a_large_group_does_not_outvote_several_small_ones():
    logits = choosing([0, 0, 0, 0, 1, 1])
    assert Majority().combine(logits).labels.tolist() == [0]
    assert TwoLevel(groups=["3", "3", "3", "3", "5", "7"]).combine(logits).labels.tolist() == [1]


@pytest.mark.parametrize("tie", TIES)
def test_two_of_three_win_without_the_tie_rule(tie):
    # Two members slightly prefer class 1 and the third is certain of class 0. Only votes count.
    vote = Majority(tie=tie).combine(np.log([[[0.49, 0.51]], [[0.49, 0.51]], [[0.999, 0.001]]]))
    assert vote.labels.tolist() == [1]
    assert vote.ties.tolist() == [False]


def test_soft_vote_follows_the_mean_probability_against_the_majority():
    logits = np.log([[[0.49, 0.51]], [[0.49, 0.51]], [[0.999, 0.001]]])
    assert Soft().combine(logits).labels.tolist() == [0]


def test_one_member_can_veto_a_class_in_a_geometric_vote():
    logits = np.log([[[0.9, 0.1]], [[0.9, 0.1]], [[1e-6, 1 - 1e-6]]])
    assert Soft().combine(logits).labels.tolist() == [0]
    assert Geometric().combine(logits).labels.tolist() == [1]


def test_a_member_with_equal_logits_votes_for_the_lower_class():
    assert Majority().combine(np.zeros((1, 1, 3))).votes.tolist() == [[1, 0, 0]]
    assert Majority().combine(choosing([2, 2, 1])).votes.tolist() == [[0, 1, 2]]


def test_classes_with_equal_logits_share_the_points_of_their_ranks():
    assert Borda().combine(np.array([[[1.0, 1.0, 0.0, 2.0]]])).scores.tolist() == [[1.5, 1.5, 0.0, 3.0]]


def test_stacking_by_hand():
    # Only the second member's log-probability of class 0 counts, and it favours class 1.
    coefficients = np.array([[0, 0, 0, 0], [0, 0, 2, 0]])
    rule = Stacking(coefficients=coefficients, intercepts=np.array([0, 1.0]))
    vote = rule.combine(np.log([[[0.9, 0.1]], [[0.5, 0.5]]]))
    np.testing.assert_allclose(vote.scores, [[0, 2 * math.log(0.5) + 1]])
    np.testing.assert_allclose(vote.probabilities[0, 0], 1 / (1 + 0.25 * math.e))
    assert (vote.labels.tolist(), vote.votes.tolist()) == ([0], [[2, 0]])


def test_stacking_features_have_a_minimum():
    np.testing.assert_allclose(stacking_features(np.array([[0.0, -100.0]])), [[0.0, -30.0]], atol=1e-12)
