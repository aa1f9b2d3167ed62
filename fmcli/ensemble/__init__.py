"""Combine members' predictions into votes, and evaluate, compare and select ensembles. Needs no network.

`predictions`, `external`   predictions from fmcli and from other tools
`rules`, `combiner`         voting rules; a rule with its temperature
`fitting`                   fit a rule and its temperature to validation images
`voting`, `evaluate`        combine predictions on a split; score the vote and its members
`selection`, `candidates`   select members
`comparison`                compare ensembles
`heterogeneity`             compare ensembles of several groups of members with ensembles of one group
`file`                      ensemble files
"""

from fmcli.ensemble.combiner import Combiner, choose_combiner
from fmcli.ensemble.evaluate import EnsembleEvaluation, Evaluation, evaluate_ensemble, evaluate_member
from fmcli.ensemble.fitting import MIN_IMAGES_TO_FIT, cross_fit, fit_combiner
from fmcli.ensemble.rules import make_rule
from fmcli.ensemble.rules.base import VotingRule
from fmcli.ensemble.voting import VotingResult, combine_predictions

__all__ = [
    "MIN_IMAGES_TO_FIT",
    "Combiner",
    "EnsembleEvaluation",
    "Evaluation",
    "VotingResult",
    "VotingRule",
    "choose_combiner",
    "combine_predictions",
    "cross_fit",
    "evaluate_ensemble",
    "evaluate_member",
    "fit_combiner",
    "make_rule",
]
