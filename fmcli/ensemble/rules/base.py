"""The interface of a voting rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Self, cast

from fmcli.choices import RuleName, TieRule
from fmcli.ensemble.rules.vote import Floats, Labels, Logits, Vote, count_votes, decide


@dataclass(frozen=True, eq=False)
class VotingRule(ABC):
    """A voting rule for given members. Weights and groups are in the order of the members.

    A subclass sets `probability_meaning` and `probability_decides`, and implements `combine`. A rule that is fitted to
    validation images also overrides `needs_fit` and `fit`; if it has fitted values other than weights, also
    `parameters`, `with_parameters` and `without`.

    Args:
        tie: Tie rule. `probability`: the tied class with the highest probability wins; if the probabilities are equal,
            the lowest label. `lowest`: the tied class with the lowest label wins. `first`: the members are asked in
            order; the first one that chose a tied class decides.
        weights: One per member; None for equal weights.
        groups: Group of each member, such as its kernel size; empty if unknown.
    """

    tie: TieRule = "probability"
    weights: tuple[float, ...] | None = None
    groups: tuple[str, ...] = ()

    @property
    def name(self) -> RuleName:
        """Name of the rule in recipes, files and commands: the name of the file that defines it."""
        return cast(RuleName, type(self).__module__.rpartition(".")[2].replace("_", "-"))

    @property
    @abstractmethod
    def probability_meaning(self) -> str:
        """End of the sentence `The vote's probability is …`."""

    @property
    @abstractmethod
    def probability_decides(self) -> bool:
        """Whether the class with the highest probability always wins, unless several classes tie."""

    @property
    def takes_weights(self) -> bool:
        """Whether members can have different weights."""
        return False

    @property
    def needs_groups(self) -> bool:
        """Whether the group of each member must be known."""
        return False

    @property
    def tie_meaning(self) -> str:
        """Noun for images on which several classes have the highest score."""
        return "Ties"

    @property
    def label(self) -> str:
        """Name for titles, such as `weighted majority`."""
        return self.name if self.weights is None or self.unweighted is not self else f"weighted {self.name}"

    @property
    def unweighted(self) -> VotingRule:
        """The rule that votes in the same way, but never fits weights."""
        return self

    @property
    def needs_fit(self) -> bool:
        """Whether the rule must be fitted to validation images before it can vote."""
        return False

    def fit(self, logits: Logits, y_true: Labels) -> Self:
        """Return the rule fitted to validation images.

        Args:
            logits: Finite logits, (n_members, n_samples, n_classes).
            y_true: True labels, int64 (n_samples,).

        Raises:
            UsageError: There are too few images.
        """
        return self

    @abstractmethod
    def combine(self, logits: Logits) -> Vote:
        """Combine the members' logits into a vote.

        Args:
            logits: Finite logits, (n_members, n_samples, n_classes), with at least one member and one class.

        Raises:
            UsageError: The rule was made for other members, or its weights are invalid.
        """

    def without(self, member: int) -> Self | None:
        """Return the rule without one member, given by its index, or None if it cannot vote without this member.

        Nothing is fitted again: the other members keep their weights. The result is None if all other weights are 0.
        """
        weights, groups = self.weights, self.groups
        if weights is not None:
            weights = (*weights[:member], *weights[member + 1 :])
            if not any(weights):
                return None
        return replace(self, weights=weights, groups=(*groups[:member], *groups[member + 1 :]))

    def parameters(self) -> dict[str, Any]:
        """Return the fitted values other than weights, as TOML values. Ensemble files store them under `name`."""
        return {}

    def with_parameters(self, values: Any, n_members: int) -> Self:
        """Return the rule with the values that `parameters` returned.

        Args:
            values: The table of a file. It can contain anything.
            n_members: Number of members of the ensemble.

        Raises:
            ValueError: The values are invalid.
        """
        raise ValueError(f"a {self.name} vote has no parameters")

    def decide(self, logits: Logits, scores: Floats, probabilities: Floats, voters: Labels | None = None) -> Vote:
        """Return the vote in which the class with the highest score wins. The tie rule decides between equal scores.

        Args:
            logits: (n_members, n_samples, n_classes).
            scores: float64 (n_samples, n_classes).
            probabilities: float64 (n_samples, n_classes); each row sums to 1.
            voters: int64 (n_voters, n_samples), the choices to ask for the tie rule `first`. Default: each member's
                most probable class.
        """
        choices = logits.argmax(axis=2)  # (n_members, n_samples)
        labels, ties = decide(scores, probabilities, choices if voters is None else voters, self.tie)
        return Vote(labels, count_votes(choices, logits.shape[2]), scores, probabilities, ties)
