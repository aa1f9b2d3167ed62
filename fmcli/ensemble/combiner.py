"""Combiners: a voting rule with a temperature."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from fmcli.choices import RuleName, TieRule
from fmcli.ensemble.rules import make_rule
from fmcli.ensemble.rules.base import VotingRule
from fmcli.ensemble.rules.vote import Logits, Vote, check_logits, normalize_weights
from fmcli.errors import Remedy, UsageError
from fmcli.metrics.calibration import apply_temperature
from fmcli.recipe.recipe import EnsembleSpec


@dataclass(frozen=True, slots=True, eq=False)
class Combiner:
    """A voting rule, and the temperature of its probabilities.

    Args:
        rule: The voting rule.
        temperature: The logarithms of the vote's probabilities are divided by it, and the result is normalized; 1
            leaves the probabilities unchanged. See `metrics.calibration.apply_temperature`.
        is_fitted: Whether nothing must be fitted any more, not even the temperature.
    """

    rule: VotingRule
    temperature: float = 1.0
    is_fitted: bool = False

    @property
    def needs_fit(self) -> bool:
        """Whether the rule must be fitted to validation images before it can vote."""
        return self.rule.needs_fit

    def __call__(self, logits: Logits) -> Vote:
        """Combine the members' logits, (n_members, n_samples, n_classes), into a vote.

        Raises:
            UsageError: The rule is not fitted, or was made for other members, or the logits are not finite.
        """
        check_logits(logits)
        vote = self.rule.combine(logits)
        if self.temperature == 1:
            return vote
        return replace(vote, probabilities=apply_temperature(vote.probabilities, self.temperature))

    def without(self, member: int) -> "Combiner | None":
        """Return the combiner without one member; see `VotingRule.without`."""
        rule = self.rule.without(member)
        return None if rule is None else replace(self, rule=rule)


def choose_combiner(
    recipes: Sequence[EnsembleSpec],
    names: Sequence[str],
    groups: Sequence[str],
    *,
    vote: RuleName | None = None,
    tie: TieRule | None = None,
    weights: Sequence[float] | None = None,
) -> Combiner:
    """Return the combiner that the user or the members' recipes ask for.

    Args:
        recipes: Section `[ensemble]` of the members' recipes; empty for members that have only predictions.
        names: Name of each member, by which recipes set weights.
        groups: Group of each member, for rules that need groups; empty if unknown.
        vote: Voting rule. Default: from the recipes.
        tie: Tie rule. Default: from the recipes.
        weights: One per member. Default: from the recipes.

    Raises:
        UsageError: The recipes have different settings and the caller gives none, weights are given for a rule that
            does not use them, or the group of a member is unknown.
    """
    vote, tie = vote or _shared_setting(recipes, "vote"), tie or _shared_setting(recipes, "tie")
    rule = make_rule(vote, tie=tie, groups=groups)
    if not rule.takes_weights:
        if weights is not None:
            raise UsageError(
                f"a {rule.name} vote does not use weights",
                hint="choose a rule that uses weights",
                remedies=[Remedy("vote", "majority"), Remedy("vote", "weighted-soft")],
            )
    elif weights is None and (by_name := _weights_by_name(recipes)):
        weights = [by_name.get(name, 1.0) for name in names]
    if weights is not None:
        normalize_weights(weights, len(names))
    if rule.needs_groups and not all(groups):
        unknown = [name for name, group in zip(names, groups, strict=True) if not group]
        raise UsageError(
            f"a {rule.name} vote needs the group of each member; no group is known for {', '.join(unknown[:4])}",
            remedies=["groups"],
        )
    return Combiner(replace(rule, weights=None if weights is None else tuple(weights)))


def _shared_setting(recipes: Sequence[EnsembleSpec], setting: Literal["vote", "tie"]) -> Any:
    values = sorted({getattr(recipe, setting) for recipe in recipes or [EnsembleSpec()]})
    if len(values) > 1:
        raise UsageError(
            f"the members' recipes have different {setting} rules: {', '.join(values)}",
            remedies=[Remedy(setting, value) for value in values],
        )
    return values[0]


def _weights_by_name(recipes: Sequence[EnsembleSpec]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for recipe in recipes:
        for name, weight in recipe.weights.items():
            if weights.setdefault(name, weight) != weight:
                raise UsageError(
                    f"the members' recipes give {name} different weights: {weights[name]:g}, {weight:g}",
                    remedies=["weights"],
                )
    return weights
