"""Ensembles against each other on the same images; and groups of different members against groups of the same kind."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from math import comb, prod
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray

from fmcli.ensemble.ballot import Ballot
from fmcli.ensemble.combiner import Combiner
from fmcli.ensemble.evaluate import Evaluation, evaluate_vote
from fmcli.ensemble.predictions import Predictions, check_same_images, digest_arrays, stack_logits
from fmcli.ensemble.rules import Floats, Labels, Logits
from fmcli.errors import UsageError, printable
from fmcli.metrics import (
    CochranTest,
    CrossedTest,
    PairedTest,
    cochran_q_test,
    crossed_test,
    holm_correction,
    mcnemar_test,
)

_FEWEST_OF_EACH = 10  # ensembles drawn of a combination of groups


@dataclass(frozen=True, slots=True)
class Contender:
    """An ensemble among others.

    Args:
        name: What it is called.
        members: Its members' names.
        rule: How they are combined.
        evaluation: Its scores.
        against_first: It against the first of those compared; None of the first itself.
        adjusted_p_value: That test's p-value, held against all such tests by Holm's method; None likewise.
    """

    name: str
    members: tuple[str, ...]
    rule: Combiner
    evaluation: Evaluation
    against_first: PairedTest | None = None
    adjusted_p_value: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ensembles side by side.

    Args:
        split: What they were evaluated on.
        contenders: Each of them, in order.
        agreement: Whether all are right equally often; None of two, which their own test tells.
        repeated: Pairs of names of ensembles whose members gave equal logits: the same weights, under two names.
    """

    split: str
    contenders: tuple[Contender, ...]
    agreement: CochranTest | None
    repeated: tuple[tuple[str, str], ...] = ()


def compare_ensembles(names: Sequence[str], ballots: Sequence[Ballot]) -> Comparison:
    """Set ensembles side by side.

    Args:
        names: Of each ensemble, two or more, no two alike.
        ballots: Each ensemble's vote, all of them on the same images.

    Raises:
        CheckpointError: Their images or classes differ.
        UsageError: There are fewer than two, or two have one name.
    """
    if len(names) < 2:
        raise UsageError("there is nothing to compare a single ensemble with", hint="name two or more")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(
            f"two ensembles are called {printable(twice)}", hint="name another, or tell them apart: NAME=PATH"
        )
    check_same_images([member for ballot in ballots for member in ballot.predictions])
    first, votes = ballots[0].predictions[0], [ballot.vote for ballot in ballots]
    contenders = [
        Contender(
            name,
            tuple(member.member for member in ballot.predictions),
            ballot.rule,
            evaluate_vote(ballot.vote, first.labels, first.class_names, name=name),
        )
        for name, ballot in zip(names, ballots, strict=True)
    ]
    tests = [mcnemar_test(first.labels, vote.labels, votes[0].labels) for vote in votes[1:]]
    adjusted = holm_correction([test.p_value for test in tests])
    tested = [
        replace(contender, against_first=test, adjusted_p_value=p_value)
        for contender, test, p_value in zip(contenders[1:], tests, adjusted, strict=True)
    ]
    choices = np.stack([vote.labels for vote in votes])
    agreement = cochran_q_test(first.labels, choices) if len(votes) > 2 else None
    return Comparison(
        first.split,
        (contenders[0], *tested),
        agreement,
        _find_repeated(names, [ballot.predictions for ballot in ballots]),
    )


def _find_repeated(names: Sequence[str], predictions: Sequence[Sequence[Predictions]]) -> tuple[tuple[str, str], ...]:
    """Return the pairs of ensembles whose members gave equal logits."""
    digests = [sorted(digest_arrays(member.logits) for member in members) for members in predictions]
    return tuple(
        (names[first], names[second])
        for first, second in combinations(range(len(names)), 2)
        if digests[first] == digests[second]
    )


