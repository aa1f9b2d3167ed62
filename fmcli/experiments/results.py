"""Results of reproducing published systems and of searching hyperparameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, Literal

from fmcli.choices import SplitName
from fmcli.metrics.comparison import mean_interval, wilson_interval
from fmcli.recipe.recipe import ReferenceSpec


@dataclass(frozen=True, slots=True)
class SeedResult:
    """The result of training a system with one seed.

    Args:
        seed: Seed of the recipe.
        accuracy: Accuracy of the vote by split, in [0, 1]. The entry `train` is the training accuracy of the kept
            epoch: the mean over its steps and the members, as other frameworks print it.
        n_images: Number of images by split.
        members: Test accuracy by member.
        recall: Test recall by class name.
        epochs: Number of epochs that the kept weights were trained for, averaged over the members.
        seconds: Training time of all members and epochs, in seconds.
        trained_on: Device, precision, number of threads and versions.
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
    """A published system and our results with several seeds.

    Args:
        name: Name of the recipe.
        reference: Published scores.
        seeds: At least one result, one per seed.
        changes: One line per value in which the trained recipe differs from the shipped recipe.
    """

    name: str
    reference: ReferenceSpec
    seeds: Sequence[SeedResult]
    changes: Sequence[str] = ()

    @property
    def split(self) -> SplitName:
        """The split to compare: test, unless only a validation accuracy was published."""
        only_validation = self.reference.test_accuracy is None and self.reference.validation_accuracy is not None
        return "validation" if only_validation else "test"

    @property
    def published(self) -> float | None:
        """The published accuracy on that split."""
        return self.reference.accuracy_on(self.split)

    def accuracies(self, split: str) -> list[float]:
        """Return our accuracies on a split, one for each seed that has this split."""
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
        """The 95 % interval of our mean accuracy over the seeds. For one seed, the interval over its images."""
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
        """Whether our mean or the upper end of our interval reaches the published accuracy."""
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
    """One trial of a search: a set of values and its score.

    Args:
        number: Number of the trial. Trials are numbered from 0 in the order in which they were drawn.
        state: `pruned` if it was stopped early; `failed` if the network is impossible or diverged.
        values: Values by path in the recipe.
        score: Mean validation accuracy over the runs of the trial, in [0, 1]; None unless the trial is complete.
        reason: Reason of a failure; otherwise empty.
    """

    number: int
    state: State
    values: Mapping[str, Any]
    score: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The result of a search so far.

    Args:
        recipe: Name of the recipe.
        folder: Folder with the trials.
        asked: Requested number of trials.
        untuned: Values of the recipe before the search, by path.
        trials: The trials, in order of their numbers.
        importance: Share of the score's variance that each value explains (fANOVA); empty if there are too few trials.
    """

    recipe: str
    folder: str
    asked: int
    untuned: Mapping[str, Any]
    trials: Sequence[TrialResult]
    importance: Mapping[str, float]

    def count(self, state: State) -> int:
        """Return the number of trials in a state."""
        return sum(trial.state == state for trial in self.trials)

    def best(self, n: int) -> list[TrialResult]:
        """Return the n best complete trials in descending order; the earlier trial wins a tie."""
        complete = [trial for trial in self.trials if trial.score is not None]
        return sorted(complete, key=lambda trial: (-(trial.score or 0.0), trial.number))[:n]
