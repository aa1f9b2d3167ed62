"""A vote that was held: members' predictions on a split, and what came out of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fmcli.ensemble.combiner import Combiner, CrossFitted, cross_fit, cross_fitted_probabilities
from fmcli.ensemble.predictions import Predictions, stack_logits
from fmcli.ensemble.rules import Floats, Logits, Vote
from fmcli.metrics import apply_temperature


@dataclass(frozen=True, slots=True, eq=False)
class Ballot:
    """Members' predictions on a split, and their vote.

    Args:
        predictions: One entry a member.
        logits: Theirs, float32 (n_members, n_samples, n_classes).
        rule: How they were combined, with all that was learnt.
        vote: What came out, its probabilities as the rule gives them.
        calibrated: float64 (n_samples, n_classes), those probabilities after temperature scaling.
        combine: From logits of these images to the vote: the rule, or one for each fold of the images.
        gives_calibrated: The temperature came with the rule, from a pack or an ensemble file, so that `predict` scales
            by it, too.
    """

    predictions: tuple[Predictions, ...]
    logits: Logits
    rule: Combiner
    vote: Vote
    calibrated: Floats
    combine: Combiner | CrossFitted
    gives_calibrated: bool = False

    @property
    def given(self) -> Floats:
        """float64 (n_samples, n_classes), the probabilities that `predict` gives by this rule."""
        return self.calibrated if self.gives_calibrated else self.vote.probabilities

    @property
    def cross_fitted(self) -> bool:
        """Whether each image was answered by a rule that was learnt from others."""
        return isinstance(self.combine, CrossFitted)


def hold_vote(
    predictions: Sequence[Predictions],
    rule: Combiner,
    *,
    fitted_here: Combiner | None = None,
    gives_calibrated: bool = False,
) -> Ballot:
    """Combine members' predictions.

    Args:
        predictions: One entry a member, all on the same images.
        rule: How to combine them, with all that it learnt.
        fitted_here: Where it learnt on these very images, the rule as it was before; that is then done again in
            folds, so that no image is answered by what was learnt from it.
        gives_calibrated: See `Ballot`.

    Raises:
        CheckpointError: Members do not match.
        UsageError: The rule lacks something, or does not fit the members.
    """
    logits, y_true = stack_logits(predictions), predictions[0].labels
    combine: Combiner | CrossFitted = replace(rule, temperature=1.0)
    if fitted_here is not None and fitted_here.needs_fit:
        combine = cross_fit(fitted_here, logits, y_true)
    vote = combine(logits)
    if fitted_here is not None:
        calibrated = cross_fitted_probabilities(vote.probabilities, y_true)
    else:
        calibrated = apply_temperature(vote.probabilities, rule.temperature)
    return Ballot(tuple(predictions), logits, rule, vote, calibrated, combine, gives_calibrated)
