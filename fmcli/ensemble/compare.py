"""Ensembles against each other on the same images; and groups of different members against groups of the same kind."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from math import comb, prod
from statistics import fmean, stdev

import numpy as np

from fmcli.ensemble.combiner import Combiner
from fmcli.ensemble.evaluate import Evaluation, evaluate_vote
from fmcli.errors import UsageError
from fmcli.metrics import CochranTest, PairedTest, cochran_q_test, holm_correction, jackknife_interval, mcnemar_test
from fmcli.predictions import Predictions, stack_logits
from fmcli.voting import Labels, Logits, Vote


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
        agreement: Whether all are right equally often.
    """

    split: str
    contenders: tuple[Contender, ...]
    agreement: CochranTest


def compare_ensembles(
    names: Sequence[str], predictions: Sequence[Sequence[Predictions]], rules: Sequence[Combiner]
) -> Comparison:
    """Set ensembles side by side.

    Args:
        names: Of each ensemble, two or more.
        predictions: Each ensemble's members' predictions, all of them on the same images.
        rules: How each is combined, with all that was learnt.

    Raises:
        CheckpointError: Their images or classes differ.
        UsageError: There are fewer than two, or a rule does not fit its members.
    """
    if len(names) < 2:
        raise UsageError("there is nothing to compare a single ensemble with", hint="name two or more")
    stack_logits([member for members in predictions for member in members])  # refuses what does not match
    first = predictions[0][0]
    votes = [rule(stack_logits(members)) for members, rule in zip(predictions, rules, strict=True)]
    contenders = [
        Contender(
            name,
            tuple(member.member for member in members),
            rule,
            evaluate_vote(vote, first.labels, first.class_names, name=name),
        )
        for name, members, rule, vote in zip(names, predictions, rules, votes, strict=True)
    ]
    tests = [mcnemar_test(first.labels, vote.labels, votes[0].labels) for vote in votes[1:]]
    adjusted = holm_correction([test.p_value for test in tests])
    tested = [
        replace(contender, against_first=test, adjusted_p_value=p_value)
        for contender, test, p_value in zip(contenders[1:], tests, adjusted, strict=True)
    ]
    agreement = cochran_q_test(first.labels, np.stack([vote.labels for vote in votes]))
    return Comparison(first.split, (contenders[0], *tested), agreement)


