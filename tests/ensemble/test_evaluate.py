"""The vote beside its members: what it gains, what each of them adds, and how far it can be trusted."""

from dataclasses import replace

import numpy as np
import pytest

from fmcli.ensemble import (
    Combiner,
    combine_predictions,
    evaluate_ensemble,
    evaluate_member,
    fit_combiner,
)
from fmcli.ensemble.combiner import FITTED_RULES
from fmcli.ensemble.evaluate import MAX_MEMBERS_TO_LEAVE_OUT, evaluate_vote
from fmcli.ensemble.fitting import cross_fit, cross_fitted_probabilities
from fmcli.ensemble.predictions import Predictions, stack_logits
from fmcli.ensemble.rules import TIE_RULES, VOTING_RULES
from fmcli.errors import CheckpointError, UsageError
from fmcli.metrics import (
    apply_temperature,
    calibration,
    calibration_of_probabilities,
    classification_report,
    cochran_q_test,
    coverage_curve,
    mcnemar_test,
    pairwise_diversity,
)

CLASSES = ("coat", "bag", "shirt")
GROUPS = ("3", "3", "5", "7")


def evaluate(predictions, rule, **fitted_here):
    return evaluate_ensemble(combine_predictions(predictions, rule, **fitted_here))


def make_predictions(logits, labels, member="m3", **changes):
    predictions = Predictions(
        logits=np.asarray(logits, dtype=np.float32),
        labels=np.asarray(labels, dtype=np.int64),
        class_names=CLASSES,
        member=member,
        split="test",
        data_digest="d" * 64,
        recipe_digest="r" * 64,
    )
    return replace(predictions, **changes)


def choosing(choices, labels, member):
    """A member that is sure of these classes."""
    return make_predictions(4 * np.eye(3)[choices], labels, member)


def random_members(seed, n_members=4, n_samples=80, **changes):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n_samples)
    return [
        make_predictions(rng.normal(size=(n_samples, 3)) + np.eye(3)[labels], labels, f"m{place}", **changes)
        for place in range(n_members)
    ]


def fitted(vote, seed=100, tie="probability"):
    """A rule that learnt on other images."""
    members = random_members(seed, split="validation")
    return fit_combiner(Combiner(vote, tie, groups=GROUPS), stack_logits(members), members[0].labels)


every_vote = pytest.mark.parametrize("vote", sorted(VOTING_RULES))


def test_three_members_that_are_wrong_in_turn_are_right_together():
    labels = [0, 1, 2, 0]
    members = [
        choosing([1, 1, 2, 0], labels, "m3"),
        choosing([0, 2, 2, 0], labels, "m5"),
        choosing([0, 1, 0, 1], labels, "m7"),  # wrong twice
    ]
    result = evaluate(members, Combiner())
    assert [member.name for member in result.members] == ["m3", "m5", "m7"]
    assert [member.report.accuracy for member in result.members] == [0.75, 0.75, 0.5]
    assert (result.vote.name, result.vote.report.accuracy) == ("vote", 1.0)
    assert result.best_member == "m3"  # the first of two that are equally good
    assert (result.gain.only_first, result.gain.only_second, result.gain.difference) == (1, 0, 0.25)
    assert result.n_ties == 0
    # Of four images m3 and m5 differ on two, m3 and m7 on three, m5 and m7 on three.
    assert result.diversity.mean_disagreement == pytest.approx((2 + 3 + 3) / 12)
    # Where two that remain disagree, they are equally sure, and the lower label wins: wrongly on the third image, where
    # m7 says 0.
    assert result.contributions == (0.25, 0.25, 0)
    assert result.split == "test"
    assert (result.calibrated, result.cross_fitted) == (None, False)


def test_ties_are_counted():
    members = [choosing([0, 0], [0, 0], "a"), choosing([1, 0], [0, 0], "b")]
    assert evaluate(members, Combiner()).n_ties == 1


