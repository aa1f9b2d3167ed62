"""Properties of all voting rules, and ties calculated by hand."""

import math
from itertools import permutations
from typing import get_args

import numpy as np
import pytest
from scipy.special import softmax

from fmcli.choices import RULE_NAMES, TieRule
from fmcli.ensemble import Combiner
from fmcli.ensemble.rules import rule_class
from fmcli.ensemble.rules.borda import Borda
from fmcli.ensemble.rules.geometric import Geometric
from fmcli.ensemble.rules.majority import Majority
from fmcli.ensemble.rules.soft import Soft
from fmcli.ensemble.rules.stacking import Stacking, stacking_features
from fmcli.ensemble.rules.two_level import TwoLevel
from fmcli.ensemble.rules.vote import TIE_RULES, normalize_weights
from fmcli.errors import UsageError

TIES = get_args(TieRule)
every_vote = pytest.mark.parametrize("vote", RULE_NAMES)
every_rule = pytest.mark.parametrize(("vote", "tie"), [(vote, tie) for vote in RULE_NAMES for tie in TIES])


def random_logits(seed, n_members=5, n_samples=60, n_classes=4):
    return np.random.default_rng(seed).normal(size=(n_members, n_samples, n_classes)).astype(np.float32)


def coarse_logits(seed, n_members=5, n_samples=300, n_classes=4):
    """Draw logits of few values, so that votes tie often and probabilities tie exactly."""
    return np.random.default_rng(seed).integers(0, 3, (n_members, n_samples, n_classes)).astype(np.float32)


def choosing(choices, n_classes=3, logit=2.0):
    """Return logits of one image for members that choose these classes."""
    return (logit * np.eye(n_classes)[choices])[:, None, :]


def parameters_of(vote, n_members=5, n_classes=4, *, seed=0, symmetric=False):
    """Draw the parameters of a rule: small integer weights, which tie often; groups; coefficients.

    Symmetric coefficients treat all classes alike, as the other rules do.
    """
    rng = np.random.default_rng(seed)
    weights = rng.integers(1, 4, n_members)
    match vote:
        case "weighted-majority" | "weighted-soft":
            return {"weights": weights.tolist()}
        case "two-level":
            return {"groups": rng.choice(["3", "5", "7"], n_members).tolist()}
        case "stacking":
            coefficients = np.concatenate([weight * np.eye(n_classes) for weight in weights], axis=1)
            if symmetric:
                return {"coefficients": coefficients, "intercepts": np.zeros(n_classes)}
            coefficients = coefficients + rng.normal(size=coefficients.shape)
            return {"coefficients": coefficients, "intercepts": rng.normal(size=n_classes)}
        case _:
            return {}


def reordered(parameters, order):
    """Return the parameters for members in another order."""
    moved = dict(parameters)
    for name in parameters.keys() & {"weights", "groups"}:
        moved[name] = [parameters[name][index] for index in order]
    if "coefficients" in parameters:
        blocks = np.split(parameters["coefficients"], len(order), axis=1)
        moved["coefficients"] = np.concatenate([blocks[index] for index in order], axis=1)
    return moved


def renamed(parameters, new_name):
    """Return the parameters for renamed classes: class k is renamed to new_name[k]."""
    if "coefficients" not in parameters:
        return parameters
    old_name = np.argsort(new_name)
    blocks = np.split(parameters["coefficients"], parameters["coefficients"].shape[1] // len(new_name), axis=1)
    coefficients = np.concatenate([block[np.ix_(old_name, old_name)] for block in blocks], axis=1)
    return {"coefficients": coefficients, "intercepts": parameters["intercepts"][old_name]}


def test_every_tie_rule_is_implemented():
    assert set(TIES) == set(TIE_RULES)


@every_rule
@pytest.mark.parametrize("draw", [random_logits, coarse_logits])
def test_member_order_does_not_matter(vote, tie, draw):
    logits, parameters = draw(seed=1), parameters_of(vote)
    expected = rule_class(vote)(tie=tie, **parameters).combine(logits)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(logits))
        result = rule_class(vote)(tie=tie, **reordered(parameters, order)).combine(logits[order])
        np.testing.assert_array_equal(result.votes, expected.votes)
        if (vote, tie) == ("two-level", "first"):  # the first member of a group changes the group's answer
            continue
        np.testing.assert_array_equal(result.ties, expected.ties)
        # The order of addition changes the last bits.
        np.testing.assert_allclose(result.probabilities, expected.probabilities, rtol=1e-9)
        np.testing.assert_allclose(result.scores, expected.scores, rtol=1e-9, atol=1e-12)
        decided = ~expected.ties if tie == "first" else slice(None)
        np.testing.assert_array_equal(result.labels[decided], expected.labels[decided])


