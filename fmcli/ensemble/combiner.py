"""Combiners: a voting rule with its weights, groups, fitted coefficients and temperature."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from fmcli.choices import TieRule, VotingRule
from fmcli.ensemble.rules import VOTING_RULES
from fmcli.ensemble.rules.vote import Floats, Logits, Vote, normalize_weights
from fmcli.errors import Remedy, UsageError
from fmcli.metrics.calibration import apply_temperature
from fmcli.recipe.recipe import EnsembleSpec

UNWEIGHTED_RULES = ("two-level", "stacking")
FITTED_RULES = ("weighted-majority", "weighted-soft", "stacking")
"""Rules that are fitted to validation images. The two weighted rules need no fitting if weights are given."""


@dataclass(frozen=True, slots=True, eq=False)
class Stacking:
    """A multinomial logistic regression over all members' log-probabilities.

    Args:
        coefficients: float64 (n_classes, n_members · n_classes).
        intercepts: float64 (n_classes,).
    """

    coefficients: Floats
    intercepts: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Combiner:
    """A voting rule for given members. Weights and groups are in the order of the members.

    Args:
        vote: Voting rule.
        tie: Tie rule, see `rules.additive.majority_vote`.
        weights: One per member; None for equal weights.
        groups: Group of each member, for `two-level`.
        stacking: Fitted coefficients, for `stacking`.
        temperature: The logarithms of the vote's probabilities are divided by it, and the result is normalized; 1
            leaves the probabilities unchanged. See `metrics.calibration.apply_temperature`.
        is_fitted: Whether the rule needs no more fitting, not even of its temperature.
    """

    vote: VotingRule = "majority"
    tie: TieRule = "probability"
    weights: tuple[float, ...] | None = None
    groups: tuple[str, ...] = ()
    stacking: Stacking | None = None
    temperature: float = 1.0
    is_fitted: bool = False

    @property
    def needs_fit(self) -> bool:
        """Whether the rule must be fitted to validation images before it can vote."""
        if self.vote == "stacking":
            return self.stacking is None
        return self.vote in FITTED_RULES and self.weights is None

    def __call__(self, logits: Logits) -> Vote:
        """Combine the members' logits, (n_members, n_samples, n_classes), into a vote.

        Raises:
            UsageError: The rule is not fitted, or was made for other members, or the logits are not finite.
        """
        vote = VOTING_RULES[self.vote](logits, tie=self.tie, **self._parameters())
        if self.temperature == 1:
            return vote
        return replace(vote, probabilities=apply_temperature(vote.probabilities, self.temperature))

    def _parameters(self) -> dict[str, Any]:
        match self.vote:
            case "two-level":
                return {"groups": self.groups}
            case "stacking":
                if self.stacking is None:
                    raise UsageError("stacking must be fitted before it can vote")
                return {"coefficients": self.stacking.coefficients, "intercepts": self.stacking.intercepts}
            case _:
                return {"weights": self.weights}

    def without(self, index: int) -> "Combiner | None":
        """Return the combiner without one member.

        Nothing is fitted again: the other members keep their weights. The result is None for stacking, whose
        coefficients depend on all members, and if all other weights are 0.
        """
        if self.stacking is not None:
            return None
        weights, groups = self.weights, self.groups
        if weights is not None:
            weights = (*weights[:index], *weights[index + 1 :])
            if not any(weights):
                return None
        return replace(self, weights=weights, groups=(*groups[:index], *groups[index + 1 :]))


def choose_combiner(
    recipes: Sequence[EnsembleSpec],
    names: Sequence[str],
    groups: Sequence[str],
    *,
    vote: VotingRule | None = None,
    tie: TieRule | None = None,
    weights: Sequence[float] | None = None,
) -> Combiner:
    """Return the combiner that the user or the members' recipes ask for.

    Args:
        recipes: Section `[ensemble]` of the members' recipes; empty for members that have only predictions.
        names: Name of each member, by which recipes set weights.
        groups: Group of each member in a two-level vote; empty if unknown.
        vote: Voting rule. Default: from the recipes.
        tie: Tie rule. Default: from the recipes.
        weights: One per member. Default: from the recipes.

    Raises:
        UsageError: The recipes have different settings and the caller gives none, weights are given for a rule that
            does not use them, or the group of a member is unknown.
    """
    vote = vote or _shared_setting(recipes, "vote")
    tie = tie or _shared_setting(recipes, "tie")
    if vote in UNWEIGHTED_RULES:
        if weights is not None:
            raise UsageError(
                f"a {vote} vote does not use weights",
                hint="choose a rule that uses weights",
                remedies=[Remedy("vote", "majority"), Remedy("vote", "weighted-soft")],
            )
    elif weights is None and (by_name := _weights_by_name(recipes)):
        weights = [by_name.get(name, 1.0) for name in names]
    if weights is not None:
        normalize_weights(weights, len(names))
    if vote == "two-level" and not all(groups):
        unknown = [name for name, group in zip(names, groups, strict=True) if not group]
        raise UsageError(
            f"a two-level vote needs the group of each member; no group is known for {', '.join(unknown[:4])}",
            remedies=["groups"],
        )
    return Combiner(vote, tie, None if weights is None else tuple(weights), tuple(groups))


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
