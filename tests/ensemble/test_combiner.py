"""Combiners: their choice, fitting to validation images, and cross-fitting."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fmcli.choices import RULE_NAMES
from fmcli.cli.remedies import hint_of
from fmcli.ensemble import choose_combiner, fit_combiner, fitting
from fmcli.ensemble.fitting import CrossFitted, cross_fit, cross_fitted_probabilities
from fmcli.ensemble.rules import rules_where, stacking
from fmcli.ensemble.rules.stacking import Stacking
from fmcli.ensemble.rules.vote import TIE_RULES, Vote
from fmcli.ensemble.rules.weighted_majority import WeightedMajority
from fmcli.ensemble.rules.weighted_soft import WeightedSoft
from fmcli.errors import UsageError
from fmcli.metrics.calibration import apply_temperature, fit_temperature
from fmcli.recipe.recipe import EnsembleSpec
from tests.helpers import make_combiner

GROUPS = ("3", "3", "5", "7")
FITTED_RULES = rules_where(lambda rule: rule.needs_fit)
UNWEIGHTED_RULES = rules_where(lambda rule: not rule.takes_weights)


def draw(seed=0, n_members=4, n_samples=240, n_classes=4, scale=1.0):
    """Draw logits and labels of members with increasing accuracy."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n_samples)
    skill = np.linspace(0.5, 2.0, n_members)[:, None, None]
    logits = scale * (rng.normal(size=(n_members, n_samples, n_classes)) + skill * np.eye(n_classes)[labels])
    return logits.astype(np.float32), labels


def fitted(vote, logits, labels, **changes):
    return fit_combiner(make_combiner(vote, groups=GROUPS, **changes), logits, labels)


every_vote = pytest.mark.parametrize("vote", RULE_NAMES)


# --- fitting ---------------------------------------------------------------------------------------------


def test_majority_weights_are_log_odds_by_hand():
    choices = [[0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]]
    logits = 3.0 * np.eye(3)[choices]
    # 8, 6 and 0 of eight images are correct, counted as 9, 7 and 1 of ten. With three classes, chance is 1 : 2.
    expected = (math.log(9 * 2 / 1), math.log(7 * 2 / 3), 0.0)
    assert WeightedMajority().fit(logits, np.zeros(8, dtype=int)).weights == pytest.approx(expected)


def test_members_have_equal_weights_if_none_is_better_than_chance():
    logits = np.eye(2)[[[0, 1], [0, 1]]]
    assert WeightedMajority().fit(logits, np.array([1, 0])).weights == (1.0, 1.0)


@pytest.mark.parametrize("n_classes", [1, 2])
def test_weights_can_be_fitted_with_one_or_two_classes(n_classes):
    logits, labels = draw(n_classes=n_classes)
    for rule in (WeightedMajority(), WeightedSoft()):
        weights = rule.fit(logits, labels).weights
        assert len(weights) == 4
        assert min(weights) >= 0
        assert max(weights) > 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n_members", "scale"), [(2, 1.0), (3, 4.0), (6, 1.0), (6, 4.0)])
