"""Compare heterogeneous ensembles, whose members are from different groups, with homogeneous ensembles of one group.

A group is a kind of network, such as all networks with 5×5 kernels.

References:
    - Heterogeneous ensembles: An, Lee, Park, Yang and So, "An ensemble of simple convolutional neural network models
      for MNIST digit recognition", arXiv 2008.10400.
    - The mean over all ensembles of a pool is a U-statistic: Hoeffding, "A class of statistics with asymptotically
      normal distribution", Annals of Mathematical Statistics 1948.
    - The jackknife estimates the variance of a U-statistic by leaving out one member at a time: Arvesen, "Jackknifing
      U-statistics", Annals of Mathematical Statistics 1969.
    - Members and images are crossed samples, because each member predicts each image: Owen, "The pigeonhole bootstrap",
      Annals of Applied Statistics 2007.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from math import comb, prod
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray

from fmcli.ensemble.predictions import Predictions, stack_logits
from fmcli.ensemble.rules.base import VotingRule
from fmcli.ensemble.rules.vote import Floats, check_logits
from fmcli.errors import Remedy, UsageError, printable
from fmcli.metrics.comparison import CrossedTest, crossed_test, holm_correction

_MIN_DRAWS_PER_COMBINATION = 10

Members = tuple[int, ...]
"""Indices of an ensemble's members in the pool."""


@dataclass(frozen=True, slots=True)
class DrawnEnsembles:
    """Ensembles with members from the same groups, such as one 3×3, one 5×5 and one 7×7 network.

    If ensembles have fewer members than there are groups, there are several combinations of groups.

    Args:
        name: Groups of the members.
        by_combination: For each combination of groups, the members of each ensemble and its accuracy in [0, 1].
        by_image: float64 (n_samples,), the share of the ensembles that classify each image correctly, in [0, 1]. It is
            the mean over combinations of the share in each combination.
    """

    name: str
    by_combination: tuple[dict[Members, float], ...]
    by_image: Floats = field(compare=False)

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Accuracy of each ensemble, in [0, 1]."""
        return tuple(accuracy for ensembles in self.by_combination for accuracy in ensembles.values())

    @property
    def mean(self) -> float:
        """Mean accuracy, in [0, 1]: first the mean of each combination, then the mean over combinations."""
        return self.mean_without(None)

    def mean_without(self, member: int | None) -> float:
        """Return the mean accuracy of the ensembles without a member; with None, of all ensembles."""
        return fmean(
            fmean(accuracy for members, accuracy in ensembles.items() if member not in members)
            for ensembles in self.by_combination
        )

    @property
    def spread(self) -> float:
        """Standard deviation of the ensembles' accuracies; 0 for a single ensemble."""
        return stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0


@dataclass(frozen=True, slots=True)
class HomogeneousResult:
    """Homogeneous ensembles of one group, compared with the heterogeneous ensembles.

    Args:
        group: The group.
        ensembles: The ensembles of this group.
        member_accuracy: Mean accuracy of the single members of the group, in [0, 1].
        gain: Mean accuracy of the heterogeneous ensembles minus the mean accuracy of these ensembles.
        test: Test whether the gain differs from 0, and its 95 % interval. Both treat the members and the images as
            random samples.
        adjusted_p_value: The p-value of the test after Holm's correction for the number of groups.
    """

    group: str
    ensembles: DrawnEnsembles
    member_accuracy: float
    gain: float
    test: CrossedTest
    adjusted_p_value: float


@dataclass(frozen=True, slots=True)
class HeterogeneityStudy:
    """Accuracy of heterogeneous and homogeneous ensembles of the same size.

    Args:
        split: The split that was evaluated.
        size: Number of members of each ensemble.
        n_members: Number of members of each group in the pool.
        heterogeneous: Ensembles of members from different groups.
        homogeneous: One entry per group, with the comparison to `heterogeneous`.
    """

    split: str
    size: int
    n_members: dict[str, int]
    heterogeneous: DrawnEnsembles
    homogeneous: tuple[HomogeneousResult, ...]


def compare_heterogeneous(
    predictions: Sequence[Predictions], rule: VotingRule, *, size: int | None = None, draws: int = 200, seed: int = 0
) -> HeterogeneityStudy:
    """Compare heterogeneous ensembles with homogeneous ensembles of the same size.

    If there are more groups than members of an ensemble, heterogeneous ensembles are drawn from each combination of
    groups, and each combination has the same weight in the mean.

    Args:
        predictions: A pool of members on the same images, each with its group.
        rule: A voting rule that is not fitted and has no weights. A rule that needs groups uses those of the drawn
            members.
        size: Number of members of each ensemble. Default: the number of groups.
        draws: About how many heterogeneous ensembles to draw, and how many homogeneous ensembles of each group. If the
            pool has fewer, all are evaluated. More are drawn if a combination of groups would get fewer than 10
            ensembles, or if one member would be in all ensembles.
        seed: Seed of the draws.

    Returns:
        The study. Its tests treat members and images as random samples; see `metrics.comparison.crossed_test`.

    Raises:
        CheckpointError: Members predict different images or classes.
        UsageError: There are too few groups or members, a group is unknown, or the rule has weights.
    """
    if rule.needs_fit or rule.weights is not None or rule.parameters():
        raise UsageError(
            f"a {rule.name} vote has a weight for each member, but every drawn ensemble has different members",
            remedies=[Remedy("vote", "soft"), Remedy("vote", "majority")],
        )
    groups = _indices_by_group(predictions)
    size = size or len(groups)
    _check_groups(groups, size)
    logits, y_true = stack_logits(predictions), predictions[0].labels
    check_logits(logits)
    generator = np.random.default_rng(seed)

    def find_correct(members: Members) -> NDArray[np.bool_]:
        drawn = replace(rule, groups=tuple(predictions[index].group for index in members))
        return np.asarray(drawn.combine(logits[list(members)]).labels == y_true)

    mixed = _evaluate(
        "+".join(groups) if size == len(groups) else f"{size} of {', '.join(groups)}",
        _draw_heterogeneous(list(groups.values()), size, draws, generator),
        find_correct,
    )
    uniform = [
        _evaluate("+".join([group] * size), [_draw_homogeneous(indices, size, draws, generator)], find_correct)
        for group, indices in groups.items()
    ]
    return HeterogeneityStudy(
        split=predictions[0].split,
        size=size,
        n_members={group: len(indices) for group, indices in groups.items()},
        heterogeneous=mixed,
        homogeneous=_compare_with(mixed, uniform, groups, predictions),
    )