@every_vote
@pytest.mark.parametrize("tie", sorted(TIE_RULES))
def test_evaluation_is_that_of_the_combined_labels(vote, tie):
    members, rule = random_members(seed=1), fitted(vote, tie=tie)
    result = evaluate(members, rule)
    combined = rule(stack_logits(members))
    labels = members[0].labels
    assert_same_evaluation(
        result.vote, evaluate_vote(replace(rule, temperature=1)(stack_logits(members)), labels, CLASSES)
    )
    assert result.n_ties == combined.ties.sum()
    assert result.rule is rule
    accuracies = [(member.choices == labels).mean() for member in members]
    best = members[int(np.argmax(accuracies))]
    assert result.best_member == best.member
    assert result.gain == mcnemar_test(labels, combined.labels, best.choices)
    choices = np.stack([member.choices for member in members])
    assert result.agreement == cochran_q_test(labels, choices)
    np.testing.assert_array_equal(result.diversity.kappa, pairwise_diversity(labels, choices).kappa)
    for one, member in zip(result.members, members, strict=True):
        assert_same_evaluation(one, evaluate_member(member))


def assert_same_evaluation(one, other):
    assert (one.name, one.report.accuracy, one.report.classes) == (
        other.name,
        other.report.accuracy,
        other.report.classes,
    )
    np.testing.assert_array_equal(one.report.confusion, other.report.confusion)
    assert one.calibration == other.calibration
    np.testing.assert_array_equal(one.confidence, other.confidence)
    np.testing.assert_array_equal(one.correct, other.correct)


@pytest.mark.parametrize("vote", sorted(set(VOTING_RULES) - {"stacking"}))
def test_what_is_lost_without_a_member_is_what_the_others_score_without_it(vote):
    members, rule = random_members(seed=2), fitted(vote)
    result = evaluate(members, rule)
    labels = members[0].labels
    for place, loss in enumerate(result.contributions):
        others = [other for other in range(len(members)) if other != place]
        own = replace(
            rule,
            weights=rule.weights and tuple(rule.weights[other] for other in others),
            groups=tuple(GROUPS[other] for other in others),
        )
        alone = own(stack_logits([members[other] for other in others])).labels
        assert loss == pytest.approx(result.vote.report.accuracy - (alone == labels).mean())


def test_nothing_is_lost_without_a_member_that_has_no_weight():
    result = evaluate(random_members(seed=3), Combiner("soft", weights=(1, 0, 2, 1)))
    assert result.contributions[1] == 0


def test_what_is_lost_is_not_known_of_stacking_of_one_member_or_where_no_weight_remains():
    members = random_members(seed=4)
    assert evaluate(members, fitted("stacking")).contributions == (None,) * 4
    assert evaluate(members[:1], Combiner()).contributions == (None,)
    lopsided = evaluate(members[:2], Combiner("soft", weights=(0, 1)))
    assert lopsided.contributions == (0, None)


@pytest.mark.parametrize("n_members", [MAX_MEMBERS_TO_LEAVE_OUT, MAX_MEMBERS_TO_LEAVE_OUT + 1])
def test_of_many_members_nobody_is_left_out(n_members):
    result = evaluate(random_members(seed=5, n_members=n_members, n_samples=5), Combiner())
    assert (None in result.contributions) == (n_members > MAX_MEMBERS_TO_LEAVE_OUT)


# --- trust ----------------------------------------------------------------------------------------------


@every_vote
def test_the_votes_probabilities_are_judged_as_combined_and_at_the_rules_temperature(vote):
    members, rule = random_members(seed=6), fitted(vote)
    result = evaluate(members, rule)
    plain = replace(rule, temperature=1.0)(stack_logits(members)).probabilities
    labels = members[0].labels
    assert result.vote.calibration == calibration_of_probabilities(plain, labels)
    scaled = apply_temperature(plain, rule.temperature)
    assert result.calibrated == calibration_of_probabilities(scaled, labels)
    assert not result.cross_fitted