def test_soft_weights_have_the_likelihood_that_a_general_optimizer_finds(seed, n_members, scale):
    logits, labels = draw(seed, n_members, scale=scale)
    chosen = softmax(logits.astype(float), axis=2)[:, np.arange(len(labels)), labels]  # (n_members, n_samples)
    found = minimize(
        lambda weights: -np.log(weights @ chosen).mean(),
        np.full(n_members, 1 / n_members),
        jac=lambda weights: -(chosen / (weights @ chosen)).mean(axis=1),
        method="SLSQP",
        bounds=[(0, 1)] * n_members,
        constraints=[{"type": "eq", "fun": lambda weights: weights.sum() - 1}],
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    weights = np.array(WeightedSoft().fit(logits, labels).weights)
    assert weights.sum() == pytest.approx(1)
    assert weights.min() >= 0
    assert np.log(weights @ chosen).mean() == pytest.approx(-found.fun, abs=1e-6)


def test_a_member_that_is_always_wrong_has_no_weight():
    logits, labels = draw(n_members=2)
    logits[0] = -1000 * np.eye(4)[labels]
    weights = WeightedSoft().fit(logits, labels).weights
    assert weights == pytest.approx((0, 1), abs=1e-6)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_stacking_equals_a_grid_search_of_scikit_learn(n_classes):
    logits, labels = draw(n_members=2, n_samples=150, n_classes=n_classes)
    features = np.concatenate([np.maximum(log_softmax(one.astype(float), axis=1), -30) for one in logits], axis=1)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": [1e-4, 1e-3, 1e-2, 1e-1, 1]},
        scoring="neg_log_loss",
        cv=StratifiedKFold(5, shuffle=True, random_state=0),
    ).fit(features, labels)
    new, _ = draw(1, n_members=2, n_classes=n_classes)
    features = np.concatenate([np.maximum(log_softmax(one.astype(float), axis=1), -30) for one in new], axis=1)
    vote = Stacking().fit(logits, labels).combine(new)
    np.testing.assert_allclose(vote.probabilities, search.predict_proba(features), atol=1e-9, rtol=0)
    np.testing.assert_array_equal(vote.labels, search.predict(features))


@pytest.mark.parametrize("vote", FITTED_RULES)
def test_a_class_without_validation_images_is_never_predicted(vote):
    logits, labels = draw(n_members=3)
    labels = np.where(labels == 1, 3, labels)
    rule = fit_combiner(make_combiner(vote), logits, labels)
    result = rule(draw(1, n_members=3)[0])
    np.testing.assert_allclose(result.probabilities.sum(axis=1), 1)
    if vote == "stacking":
        assert not (result.labels == 1).any()
        assert result.probabilities[:, 1].max() < 1e-9


def test_stacking_can_be_fitted_to_a_class_of_zero_probability():
    logits, labels = draw(n_members=2, n_classes=3)
    never = np.full((*logits.shape[:2], 1), -1000.0)
    extended = np.concatenate([logits, never], axis=2)
    vote = Stacking().fit(extended, labels).combine(extended)
    without = Stacking().fit(logits, labels).combine(logits)
    np.testing.assert_allclose(vote.probabilities[:, :3], without.probabilities, atol=1e-3)


@pytest.mark.parametrize(
    ("labels", "said"),
    [([0] * 80, "classes: 1,"), ([0] * 40 + [1] * 36 + [2] * 3, "rarest class: 3"), ([], "classes: 0,")],
)
def test_stacking_with_too_few_images_is_refused(labels, said):
    logits = np.zeros((2, len(labels), 3))
    with pytest.raises(UsageError, match=f"each with at least 4 validation images; .*{said}"):
        Stacking().fit(logits, np.array(labels, dtype=int))


@pytest.mark.parametrize("fewest", [5, 6])
def test_stacking_can_be_cross_fitted_to_few_images_of_a_class(monkeypatch, fewest):
    monkeypatch.setattr(stacking, "_INVERSE_PENALTIES", [0.1])  # one value is enough to test folds
    labels = np.repeat([0, 1, 2], [40, 36, fewest])
    logits = np.random.default_rng(0).normal(size=(2, len(labels), 3))
    assert Stacking().fit(logits, labels).coefficients.shape == (3, 6)
    assert len(cross_fit(make_combiner("stacking"), logits, labels)(logits).labels) == len(labels)


@every_vote
def test_the_temperature_is_fitted_to_the_rules_probabilities(vote):
    logits, labels = draw()
    rule = fitted(vote, logits, labels)
    plain = replace(rule, temperature=1.0)(logits)
    assert rule.temperature == pytest.approx(fit_temperature(plain.probabilities, labels))
    assert rule.temperature != 1
    scaled = rule(logits)
    np.testing.assert_allclose(scaled.probabilities, apply_temperature(plain.probabilities, rule.temperature))
    for name in ("labels", "votes", "scores", "ties"):
        np.testing.assert_array_equal(getattr(scaled, name), getattr(plain, name))


