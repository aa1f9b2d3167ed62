"""A hyperparameter search as values: what was tried, and how it did."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["complete", "pruned", "failed", "running"]


@dataclass(frozen=True, slots=True)
class TrialResult:
    """One set of values.

    Args:
        number: From 0, in the order of drawing.
        state: `pruned` trials were stopped early; `failed` ones make an impossible network, or diverge.
        values: By path in the recipe.
        score: Mean validation accuracy over the trainings, in [0, 1]; None unless complete.
        reason: Why it failed, if it did.
    """

    number: int
    state: State
    values: Mapping[str, Any]
    score: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """A search, or as much of it as is done.

    Args:
        recipe: Its recipe's name.
        folder: Where its trials are.
        asked: How many trials were asked for.
        untuned: The recipe's own values, by the same paths.
        trials: In order of number.
        importance: The part of the score's variance that each value explains, by fANOVA; empty where that cannot
            be told.
    """

    recipe: str
    folder: str
    asked: int
    untuned: Mapping[str, Any]
    trials: Sequence[TrialResult]
    importance: Mapping[str, float]

    def count(self, state: State) -> int:
        """Return how many trials are in a state."""
        return sum(trial.state == state for trial in self.trials)

    def best(self, n: int) -> list[TrialResult]:
        """Return the best complete trials, the best first, the earlier of equals first."""
        complete = [trial for trial in self.trials if trial.score is not None]
        return sorted(complete, key=lambda trial: (-(trial.score or 0.0), trial.number))[:n]