@pytest.mark.parametrize("seed", range(5))
def test_the_first_member_of_a_group_decides_its_ties_in_any_order_of_groups(seed):
    logits, groups = coarse_logits(seed), ["3", "3", "5", "5", "7"]
    expected = TwoLevel(groups=groups, tie="first").combine(logits)
    moved = [4, 2, 3, 0, 1]  # whole groups
    result = TwoLevel(groups=[groups[index] for index in moved], tie="first").combine(logits[moved])
    np.testing.assert_array_equal(result.scores, expected.scores)
    np.testing.assert_array_equal(result.labels[~expected.ties], expected.labels[~expected.ties])


@every_rule
@pytest.mark.parametrize("draw", [random_logits, coarse_logits])
def test_the_order_of_images_does_not_matter(vote, tie, draw):
    logits, parameters = draw(seed=2), parameters_of(vote)
    expected = rule_class(vote)(tie=tie, **parameters).combine(logits)
    order = np.random.default_rng(0).permutation(logits.shape[1])
    result = rule_class(vote)(tie=tie, **parameters).combine(logits[:, order])
    for name in ("labels", "votes", "ties"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name)[order])
    for name in ("probabilities", "scores"):
        np.testing.assert_allclose(getattr(result, name), getattr(expected, name)[order], rtol=1e-12)