@every_vote
def test_fitting_again_changes_only_the_temperature(vote):
    logits, labels = draw()
    rule = fitted(vote, logits, labels)
    other_logits, other_labels = draw(1, scale=3.0)
    again = fit_combiner(rule, other_logits, other_labels)
    assert again.rule is rule.rule
    plain = replace(rule, temperature=1.0)(other_logits)
    assert again.temperature == pytest.approx(fit_temperature(plain.probabilities, other_labels))
    assert again.temperature != pytest.approx(rule.temperature)
    assert fit_combiner(rule, other_logits, other_labels, calibrate=False) is rule


@every_vote
def test_fitting_keeps_the_given_weights(vote):
    logits, labels = draw()
    given = make_combiner(vote, groups=GROUPS)
    assert given.needs_fit == (vote in FITTED_RULES)
    rule = fit_combiner(given, logits, labels, calibrate=False)
    assert not rule.needs_fit
    assert rule.temperature == 1
    if vote not in UNWEIGHTED_RULES:
        weighted = make_combiner(vote, weights=(1.0, 2.0, 3.0, 4.0))
        assert not weighted.needs_fit
        assert fit_combiner(weighted, logits, labels).rule.weights == (1.0, 2.0, 3.0, 4.0)


@every_vote
@pytest.mark.parametrize("calibrate", [True, False])
def test_fitting_to_logits_that_are_not_finite_is_refused(vote, calibrate):
    logits, labels = draw()
    logits[1, 2, 3] = np.nan
    with pytest.raises(UsageError, match="finite"):
        fit_combiner(make_combiner(vote, groups=GROUPS), logits, labels, calibrate=calibrate)


# --- combining -------------------------------------------------------------------------------------------


@every_vote
@pytest.mark.parametrize("tie", sorted(TIE_RULES))
def test_a_combiner_votes_with_its_rule(vote, tie):
    logits, labels = draw()
    logits = logits.round()  # creates ties
    rule = replace(fitted(vote, logits, labels, tie=tie), temperature=1.0)
    expected = rule.rule.combine(logits)
    for name in Vote.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(rule(logits), name), getattr(expected, name))


def test_stacking_that_is_not_fitted_is_refused():
    with pytest.raises(UsageError, match="must be fitted"):
        make_combiner("stacking")(np.zeros((1, 1, 3)))


@pytest.mark.parametrize("vote", sorted({*RULE_NAMES} - {"stacking"}))
@pytest.mark.parametrize("index", range(4))
def test_without_a_member_the_other_members_keep_their_weights(vote, index):
    logits, labels = draw()
    rule = fitted(vote, logits, labels)
    rest = rule.without(index)
    others = [other for other in range(4) if other != index]
    assert rest.rule.groups == tuple(GROUPS[other] for other in others)
    assert (rest.rule.name, rest.rule.tie, rest.temperature) == (vote, rule.rule.tie, rule.temperature)
    if rule.rule.weights is not None:
        assert rest.rule.weights == tuple(rule.rule.weights[other] for other in others)
    assert len(rest(logits[others]).labels) == len(labels)


def test_no_member_can_be_removed_from_stacking_or_if_no_weight_remains():
    assert make_combiner("stacking", coefficients=np.zeros((2, 4)), intercepts=np.zeros(2)).without(0) is None
    lopsided = make_combiner("soft", weights=(0.0, 1.0))
    assert lopsided.without(1) is None
    assert lopsided.without(0).rule.weights == (1.0,)


# --- cross-fitting ---------------------------------------------------------------------------------------


class Memory:
    """A rule that answers 1 for images that it was fitted to and 0 for all other images."""

    def __init__(self, logits):
        self.seen = {image.tobytes() for image in logits.transpose(1, 0, 2)}

    def __call__(self, logits):
        labels = np.array([int(image.tobytes() in self.seen) for image in logits.transpose(1, 0, 2)])
        rows = np.eye(2)[labels]
        return Vote(labels, rows.astype(int), rows, rows, np.zeros(len(labels), dtype=bool))


