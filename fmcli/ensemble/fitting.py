"""Fit weights, stacking and temperature to validation images.

An image must not be classified by a rule that was fitted to it. Cross-fitting ensures that: it fits a rule in folds.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fmcli.ensemble.combiner import Combiner, Stacking
from fmcli.ensemble.rules.stacking import stacking_features
from fmcli.ensemble.rules.vote import Floats, Labels, Logits, Vote, check_logits, probabilities_of
from fmcli.errors import Remedy, UsageError
from fmcli.metrics.calibration import apply_temperature, fit_temperature

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline  # takes 0.7 s to import; only cross-fitting and stacking need it

MIN_IMAGES_TO_FIT = 2
"""Cross-fitting needs one image to fit to and one to classify."""
_N_FOLDS = 5
_MIN_IMAGES_PER_CLASS = _N_FOLDS - 1  # for stacking: five images, less the one in the held-out fold
_INVERSE_PENALTIES = np.logspace(-4, 0, 5)  # scikit-learn's C, for stacking
_ABSENT_CLASS_LOGIT = -100.0  # the intercept of a class without validation images
_MAX_EM_STEPS = 1000
_MIN_EM_GAIN_NATS = 1e-9


def fit_combiner(rule: Combiner, logits: Logits, y_true: Labels, *, calibrate: bool = True) -> Combiner:
    """Fit the weights, stacking and temperature of a rule.

    Args:
        rule: The rule. Weights and stacking that it already has are kept; its temperature is not.
        logits: (n_members, n_samples, n_classes), of validation images.
        y_true: (n_samples,).
        calibrate: Whether to fit the temperature.

    Returns:
        The fitted rule.

    Raises:
        UsageError: The logits do not fit the rule.
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


# --- cross-fitting ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class CrossFitted:
    """Combiners for the folds of certain images. Each combiner was fitted to the other folds.

    Args:
        folds: The combiner of each fold, with temperature 1, and the indices of the fold's images.
    """

    folds: tuple[tuple[Combiner, Labels], ...]

    def __call__(self, logits: Logits) -> Vote:
        """Combine logits (n_members, n_samples, n_classes) of the same images.

        Raises:
            UsageError: The logits do not fit the rule.
        """
        votes = [rule(logits[:, held_out]) for rule, held_out in self.folds]
        order = np.argsort(np.concatenate([held_out for _, held_out in self.folds]))
        fields = Vote.__dataclass_fields__
        return Vote(*(np.concatenate([getattr(vote, name) for vote in votes])[order] for name in fields))

    def without(self, index: int) -> "CrossFitted | None":
        """Return the combiner for the members that remain if one is removed; see `Combiner.without`."""
        folds = []
        for rule, held_out in self.folds:
            smaller = rule.without(index)
            if smaller is None:
                return None
            folds.append((smaller, held_out))
        return CrossFitted(tuple(folds))


def cross_fit(rule: Combiner, logits: Logits, y_true: Labels) -> CrossFitted:
    """Fit a rule in five folds, so that it can vote on the images that it is fitted to.

    Args:
        rule: The rule before fitting.
        logits: (n_members, n_samples, n_classes), of validation images.
        y_true: (n_samples,).

    Raises:
        UsageError: There are too few images.
    """
    return CrossFitted(
        tuple(
            (fit_combiner(rule, logits[:, fitted], y_true[fitted], calibrate=False), held_out)
            for fitted, held_out in _split_folds(y_true)
        )
    )


def cross_fitted_probabilities(probabilities: Floats, y_true: Labels) -> Floats:
    """Calibrate the probabilities of each fold by a temperature that is fitted to the other folds.

    Args:
        probabilities: (n_samples, n_classes), of validation images.
        y_true: (n_samples,).

    Raises:
        UsageError: There are too few images.
    """
    scaled = np.empty_like(probabilities)
    for fitted, held_out in _split_folds(y_true):
        temperature = fit_temperature(probabilities[fitted], y_true[fitted])
        scaled[held_out] = apply_temperature(probabilities[held_out], temperature)
    return scaled


def _split_folds(y_true: Labels) -> list[tuple[Labels, Labels]]:
    """Return the indices (to fit to, held out) of each fold, stratified by class if each class has enough images."""
    n_folds = min(_N_FOLDS, len(y_true))
    if n_folds < MIN_IMAGES_TO_FIT:
        raise UsageError(f"fitting needs {MIN_IMAGES_TO_FIT} validation images or more; got {len(y_true)}")
    from sklearn.model_selection import KFold, StratifiedKFold

    counts = np.bincount(y_true)
    kind = StratifiedKFold if counts[counts > 0].min() >= n_folds else KFold
    return list(kind(n_folds, shuffle=True, random_state=0).split(np.zeros(len(y_true)), y_true))


# --- weights and stacking --------------------------------------------------------------------------------


