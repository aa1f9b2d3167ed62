"""Compare ensembles of members from different groups with ensembles of members from one group.

A group is a kind of network, such as all networks with 5×5 kernels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from math import comb, prod
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray

from fmcli.ensemble.combiner import Combiner
from fmcli.ensemble.predictions import Predictions, stack_logits
from fmcli.ensemble.rules.vote import Floats
from fmcli.errors import Remedy, UsageError
from fmcli.metrics.comparison import CrossedTest, crossed_test, holm_correction

_MIN_DRAWS_PER_COMBINATION = 10

Members = tuple[int, ...]
"""Indices of an ensemble's members in the pool."""


@dataclass(frozen=True, slots=True)
class DrawnEnsembles:
    """Ensembles with the same number of members from each group, such as one 3×3, one 5×5 and one 7×7 network.

    Args:
        name: Groups of the members.
        accuracies: Accuracy of each ensemble, in [0, 1].
        mean: Mean accuracy, in [0, 1]. With several combinations of groups, the mean over combinations of their means,
            so that each combination has the same weight.
    """

    name: str
    accuracies: tuple[float, ...]
    mean: float

    @property
    def spread(self) -> float:
        """Standard deviation of the accuracy between ensembles; 0 for a single ensemble."""
        return stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0


@dataclass(frozen=True, slots=True)
class HomogeneousResult:
    """Comparison of heterogeneous ensembles with ensembles of one group.

    Args:
        group: The group.
        ensembles: The ensembles of this group.
        member_accuracy: Mean accuracy of single members of the group, in [0, 1].
        gain: Mean accuracy of heterogeneous ensembles minus that of these ensembles.
        test: Test of a gain of 0 with its 95 % interval. Both cover the random choice of members and of images.
        adjusted_p_value: The p-value of that test after Holm's correction for the number of groups.
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
    predictions: Sequence[Predictions], rule: Combiner, *, size: int | None = None, draws: int = 200, seed: int = 0
) -> HeterogeneityStudy:
    """Compare heterogeneous ensembles with homogeneous ensembles of the same size.

    If an ensemble has fewer members than there are groups, heterogeneous ensembles are drawn from each combination of
    groups, and the mean over these combinations is compared.

    Args:
        predictions: A pool of members on the same images, each with its group.
        rule: A voting rule without weights; `two-level` votes within the groups that were drawn.
        size: Number of members of each ensemble; by default the number of groups.
        draws: Maximum number of ensembles of each kind; if there are no more, all are evaluated. Draws continue until
            no member is in all ensembles, and each combination of groups has 10 ensembles or more.
        seed: Seed of the draws.

    Returns:
        The study. Its tests add the jackknife variance over members (leave one out) to the variance over images; see
        `metrics.crossed_test`.

    Raises:
        CheckpointError: Members predict different images or classes.
        UsageError: There are too few groups or members, or the rule has or needs weights of individual members.

    References:
        The claim is that of An, Lee, Park, Yang and So, arXiv 2008.10400. Means over all ensembles of a pool are
        U-statistics: Hoeffding 1948; their jackknife is that of Arvesen 1969. Members and images are crossed samples:
        Owen, "The pigeonhole bootstrap", 2007.
    """
    if rule.needs_fit or rule.weights is not None:
        raise UsageError(
            f"a {rule.vote} vote has a weight for each member, which drawn ensembles cannot use",
            remedies=[Remedy("vote", "soft"), Remedy("vote", "majority")],
        )
    groups = _indices_by_group(predictions)
    size = size or len(groups)
    _check_groups(groups, size)
    logits, y_true = stack_logits(predictions), predictions[0].labels
    group_of = [member.group for member in predictions]
    generator = np.random.default_rng(seed)

    def find_correct(members: Members) -> NDArray[np.bool_]:
        combiner = replace(rule, groups=tuple(group_of[index] for index in members))
        return np.asarray(combiner(logits[list(members)]).labels == y_true)

    mixed = _evaluate(_draw_heterogeneous(list(groups.values()), size, draws, generator), find_correct)
    uniform = {
        group: _evaluate([_draw_homogeneous(indices, size, draws, generator)], find_correct)
        for group, indices in groups.items()
    }
    tests = [
        crossed_test(
            [[mixed.mean(index) - scores.mean(index) for index in indices] for indices in groups.values()],
            mixed.by_image - scores.by_image,
        )
        for scores in uniform.values()
    ]
    adjusted = holm_correction([test.p_value for test in tests])
    return HeterogeneityStudy(
        split=predictions[0].split,
        size=size,
        n_members={group: len(indices) for group, indices in groups.items()},
        heterogeneous=mixed.named("+".join(groups) if size == len(groups) else f"{size} of {', '.join(groups)}"),
        homogeneous=tuple(
            HomogeneousResult(
                group,
                scores.named("+".join([group] * size)),
                fmean(float((predictions[index].choices == y_true).mean()) for index in groups[group]),
                mixed.mean() - scores.mean(),
                test,
                p_value,
            )
            for (group, scores), test, p_value in zip(uniform.items(), tests, adjusted, strict=True)
        ),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Scores:
    """Scores of heterogeneous ensembles, or of the homogeneous ensembles of one group.

    Args:
        accuracies: For each combination of groups, the accuracy of each ensemble.
        by_image: float64 (n_samples,), the share of ensembles that are correct; the mean over combinations.
    """

    accuracies: tuple[dict[Members, float], ...]
    by_image: Floats

    def mean(self, without: int | None = None) -> float:
        """Return the mean over combinations of the mean accuracy of ensembles without a member."""
        return fmean(
            fmean(accuracy for members, accuracy in ensembles.items() if without not in members)
            for ensembles in self.accuracies
        )

    def named(self, name: str) -> DrawnEnsembles:
        accuracies = tuple(accuracy for ensembles in self.accuracies for accuracy in ensembles.values())
        return DrawnEnsembles(name, accuracies, self.mean())


def _evaluate(drawn: list[list[Members]], find_correct: Callable[[Members], NDArray[np.bool_]]) -> _Scores:
    """Evaluate the ensembles that were drawn from each combination of groups."""
    accuracies, by_image = [], []
    for ensembles in drawn:
        correct = {members: find_correct(members) for members in ensembles}
        accuracies.append({members: float(images.mean()) for members, images in correct.items()})
        by_image.append(np.mean(list(correct.values()), axis=0))
    return _Scores(tuple(accuracies), np.asarray(np.mean(by_image, axis=0)))


def _indices_by_group(predictions: Sequence[Predictions]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for index, member in enumerate(predictions):
        groups.setdefault(member.group, []).append(index)
    return dict(sorted(groups.items()))


def _check_groups(groups: dict[str, list[int]], size: int) -> None:
    if "" in groups:
        raise UsageError(f"the group of {len(groups[''])} members is unknown", remedies=["groups"])
    if len(groups) < 2:
        raise UsageError(
            f"all members are of one group, {next(iter(groups))}", hint="give members of two or more groups"
        )
    if not 2 <= size <= len(groups):
        raise UsageError(
            f"ensembles have {size} members of different groups, but there are {len(groups)} groups: "
            f"{', '.join(groups)}",
            hint=f"choose 2 to {len(groups)} members",
            remedies=["size"],
        )
    small = {group: len(indices) for group, indices in groups.items() if len(indices) <= size}
    if small:
        counts = ", ".join(f"{count} of {group}" for group, count in small.items())
        raise UsageError(
            f"ensembles of {size} need {size + 1} members or more of each group; there are only {counts}",
            hint="train more members: [[members]] copies = 10",
        )


# --- draws -----------------------------------------------------------------------------------------------


def _draw_heterogeneous(
    groups: list[list[int]], size: int, draws: int, generator: np.random.Generator
) -> list[list[Members]]:
    """Draw different ensembles with one member from each group, for each combination of groups."""
    choices = list(combinations(groups, size))
    if sum(prod(len(group) for group in chosen) for chosen in choices) <= draws:
        return [list(product(*chosen)) for chosen in choices]
    share = max(_MIN_DRAWS_PER_COMBINATION, draws // len(choices))

    def draw(chosen: Sequence[list[int]]) -> list[Members]:
        if prod(len(group) for group in chosen) <= share:
            return list(product(*chosen))
        return _draw_different(lambda: tuple(int(generator.choice(group)) for group in chosen), share)

    return [draw(chosen) for chosen in choices]


def _draw_homogeneous(group: list[int], size: int, draws: int, generator: np.random.Generator) -> list[Members]:
    """Draw different ensembles with all members from one group."""
    if comb(len(group), size) <= draws:
        return list(combinations(group, size))
    return _draw_different(lambda: tuple(sorted(generator.choice(group, size, replace=False).tolist())), draws)


def _draw_different(draw: Callable[[], Members], draws: int) -> list[Members]:
    """Draw until there are enough different ensembles and no member is in all, so that each can be left out."""
    found: dict[Members, None] = {}
    shared: set[int] | None = None
    while len(found) < draws or shared:
        members = draw()
        found[members] = None
        shared = set(members) if shared is None else shared & set(members)
    return list(found)