@pytest.mark.parametrize("n_samples", [2, 4, 7, 50])
@pytest.mark.parametrize("rarest", [0, 1])
def test_no_image_is_classified_by_a_rule_that_was_fitted_to_it(monkeypatch, n_samples, rarest):
    monkeypatch.setattr(fitting, "fit_combiner", lambda combiner, logits, y_true, calibrate: Memory(logits))
    logits, labels = draw(n_samples=n_samples)
    labels[:rarest] = 3  # a class with one image cannot be in every fold
    assert not Memory(logits[:, :0])(logits).labels.any()
    assert Memory(logits)(logits).labels.all()  # Memory recognizes the images
    assert not cross_fit(make_combiner("stacking"), logits, labels)(logits).labels.any()


@pytest.mark.parametrize("vote", ["weighted-majority", "weighted-soft"])
def test_cross_fitted_votes_are_in_the_order_of_the_images(vote):
    logits, labels = draw(n_samples=120)
    result = cross_fit(make_combiner(vote), logits, labels)(logits)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    for fit_to, held_out in folds.split(np.zeros(len(labels)), labels):
        rule = fit_combiner(make_combiner(vote), logits[:, fit_to], labels[fit_to], calibrate=False)
        expected = rule(logits[:, held_out])
        for name in Vote.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(result, name)[held_out], getattr(expected, name))


def test_cross_fitted_stacking_equals_nested_cross_validation_of_scikit_learn(monkeypatch):
    penalties = [1e-2, 1.0]
    monkeypatch.setattr(stacking, "_INVERSE_PENALTIES", penalties)
    logits, labels = draw(n_members=2, n_samples=150, n_classes=3)
    features = np.concatenate([log_softmax(one.astype(float), axis=1) for one in logits], axis=1)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": penalties},
        scoring="neg_log_loss",
        cv=folds,
    )
    expected = cross_val_predict(search, features, labels, cv=folds, method="predict_proba")
    result = cross_fit(make_combiner("stacking"), logits, labels)(logits)
    np.testing.assert_allclose(result.probabilities, expected, atol=1e-9, rtol=0)


def test_without_a_member_the_rules_of_all_folds_omit_it():
    logits, labels = draw(n_samples=120)
    rule = cross_fit(make_combiner("weighted-majority"), logits, labels)
    rest = rule.without(1)
    result = rest(np.delete(logits, 1, axis=0))
    for whole, held_out in rule.folds:
        expected = whole.without(1)(np.delete(logits[:, held_out], 1, axis=0))
        np.testing.assert_array_equal(result.labels[held_out], expected.labels)
    stacked = make_combiner("stacking", coefficients=np.zeros((4, 16)), intercepts=np.zeros(4))
    assert CrossFitted((*rule.folds, (stacked, np.arange(3)))).without(1) is None


def test_the_probabilities_of_a_fold_are_scaled_by_the_temperature_of_the_other_folds():
    logits, labels = draw(n_samples=100)
    probabilities = softmax(5 * logits[0].astype(float), axis=1)
    scaled = cross_fitted_probabilities(probabilities, labels)
    for fit_to, held_out in StratifiedKFold(5, shuffle=True, random_state=0).split(probabilities, labels):
        temperature = fit_temperature(probabilities[fit_to], labels[fit_to])
        np.testing.assert_array_equal(scaled[held_out], apply_temperature(probabilities[held_out], temperature))


@pytest.mark.parametrize("n_samples", [0, 1])
def test_fitting_to_too_few_images_is_refused(n_samples):
    logits, labels = draw(n_samples=n_samples)
    with pytest.raises(UsageError, match=f"at least 2 validation images; got {n_samples}"):
        cross_fit(make_combiner("weighted-soft"), logits, labels)(logits)
    with pytest.raises(UsageError, match="at least 2 validation images"):
        cross_fitted_probabilities(softmax(logits[0], axis=1), labels)


# --- choice ----------------------------------------------------------------------------------------------