# --- different kinds against one kind --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Composition:
    """Ensembles that are made up alike, such as of one 3×3, one 5×5 and one 7×7 network.

    Args:
        name: Of which groups their members are.
        accuracies: Of each ensemble that was drawn.
        mean: Their mean accuracy, in [0, 1]; where there are several combinations of groups, the mean over these, so
            that each counts the same however many ensembles it has.
    """

    name: str
    accuracies: tuple[float, ...]
    mean: float

    @property
    def spread(self) -> float:
        """Standard deviation of the accuracy from draw to draw; 0 of a single one."""
        return stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Rival:
    """Ensembles of one kind of members, which those of different kinds are held against.

    Args:
        group: That kind.
        composition: The ensembles.
        alone: The mean accuracy of its single members.
        gain: By how much ensembles of different kinds are more accurate.
        test: Whether that differs from 0, over the members that might have been trained and the images that might
            have been taken; with its 95 % interval.
        adjusted_p_value: That test's p-value, held against those of all groups by Holm's method.
    """

    group: str
    composition: Composition
    alone: float
    gain: float
    test: CrossedTest
    adjusted_p_value: float


@dataclass(frozen=True, slots=True)
class CompositionStudy:
    """Whether members of different kinds vote better than as many of one kind.

    Args:
        split: What they were evaluated on.
        size: How many members each ensemble has.
        n_members: How many members of each group there are to draw from.
        mixed: Ensembles of members from different groups.
        rivals: For each group, the ensembles of its members, and `mixed` against them.
    """

    split: str
    size: int
    n_members: dict[str, int]
    mixed: Composition
    rivals: tuple[Rival, ...]


def compare_compositions(
    predictions: Sequence[Predictions], rule: Combiner, *, size: int | None = None, draws: int = 200, seed: int = 0
) -> CompositionStudy:
    """Compare ensembles of different kinds of members with ensembles of one kind.

    With fewer members than groups, ensembles of different kinds are drawn from each combination of groups, and what is
    compared is the mean over these combinations.

    Args:
        predictions: A pool of members on the same images, each with its group.
        rule: How to combine them, without weights; `two-level` votes within the groups drawn.
        size: How many members each ensemble has; by default one of each group.
        draws: How many ensembles of each composition, at most; where there are no more, all of them. A few more where
            these would all share a member, or where there are many combinations of groups: ten of each.
        seed: Draws them otherwise.

    Returns:
        The study. Its tests add up the variance of the jackknife over members, which leaves one out at a time, and
        that over images; see `metrics.crossed_test`.

    Raises:
        CheckpointError: Members do not match.
        UsageError: There are too few groups, or too few members of one, or the rule learns or is weighted.

    References:
        The claim is that of An, Lee, Park, Yang and So, arXiv 2008.10400. Means over all ensembles of a pool are
        U-statistics: Hoeffding 1948; their jackknife is that of Arvesen 1969. Members and images are crossed samples:
        Owen, "The pigeonhole bootstrap", 2007.
    """
    if rule.needs_fit or rule.weights is not None:
        raise UsageError(f"a {rule.vote} vote has weights of its members' own", hint="--vote majority or soft has none")
    places = _places_by_group(predictions)
    size = size or len(places)
    _check_groups(places, size)
    logits, y_true = stack_logits(predictions), predictions[0].labels
    groups = [one.group for one in predictions]
    generator = np.random.default_rng(seed)

    def judge(drawn: list[list[Members]]) -> _Judged:
        return _judge(drawn, lambda members: _find_right(rule, logits, y_true, groups, members))

    mixed = judge(_draw_mixed(list(places.values()), size, draws, generator))
    same = {group: judge([_draw_same(members, size, draws, generator)]) for group, members in places.items()}
    tests = [
        crossed_test(_gains_without_each(mixed, one, places), mixed.by_image - one.by_image) for one in same.values()
    ]
    adjusted = holm_correction([test.p_value for test in tests])
    return CompositionStudy(
        split=predictions[0].split,
        size=size,
        n_members={group: len(members) for group, members in places.items()},
        mixed=mixed.named("+".join(places) if size == len(places) else f"{size} of {', '.join(places)}"),
        rivals=tuple(
            Rival(
                group,
                one.named("+".join([group] * size)),
                fmean(float((predictions[place].choices == y_true).mean()) for place in places[group]),
                mixed.mean() - one.mean(),
                test,
                p_value,
            )
            for (group, one), test, p_value in zip(same.items(), tests, adjusted, strict=True)
        ),
    )


