"""Compare each voting rule with a slow reference implementation and with other libraries."""

import math
from dataclasses import replace

import numpy as np
import pytest
from deslib.util import aggregation
from mlxtend.classifier import EnsembleVoteClassifier
from scipy.special import softmax
from scipy.stats import rankdata
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import VotingClassifier
from sklearn.linear_model import LogisticRegression

from fmcli.ensemble.rules.borda import Borda
from fmcli.ensemble.rules.geometric import Geometric
from fmcli.ensemble.rules.majority import Majority
from fmcli.ensemble.rules.soft import Soft
from fmcli.ensemble.rules.stacking import stacking_features
from fmcli.ensemble.rules.vote import normalize_weights
from tests.ensemble.test_rule_properties import TIES, coarse_logits, make, random_logits

SLOW_RULES = (
    "majority", "weighted-majority", "soft", "weighted-soft", "geometric", "borda", "two-level", "stacking",
)  # fmt: skip
"""Rules that have a reference here."""


# --- slow reference --------------------------------------------------------------------------------------


def slow_probabilities(row):
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def slow_scores(vote, row):
    match vote:
        case "majority":
            return [float(k == slow_choice(row)) for k in range(len(row))]
        case "soft":
            return slow_probabilities(row)
        case "geometric":
            return [math.log(probability) for probability in slow_probabilities(row)]
        case "borda":
            return [
                sum(other < value for other in row) + (sum(other == value for other in row) - 1) / 2 for value in row
            ]


def slow_choice(row):
    return max(range(len(row)), key=lambda k: (row[k], -k))


def slow_decision(scores, probabilities, choices, tie):
    tied = [k for k, score in enumerate(scores) if score > max(scores) - 1e-9]
    likeliest = max(tied, key=lambda k: (round(probabilities[k], 9), -k))  # ignores rounding
    winner = {
        "probability": likeliest,
        "lowest": tied[0],
        "first": next((choice for choice in choices if choice in tied), likeliest),
    }
    return winner[tie], len(tied) > 1


def slow_image(vote, rows, tie, weights=None, groups=None, coefficients=None, intercepts=None):
    """Vote on one image from the members' rows of logits: (label, whether it was a tie, mean probabilities)."""
    classes = range(len(rows[0]))
    if vote == "two-level":
        parts = {
            name: slow_image("majority", [row for row, group in zip(rows, groups, strict=True) if group == name], tie)
            for name in dict.fromkeys(groups)
        }
        answers = [part[0] for part in parts.values()]
        probabilities = [sum(part[2][k] for part in parts.values()) / len(parts) for k in classes]
        return *slow_decision([answers.count(k) for k in classes], probabilities, answers, tie), probabilities
    if vote == "stacking":
        features = [math.log(probability) for row in rows for probability in slow_probabilities(row)]
        scores = [intercepts[k] + sum(a * b for a, b in zip(coefficients[k], features, strict=True)) for k in classes]
        probabilities = slow_probabilities(scores)
        return *slow_decision(scores, probabilities, [slow_choice(row) for row in rows], tie), probabilities
    weights = weights or [1] * len(rows)
    vote = vote.removeprefix("weighted-")
    pairs = [(weight / sum(weights), row) for weight, row in zip(weights, rows, strict=True)]
    scores = [sum(share * slow_scores(vote, row)[k] for share, row in pairs) for k in classes]
    probabilities = [sum(share * slow_probabilities(row)[k] for share, row in pairs) for k in classes]
    choices = [slow_choice(row) for share, row in pairs if share]
    return *slow_decision(scores, probabilities, choices, tie), probabilities


@pytest.mark.parametrize("tie", TIES)
@pytest.mark.parametrize("vote", SLOW_RULES)
@pytest.mark.parametrize("n_members", [1, 2, 3, 6])
@pytest.mark.parametrize("draw", [random_logits, coarse_logits])
def test_every_rule_equals_its_slow_reference(vote, tie, n_members, draw):
    logits = draw(seed=n_members, n_members=n_members, n_samples=25)
    rule = make(vote, tie, n_members, seed=n_members)
    if rule.weights and n_members > 1:
        rule = replace(rule, weights=(0, *rule.weights[1:]))
    result = rule.combine(logits)
    parameters = {"weights": rule.weights, "groups": rule.groups, **rule.parameters()}
    for image in range(logits.shape[1]):
        label, tied, probabilities = slow_image(vote, logits[:, image].astype(float).tolist(), tie, **parameters)
        assert (result.labels[image], result.ties[image]) == (label, tied)
        if vote != "geometric":  # its probabilities are its scores, scaled
            np.testing.assert_allclose(result.probabilities[image], probabilities, rtol=1e-9)


# --- other libraries -------------------------------------------------------------------------------------


class Fixed(ClassifierMixin, BaseEstimator):
    """A scikit-learn classifier that returns stored probabilities. The image is an index."""

    def __init__(self, probabilities):
        self.probabilities = probabilities

    def fit(self, x, y):
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, x):
        return self.probabilities[x[:, 0]]

    def predict(self, x):
        return self.predict_proba(x).argmax(axis=1)


