"""Properties that every voting rule must have. A new rule is tested without changes here."""

from dataclasses import replace
from itertools import permutations
from typing import get_args

import numpy as np
import pytest
from scipy.special import softmax

from fmcli.choices import RULE_NAMES, TieRule
from fmcli.ensemble import Combiner, fit_combiner
from fmcli.ensemble.file import EnsembleFile, MemberPath, describe_ensemble
from fmcli.ensemble.rules import make_rule, rule_class, rules_where
from fmcli.ensemble.rules.additive import AdditiveRule
from fmcli.ensemble.rules.stacking import Stacking
from fmcli.ensemble.rules.vote import Vote
from fmcli.errors import UsageError

TIES = get_args(TieRule)
FIELDS = Vote.__dataclass_fields__
every_vote = pytest.mark.parametrize("vote", RULE_NAMES)
every_rule = pytest.mark.parametrize(("vote", "tie"), [(vote, tie) for vote in RULE_NAMES for tie in TIES])


def random_logits(seed, n_members=5, n_samples=60, n_classes=4):
    return np.random.default_rng(seed).normal(size=(n_members, n_samples, n_classes)).astype(np.float32)


def coarse_logits(seed, n_members=5, n_samples=300, n_classes=4):
    """Draw logits of few values, so that votes tie often and probabilities tie exactly."""
    return np.random.default_rng(seed).integers(0, 3, (n_members, n_samples, n_classes)).astype(np.float32)


