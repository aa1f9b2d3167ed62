"""Voting rules: combine the logits of several members into one answer per image.

Each rule is a pure function of logits (n_members, n_samples, n_classes). Most rules add up a score that each member
gives each class (`MEMBER_SCORES`). Members of such rules can be weighted, left out, and selected one at a time.
"""

from collections.abc import Callable

from fmcli.ensemble.rules.borda import borda_points, borda_vote
from fmcli.ensemble.rules.geometric import geometric_vote
from fmcli.ensemble.rules.majority import majority_vote, one_hot_choices
from fmcli.ensemble.rules.soft import soft_vote
from fmcli.ensemble.rules.stacking import stacking_features, stacking_vote
from fmcli.ensemble.rules.two_level import two_level_vote
from fmcli.ensemble.rules.vote import (
    TIE_RULES,
    Floats,
    Labels,
    Logits,
    MemberScores,
    Vote,
    check_logits,
    log_probabilities_of,
    normalize_weights,
    probabilities_of,
)

__all__ = [
    "MEMBER_SCORES",
    "TIE_RULES",
    "VOTING_RULES",
    "Floats",
    "Labels",
    "Logits",
    "Vote",
    "borda_vote",
    "check_logits",
    "geometric_vote",
    "majority_vote",
    "normalize_weights",
    "probabilities_of",
    "soft_vote",
    "stacking_features",
    "stacking_vote",
    "two_level_vote",
]

MEMBER_SCORES: dict[str, MemberScores] = {
    "majority": one_hot_choices,
    "soft": probabilities_of,
    "geometric": log_probabilities_of,
    "borda": borda_points,
}
"""Scores that a member adds, for each rule whose scores are sums over members."""

VOTING_RULES: dict[str, Callable[..., Vote]] = {
    "majority": majority_vote,
    "weighted-majority": majority_vote,
    "soft": soft_vote,
    "weighted-soft": soft_vote,
    "geometric": geometric_vote,
    "borda": borda_vote,
    "two-level": two_level_vote,
    "stacking": stacking_vote,
}
