"""Evaluation of a vote: scores, contributions of members, and calibration."""

from dataclasses import replace

import numpy as np
import pytest

from fmcli.choices import RULE_NAMES
from fmcli.ensemble import (
    combine_predictions,
    evaluate_ensemble,
    evaluate_member,
    fit_combiner,
)
from fmcli.ensemble.evaluate import MAX_MEMBERS_TO_LEAVE_OUT, evaluate_vote
from fmcli.ensemble.fitting import cross_fit, cross_fitted_probabilities
from fmcli.ensemble.predictions import stack_logits
from fmcli.ensemble.rules import rules_where
from fmcli.ensemble.rules.vote import TIE_RULES
from fmcli.errors import CheckpointError
from fmcli.metrics.calibration import apply_temperature, calibration, calibration_of_probabilities
from fmcli.metrics.classification import classification_report
from fmcli.metrics.comparison import cochran_q_test, mcnemar_test
from fmcli.metrics.coverage import coverage_curve
from fmcli.metrics.diversity import pairwise_diversity
from tests.ensemble.test_predictions import CLASSES, make_predictions, random_members
from tests.helpers import make_combiner

FITTED_RULES = rules_where(lambda rule: rule.needs_fit)
GROUPS = ("3", "3", "5", "7")


def evaluate(predictions, rule, **fitted_here):
    return evaluate_ensemble(combine_predictions(predictions, rule, **fitted_here))


def choosing(choices, labels, member):
    """Return a member that chooses these classes with high probability."""
    return make_predictions(4 * np.eye(3)[choices], labels, member)


def fitted(vote, seed=100, tie="probability"):
    """Return a rule that was fitted to other images."""
    members = random_members(seed, split="validation")
    return fit_combiner(make_combiner(vote, tie, groups=GROUPS), stack_logits(members), members[0].labels)


every_vote = pytest.mark.parametrize("vote", RULE_NAMES)


def test_three_members_with_different_errors_vote_correctly():
    labels = [0, 1, 2, 0]
    members = [
        choosing([1, 1, 2, 0], labels, "m3"),
        choosing([0, 2, 2, 0], labels, "m5"),
        choosing([0, 1, 0, 1], labels, "m7"),  # wrong twice
    ]
    result = evaluate(members, make_combiner())
    assert [member.name for member in result.members] == ["m3", "m5", "m7"]
    assert [member.report.accuracy for member in result.members] == [0.75, 0.75, 0.5]
    assert (result.vote.name, result.vote.report.accuracy) == ("vote", 1.0)
    assert result.best_member == "m3"  # the first of two equally good members
    assert (result.gain.only_first, result.gain.only_second, result.gain.difference) == (1, 0, 0.25)
    assert result.n_ties == 0
    # m3 and m5 differ on two of four images, m3 and m7 on three, m5 and m7 on three.
    assert result.diversity.mean_disagreement == pytest.approx((2 + 3 + 3) / 12)
    # If the two remaining members disagree, their probabilities are equal and the lower label wins. On the third image,
    # where m7 chooses 0, that is wrong.
    assert result.contributions == (0.25, 0.25, 0)
    assert result.split == "test"
    assert (result.calibrated, result.cross_fitted) == (None, False)


def test_ties_are_counted():
    members = [choosing([0, 0], [0, 0], "a"), choosing([1, 0], [0, 0], "b")]
    assert evaluate(members, make_combiner()).n_ties == 1


@every_vote
@pytest.mark.parametrize("tie", sorted(TIE_RULES))
def test_the_vote_and_each_member_are_scored(vote, tie):
    members, rule = random_members(seed=1), fitted(vote, tie=tie)
    result = evaluate(members, rule)
    combined = rule(stack_logits(members))
    labels = members[0].labels
    assert_same_evaluation(
        result.vote, evaluate_vote(replace(rule, temperature=1)(stack_logits(members)), labels, CLASSES)
    )
    assert result.n_ties == combined.ties.sum()
    assert result.combiner is rule
    accuracies = [(member.choices == labels).mean() for member in members]
    best = members[int(np.argmax(accuracies))]
    assert result.best_member == best.member
    assert result.gain == mcnemar_test(labels, combined.labels, best.choices)
    choices = np.stack([member.choices for member in members])
    assert result.agreement == cochran_q_test(labels, choices)
    np.testing.assert_array_equal(result.diversity.kappa, pairwise_diversity(labels, choices).kappa)
    for scores, member in zip(result.members, members, strict=True):
        assert_same_evaluation(scores, evaluate_member(member))


def assert_same_evaluation(found, expected):
    assert (found.name, found.report.accuracy) == (expected.name, expected.report.accuracy)
    assert found.report.classes == expected.report.classes
    np.testing.assert_array_equal(found.report.confusion, expected.report.confusion)
    assert found.calibration == expected.calibration
    np.testing.assert_array_equal(found.confidence, expected.confidence)
    np.testing.assert_array_equal(found.correct, expected.correct)


@pytest.mark.parametrize("vote", sorted({*RULE_NAMES} - {"stacking"}))
def test_a_contribution_is_the_accuracy_lost_without_the_member(vote):
    members, rule = random_members(seed=2), fitted(vote)
    result = evaluate(members, rule)
    labels = members[0].labels
    for index, contribution in enumerate(result.contributions):
        others = [other for other in range(len(members)) if other != index]
        weights = rule.rule.weights and tuple(rule.rule.weights[other] for other in others)
        own = replace(rule.rule, weights=weights, groups=tuple(GROUPS[other] for other in others))
        alone = own.combine(stack_logits([members[other] for other in others])).labels
        assert contribution == pytest.approx(result.vote.report.accuracy - (alone == labels).mean())