NAMES = ("k3", "k5")


def choose(recipes=(), names=NAMES, groups=NAMES, **asked):
    return choose_combiner(recipes, names, groups, **asked).rule


def test_the_rules_of_the_recipes_are_used():
    spec = EnsembleSpec(vote="soft", tie="first")
    rule = choose([spec, spec])
    assert (rule.name, rule.tie, rule.weights, rule.groups) == ("soft", "first", None, NAMES)


def test_predictions_without_recipes_use_the_defaults():
    assert (choose().name, choose().tie) == (EnsembleSpec().vote, EnsembleSpec().tie)


@pytest.mark.parametrize("setting", ["vote", "tie"])
def test_recipes_with_different_rules_are_refused_unless_one_is_given(setting):
    values = {"vote": ("majority", "soft"), "tie": ("lowest", "first")}[setting]
    recipes = [EnsembleSpec.model_validate({setting: value}) for value in values]
    with pytest.raises(UsageError) as caught:
        choose(recipes)
    assert all(value in caught.value.message for value in values)
    assert f"--{setting}" in hint_of(caught.value)
    for value in values:
        assert getattr(choose(recipes, **{setting: value}), {"vote": "name"}.get(setting, setting)) == value


def test_a_given_rule_keeps_the_other_rule():
    spec = EnsembleSpec(vote="majority", tie="first")
    assert (choose([spec], vote="soft").name, choose([spec], vote="soft").tie) == ("soft", "first")
    assert (choose([spec], tie="lowest").name, choose([spec], tie="lowest").tie) == ("majority", "lowest")


@every_vote
def test_recipes_weight_members_by_name_if_the_rule_uses_weights(vote):
    rule = choose([EnsembleSpec(vote=vote, weights={"k5": 2.5, "another": 3})], names=("k3", "k5"))
    assert rule.weights == (None if vote in UNWEIGHTED_RULES else (1.0, 2.5))
    assert rule.needs_fit == (vote == "stacking")


def test_given_weights_take_precedence_over_recipes():
    rule = choose([EnsembleSpec(weights={"k5": 2.5})], weights=[3, 0])
    assert rule.weights == (3, 0)


def test_recipes_with_different_weights_are_refused_unless_weights_are_given():
    recipes = [EnsembleSpec(weights={"k3": 2.0}), EnsembleSpec(weights={"k3": 3.0, "k5": 1.0})]
    with pytest.raises(UsageError, match="k3 different weights: 2, 3") as caught:
        choose(recipes)
    assert "--weights" in hint_of(caught.value)
    assert choose(recipes, weights=[1, 2]).weights == (1, 2)
    assert choose(recipes, vote="two-level").weights is None


@pytest.mark.parametrize(
    ("weights", "message"),
    [([1], "2 weights; got 1"), ([1, 2, 3], "got 3"), ([1, -1], "-1"), ([0, 0], "at least one above 0")],
)
def test_invalid_weights_are_refused(weights, message):
    with pytest.raises(UsageError, match=message):
        choose(weights=weights)


def test_recipes_with_only_zero_weights_are_refused():
    with pytest.raises(UsageError, match="at least one above 0"):
        choose([EnsembleSpec(weights={"k3": 0, "k5": 0})])


@pytest.mark.parametrize("vote", UNWEIGHTED_RULES)
def test_weights_for_a_rule_without_weights_are_refused(vote):
    for asked in ({"vote": vote}, {"recipes": [EnsembleSpec(vote=vote)]}):
        with pytest.raises(UsageError, match=f"{vote} vote does not use weights"):
            choose(**asked, weights=[1, 2])


def test_a_two_level_vote_with_unknown_groups_is_refused_by_name():
    with pytest.raises(UsageError, match="no group is known for knn") as caught:
        choose(names=("k3", "knn"), groups=("3", ""), vote="two-level")
    assert "--groups" in hint_of(caught.value)
    assert choose(names=("k3", "knn"), groups=("3", ""), vote="soft").name == "soft"
