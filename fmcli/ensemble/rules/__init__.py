"""Voting rules: combine the logits of several members into one predicted class per image.

Each rule is a pure function of logits, (n_members, n_samples, n_classes). In most rules, each member gives each class a
score, and the class with the highest sum wins (`additive.MEMBER_SCORES`). In such rules, members can have weights, be
left out, and be selected one at a time.
"""

from collections.abc import Callable

from fmcli.ensemble.rules.additive import borda_vote, geometric_vote, majority_vote, soft_vote
from fmcli.ensemble.rules.stacking import stacking_vote
from fmcli.ensemble.rules.two_level import two_level_vote
from fmcli.ensemble.rules.vote import Vote

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