@every_vote
def test_what_was_learnt_on_these_very_images_is_learnt_again_in_folds(vote, monkeypatch):
    monkeypatch.setattr("fmcli.ensemble.fitting._INVERSE_PENALTIES", [0.1])  # one value is enough to test folds
    members = random_members(seed=7, n_samples=60, split="validation")
    given = Combiner(vote, groups=GROUPS)
    logits, labels = stack_logits(members), members[0].labels
    rule = fit_combiner(given, logits, labels)
    result = evaluate(members, rule, fitted_here=given)
    fair = cross_fit(given, logits, labels)(logits) if vote in FITTED_RULES else given(logits)
    assert result.cross_fitted == (vote in FITTED_RULES)
    assert result.rule is rule
    assert_same_evaluation(result.vote, evaluate_vote(fair, labels, CLASSES))
    scaled = cross_fitted_probabilities(fair.probabilities, labels)
    assert result.calibrated == calibration_of_probabilities(scaled, labels)


@pytest.mark.parametrize("vote", ["weighted-majority", "weighted-soft"])
def test_what_is_lost_without_a_member_is_measured_in_folds_too(vote):
    members = random_members(seed=8, n_members=5, n_samples=200)
    logits, labels = stack_logits(members), members[0].labels
    rule = fit_combiner(Combiner(vote), logits, labels)
    result = evaluate(members, rule, fitted_here=Combiner(vote))
    fair = cross_fit(Combiner(vote), logits, labels)
    for place, loss in enumerate(result.contributions):
        rest = fair.without(place)(np.delete(logits, place, axis=0))
        assert loss == pytest.approx((fair(logits).labels == labels).mean() - (rest.labels == labels).mean())


def test_an_evaluation_says_how_sure_it_is_and_where_it_is_right():
    [member] = random_members(seed=9, n_members=1)
    result = evaluate_member(member)
    powers = np.exp(member.logits.astype(float))
    np.testing.assert_allclose(result.confidence, (powers / powers.sum(axis=1, keepdims=True)).max(axis=1))
    np.testing.assert_array_equal(result.correct, member.choices == member.labels)
    assert result.calibration == calibration(member.logits, member.labels)
    assert result.report.classes == classification_report(member.labels, member.choices, class_names=CLASSES).classes
    assert result.coverage.aurc == coverage_curve(result.confidence, result.correct).aurc


def test_a_vote_is_as_sure_as_its_answer_is_probable_which_need_not_be_the_most_probable():
    labels = [0]
    members = [
        make_predictions(np.log([row]), labels, str(row))
        for row in ([0.4, 0.3, 0.3], [0.4, 0.3, 0.3], [0.01, 0.98, 0.01])
    ]
    result = evaluate(members, Combiner("majority"))
    np.testing.assert_allclose(result.vote.confidence, [0.81 / 3])
    assert result.vote.correct.tolist() == [True]


# --- one member, and those that cannot vote --------------------------------------------------------------


@pytest.mark.parametrize("vote", sorted(set(VOTING_RULES) - {"stacking"}))
def test_an_ensemble_of_one_scores_as_its_member(vote):
    [member] = random_members(seed=2, n_members=1)
    rule = fit_combiner(Combiner(vote, groups=("3",)), stack_logits([member]), member.labels, calibrate=False)
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
        evaluate([first, stranger], Combiner())
    for said in ("stranger", "m0", "coat, shirt, bag", "coat, bag, shirt"):
        assert said in caught.value.message


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(bad):
    members = random_members(seed=5)
    members[1].logits[3, 1] = bad
    with pytest.raises(UsageError, match="finite"):
        evaluate(members, Combiner())


def test_a_rule_that_was_learnt_for_other_members_is_refused():
    with pytest.raises(UsageError, match="3 weights; got 4"):
        evaluate(random_members(seed=6, n_members=3), Combiner("soft", weights=(1, 1, 1, 1)))
    with pytest.raises(UsageError, match="fitted to other members"):
        evaluate(random_members(seed=6, n_members=3), fitted("stacking"))