def fit_majority_weights(logits: Logits, y_true: Labels) -> tuple[float, ...]:
    """Fit the weights of a majority vote that are optimal if members err independently.

    Args:
        logits: (n_members, n_samples, n_classes).
        y_true: (n_samples,).

    Returns:
        The log-odds of each member, log(p (n_classes - 1) / (1 - p)). The accuracy p is estimated with one more correct
        and one more wrong image. Members no better than chance have weight 0; if none is better, all weights are 1.

    References:
        Shapley and Grofman, "Optimizing group judgmental accuracy in the presence of interdependencies", Public Choice
        1984; for several classes, Kuncheva and Rodríguez, Knowledge and Information Systems 2014.

    Example:
        >>> logits = np.log([[[0.9, 0.1]] * 3, [[0.9, 0.1], [0.9, 0.1], [0.1, 0.9]]])
        >>> [round(weight, 3) for weight in fit_majority_weights(logits, np.array([0, 0, 0]))]
        [1.386, 0.405]
    """
    n_classes = logits.shape[2]
    n_correct = (logits.argmax(axis=2) == y_true).sum(axis=1)
    accuracy = (n_correct + 1) / (len(y_true) + 2)
    weights = np.maximum(np.log(accuracy * (n_classes - 1) / (1 - accuracy)), 0.0) if n_classes > 1 else accuracy
    return tuple((weights if weights.any() else np.ones(len(logits))).tolist())


def fit_soft_weights(logits: Logits, y_true: Labels) -> tuple[float, ...]:
    """Fit the weights of a soft vote that maximize the likelihood of the true classes.

    Args:
        logits: (n_members, n_samples, n_classes).
        y_true: (n_samples,).

    Returns:
        One weight per member; their sum is 1.

    References:
        Expectation maximization of the weights of a mixture of given distributions: Dempster, Laird and Rubin, JRSS B
        1977. The likelihood has a single maximum.
    """
    samples = np.arange(len(y_true))
    likelihoods = np.stack([probabilities_of(member)[samples, y_true] for member in logits])  # (n_members, n_samples)
    likelihoods = np.maximum(likelihoods, np.finfo(np.float64).tiny)
    shares = np.full(len(logits), 1 / len(logits))
    previous = -np.inf
    for _ in range(_MAX_EM_STEPS):
        mixture = shares @ likelihoods
        current = float(np.log(mixture).mean())
        if current - previous < _MIN_EM_GAIN_NATS:
            break
        previous = current
        shares = shares * (likelihoods / mixture).mean(axis=1)
    return tuple((shares / shares.sum()).tolist())


def fit_stacking(logits: Logits, y_true: Labels) -> Stacking:
    """Fit a multinomial logistic regression to all members' log-probabilities.

    Cross-validation in five folds, or fewer if the rarest class has fewer images, selects the strength of the L2
    penalty among five values by likelihood.

    Args:
        logits: (n_members, n_samples, n_classes).
        y_true: (n_samples,), of two classes or more.

    Raises:
        UsageError: There are too few images or classes.
    """
    n_classes = logits.shape[2]
    counts = np.bincount(y_true, minlength=n_classes)
    present = counts[counts > 0]
    rarest = int(present.min(initial=len(y_true)))
    if len(present) < 2 or rarest < _MIN_IMAGES_PER_CLASS:
        raise UsageError(
            f"stacking needs two classes or more, and {_MIN_IMAGES_PER_CLASS} validation images or more of each; "
            f"number of classes: {len(present)}, images of the rarest class: {rarest}",
            hint="choose a rule without fitting",
            remedies=[Remedy("vote", "soft"), Remedy("vote", "majority")],
        )
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = np.concatenate([stacking_features(member) for member in logits], axis=1)
    # Scaling makes the penalty the same for all features and helps the solver converge.
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(min(_N_FOLDS, rarest), shuffle=True, random_state=0)
    # The arguments of scikit-learn's LogisticRegressionCV change from version to version.
    search = GridSearchCV(
        pipeline, {"logisticregression__C": _INVERSE_PENALTIES}, scoring="neg_log_loss", cv=folds, error_score="raise"
    ).fit(features, y_true)
    return _coefficients_of_all_classes(search.best_estimator_, n_classes)


def _coefficients_of_all_classes(pipeline: "Pipeline", n_classes: int) -> Stacking:
    """Return one row of coefficients per class.

    scikit-learn has a single row for two classes, and none for a class without images.
    """
    scaler, regression = pipeline[0], pipeline[1]
    rows = regression.coef_ / scaler.scale_
    constants = regression.intercept_ - rows @ scaler.mean_
    if len(rows) == 1:
        rows, constants = np.concatenate([-rows, rows]) / 2, np.concatenate([-constants, constants]) / 2
    coefficients = np.zeros((n_classes, rows.shape[1]))
    intercepts = np.full(n_classes, _ABSENT_CLASS_LOGIT)
    coefficients[regression.classes_], intercepts[regression.classes_] = rows, constants
    return Stacking(coefficients, intercepts)