@every_rule
@pytest.mark.parametrize("draw", [random_logits, coarse_logits])
def test_renamed_classes_give_renamed_answers(vote, tie, draw):
    logits, parameters = draw(seed=3), parameters_of(vote)
    if draw is coarse_logits:  # avoids ties within a member, where the lower class wins
        logits = logits + np.random.default_rng(0).permuted(np.full_like(logits, [0, 0.1, 0.2, 0.3]), axis=2)
    expected = rule_class(vote)(tie=tie, **parameters).combine(logits)
    new_name = np.random.default_rng(0).permutation(logits.shape[2])
    moved = np.empty_like(logits)
    moved[:, :, new_name] = logits
    result = rule_class(vote)(tie=tie, **renamed(parameters, new_name)).combine(moved)
    np.testing.assert_array_equal(result.votes[:, new_name], expected.votes)
    if (vote, tie) == ("two-level", "lowest"):  # the lowest label depends on the names
        return
    np.testing.assert_array_equal(result.ties, expected.ties)
    np.testing.assert_allclose(result.scores[:, new_name], expected.scores, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(result.probabilities[:, new_name], expected.probabilities, rtol=1e-9)
    decided = ~expected.ties if tie == "lowest" else slice(None)
    np.testing.assert_array_equal(result.labels[decided], new_name[expected.labels[decided]])


@every_rule
@pytest.mark.parametrize("n_members", [1, 2, 3, 7])
def test_identical_members_answer_like_one_member(vote, tie, n_members):
    member = random_logits(seed=4, n_members=1)
    parameters = parameters_of(vote, n_members, symmetric=True)
    result = rule_class(vote)(tie=tie, **parameters).combine(np.repeat(member, n_members, axis=0))
    np.testing.assert_array_equal(result.labels, member[0].argmax(axis=1))
    np.testing.assert_array_equal(result.votes.max(axis=1), n_members)
    assert not result.ties.any()
    if vote != "stacking":  # its probabilities depend on the coefficients
        np.testing.assert_allclose(result.probabilities, softmax(member[0].astype(np.float64), axis=1), rtol=1e-12)


@every_rule
def test_a_class_that_all_members_choose_wins(vote, tie):
    logits = random_logits(seed=5)
    wanted = np.random.default_rng(0).integers(0, logits.shape[2], logits.shape[1])
    np.put_along_axis(logits, np.broadcast_to(wanted[None, :, None], (*logits.shape[:2], 1)), 10.0, axis=2)
    result = rule_class(vote)(tie=tie, **parameters_of(vote, symmetric=True)).combine(logits)
    np.testing.assert_array_equal(result.labels, wanted)
    assert (result.votes.max(axis=1) == len(logits)).all()
    assert not result.ties.any()


@every_rule
@pytest.mark.parametrize("draw", [random_logits, coarse_logits])
def test_votes_and_probabilities_have_the_right_sums_and_the_winner_leads(vote, tie, draw):
    logits = draw(seed=6)
    result = rule_class(vote)(tie=tie, **parameters_of(vote)).combine(logits)
    assert (result.votes.sum(axis=1) == len(logits)).all()
    np.testing.assert_allclose(result.probabilities.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(
        np.take_along_axis(result.scores, result.labels[:, None], axis=1)[:, 0], result.scores.max(axis=1), rtol=1e-9
    )
    assert result.labels.dtype == result.votes.dtype == np.int64
    assert result.probabilities.dtype == result.scores.dtype == np.float64
    assert result.ties.dtype == np.bool_


@every_rule
def test_no_images_give_no_answers(vote, tie):
    result = rule_class(vote)(tie=tie, **parameters_of(vote, 3)).combine(np.zeros((3, 0, 4), dtype=np.float32))
    assert result.labels.shape == result.ties.shape == (0,)
    assert result.votes.shape == result.probabilities.shape == result.scores.shape == (0, 4)


@every_rule
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(vote, tie, bad):
    logits = random_logits(seed=7)
    logits[1, 2, 3] = bad
    with pytest.raises(UsageError, match="finite"):
        Combiner(rule_class(vote)(tie=tie, **parameters_of(vote)))(logits)


@every_vote
@pytest.mark.parametrize("shape", [(), (4,), (3, 4), (0, 3, 4), (3, 4, 0), (1, 2, 3, 4)])
def test_logits_of_another_shape_are_refused_with_their_shape(vote, shape):
    with pytest.raises(UsageError) as caught:
        Combiner(rule_class(vote)(**parameters_of(vote)))(np.zeros(shape))
    assert str(shape) in caught.value.message


@every_vote
def test_huge_logits_do_not_overflow(vote):
    logits = np.array([[[3e38, -3e38, 0]], [[-3e38, 3e38, 0]]], dtype=np.float32)
    result = rule_class(vote)(**parameters_of(vote, 2, 3, symmetric=True)).combine(logits)
    assert np.isfinite(result.scores).all()
    np.testing.assert_allclose(result.probabilities.sum(axis=1), 1)


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


@every_vote
@pytest.mark.parametrize("row", [[1.0, 2.4, 3.0], [863178.9, 541461.2, 299711.9, 422687.2]], ids=["small", "large"])
def test_equal_probabilities_go_to_the_lowest_label_in_any_order_of_members(vote, row):
    # Each class gets the same probabilities, but from other members, so sums differ only by rounding.
    n_classes = len(row)
    members = np.stack([np.roll(row, turn) for turn in range(n_classes)])[:, None, :]
    parameters = {
        "two-level": {"groups": "3579"[:n_classes]},
        "stacking": {"coefficients": np.tile(np.eye(n_classes), n_classes), "intercepts": np.zeros(n_classes)},
    }.get(vote, {})
    for order in permutations(range(n_classes)):
        result = rule_class(vote)(tie="probability", **parameters).combine(members[list(order)])
        assert result.labels.tolist() == [0]
        assert result.ties.tolist() == [True]


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