def _indices_by_group(predictions: Sequence[Predictions]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for index, member in enumerate(predictions):
        if not member.group:
            raise UsageError(f"the group of {printable(member.member)} is unknown", remedies=["groups"])
        groups.setdefault(member.group, []).append(index)
    return dict(sorted(groups.items()))


def _check_groups(groups: dict[str, list[int]], size: int) -> None:
    if len(groups) < 2:
        raise UsageError(f"all members are in group {next(iter(groups))}", hint="add members of a second group")
    if size > len(groups):
        raise UsageError(
            f"ensembles of {size} members need {size} groups; the pool has {len(groups)} groups: {', '.join(groups)}",
            hint=f"choose at most {len(groups)} members",
            remedies=["size"],
        )
    small = [f"group {group} has {len(indices)}" for group, indices in groups.items() if len(indices) <= size]
    if small:
        raise UsageError(
            f"ensembles of {size} members need at least {size + 1} members of each group; {', '.join(small)}",
            hint="train more members, for example with copies = 10 in [[members]]",
        )


def _evaluate(
    name: str, drawn: Sequence[Sequence[Members]], find_correct: Callable[[Members], NDArray[np.bool_]]
) -> DrawnEnsembles:
    """Evaluate the ensembles that were drawn from each combination of groups."""
    by_combination, by_image = [], []
    for ensembles in drawn:
        correct = {members: find_correct(members) for members in ensembles}
        by_combination.append({members: float(images.mean()) for members, images in correct.items()})
        by_image.append(np.mean(list(correct.values()), axis=0))
    return DrawnEnsembles(name, tuple(by_combination), np.asarray(np.mean(by_image, axis=0)))


def _compare_with(
    mixed: DrawnEnsembles,
    uniform: Sequence[DrawnEnsembles],
    groups: dict[str, list[int]],
    predictions: Sequence[Predictions],
) -> tuple[HomogeneousResult, ...]:
    """Compare the homogeneous ensembles of each group with the heterogeneous ensembles."""
    accuracies = [float((member.choices == member.labels).mean()) for member in predictions]
    tests = [
        crossed_test(
            [[mixed.mean_without(index) - one.mean_without(index) for index in indices] for indices in groups.values()],
            mixed.by_image - one.by_image,
        )
        for one in uniform
    ]
    adjusted = holm_correction([test.p_value for test in tests])
    return tuple(
        HomogeneousResult(
            group, one, fmean(accuracies[index] for index in groups[group]), mixed.mean - one.mean, test, p_value
        )
        for group, one, test, p_value in zip(groups, uniform, tests, adjusted, strict=True)
    )


# --- draws -----------------------------------------------------------------------------------------------


def _draw_heterogeneous(
    groups: list[list[int]], size: int, draws: int, generator: np.random.Generator
) -> list[list[Members]]:
    """Draw different ensembles for each combination of groups, with one member from each group of the combination."""
    choices = list(combinations(groups, size))
    n_ensembles = sum(prod(map(len, chosen)) for chosen in choices)
    share = draws if n_ensembles <= draws else max(_MIN_DRAWS_PER_COMBINATION, draws // len(choices))

    def draw(chosen: Sequence[list[int]]) -> list[Members]:
        if prod(map(len, chosen)) <= share:
            return list(product(*chosen))
        return _draw_different(lambda: tuple(int(generator.choice(group)) for group in chosen), share)

    return [draw(chosen) for chosen in choices]


def _draw_homogeneous(group: list[int], size: int, draws: int, generator: np.random.Generator) -> list[Members]:
    """Draw different ensembles with all members from one group."""
    if comb(len(group), size) <= draws:
        return list(combinations(group, size))
    return _draw_different(lambda: tuple(sorted(generator.choice(group, size, replace=False).tolist())), draws)


def _draw_different(draw: Callable[[], Members], draws: int) -> list[Members]:
    """Draw until there are enough different ensembles and no member is in all of them.

    The jackknife leaves out one member at a time, and needs ensembles without this member.
    """
    found: dict[Members, None] = {}
    while len(found) < draws or set.intersection(*map(set, found)):
        found[draw()] = None
    return list(found)
