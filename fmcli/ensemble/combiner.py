"""A voting rule with all that it needs: what the user gave, and what is learnt on validation data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fmcli.choices import TieRule, VotingRule
from fmcli.ensemble.rules import (
    MEMBER_SCORES,
    VOTING_RULES,
    Floats,
    Labels,
    Logits,
    Vote,
    check_logits,
    normalize_weights,
    stacking_features,
)
from fmcli.errors import UsageError, did_you_mean
from fmcli.metrics import apply_temperature, fit_temperature
from fmcli.recipe.specs import EnsembleSpec

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline  # which takes 0.7 s to import: only what learns on folds needs it

UNWEIGHTED_RULES = ("two-level", "stacking")
FITTED_RULES = ("weighted-majority", "weighted-soft", "stacking")
"""Rules that learn on validation data, unless the weights of the weighted ones are given."""
MIN_IMAGES_TO_FIT = 2
"""Images: each is answered by what was learnt from others."""
_FOLDS = 5
_FEWEST_OF_A_CLASS = _FOLDS - 1  # that stacking learns from: what a fold leaves of five
_STRENGTHS = np.logspace(-4, 0, 5)  # inverse strengths of the penalty that stacking chooses from
_NEVER = -100.0  # the logit of a class without validation images
_EM_STEPS = 1000
_EM_GAIN = 1e-9  # nats


@dataclass(frozen=True, slots=True, eq=False)
class Stacking:
    """A multinomial logistic regression over all members' log-probabilities.

    Args:
        coefficients: float64 (n_classes, n_members · n_classes).
        intercepts: float64 (n_classes,).
    """

    coefficients: Floats
    intercepts: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Combiner:
    """From the logits of certain members, in a certain order, to their vote.

    Args:
        vote: The rule.
        tie: Which tied class wins.
        weights: One a member; None for all the same.
        groups: Each member's group, which `two-level` votes within.
        stacking: What `stacking` learnt.
        temperature: Divides the logarithm of the vote's probabilities; 1 leaves them as they are.
        is_fitted: It has learnt what there was to learn, temperature included.
    """

    vote: VotingRule = "majority"
    tie: TieRule = "probability"
    weights: tuple[float, ...] | None = None
    groups: tuple[str, ...] = ()
    stacking: Stacking | None = None
    temperature: float = 1.0
    is_fitted: bool = False

    @property
    def needs_fit(self) -> bool:
        """Whether it still has to learn how to combine, on validation data."""
        if self.vote == "stacking":
            return self.stacking is None
        return self.vote in FITTED_RULES and self.weights is None

    def __call__(self, logits: Logits) -> Vote:
        """Combine logits of shape (n_members, n_samples, n_classes).

        Raises:
            UsageError: They are not fit for the rule, or it lacks what it needs.
        """
        vote = self._rule()(logits, tie=self.tie)
        if self.temperature == 1:
            return vote
        return replace(vote, probabilities=apply_temperature(vote.probabilities, self.temperature))

    def _rule(self) -> Callable[..., Vote]:
        if self.vote not in VOTING_RULES:
            raise UsageError(f"unknown voting rule {self.vote!r}; {did_you_mean(self.vote, list(VOTING_RULES))}")
        rule = VOTING_RULES[self.vote]
        match self.vote:
            case "two-level":
                return lambda logits, tie: rule(logits, groups=self.groups, tie=tie)
            case "stacking":
                if self.stacking is None:
                    raise UsageError("stacking has not learnt anything yet")
                learnt = self.stacking
                return lambda logits, tie: rule(
                    logits, coefficients=learnt.coefficients, intercepts=learnt.intercepts, tie=tie
                )
            case _:
                return lambda logits, tie: rule(logits, weights=self.weights, tie=tie)

    def without(self, place: int) -> "Combiner | None":
        """Return the combiner of the members that remain without one, or None where that cannot be said.

        What is learnt is not learnt again: the others keep their weights. Stacking has no such remainder.
        """
        if self.stacking is not None:
            return None
        weights, groups = self.weights, self.groups
        if weights is not None:
            weights = (*weights[:place], *weights[place + 1 :])
            if not any(weights):
                return None
        return replace(self, weights=weights, groups=(*groups[:place], *groups[place + 1 :]))


def choose_combiner(
    recipes: Sequence[EnsembleSpec],
    names: Sequence[str],
    groups: Sequence[str],
    *,
    vote: VotingRule | None = None,
    tie: TieRule | None = None,
    weights: Sequence[float] | None = None,
) -> Combiner:
    """Return how to vote: as the members' recipes agree, or as asked for.

    Args:
        recipes: The rules of the members' recipes; none for predictions alone.
        names: Each member's own name, by which recipes weight it.
        groups: Each member's group, for a two-level vote; empty where it is not known.
        vote: A rule that takes their place.
        tie: A tie rule that takes its place.
        weights: One a member, in their place.

    Raises:
        UsageError: The recipes differ and nothing was asked for; or the rule has no use for weights, or needs groups.
    """
    for what, asked in (("vote", vote), ("tie", tie)):
        named = sorted({str(getattr(recipe, what)) for recipe in recipes})
        if asked is None and len(named) > 1:
            raise UsageError(
                f"the members' recipes have different {what} rules: {', '.join(named)}",
                hint=f"choose one with --{what}",
            )
    first = recipes[0] if recipes else EnsembleSpec()
    rule = vote or first.vote
    if weights is not None and rule in UNWEIGHTED_RULES:
        raise UsageError(f"a {rule} vote has no use for weights", hint="--vote weighted-soft and --vote majority have")
    if weights is None and rule not in UNWEIGHTED_RULES:
        given = _weights_by_name(recipes)
        weights = [given.get(name, 1.0) for name in names] if given else None
    if weights is not None:
        normalize_weights(weights, len(names))
    if rule == "two-level" and not all(groups):
        unknown = [name for name, group in zip(names, groups, strict=True) if not group]
        raise UsageError(
            f"a two-level vote needs each member's group, and that of {', '.join(unknown[:4])} is not known",
            hint="name them in the members' order: --groups 3,3,5,5",
        )
    return Combiner(rule, tie or first.tie, None if weights is None else tuple(weights), tuple(groups))


def _weights_by_name(recipes: Sequence[EnsembleSpec]) -> dict[str, float]:
    given: dict[str, float] = {}
    for recipe in recipes:
        for name, weight in recipe.weights.items():
            if given.setdefault(name, weight) != weight:
                raise UsageError(
                    f"the members' recipes give {name} different weights: {given[name]:g}, {weight:g}",
                    hint="--weights gives each member its own",
                )
    return given


def fit_combiner(rule: Combiner, logits: Logits, y_true: Labels, *, calibrate: bool = True) -> Combiner:
    """Learn what a rule leaves open: weights, stacking and temperature.

    Args:
        rule: With what was given or learnt before, which stays as it is; the temperature does not.
        logits: (n_members, n_samples, n_classes), of validation images.
        y_true: (n_samples,).
        calibrate: Learn the temperature, too.

    Returns:
        The rule with all that it needs.

    Raises:
        UsageError: The logits are not fit for it.
    """
    check_logits(logits)
    match rule.vote:
        case "weighted-majority" if rule.weights is None:
            rule = replace(rule, weights=fit_majority_weights(logits, y_true))
        case "weighted-soft" if rule.weights is None:
            rule = replace(rule, weights=fit_soft_weights(logits, y_true))
        case "stacking" if rule.stacking is None:
            rule = replace(rule, stacking=fit_stacking(logits, y_true))
    if not calibrate:
        return rule if rule.is_fitted else replace(rule, is_fitted=True)
    temperature = fit_temperature(replace(rule, temperature=1.0)(logits).probabilities, y_true)
    return replace(rule, temperature=temperature, is_fitted=True)


@dataclass(frozen=True, slots=True, eq=False)
class CrossFitted:
    """A combiner of certain images, each of which is answered by a rule that was learnt from others.

    Args:
        folds: Each rule, its probabilities not calibrated, and the places of the images that it answers.
    """

    folds: tuple[tuple[Combiner, Labels], ...]

    def __call__(self, logits: Logits) -> Vote:
        """Combine logits of shape (n_members, n_samples, n_classes), of those images.

        Raises:
            UsageError: They are not fit for the rule.
        """
        parts = [rule(logits[:, answer]) for rule, answer in self.folds]
        order = np.argsort(np.concatenate([answer for _, answer in self.folds]))
        names = Vote.__dataclass_fields__
        return Vote(*(np.concatenate([getattr(part, name) for part in parts])[order] for name in names))

    def without(self, place: int) -> "CrossFitted | None":
        """Return the combiner of the members that remain without one; see `Combiner.without`."""
        folds = []
        for rule, answer in self.folds:
            rest = rule.without(place)
            if rest is None:
                return None
            folds.append((rest, answer))
        return CrossFitted(tuple(folds))


def cross_fit(rule: Combiner, logits: Logits, y_true: Labels) -> CrossFitted:
    """Learn what a rule leaves open in five folds, so that it can vote on the very images that it learns from.

    Args:
        rule: With what was given.
        logits: (n_members, n_samples, n_classes), of validation images.
        y_true: (n_samples,).

    Raises:
        UsageError: There are too few images.
    """
    return CrossFitted(
        tuple(
            (fit_combiner(rule, logits[:, learn], y_true[learn], calibrate=False), answer)
            for learn, answer in _folds(y_true)
        )
    )


def cross_fitted_vote(rule: Combiner, logits: Logits, y_true: Labels) -> Vote:
    """Return the vote of `cross_fit` on the images that the rule learns from, in their order.

    Raises:
        UsageError: There are too few images.
    """
    return cross_fit(rule, logits, y_true)(logits)


def cross_fitted_probabilities(probabilities: Floats, y_true: Labels) -> Floats:
    """Calibrate probabilities on the images that the temperature is learnt from, each by that of the others.

    Args:
        probabilities: (n_samples, n_classes), of validation images.
        y_true: (n_samples,).

    Raises:
        UsageError: There are too few images.
    """
    scaled = np.empty_like(probabilities)
    for learn, answer in _folds(y_true):
        temperature = fit_temperature(probabilities[learn], y_true[learn])
        scaled[answer] = apply_temperature(probabilities[answer], temperature)
    return scaled


def _folds(y_true: Labels) -> list[tuple[Labels, Labels]]:
    """Divide images into (to learn from, to answer) five times, each class alike where it has images enough."""
    n_folds = min(_FOLDS, len(y_true))
    if n_folds < MIN_IMAGES_TO_FIT:
        raise UsageError(f"there are too few validation images to learn from: {len(y_true)}")
    from sklearn.model_selection import KFold, StratifiedKFold

    counts = np.bincount(y_true)
    kind = StratifiedKFold if counts[counts > 0].min() >= n_folds else KFold
    return list(kind(n_folds, shuffle=True, random_state=0).split(np.zeros(len(y_true)), y_true))


# --- what is learnt --------------------------------------------------------------------------------------


def fit_majority_weights(logits: Logits, y_true: Labels) -> tuple[float, ...]:
    """Return the weights of votes that are best when members err independently: the log-odds of being right.

    Args:
        logits: (n_members, n_samples, n_classes).
        y_true: (n_samples,).

    Returns:
        One a member: log(p (n_classes - 1) / (1 - p)) of its accuracy p, counted with one right and one wrong image
        more; 0 for a member that is no better than chance. All the same if none is.

    References:
        Shapley and Grofman, "Optimizing group judgmental accuracy in the presence of interdependencies", Public Choice
        1984; for several classes, Kuncheva and Rodríguez, Knowledge and Information Systems 2014.

    Example:
        >>> logits = np.log([[[0.9, 0.1]] * 3, [[0.9, 0.1], [0.9, 0.1], [0.1, 0.9]]])
        >>> [round(weight, 3) for weight in fit_majority_weights(logits, np.array([0, 0, 0]))]
        [1.386, 0.405]
    """
    n_classes = logits.shape[2]
    right = (logits.argmax(axis=2) == y_true).sum(axis=1)
    accuracy = (right + 1) / (len(y_true) + 2)
    weights = np.maximum(np.log(accuracy * (n_classes - 1) / (1 - accuracy)), 0.0) if n_classes > 1 else accuracy
    return tuple((weights if weights.any() else np.ones(len(logits))).tolist())


def fit_soft_weights(logits: Logits, y_true: Labels) -> tuple[float, ...]:
    """Return the weights of the members' probabilities under which the truth is likeliest.

    Args:
        logits: (n_members, n_samples, n_classes).
        y_true: (n_samples,).

    Returns:
        One a member, adding up to 1.

    References:
        The shares of a mixture of given distributions, by expectation and maximisation: Dempster, Laird and Rubin,
        JRSS B 1977. The likelihood has no other maximum.
    """
    samples = np.arange(len(y_true))
    likelihoods = np.stack(
        [MEMBER_SCORES["soft"](member)[samples, y_true] for member in logits]
    )  # (n_members, n_samples)
    likelihoods = np.maximum(likelihoods, np.finfo(np.float64).tiny)
    shares = np.full(len(logits), 1 / len(logits))
    before = -np.inf
    for _ in range(_EM_STEPS):
        mixed = shares @ likelihoods
        now = float(np.log(mixed).mean())
        if now - before < _EM_GAIN:
            break
        before = now
        shares = shares * (likelihoods / mixed).mean(axis=1)
    return tuple((shares / shares.sum()).tolist())


def fit_stacking(logits: Logits, y_true: Labels) -> Stacking:
    """Fit a multinomial logistic regression to all members' log-probabilities.

    The strength of its L2 penalty is chosen among five by likelihood, cross-validated in five folds, or as many as the
    rarest class has images.

    Args:
        logits: (n_members, n_samples, n_classes).
        y_true: (n_samples,), with two classes at least.

    Raises:
        UsageError: There are too few images or classes.
    """
    n_classes = logits.shape[2]
    counts = np.bincount(y_true, minlength=n_classes)
    present = counts[counts > 0]
    fewest = int(present.min(initial=len(y_true)))
    if len(present) < 2 or fewest < _FEWEST_OF_A_CLASS:
        raise UsageError(
            f"stacking needs two classes or more, with {_FEWEST_OF_A_CLASS} validation images or more of each to learn "
            f"from; there are {len(present)}, with {fewest} or more",
            hint="--vote soft or --vote majority learns nothing",
        )
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = np.concatenate([stacking_features(member) for member in logits], axis=1)
    # Scaled so that the penalty treats all alike, and so that the solver finds its way.
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(min(_FOLDS, fewest), shuffle=True, random_state=0)
    # scikit-learn's own LogisticRegressionCV changes its arguments from version to version.
    search = GridSearchCV(
        pipeline, {"logisticregression__C": _STRENGTHS}, scoring="neg_log_loss", cv=folds, error_score="raise"
    ).fit(features, y_true)
    return _by_class(search.best_estimator_, n_classes)


def _by_class(pipeline: "Pipeline", n_classes: int) -> Stacking:
    """Return a row for each class: scikit-learn has one for two of them, and none for one without images."""
    scaler, regression = pipeline[0], pipeline[1]
    rows = regression.coef_ / scaler.scale_
    constants = regression.intercept_ - rows @ scaler.mean_
    if len(rows) == 1:
        rows, constants = np.concatenate([-rows, rows]) / 2, np.concatenate([-constants, constants]) / 2
    coefficients = np.zeros((n_classes, rows.shape[1]))
    intercepts = np.full(n_classes, _NEVER)
    coefficients[regression.classes_], intercepts[regression.classes_] = rows, constants
    return Stacking(coefficients, intercepts)