def test_a_member_without_weight_contributes_nothing():
    result = evaluate(random_members(seed=3), make_combiner("soft", weights=(1, 0, 2, 1)))
    assert result.contributions[1] == 0


def test_contributions_are_unknown_for_stacking_one_member_or_if_no_weight_remains():
    members = random_members(seed=4)
    assert evaluate(members, fitted("stacking")).contributions == (None,) * 4
    assert evaluate(members[:1], make_combiner()).contributions == (None,)
    lopsided = evaluate(members[:2], make_combiner("soft", weights=(0, 1)))
    assert lopsided.contributions == (0, None)


@pytest.mark.parametrize("n_members", [MAX_MEMBERS_TO_LEAVE_OUT, MAX_MEMBERS_TO_LEAVE_OUT + 1])
def test_contributions_are_unknown_for_many_members(n_members):
    result = evaluate(random_members(seed=5, n_members=n_members, n_samples=5), make_combiner())
    assert (None in result.contributions) == (n_members > MAX_MEMBERS_TO_LEAVE_OUT)


# --- calibration -----------------------------------------------------------------------------------------


@every_vote
def test_calibration_is_measured_before_and_after_temperature_scaling(vote):
    members, rule = random_members(seed=6), fitted(vote)
    result = evaluate(members, rule)
    plain = replace(rule, temperature=1.0)(stack_logits(members)).probabilities
    labels = members[0].labels
    assert result.vote.calibration == calibration_of_probabilities(plain, labels)
    scaled = apply_temperature(plain, rule.temperature)
    assert result.calibrated == calibration_of_probabilities(scaled, labels)
    assert not result.cross_fitted


@every_vote
def test_a_rule_fitted_to_these_images_is_cross_fitted(vote, monkeypatch):
    monkeypatch.setattr("fmcli.ensemble.rules.stacking._INVERSE_PENALTIES", [0.1])  # one value is enough to test folds
    members = random_members(seed=7, n_samples=60, split="validation")
    unfitted = make_combiner(vote, groups=GROUPS)
    logits, labels = stack_logits(members), members[0].labels
    rule = fit_combiner(unfitted, logits, labels)
    result = evaluate(members, rule, fitted_here=unfitted)
    expected = cross_fit(unfitted, logits, labels)(logits) if vote in FITTED_RULES else unfitted(logits)
    assert result.cross_fitted == (vote in FITTED_RULES)
    assert result.combiner is rule
    assert_same_evaluation(result.vote, evaluate_vote(expected, labels, CLASSES))
    scaled = cross_fitted_probabilities(expected.probabilities, labels)
    assert result.calibrated == calibration_of_probabilities(scaled, labels)


@pytest.mark.parametrize("vote", ["weighted-majority", "weighted-soft"])
def test_contributions_are_cross_fitted(vote):
    members = random_members(seed=8, n_members=5, n_samples=200)
    logits, labels = stack_logits(members), members[0].labels
    rule = fit_combiner(make_combiner(vote), logits, labels)
    result = evaluate(members, rule, fitted_here=make_combiner(vote))
    combiner = cross_fit(make_combiner(vote), logits, labels)
    for index, contribution in enumerate(result.contributions):
        rest = combiner.without(index)(np.delete(logits, index, axis=0))
        assert contribution == pytest.approx(
            (combiner(logits).labels == labels).mean() - (rest.labels == labels).mean()
        )


def test_an_evaluation_has_confidence_and_correctness_of_each_image():
    [member] = random_members(seed=9, n_members=1)
    result = evaluate_member(member)
    powers = np.exp(member.logits.astype(float))
    np.testing.assert_allclose(result.confidence, (powers / powers.sum(axis=1, keepdims=True)).max(axis=1))
    np.testing.assert_array_equal(result.correct, member.choices == member.labels)
    assert result.calibration == calibration(member.logits, member.labels)
    assert result.report.classes == classification_report(member.labels, member.choices, class_names=CLASSES).classes
    assert result.coverage.aurc == coverage_curve(result.confidence, result.correct).aurc


def test_confidence_is_the_probability_of_the_answer_even_if_another_class_is_likelier():
    labels = [0]
    members = [
        make_predictions(np.log([row]), labels, str(row))
        for row in ([0.4, 0.3, 0.3], [0.4, 0.3, 0.3], [0.01, 0.98, 0.01])
    ]
    result = evaluate(members, make_combiner("majority"))
    np.testing.assert_allclose(result.vote.confidence, [0.81 / 3])
    assert result.vote.correct.tolist() == [True]


# --- one member, and members that do not match -----------------------------------------------------------


@pytest.mark.parametrize("vote", sorted({*RULE_NAMES} - {"stacking"}))
def test_an_ensemble_of_one_has_the_scores_of_its_member(vote):
    [member] = random_members(seed=2, n_members=1)
    rule = fit_combiner(make_combiner(vote, groups=("3",)), stack_logits([member]), member.labels, calibrate=False)
    result = evaluate([member], rule)
    alone = evaluate_member(member)
    assert result.vote.report.classes == alone.report.classes
    assert result.vote.calibration.loss == pytest.approx(alone.calibration.loss)
    assert result.vote.calibration.ece == pytest.approx(alone.calibration.ece)
    assert (result.diversity.mean_disagreement, result.gain.p_value) == (0, 1)
    assert result.agreement is None


def test_members_that_do_not_match_are_refused_by_name():
    first, second = random_members(seed=4, n_members=2)
    stranger = replace(second, class_names=("coat", "shirt", "bag"), member="stranger")  # the order counts
    with pytest.raises(CheckpointError) as caught:
        evaluate([first, stranger], make_combiner())
    for said in ("stranger", "m0", "coat, shirt, bag", "coat, bag, shirt"):
        assert said in caught.value.message
