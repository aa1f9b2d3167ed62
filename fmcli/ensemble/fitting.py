"""Fit a rule and its temperature to validation images.

A rule looks too good on the images that it was fitted to. To vote on these images, it is cross-fitted: the images are
divided into folds, and each fold is classified by a rule that was fitted to the other folds.
"""

from dataclasses import dataclass, replace

import numpy as np

from fmcli.ensemble.combiner import Combiner
from fmcli.ensemble.rules.vote import Floats, Labels, Logits, Vote, check_logits
from fmcli.errors import UsageError
from fmcli.metrics.calibration import apply_temperature, fit_temperature

MIN_IMAGES_TO_FIT = 2
"""Cross-fitting needs at least one image to fit the rule to, and one to classify."""
_N_FOLDS = 5


def fit_combiner(combiner: Combiner, logits: Logits, y_true: Labels, *, calibrate: bool = True) -> Combiner:
    """Fit a rule and its temperature.

    Args:
        combiner: The combiner. If its rule is already fitted or has given weights, only the temperature is fitted.
        logits: Members' logits on validation images, (n_members, n_samples, n_classes).
        y_true: True labels, int64 (n_samples,).
        calibrate: Whether to fit the temperature.

    Raises:
        UsageError: The rule was made for other members, there are too few images, or the logits are not finite.
    """
    check_logits(logits)
    rule = combiner.rule.fit(logits, y_true) if combiner.needs_fit else combiner.rule
    if calibrate:
        return Combiner(rule, fit_temperature(rule.combine(logits).probabilities, y_true), is_fitted=True)
    if combiner.is_fitted and rule is combiner.rule:
        return combiner
    return replace(combiner, rule=rule, is_fitted=True)


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
        votes = [combiner(logits[:, held_out]) for combiner, held_out in self.folds]
        order = np.argsort(np.concatenate([held_out for _, held_out in self.folds]))
        fields = Vote.__dataclass_fields__
        return Vote(*(np.concatenate([getattr(vote, name) for vote in votes])[order] for name in fields))

    def without(self, member: int) -> "CrossFitted | None":
        """Return the combiner without one member; see `Combiner.without`."""
        smaller = [(combiner.without(member), held_out) for combiner, held_out in self.folds]
        folds = tuple((combiner, held_out) for combiner, held_out in smaller if combiner is not None)
        return CrossFitted(folds) if len(folds) == len(smaller) else None


def cross_fit(combiner: Combiner, logits: Logits, y_true: Labels) -> CrossFitted:
    """Fit a rule in five folds, so that it can vote on the same images.

    Args:
        combiner: The combiner before its rule is fitted.
        logits: Members' logits on validation images, (n_members, n_samples, n_classes).
        y_true: True labels, int64 (n_samples,).

    Raises:
        UsageError: There are too few images.
    """
    return CrossFitted(
        tuple(
            (fit_combiner(combiner, logits[:, fitted], y_true[fitted], calibrate=False), held_out)
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
