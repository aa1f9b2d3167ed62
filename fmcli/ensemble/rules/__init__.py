"""Voting rules: combine the logits of several members into one predicted class per image.

Each rule is one class in the file of its name: `two-level` is the class `TwoLevel` in `two_level.py`. To add a rule,
add its file here and its name to `RuleName` in `fmcli.choices`. `base.VotingRule` lists the attributes of a rule.

In most rules, each member gives each class a score, and the class with the highest sum wins (`additive.AdditiveRule`).
In such rules, members can have weights, be left out, and be selected one at a time.
"""

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module

from fmcli.choices import RULE_NAMES, RuleName, TieRule
from fmcli.ensemble.rules.base import VotingRule


@cache
def rule_class(name: RuleName) -> type[VotingRule]:
    """Import the class of a voting rule from its file."""
    module = import_module(f"{__name__}.{name.replace('-', '_')}")
    found: type[VotingRule] = getattr(module, name.title().replace("-", ""))
    return found


def make_rule(
    name: RuleName,
    *,
    tie: TieRule = "probability",
    weights: Sequence[float] | None = None,
    groups: Sequence[str] = (),
) -> VotingRule:
    """Return a voting rule for given members; see `VotingRule`.

    Example:
        >>> make_rule("weighted-soft", weights=[2, 1]).label
        'weighted-soft'
    """
    return rule_class(name)(tie, None if weights is None else tuple(weights), tuple(groups))


def rules_where(condition: Callable[[VotingRule], bool]) -> list[RuleName]:
    """Return the names of the rules for which a condition is true.

    Example:
        >>> rules_where(lambda rule: rule.needs_groups)
        ['two-level']
    """
    return [name for name in RULE_NAMES if condition(make_rule(name))]