def labelled_logits(seed=0, n_members=5, n_samples=200, n_classes=4):
    """Draw logits of members with increasing accuracy, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n_samples)
    skill = np.linspace(0.5, 2.0, n_members)[:, None, None]
    noise = rng.normal(size=(n_members, n_samples, n_classes))
    return (noise + skill * np.eye(n_classes)[labels]).astype(np.float32), labels


def make(vote, tie="probability", n_members=5, n_classes=4, *, seed=0, symmetric=False):
    """Return a rule with drawn groups, small integer weights, which tie often, and coefficients.

    Symmetric coefficients treat all classes alike, as the other rules do.
    """
    rng = np.random.default_rng(seed)
    weights = rng.integers(1, 4, n_members)
    rule = make_rule(vote, tie=tie, groups=rng.choice(["3", "5", "7"], n_members).tolist())
    if isinstance(rule, Stacking):
        coefficients, intercepts = np.concatenate([weight * np.eye(n_classes) for weight in weights], axis=1), 0.0
        if not symmetric:
            coefficients = coefficients + rng.normal(size=coefficients.shape)
            intercepts = rng.normal(size=n_classes)
        return replace(rule, coefficients=coefficients, intercepts=intercepts + np.zeros(n_classes))
    if rule.needs_fit and rule.takes_weights:
        rule = replace(rule, weights=tuple(weights.tolist()))
    return rule.fit(*labelled_logits(seed, n_members, n_classes=n_classes)) if rule.needs_fit else rule


def make_movable(vote, *arguments, **options):
    """Return a rule. Skip the test if the meaning of its parameters is unknown here."""
    rule = make(vote, *arguments, **options)
    if rule.parameters() and not isinstance(rule, Stacking):
        pytest.skip("add the meaning of the parameters to make, reordered and renamed")
    return rule


def reordered(rule, order):
    """Return the rule for members in another order."""
    weights = rule.weights and tuple(rule.weights[index] for index in order)
    rule = replace(rule, weights=weights, groups=tuple(rule.groups[index] for index in order))
    if isinstance(rule, Stacking):
        blocks = np.split(rule.coefficients, len(order), axis=1)
        rule = replace(rule, coefficients=np.concatenate([blocks[index] for index in order], axis=1))
    return rule


def renamed(rule, new_name):
    """Return the rule for renamed classes: class k is renamed to new_name[k]."""
    if not isinstance(rule, Stacking):
        return rule
    old_name = np.argsort(new_name)
    blocks = np.split(rule.coefficients, len(rule.groups), axis=1)
    coefficients = np.concatenate([block[np.ix_(old_name, old_name)] for block in blocks], axis=1)
    return replace(rule, coefficients=coefficients, intercepts=rule.intercepts[old_name])


def ignores_labels(vote, tie):
    """Return for each image whether its answer does not depend on which label is the lowest, bool (n_samples,)."""
    if tie == "lowest":
        return ~vote.ties
    leading = np.isclose(vote.scores, vote.scores.max(axis=1, keepdims=True), rtol=1e-9)
    probabilities = np.where(leading, vote.probabilities, -1)
    is_highest = np.isclose(probabilities, probabilities.max(axis=1, keepdims=True), rtol=1e-9)
    is_chosen = (leading & (vote.votes > 0)).any(axis=1)
    return (is_highest.sum(axis=1) == 1) | (is_chosen if tie == "first" else False)


def assert_same_vote(result, expected):
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))


# --- votes -----------------------------------------------------------------------------------------------


@every_rule
@pytest.mark.parametrize("draw", [random_logits, coarse_logits])
def test_member_order_does_not_matter(vote, tie, draw):
    logits, rule = draw(seed=1), make_movable(vote, tie)
    expected = rule.combine(logits)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(logits))
        result = reordered(rule, order).combine(logits[order])
        np.testing.assert_array_equal(result.votes, expected.votes)
        if rule.needs_groups and tie == "first":  # the first member of a group changes the group's answer
            continue
        np.testing.assert_array_equal(result.ties, expected.ties)
        # The order of addition changes the last bits.
        np.testing.assert_allclose(result.probabilities, expected.probabilities, rtol=1e-9)
        np.testing.assert_allclose(result.scores, expected.scores, rtol=1e-9, atol=1e-12)
        decided = ~expected.ties if tie == "first" else slice(None)
        np.testing.assert_array_equal(result.labels[decided], expected.labels[decided])


@every_rule
@pytest.mark.parametrize("draw", [random_logits, coarse_logits])
def test_the_order_of_images_does_not_matter(vote, tie, draw):
    logits, rule = draw(seed=2), make(vote, tie)
    expected = rule.combine(logits)
    order = np.random.default_rng(0).permutation(logits.shape[1])
    result = rule.combine(logits[:, order])
    for name in ("labels", "votes", "ties"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name)[order])
    for name in ("probabilities", "scores"):
        np.testing.assert_allclose(getattr(result, name), getattr(expected, name)[order], rtol=1e-12)


@every_rule
@pytest.mark.parametrize("draw", [random_logits, coarse_logits])
def test_renamed_classes_give_renamed_answers(vote, tie, draw):
    logits, rule = draw(seed=3), make_movable(vote, tie)
    if draw is coarse_logits:  # avoids ties within a member, where the lower class wins
        logits = logits + np.random.default_rng(0).permuted(np.full_like(logits, [0, 0.1, 0.2, 0.3]), axis=2)
    expected = rule.combine(logits)
    new_name = np.random.default_rng(0).permutation(logits.shape[2])
    moved = np.empty_like(logits)
    moved[:, :, new_name] = logits
    result = renamed(rule, new_name).combine(moved)
    np.testing.assert_array_equal(result.votes[:, new_name], expected.votes)
    if rule.needs_groups and tie == "lowest":  # the answer of a group depends on the names
        return
    np.testing.assert_array_equal(result.ties, expected.ties)
    np.testing.assert_allclose(result.scores[:, new_name], expected.scores, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(result.probabilities[:, new_name], expected.probabilities, rtol=1e-9)
    decided = ignores_labels(expected, tie)
    np.testing.assert_array_equal(result.labels[decided], new_name[expected.labels[decided]])


@every_rule
@pytest.mark.parametrize("n_members", [1, 2, 3, 7])
def test_identical_members_answer_like_one_member(vote, tie, n_members):
    member = random_logits(seed=4, n_members=1)
    rule = make_movable(vote, tie, n_members, symmetric=True)
    result = rule.combine(np.repeat(member, n_members, axis=0))
    np.testing.assert_array_equal(result.labels, member[0].argmax(axis=1))
    np.testing.assert_array_equal(result.votes.max(axis=1), n_members)
    assert not result.ties.any()
    if isinstance(rule, AdditiveRule) or rule.needs_groups:
        np.testing.assert_allclose(result.probabilities, softmax(member[0].astype(np.float64), axis=1), rtol=1e-12)


@every_rule
def test_a_class_that_all_members_choose_wins(vote, tie):
    logits = random_logits(seed=5)
    wanted = np.random.default_rng(0).integers(0, logits.shape[2], logits.shape[1])
    np.put_along_axis(logits, np.broadcast_to(wanted[None, :, None], (*logits.shape[:2], 1)), 10.0, axis=2)
    result = make_movable(vote, tie, symmetric=True).combine(logits)
    np.testing.assert_array_equal(result.labels, wanted)
    assert (result.votes.max(axis=1) == len(logits)).all()
    assert not result.ties.any()


@every_rule
@pytest.mark.parametrize("draw", [random_logits, coarse_logits])
def test_votes_and_probabilities_have_the_right_sums_and_the_winner_leads(vote, tie, draw):
    logits = draw(seed=6)
    result = make(vote, tie).combine(logits)
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
    result = make(vote, tie, 3).combine(np.zeros((3, 0, 4), dtype=np.float32))
    assert result.labels.shape == result.ties.shape == (0,)
    assert result.votes.shape == result.probabilities.shape == result.scores.shape == (0, 4)


@every_vote
def test_logits_that_are_not_finite_are_refused(vote):
    combiner = Combiner(make(vote))
    for bad in (np.nan, np.inf, -np.inf):
        logits = random_logits(seed=7)
        logits[1, 2, 3] = bad
        with pytest.raises(UsageError, match="finite"):
            combiner(logits)


@every_vote
@pytest.mark.parametrize("shape", [(), (4,), (3, 4), (0, 3, 4), (3, 4, 0), (1, 2, 3, 4)])
def test_logits_of_another_shape_are_refused_with_their_shape(vote, shape):
    with pytest.raises(UsageError) as caught:
        Combiner(make(vote))(np.zeros(shape))
    assert str(shape) in caught.value.message


@every_vote
def test_huge_logits_do_not_overflow(vote):
    logits = np.array([[[3e38, -3e38, 0]], [[-3e38, 3e38, 0]]], dtype=np.float32)
    result = make(vote, n_members=2, n_classes=3, symmetric=True).combine(logits)
    assert np.isfinite(result.scores).all()
    np.testing.assert_allclose(result.probabilities.sum(axis=1), 1)


@every_vote
@pytest.mark.parametrize("row", [[1.0, 2.4, 3.0], [863178.9, 541461.2, 299711.9, 422687.2]], ids=["small", "large"])
def test_equal_probabilities_go_to_the_lowest_label_in_any_order_of_members(vote, row):
    # Each class gets the same probabilities, but from other members, so sums differ only by rounding.
    n_classes = len(row)
    members = np.stack([np.roll(row, turn) for turn in range(n_classes)])[:, None, :]
    rule = replace(make_movable(vote, "probability", n_classes, n_classes, symmetric=True), weights=None)
    rule = replace(rule, groups=tuple("3579"[:n_classes]))
    if isinstance(rule, Stacking):
        rule = replace(rule, coefficients=np.tile(np.eye(n_classes), n_classes))
    for order in permutations(range(n_classes)):
        result = rule.combine(members[list(order)])
        assert result.labels.tolist() == [0]
        assert result.ties.tolist() == [True]


# --- statements in reports -------------------------------------------------------------------------------


@every_rule
def test_the_probability_decides_exactly_if_the_rule_says_so(vote, tie):
    rule, differs = make(vote, tie), 0
    for logits in (random_logits(seed=8, n_samples=500), coarse_logits(seed=8)):
        result = rule.combine(logits)
        differs += (result.labels != result.probabilities.argmax(axis=1))[~result.ties].sum()
    assert rule.probability_decides == (differs == 0)


@pytest.mark.parametrize("vote", rules_where(lambda rule: isinstance(rule, AdditiveRule)))
@pytest.mark.parametrize("weights", [None, (3.0, 1.0, 1.0, 1.0, 1.0)])
def test_the_kind_of_the_scores_is_as_the_rule_says(vote, weights):
    rule = replace(make(vote), weights=weights)
    logits = random_logits(seed=9)
    doubled = np.stack([2 * rule.member_scores(member) for member in logits])
    assert rule.scores_are_points == np.array_equal(doubled, doubled.round())
    result = rule.combine(logits)
    softmax_of_scores = np.allclose(result.probabilities, softmax(result.scores, axis=1), rtol=1e-12)
    assert rule.scores_are_log_probabilities == softmax_of_scores
    if not softmax_of_scores:  # selection by loss relies on it
        mean = np.average(softmax(logits.astype(float), axis=2), axis=0, weights=weights)
        np.testing.assert_allclose(result.probabilities, mean)


@every_vote
def test_texts_of_a_rule_are_complete(vote):
    rule = make(vote)
    assert (rule.name, type(rule)) == (vote, rule_class(vote))
    assert rule.probability_meaning.startswith("the ")
    assert not rule.probability_meaning.endswith(".")
    assert rule.tie_meaning[0].isupper()
    assert rule.label.endswith(rule.unweighted.name)
    assert ("weighted" in rule.label) == (rule.weights is not None)
    assert rule_class(vote).__doc__ != AdditiveRule.__doc__


# --- fitting, members and files --------------------------------------------------------------------------


@every_vote
def test_a_rule_votes_after_fitting(vote):
    logits, labels = labelled_logits()
    rule = make_rule(vote, tie="first", groups="33577")
    fitted = rule.fit(logits, labels)
    assert not fitted.needs_fit
    assert (fitted is rule) == (not rule.needs_fit)
    assert (fitted.tie, fitted.groups) == (rule.tie, rule.groups)
    assert (fitted.combine(logits).labels == labels).mean() > 0.5


@every_rule
def test_a_rule_votes_without_any_member_or_says_that_it_cannot(vote, tie):
    logits, rule = random_logits(seed=10), make(vote, tie)
    for member in range(len(logits)):
        rest = rule.without(member)
        if rest is None:
            assert rule.parameters()
            continue
        others = np.delete(np.arange(len(logits)), member)
        assert_same_vote(rest.combine(logits[others]), reordered(rule, others).combine(logits[others]))


@every_vote
def test_a_saved_rule_votes_the_same(vote, tmp_path):
    logits, labels = labelled_logits()
    combiner = fit_combiner(Combiner(make_rule(vote, tie="lowest", groups="33577")), logits, labels)
    members = [MemberPath(f"m{index}", tmp_path / f"m{index}") for index in range(len(logits))]
    content = describe_ensemble(members, combiner, tmp_path)
    loaded = EnsembleFile.model_validate_json(content.model_dump_json(exclude_none=True)).combiner()
    assert loaded.rule.parameters() == combiner.rule.parameters()
    assert loaded.rule.tie == "lowest"
    assert (loaded.rule.weights, loaded.rule.groups) == (combiner.rule.weights, combiner.rule.groups)
    assert_same_vote(loaded(logits), combiner(logits))


@every_vote
@pytest.mark.parametrize("values", [{}, {"a": 1}, 1, "x", None, [[]]])
def test_wrong_parameters_in_a_file_are_refused(vote, values):
    with pytest.raises(ValueError):  # noqa: PT011 - each rule has its own message
        make_rule(vote).with_parameters(values, 5)
