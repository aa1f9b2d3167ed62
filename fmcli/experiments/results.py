"""Results of many runs: published systems next to our trainings, and hyperparameter searches. Plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, Literal

from fmcli.choices import SplitName
from fmcli.metrics.comparison import mean_interval, wilson_interval
from fmcli.recipe.recipe import ReferenceSpec


@dataclass(frozen=True, slots=True)
class SeedResult:
    """One training of a system.

    Args:
        seed: The recipe's seed.
        accuracy: By split, of the one member or of the members' vote, in [0, 1]. `train` is the mean over the
            steps of the kept epoch, as frameworks print it.
        n_images: By split, how many images that accuracy was measured on.
        members: Test accuracy of each member.
        recall: On the test images, of each class.
        epochs: That the weights were trained for, on the mean of the members.
        seconds: That the training took, all members and epochs.
        trained_on: Device, precision, number of threads, versions.
    """

    seed: int
    accuracy: Mapping[str, float]
    n_images: Mapping[str, int]
    members: Mapping[str, float]
    recall: Mapping[str, float]
    epochs: float
    seconds: float
    trained_on: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SystemResult:
    """A published system beside our trainings of it.

    Args:
        name: Its recipe's.
        reference: What was published.
        seeds: One training or more.
        changes: Where the trained recipe differs from the shipped one, a line each.
    """

    name: str
    reference: ReferenceSpec
    seeds: Sequence[SeedResult]
    changes: Sequence[str] = ()

    @property
    def split(self) -> SplitName:
        """The images that are compared on: of the test split, unless only a validation accuracy was published."""
        only_validation = self.reference.test_accuracy is None and self.reference.validation_accuracy is not None
        return "validation" if only_validation else "test"

    @property
    def published(self) -> float | None:
        """The published accuracy on that split."""
        return self.published_on(self.split)

    def published_on(self, split: SplitName) -> float | None:
        """Return the published accuracy on a split, if there is one."""
        figures = {
            "train": self.reference.train_accuracy,
            "validation": self.reference.validation_accuracy,
            "test": self.reference.test_accuracy,
        }
        return figures[split]

    def accuracies(self, split: str) -> list[float]:
        """Return our accuracy on a split, of each seed that has one."""
        return [seed.accuracy[split] for seed in self.seeds if split in seed.accuracy]

    @property
    def mean(self) -> float:
        """Our mean accuracy over the seeds."""
        return mean(self.accuracies(self.split))

    @property
    def spread(self) -> float | None:
        """The standard deviation over the seeds; None for one seed."""
        accuracies = self.accuracies(self.split)
        return stdev(accuracies) if len(accuracies) > 1 else None

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of our accuracy: of its mean over the seeds, or for one seed over such images."""
        accuracies = self.accuracies(self.split)
        if len(accuracies) > 1:
            low, high = mean_interval(accuracies)
            return max(low, 0.0), min(high, 1.0)
        n = self.seeds[0].n_images[self.split]
        return wilson_interval(round(accuracies[0] * n), n)

    @property
    def difference(self) -> float | None:
        """Our mean minus the published accuracy."""
        return None if self.published is None else self.mean - self.published

    @property
    def reached(self) -> bool | None:
        """Whether ours is at or above the published accuracy, or cannot be told from it."""
        return None if self.published is None else self.published <= max(self.mean, self.interval[1])

    def member_means(self) -> dict[str, float]:
        """Return each member's mean test accuracy over the seeds."""
        return {name: mean(seed.members[name] for seed in self.seeds) for name in self.seeds[0].members}

    def recall(self, class_name: str) -> float:
        """Return our mean recall of a class on the test images."""
        return mean(seed.recall[class_name] for seed in self.seeds)


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