LIBRARY_CASES = pytest.mark.parametrize(
    ("draw", "weights"),
    [
        (random_logits, None),
        (random_logits, [1.5, 0, 2, 1, 0.25]),
        (coarse_logits, None),
        (coarse_logits, [2, 1, 1, 1, 1]),
    ],
    ids=["random", "random, weighted", "coarse", "coarse, weighted"],
)


def probabilities_of(logits):
    return softmax(logits.astype(np.float64), axis=2)


def as_classifiers(logits):
    x = np.arange(logits.shape[1])[:, None]
    y = x[:, 0] % logits.shape[2]
    return [Fixed(member).fit(x, y) for member in probabilities_of(logits)], x, y


@LIBRARY_CASES
def test_majority_and_soft_vote_equal_scikit_learn(draw, weights):
    logits = draw(seed=20)
    classifiers, x, y = as_classifiers(logits)
    named = [(f"m{index}", classifier) for index, classifier in enumerate(classifiers)]
    hard = VotingClassifier(named, voting="hard", weights=weights).fit(x, y)
    np.testing.assert_array_equal(Majority(tie="lowest", weights=weights).combine(logits).labels, hard.predict(x))
    soft = VotingClassifier(named, voting="soft", weights=weights).fit(x, y)
    ours = Soft(tie="lowest", weights=weights).combine(logits)
    np.testing.assert_allclose(ours.probabilities, soft.predict_proba(x), atol=1e-9, rtol=0)
    np.testing.assert_array_equal(ours.labels[~ours.ties], soft.predict(x)[~ours.ties])  # ties differ by rounding


@LIBRARY_CASES
def test_majority_and_soft_vote_equal_mlxtend(draw, weights):
    logits = draw(seed=21)
    classifiers, x, y = as_classifiers(logits)

    def theirs(voting):
        options = {"voting": voting, "weights": weights, "use_clones": False, "fit_base_estimators": False}
        return EnsembleVoteClassifier(classifiers, **options).fit(x, y)

    np.testing.assert_array_equal(
        Majority(tie="lowest", weights=weights).combine(logits).labels, theirs("hard").predict(x)
    )
    ours = Soft(tie="lowest", weights=weights).combine(logits)
    np.testing.assert_allclose(ours.probabilities, theirs("soft").predict_proba(x), atol=1e-9, rtol=0)


@LIBRARY_CASES
def test_majority_soft_and_geometric_vote_equal_deslib(draw, weights):
    logits = draw(seed=22)
    choices = logits.argmax(axis=2).T  # (n_samples, n_members)
    probabilities = probabilities_of(logits).transpose(1, 0, 2)  # (n_samples, n_members, n_classes)
    ours = Majority(tie="lowest", weights=weights).combine(logits)
    np.testing.assert_array_equal(ours.votes, aggregation.sum_votes_per_class(choices, logits.shape[2]))
    shares = np.broadcast_to(normalize_weights(weights, len(logits)), choices.shape).copy()
    scores, labels = aggregation.get_weighted_votes(choices, shares)
    assert labels.tolist() == list(range(logits.shape[2]))
    np.testing.assert_allclose(ours.scores, scores, atol=1e-9, rtol=0)
    decided = ~ours.ties
    np.testing.assert_array_equal(
        ours.labels[decided], aggregation.weighted_majority_voting_rule(choices, shares)[decided]
    )
    if weights is None:
        np.testing.assert_array_equal(ours.labels, aggregation.majority_voting_rule(choices))
        for rule, theirs in ((Soft, aggregation.average_rule), (Geometric, aggregation.product_rule)):
            vote = rule().combine(logits)
            np.testing.assert_array_equal(vote.labels[~vote.ties], theirs(probabilities)[~vote.ties])


def test_geometric_probabilities_are_the_scaled_root_of_the_product():
    logits = random_logits(seed=23)
    product = probabilities_of(logits).prod(axis=0) ** (1 / len(logits))
    expected = product / product.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(Geometric().combine(logits).probabilities, expected, atol=1e-9, rtol=0)


@LIBRARY_CASES
def test_borda_counts_the_ranks_of_scipy(draw, weights):
    logits = draw(seed=24)
    ranks = np.stack([rankdata(probabilities.round(9), axis=1) for probabilities in probabilities_of(logits)]) - 1
    ours = Borda(weights=weights).combine(logits)
    np.testing.assert_allclose(ours.scores, np.average(ranks, axis=0, weights=weights), atol=1e-9, rtol=0)
    np.testing.assert_array_equal(ours.labels[~ours.ties], ours.scores.argmax(axis=1)[~ours.ties])


def test_stacking_equals_the_logistic_regression_with_its_coefficients():
    logits, rule = random_logits(seed=25), make("stacking")
    regression = LogisticRegression()
    regression.classes_ = np.arange(logits.shape[2])
    regression.coef_, regression.intercept_ = rule.coefficients, rule.intercepts
    features = np.concatenate([stacking_features(member) for member in logits], axis=1)
    ours = rule.combine(logits)
    np.testing.assert_allclose(ours.probabilities, regression.predict_proba(features), atol=1e-9, rtol=0)
    np.testing.assert_array_equal(ours.labels, regression.predict(features))
