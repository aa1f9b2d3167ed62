"""Combine members' predictions on a split into a vote."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fmcli.ensemble.combiner import Combiner
from fmcli.ensemble.fitting import CrossFitted, cross_fit, cross_fitted_probabilities
from fmcli.ensemble.predictions import Predictions, stack_logits
from fmcli.ensemble.rules.vote import Floats, Logits, Vote
from fmcli.metrics.calibration import apply_temperature


@dataclass(frozen=True, slots=True, eq=False)
class VotingResult:
    """Members' predictions on a split, and their vote.

    Args:
        predictions: One entry per member.
        logits: float32 (n_members, n_samples, n_classes), the members' logits.
        combiner: The fitted voting rule with its temperature.
        vote: The vote before temperature scaling.
        calibrated: float64 (n_samples, n_classes), the vote's probabilities after temperature scaling.
        voter: The combiner that produced the vote: the fitted rule, or one rule per fold of the images.
        output_calibrated: Whether `predict` outputs `calibrated`, because the temperature is from a pack or an
            ensemble file.
    """

    predictions: tuple[Predictions, ...]
    logits: Logits
    combiner: Combiner
    vote: Vote
    calibrated: Floats
    voter: Combiner | CrossFitted
    output_calibrated: bool = False

    @property
    def output_probabilities(self) -> Floats:
        """The probabilities that `predict` outputs with this rule, float64 (n_samples, n_classes)."""
        return self.calibrated if self.output_calibrated else self.vote.probabilities

    @property
    def cross_fitted(self) -> bool:
        """Whether each image was classified by a rule that was fitted to other images of this split."""
        return isinstance(self.voter, CrossFitted)


def combine_predictions(
    predictions: Sequence[Predictions],
    combiner: Combiner,
    *,
    fitted_here: Combiner | None = None,
    output_calibrated: bool = False,
) -> VotingResult:
    """Combine members' predictions.

    Args:
        predictions: One entry per member, all on the same images.
        combiner: The fitted voting rule with its temperature.
        fitted_here: If the rule was fitted to these images, the combiner before fitting; otherwise None. Weights and
            temperature are then fitted in folds, so that no image is classified by a rule that was fitted to it.
        output_calibrated: See `VotingResult`.

    Raises:
        CheckpointError: Members predict different images or classes.
        UsageError: The rule is not fitted, or was made for other members.
    """
    logits, y_true = stack_logits(predictions), predictions[0].labels
    voter: Combiner | CrossFitted = replace(combiner, temperature=1.0)
    if fitted_here is not None and fitted_here.needs_fit:
        voter = cross_fit(fitted_here, logits, y_true)
    vote = voter(logits)
    if fitted_here is not None:
        calibrated = cross_fitted_probabilities(vote.probabilities, y_true)
    else:
        calibrated = apply_temperature(vote.probabilities, combiner.temperature)
    return VotingResult(tuple(predictions), logits, combiner, vote, calibrated, voter, output_calibrated)
