"""Members' predictions in, what they say together out. No network in sight.

A rule with all it needs (`combiner`), a vote by it (`ballot`), its evaluation beside the members (`evaluate`),
choosing members (`select`) and setting ensembles against each other (`compare`).
"""

from fmcli.ensemble.ballot import Ballot, hold_vote
from fmcli.ensemble.combiner import (
    MIN_IMAGES_TO_FIT,
    Combiner,
    Stacking,
    choose_combiner,
    cross_fitted_vote,
    fit_combiner,
)
from fmcli.ensemble.evaluate import (
    EnsembleEvaluation,
    Evaluation,
    evaluate_ensemble,
    evaluate_member,
)

__all__ = [
    "MIN_IMAGES_TO_FIT",
    "Ballot",
    "Combiner",
    "EnsembleEvaluation",
    "Evaluation",
    "Stacking",
    "choose_combiner",
    "cross_fitted_vote",
    "evaluate_ensemble",
    "evaluate_member",
    "fit_combiner",
    "hold_vote",
]