Members = tuple[int, ...]
"""The places of an ensemble's members."""


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    """Ensembles that were drawn alike.

    Args:
        accuracies: Of each, for each combination of groups.
        by_image: float64 (n_samples,), how often each image is labelled right: the mean over combinations.
    """

    accuracies: tuple[dict[Members, float], ...]
    by_image: Floats

    def mean(self, without: int | None = None) -> float:
        """Return the mean over combinations of the mean accuracy of ensembles without a member."""
        return fmean(
            fmean(accuracy for members, accuracy in ensembles.items() if without not in members)
            for ensembles in self.accuracies
        )

    def named(self, name: str) -> Composition:
        return Composition(name, tuple(one for ensembles in self.accuracies for one in ensembles.values()), self.mean())


def _judge(drawn: list[list[Members]], find_right: Callable[[Members], NDArray[np.bool_]]) -> _Judged:
    accuracies, by_image = [], []
    for ensembles in drawn:
        right = {members: find_right(members) for members in ensembles}
        accuracies.append({members: float(one.mean()) for members, one in right.items()})
        by_image.append(np.mean(list(right.values()), axis=0))
    return _Judged(tuple(accuracies), np.asarray(np.mean(by_image, axis=0)))


def _places_by_group(predictions: Sequence[Predictions]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for place, one in enumerate(predictions):
        places.setdefault(one.group, []).append(place)
    return dict(sorted(places.items()))


def _check_groups(places: dict[str, list[int]], size: int) -> None:
    if "" in places:
        raise UsageError(
            f"the group of {len(places[''])} members is not known", hint="name them in order: --groups 3,3,5,5"
        )
    if len(places) < 2 or not 2 <= size <= len(places):
        raise UsageError(
            f"ensembles of {size} from {len(places)} groups ({', '.join(places)}) cannot mix as many different ones",
            hint="give members of two kernel sizes or more, and --size no larger than the number of groups",
        )
    small = {group: len(members) for group, members in places.items() if len(members) <= size}
    if small:
        listed = ", ".join(f"{count} of {group}" for group, count in small.items())
        raise UsageError(
            f"there are too few members to draw {size} of one group from: {listed}",
            hint=f"train {size + 1} of each, or more: [[members]] copies = 10",
        )


def _draw_mixed(groups: list[list[int]], size: int, draws: int, generator: np.random.Generator) -> list[list[Members]]:
    """Draw ensembles with each member from another group, each at most once, for each combination of groups."""
    choices = list(combinations(groups, size))
    if sum(prod(len(group) for group in chosen) for chosen in choices) <= draws:
        return [list(product(*chosen)) for chosen in choices]
    share = max(_FEWEST_OF_EACH, draws // len(choices))
    return [_draw_product(chosen, share, generator) for chosen in choices]


def _draw_product(chosen: Sequence[list[int]], draws: int, generator: np.random.Generator) -> list[Members]:
    if prod(len(group) for group in chosen) <= draws:
        return list(product(*chosen))
    return _draw_once(lambda: tuple(int(generator.choice(group)) for group in chosen), draws)


def _draw_same(group: list[int], size: int, draws: int, generator: np.random.Generator) -> list[Members]:
    """Draw ensembles with all members from one group, each at most once."""
    if comb(len(group), size) <= draws:
        return list(combinations(group, size))
    return _draw_once(lambda: tuple(sorted(generator.choice(group, size, replace=False).tolist())), draws)


def _draw_once(draw: Callable[[], Members], draws: int) -> list[Members]:
    """Draw until there are enough different ensembles, and no member is in all: each can be left out."""
    found: dict[Members, None] = {}
    shared: set[int] | None = None
    while len(found) < draws or shared:
        members = draw()
        found[members] = None
        shared = set(members) if shared is None else shared & set(members)
    return list(found)


def _find_right(
    rule: Combiner, logits: Logits, y_true: Labels, groups: Sequence[str], members: Members
) -> NDArray[np.bool_]:
    own = replace(rule, groups=tuple(groups[place] for place in members))
    return np.asarray(own(logits[list(members)]).labels == y_true)


def _gains_without_each(mixed: _Judged, same: _Judged, places: dict[str, list[int]]) -> list[list[float]]:
    return [[mixed.mean(place) - same.mean(place) for place in members] for members in places.values()]