# --- different kinds against one kind --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Composition:
    """Ensembles that are made up alike, such as of one 3×3, one 5×5 and one 7×7 network.

    Args:
        groups: The group of each of their members.
        accuracies: Of each ensemble that was drawn.
    """

    groups: tuple[str, ...]
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean accuracy, in [0, 1]."""
        return fmean(self.accuracies)

    @property
    def spread(self) -> float:
        """Standard deviation of the accuracy from draw to draw; 0 of a single one."""
        return stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0


@dataclass(frozen=True, slots=True)
class CompositionStudy:
    """Whether members of different kinds vote better than as many of one kind.

    Args:
        split: What they were evaluated on.
        size: How many members each ensemble has.
        n_members: How many members of each group there are to draw from.
        alone: The mean accuracy of the single members of each group.
        mixed: Ensembles of members from different groups.
        same: Ensembles of members from one group, for each group.
        gains: The mean of `mixed` above that of each of `same`.
        intervals: The 95 % interval of each gain, over the members that might have been trained.
    """

    split: str
    size: int
    n_members: dict[str, int]
    alone: dict[str, float]
    mixed: Composition
    same: tuple[Composition, ...]
    gains: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]


def compare_compositions(
    predictions: Sequence[Predictions], rule: Combiner, *, size: int | None = None, draws: int = 200, seed: int = 0
) -> CompositionStudy:
    """Compare ensembles of different kinds of members with ensembles of one kind.

    Args:
        predictions: A pool of members on the same images, each with its group.
        rule: How to combine them, without weights; `two-level` votes within the groups drawn.
        size: How many members each ensemble has; by default one of each group.
        draws: How many ensembles of each composition, at most; where there are no more, all of them.
        seed: Draws them otherwise.

    Returns:
        The study. Its intervals are those of the jackknife over members, which leaves one out at a time.

    Raises:
        CheckpointError: Members do not match.
        UsageError: There are too few groups, or too few members of one, or the rule learns or is weighted.

    References:
        The claim is that of An, Lee, Park, Yang and So, arXiv 2008.10400. Means over all ensembles of a pool are
        U-statistics: Hoeffding 1948; their jackknife is that of Arvesen 1969.
    """
    if rule.learns or rule.weights is not None:
        raise UsageError(f"a {rule.vote} vote has weights of its members' own", hint="--vote majority or soft has none")
    places = _places_by_group(predictions)
    size = size or len(places)
    _check_groups(places, size)
    logits, y_true = stack_logits(predictions), predictions[0].labels
    groups = [one.group for one in predictions]
    generator = np.random.default_rng(seed)
    drawn = {
        "mixed": _draw_mixed(list(places.values()), size, draws, generator),
        **{group: _draw_same(members, size, draws, generator) for group, members in places.items()},
    }
    accuracy = {
        kind: {members: _accuracy(rule, logits, y_true, groups, members) for members in ensembles}
        for kind, ensembles in drawn.items()
    }
    gains = {group: _mean(accuracy["mixed"]) - _mean(accuracy[group]) for group in places}
    return CompositionStudy(
        split=predictions[0].split,
        size=size,
        n_members={group: len(members) for group, members in places.items()},
        alone={
            group: fmean(float((predictions[place].choices == y_true).mean()) for place in members)
            for group, members in places.items()
        },
        mixed=Composition(tuple(places)[:size], tuple(accuracy["mixed"].values())),
        same=tuple(Composition((group,) * size, tuple(accuracy[group].values())) for group in places),
        gains=tuple(gains.values()),
        intervals=tuple(
            jackknife_interval(gain, _gains_without_each(accuracy["mixed"], accuracy[group], places))
            for group, gain in gains.items()
        ),
    )


Ensembles = dict[tuple[int, ...], float]
"""Accuracy by the places of the members."""


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


def _draw_mixed(
    groups: list[list[int]], size: int, draws: int, generator: np.random.Generator
) -> list[tuple[int, ...]]:
    """Draw ensembles with each member from another group, each at most once."""
    choices = list(combinations(groups, size))
    total = sum(prod(len(group) for group in chosen) for chosen in choices)
    if total <= draws:
        return [members for chosen in choices for members in product(*chosen)]
    found: dict[tuple[int, ...], None] = {}
    while len(found) < draws:
        chosen = choices[generator.integers(len(choices))]
        found[tuple(int(generator.choice(group)) for group in chosen)] = None
    return list(found)


def _draw_same(group: list[int], size: int, draws: int, generator: np.random.Generator) -> list[tuple[int, ...]]:
    """Draw ensembles with all members from one group, each at most once."""
    if comb(len(group), size) <= draws:
        return list(combinations(group, size))
    found: dict[tuple[int, ...], None] = {}
    while len(found) < draws:
        found[tuple(sorted(generator.choice(group, size, replace=False).tolist()))] = None
    return list(found)


def _accuracy(rule: Combiner, logits: Logits, y_true: Labels, groups: Sequence[str], members: tuple[int, ...]) -> float:
    own = replace(rule, groups=tuple(groups[place] for place in members))
    vote: Vote = own(logits[list(members)])
    return float((vote.labels == y_true).mean())


def _mean(ensembles: Ensembles, without: int | None = None) -> float:
    return fmean(accuracy for members, accuracy in ensembles.items() if without not in members)


def _gains_without_each(mixed: Ensembles, same: Ensembles, places: dict[str, list[int]]) -> list[list[float]]:
    return [
        [_mean(mixed, without=place) - _mean(same, without=place) for place in members] for members in places.values()
    ]
