"""Fit the weights, the stacking and the temperature of a rule to validation images.

A rule looks too good on the images that it was fitted to. To vote on these images, it is cross-fitted: the images are
divided into folds, and each fold is classified by a rule that was fitted to the other folds.
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
"""Cross-fitting needs at least one image to fit the rule to, and one to classify."""
_N_FOLDS = 5
_MIN_IMAGES_PER_CLASS = _N_FOLDS - 1  # of 5 images in a class, cross-fitting uses 4 to fit each fold's rule
_INVERSE_PENALTIES = np.logspace(-4, 0, 5)  # values of scikit-learn's C to try for stacking
_ABSENT_CLASS_LOGIT = -100.0  # intercept of a class without validation images, so that it never wins
_MAX_EM_STEPS = 1000
_MIN_EM_GAIN_NATS = 1e-9


def fit_combiner(rule: Combiner, logits: Logits, y_true: Labels, *, calibrate: bool = True) -> Combiner:
    """Fit the weights, the stacking and the temperature of a rule.

    Args:
        rule: The rule. If it already has weights or stacking, they are kept. Its temperature is fitted again.
        logits: Members' logits on validation images, (n_members, n_samples, n_classes).
        y_true: True labels, int64 (n_samples,).
        calibrate: Whether to fit the temperature.

    Raises:
        UsageError: The rule was made for other members, there are too few images, or the logits are not finite.
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
    """A combiner for images that are also used for fitting: each fold of the images has its own rule.

    Args:
        folds: For each fold, a combiner that was fitted to the images of the other folds, with temperature 1, and the
            indices of the fold's images, int64 (n_images_of_fold,).
    """

    folds: tuple[tuple[Combiner, Labels], ...]

    def __call__(self, logits: Logits) -> Vote:
        """Combine the members' logits on all images of the folds, (n_members, n_samples, n_classes), into a vote.

        Raises:
            UsageError: See `Combiner.__call__`.
        """
        votes = [rule(logits[:, held_out]) for rule, held_out in self.folds]
        order = np.argsort(np.concatenate([held_out for _, held_out in self.folds]))
        fields = Vote.__dataclass_fields__
        return Vote(*(np.concatenate([getattr(vote, name) for vote in votes])[order] for name in fields))

    def without(self, index: int) -> "CrossFitted | None":
        """Return the combiner without one member; see `Combiner.without`."""
        smaller = [(rule.without(index), held_out) for rule, held_out in self.folds]
        folds = tuple((rule, held_out) for rule, held_out in smaller if rule is not None)
        return CrossFitted(folds) if len(folds) == len(smaller) else None


def cross_fit(rule: Combiner, logits: Logits, y_true: Labels) -> CrossFitted:
    """Fit a rule in five folds, so that it can vote on the same images.

    Args:
        rule: The rule before it is fitted.
        logits: Members' logits on validation images, (n_members, n_samples, n_classes).
        y_true: True labels, int64 (n_samples,).

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
    """Scale the probabilities of each fold by a temperature that is fitted to the other folds.

    Args:
        probabilities: The vote's probabilities on validation images, float64 (n_samples, n_classes).
        y_true: True labels, int64 (n_samples,).

    Returns:
        The scaled probabilities, float64 (n_samples, n_classes).

    Raises:
        UsageError: There are too few images.
    """
    scaled = np.empty_like(probabilities)
    for fitted, held_out in _split_folds(y_true):
        temperature = fit_temperature(probabilities[fitted], y_true[fitted])
        scaled[held_out] = apply_temperature(probabilities[held_out], temperature)
    return scaled


def _split_folds(y_true: Labels) -> list[tuple[Labels, Labels]]:
    """Return for each fold the indices of the images outside it and of the images in it.

    If each class has enough images, each fold has the same share of each class (stratified).
    """
    n_folds = min(_N_FOLDS, len(y_true))
    if n_folds < MIN_IMAGES_TO_FIT:
        raise UsageError(f"fitting needs at least {MIN_IMAGES_TO_FIT} validation images; got {len(y_true)}")
    from sklearn.model_selection import KFold, StratifiedKFold

    counts = np.bincount(y_true)
    kind = StratifiedKFold if counts[counts > 0].min() >= n_folds else KFold
    return list(kind(n_folds, shuffle=True, random_state=0).split(np.zeros(len(y_true)), y_true))


# --- weights and stacking --------------------------------------------------------------------------------


def fit_majority_weights(logits: Logits, y_true: Labels) -> tuple[float, ...]:
    """Fit the weights of a majority vote. They are optimal if members make mistakes independently of each other.

    A member with accuracy p has the weight log(p (n_classes - 1) / (1 - p)). One correct and one wrong image are added
    to the counts, so p is never 0 or 1. A member that is not better than chance has the weight 0.

    Args:
        logits: (n_members, n_samples, n_classes).
        y_true: True labels, int64 (n_samples,).

    Returns:
        One weight per member. If no member is better than chance, all weights are 1.

    References:
        Shapley and Grofman, "Optimizing group judgmental accuracy in the presence of interdependencies", Public Choice
        1984. For more than two classes: Kuncheva and Rodríguez, "A weighted voting framework for classifiers
        ensembles", Knowledge and Information Systems 2014.

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
    """Fit the weights of a soft vote: they maximize the likelihood of the true classes.

    The vote is a mixture of the members' probability distributions. Expectation maximization fits the weights of a
    mixture: each step increases the likelihood, which has a single maximum.

    Args:
        logits: (n_members, n_samples, n_classes).
        y_true: True labels, int64 (n_samples,).

    Returns:
        One weight per member; the sum is 1.

    References:
        Dempster, Laird and Rubin, "Maximum likelihood from incomplete data via the EM algorithm", JRSS B 1977.
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
    """Fit a multinomial logistic regression to the log-probabilities of all members.

    The regression has an L2 penalty. Five strengths are tried, and cross-validation selects the one with the highest
    likelihood. There are five folds, or fewer if the rarest class has fewer images.

    Args:
        logits: (n_members, n_samples, n_classes).
        y_true: True labels, int64 (n_samples,), from at least two classes.

    Raises:
        UsageError: There are too few images or classes.

    References:
        Wolpert, "Stacked generalization", Neural Networks 1992; Ting and Witten, "Issues in stacked generalization",
        JAIR 1999.
    """
    n_classes = logits.shape[2]
    counts = np.bincount(y_true, minlength=n_classes)
    present = counts[counts > 0]
    rarest = int(present.min(initial=len(y_true)))
    if len(present) < 2 or rarest < _MIN_IMAGES_PER_CLASS:
        raise UsageError(
            f"stacking needs at least two classes, each with at least {_MIN_IMAGES_PER_CLASS} validation images; "
            f"number of classes: {len(present)}, images of the rarest class: {rarest}",
            hint="choose a rule that needs no fitting",
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
    # LogisticRegressionCV would be shorter, but its arguments change between versions of scikit-learn.
    search = GridSearchCV(
        pipeline, {"logisticregression__C": _INVERSE_PENALTIES}, scoring="neg_log_loss", cv=folds, error_score="raise"
    ).fit(features, y_true)
    return _coefficients_of_all_classes(search.best_estimator_, n_classes)


def _coefficients_of_all_classes(pipeline: "Pipeline", n_classes: int) -> Stacking:
    """Return one row of coefficients per class, for features that are not scaled.

    scikit-learn has a single row for two classes, and no row for a class without images.
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
