"""Members' predictions in, what they say together out. No network in sight.

A rule with all it needs (`combiner`), its evaluation beside the members (`evaluate`), choosing members (`select`) and
setting ensembles against each other (`compare`).
"""

from fmcli.ensemble.combiner import Combiner, Stacking, choose_combiner, cross_fitted_vote, fit_combiner
from fmcli.ensemble.evaluate import (
    EnsembleEvaluation,
    Evaluation,
    evaluate_ensemble,
    evaluate_member,
)

__all__ = [
    "Combiner",
    "EnsembleEvaluation",
    "Evaluation",
    "Stacking",
    "choose_combiner",
    "cross_fitted_vote",
    "evaluate_ensemble",
    "evaluate_member",
    "fit_combiner",
]
