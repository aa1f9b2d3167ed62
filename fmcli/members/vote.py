"""Fit the voting rule of a pool, and combine the predictions of its members."""

from typing import Unpack

from fmcli.ensemble import MIN_IMAGES_TO_FIT, Combiner, VotingResult, combine_predictions, cross_fit, fit_combiner
from fmcli.ensemble.predictions import stack_logits
from fmcli.ensemble.rules.vote import Labels, Logits
from fmcli.members.pool import Pool
from fmcli.members.predict import PredictOptions, predict_pool
from fmcli.members.validation import predict_for_fitting


def fit_rule(pool: Pool, combiner: Combiner, *, calibrate: bool = True, **options: Unpack[PredictOptions]) -> Combiner:
    """Fit a rule on validation images. Return it unchanged if there is nothing to fit.

    Args:
        pool: The members.
        combiner: The rule. If it already has weights, they are not fitted again.
        calibrate: Whether to fit the temperature.
        **options: Options of `predict_pool`.

    Raises:
        UsageError: See `predict_for_fitting`.
    """
    if not combiner.needs_fit and not calibrate:
        return combiner
    found = predict_for_fitting(pool, combiner, **options)
    if found is None or (len(found[0].labels) < MIN_IMAGES_TO_FIT and not combiner.needs_fit):
        return combiner
    return fit_combiner(combiner, stack_logits(found), found[0].labels, calibrate=calibrate)


def accuracy_of_rule(combiner: Combiner, logits: Logits, y_true: Labels) -> float:
    """Return the accuracy of a rule on validation images. If it needs fitting, it is cross-fitted to these images.

    Args:
        combiner: The rule.
        logits: (n_members, n_samples, n_classes).
        y_true: (n_samples,).
    """
    vote = cross_fit(combiner, logits, y_true)(logits) if combiner.needs_fit else combiner(logits)
    return float((vote.labels == y_true).mean())


def vote_on_split(
    pool: Pool,
    combiner: Combiner,
    split: str,
    *,
    calibrate: bool = True,
    **options: Unpack[PredictOptions],
) -> VotingResult:
    """Fit a rule on validation images if needed, and combine the members' predictions on a split.

    On the validation split itself, the rule is cross-fitted.

    Args:
        pool: The members.
        combiner: The rule. If it already has weights, they are not fitted again.
        split: `train`, `validation` or `test`.
        calibrate: Whether to fit the temperature.
        **options: Options of `predict_pool`. `labels` are the true classes of the split.

    Raises:
        UsageError: See `predict_for_fitting`.
        DataError, CheckpointError: See `predict_pool`.
    """
    is_validation = split == "validation"
    fit_options: PredictOptions = options if is_validation else {**options, "labels": None}
    fitted = fit_rule(pool, combiner, calibrate=calibrate, **fit_options)
    predictions = predict_pool(pool, split, **options)
    if fitted is combiner:
        return combine_predictions(predictions, combiner, output_calibrated=combiner.temperature != 1)
    return combine_predictions(predictions, fitted, fitted_here=combiner if is_validation else None)
