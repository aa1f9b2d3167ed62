"""Properties that every voting rule has, ties worked by hand, and a slow twin."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from fmcli.errors import UsageError
from fmcli.voting import TIE_RULES, VOTING_RULES, majority_vote, soft_vote

RULES = [(vote, tie) for vote in ("majority", "soft") for tie in ("probability", "lowest", "first")]
every_rule = pytest.mark.parametrize(("vote", "tie"), RULES)


def random_logits(seed, n_members=5, n_samples=60, n_classes=4):
    return np.random.default_rng(seed).normal(size=(n_members, n_samples, n_classes)).astype(np.float32)


def coarse_logits(seed, n_members=5, n_samples=300, n_classes=4):
    """Logits of few values, so that votes tie often and probabilities tie exactly."""
    return np.random.default_rng(seed).integers(0, 3, (n_members, n_samples, n_classes)).astype(np.float32)


def choosing(choices, n_classes=3, sure=2.0):
    """Logits of one image for members that choose these classes."""
    return (sure * np.eye(n_classes)[choices])[:, None, :]


def test_every_voting_rule_and_tie_rule_is_tested():
    assert set(RULES) == {(vote, tie) for vote in VOTING_RULES for tie in TIE_RULES}


@every_rule
@pytest.mark.parametrize("draw", [random_logits, coarse_logits])
def test_member_order_does_not_matter(vote, tie, draw):
    logits = draw(seed=1)
    expected = VOTING_RULES[vote](logits, tie=tie)
    for seed in range(5):
        shuffled = np.random.default_rng(seed).permutation(logits, axis=0)
        result = VOTING_RULES[vote](shuffled, tie=tie)
        np.testing.assert_array_equal(result.votes, expected.votes)
        np.testing.assert_array_equal(result.ties, expected.ties)
        # The order of a sum shows in its last bits.
        np.testing.assert_allclose(result.probabilities, expected.probabilities, rtol=1e-12)
        decided = ~expected.ties if tie == "first" else slice(None)
        np.testing.assert_array_equal(result.labels[decided], expected.labels[decided])


@every_rule
@pytest.mark.parametrize("draw", [random_logits, coarse_logits])
def test_each_image_is_voted_on_by_itself(vote, tie, draw):
    logits = draw(seed=2)
    expected = VOTING_RULES[vote](logits, tie=tie)
    order = np.random.default_rng(0).permutation(logits.shape[1])
    result = VOTING_RULES[vote](logits[:, order], tie=tie)
    for name in ("labels", "votes", "probabilities", "ties"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name)[order])


@every_rule
def test_renamed_labels_give_renamed_answers(vote, tie):
    logits = random_logits(seed=3)
    expected = VOTING_RULES[vote](logits, tie=tie)
    new_name = np.random.default_rng(0).permutation(logits.shape[2])  # class k is now called new_name[k]
    renamed = np.empty_like(logits)
    renamed[:, :, new_name] = logits
    result = VOTING_RULES[vote](renamed, tie=tie)
    np.testing.assert_array_equal(result.votes[:, new_name], expected.votes)
    np.testing.assert_array_equal(result.ties, expected.ties)
    fair = ~expected.ties if tie == "lowest" else slice(None)  # the lowest label changes with the names
    np.testing.assert_array_equal(result.labels[fair], new_name[expected.labels[fair]])


@every_rule
@pytest.mark.parametrize("n_members", [1, 2, 3, 7])
def test_identical_members_answer_as_one_and_as_its_argmax(vote, tie, n_members):
    member = random_logits(seed=4, n_members=1)
    result = VOTING_RULES[vote](np.repeat(member, n_members, axis=0), tie=tie)
    alone = VOTING_RULES[vote](member, tie=tie)
    np.testing.assert_array_equal(result.labels, alone.labels)
    np.testing.assert_array_equal(result.labels, member[0].argmax(axis=1))
    np.testing.assert_allclose(result.probabilities, alone.probabilities, rtol=1e-12)
    np.testing.assert_array_equal(result.votes, n_members * alone.votes)
    assert not result.ties.any()


@every_rule
def test_a_class_that_all_members_choose_wins(vote, tie):
    logits = random_logits(seed=5)
    wanted = np.random.default_rng(0).integers(0, logits.shape[2], logits.shape[1])
    np.put_along_axis(logits, np.broadcast_to(wanted[None, :, None], (*logits.shape[:2], 1)), 10.0, axis=2)
    result = VOTING_RULES[vote](logits, tie=tie)
    np.testing.assert_array_equal(result.labels, wanted)
    assert (result.votes.max(axis=1) == len(logits)).all()
    assert not result.ties.any()


@every_rule
def test_votes_and_probabilities_add_up(vote, tie):
    logits = coarse_logits(seed=6)
    result = VOTING_RULES[vote](logits, tie=tie)
    assert (result.votes.sum(axis=1) == len(logits)).all()
    np.testing.assert_allclose(result.probabilities.sum(axis=1), 1, rtol=1e-12)
    assert result.labels.dtype == result.votes.dtype == np.int64
    assert result.probabilities.dtype == np.float64


@every_rule
def test_no_images_give_no_answers(vote, tie):
    result = VOTING_RULES[vote](np.zeros((3, 0, 4), dtype=np.float32), tie=tie)
    assert result.labels.shape == result.ties.shape == (0,)
    assert result.votes.shape == result.probabilities.shape == (0, 4)


@every_rule
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(vote, tie, bad):
    logits = random_logits(seed=7)
    logits[1, 2, 3] = bad
    with pytest.raises(UsageError, match="finite"):
        VOTING_RULES[vote](logits, tie=tie)


@every_rule
@pytest.mark.parametrize("shape", [(), (4,), (3, 4), (0, 3, 4), (3, 4, 0), (1, 2, 3, 4)])
def test_logits_of_another_shape_are_refused_and_their_shape_is_named(vote, tie, shape):
    with pytest.raises(UsageError) as caught:
        VOTING_RULES[vote](np.zeros(shape), tie=tie)
    assert str(shape) in caught.value.message


def test_an_unknown_tie_rule_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match=r"'probabilty'.*did you mean 'probability'"):
        majority_vote(random_logits(seed=8), tie="probabilty")


# --- ties by hand ----------------------------------------------------------------------------------------

# Three members, three classes, one vote each. The mean probabilities are 0.1 + 0.3 + 0.5 = 0.9 thirds for
# class 0, 0.2 + 0.6 + 0.2 = 1.0 for class 1 and 0.7 + 0.1 + 0.3 = 1.1 for class 2. The first member chose 2.
THREE_WAYS = np.log([[[0.1, 0.2, 0.7]], [[0.3, 0.6, 0.1]], [[0.5, 0.2, 0.3]]])


@pytest.mark.parametrize(("tie", "winner"), [("probability", 2), ("lowest", 0), ("first", 2)])
def test_three_way_tie_by_hand(tie, winner):
    vote = majority_vote(THREE_WAYS, tie=tie)
    assert vote.votes.tolist() == [[1, 1, 1]]
    np.testing.assert_allclose(vote.probabilities, [[0.9 / 3, 1.0 / 3, 1.1 / 3]], rtol=1e-12)
    assert vote.ties.tolist() == [True]
    assert vote.labels.tolist() == [winner]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_first_member_decides_by_its_place_alone(order):
    choice_of = [2, 1, 0]
    assert majority_vote(THREE_WAYS[list(order)], tie="first").labels.tolist() == [choice_of[order[0]]]


# Five members: two each for classes 0 and 2; the first member stands alone with class 1, and is the surest.
@pytest.mark.parametrize(("tie", "winner"), [("probability", 2), ("lowest", 0), ("first", 2)])
def test_a_class_outside_the_tie_cannot_win_it(tie, winner):
    rows = [[0.01, 0.98, 0.01], [0.1, 0.2, 0.7], [0.4, 0.35, 0.25], [0.4, 0.35, 0.25], [0.1, 0.2, 0.7]]
    vote = majority_vote(np.log(rows)[:, None, :], tie=tie)
    assert vote.votes.tolist() == [[2, 1, 2]]
    assert vote.probabilities[0].argmax() == 1
    assert vote.ties.tolist() == [True]
    assert vote.labels.tolist() == [winner]


@pytest.mark.parametrize("tie", sorted(TIE_RULES))
def test_two_of_three_win_without_the_tie_rule(tie):
    # The two are barely sure of class 1 and the third is certain of class 0: votes count, not sureness.
    vote = majority_vote(np.log([[[0.49, 0.51]], [[0.49, 0.51]], [[0.999, 0.001]]]), tie=tie)
    assert vote.labels.tolist() == [1]
    assert vote.ties.tolist() == [False]


def test_soft_vote_follows_the_mean_probability_against_the_majority():
    logits = np.log([[[0.49, 0.51]], [[0.49, 0.51]], [[0.999, 0.001]]])
    assert soft_vote(logits).labels.tolist() == [0]


@pytest.mark.parametrize("vote", sorted(VOTING_RULES))
def test_equal_probabilities_go_to_the_lowest_label_in_whatever_order_members_stand(vote):
    # Each class gets the same three probabilities, from other members: equal sums but for rounding.
    row = np.array([1.0, 2.4, 3.0])
    members = np.stack([np.roll(row, turn) for turn in range(3)])[:, None, :]
    for order in permutations(range(3)):
        assert VOTING_RULES[vote](members[list(order)], tie="probability").labels.tolist() == [0]


def test_a_member_between_two_classes_votes_for_the_lower():
    assert majority_vote(np.zeros((1, 1, 3))).votes.tolist() == [[1, 0, 0]]
    assert majority_vote(choosing([2, 2, 1])).votes.tolist() == [[0, 1, 2]]


def test_huge_logits_do_not_overflow():
    logits = np.array([[[3e38, -3e38, 0]], [[-3e38, 3e38, 0]]], dtype=np.float32)
    np.testing.assert_allclose(soft_vote(logits).probabilities, [[0.5, 0.5, 0]])


# --- a slow twin -----------------------------------------------------------------------------------------


def slow_majority(logits, tie):
    labels, ties = [], []
    for image in range(logits.shape[1]):
        choices, mean = [], [0.0] * logits.shape[2]
        for member in logits[:, image].astype(np.float64):
            choices.append(max(range(len(member)), key=lambda k, scores=member: (scores[k], -k)))
            weights = [np.exp(score - max(member)) for score in member]
            mean = [m + w / sum(weights) / len(logits) for m, w in zip(mean, weights, strict=True)]
        counts = Counter(choices)
        tied = sorted(k for k, count in counts.items() if count == max(counts.values()))
        by_rule = {
            "probability": max(tied, key=lambda k, mean=mean: (round(mean[k], 9), -k)),  # equal but for rounding
            "lowest": tied[0],
            "first": next(choice for choice in choices if choice in tied),
        }
        labels.append(by_rule[tie])
        ties.append(len(tied) > 1)
    return labels, ties


@pytest.mark.parametrize("tie", sorted(TIE_RULES))
@pytest.mark.parametrize("n_members", [1, 2, 3, 4, 10])
@pytest.mark.parametrize("draw", [random_logits, coarse_logits])
def test_majority_vote_equals_its_slow_twin(tie, n_members, draw):
    logits = draw(seed=n_members, n_members=n_members, n_samples=60)
    labels, ties = slow_majority(logits, tie)
    vote = majority_vote(logits, tie=tie)
    assert vote.labels.tolist() == labels
    assert vote.ties.tolist() == ties
