"""Select an ensemble's members by their predictions on validation images.

All methods repeat one question: how good is the vote with one more member? `candidates` answers it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, comb

import numpy as np

from fmcli.choices import Measure, SelectionMethod
from fmcli.ensemble.candidates import (
    MEASURES,
    MIN_PROBABILITY,
    Candidates,
    Indices,
    PartialEnsemble,
    Ranking,
    best_addition,
    empty_ensemble,
    prepare_candidates,
    score_additions,
)
from fmcli.ensemble.rules import rules_where
from fmcli.ensemble.rules.additive import AdditiveRule
from fmcli.ensemble.rules.base import VotingRule
from fmcli.ensemble.rules.vote import Labels, Logits, check_logits
from fmcli.errors import UsageError

DEFAULT_SIZES: dict[SelectionMethod, int] = {"greedy": 20, "exhaustive": 3, "diverse": 10}
"""Maximum number of members that each method selects."""
MAX_SUBSETS = 200_000  # evaluating this number takes minutes with 10,000 images
_BAG_SHARE = 0.5  # share of the pool in each bag
_DIVERSE_SHARE = 0.4  # share of the remaining members to choose from; the reference calls it rho

Step = tuple[int, Ranking]
"""The member that was added, and the ranking of the ensemble with it."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Members selected from a pool.

    Scores are measured on the images that the members were selected on, so they are better than on new images. A score
    is an accuracy in [0, 1] or a mean negative log-likelihood in nats.

    Args:
        members: Indices in the pool, in the order of selection.
        counts: How often each member was selected. The counts are the weights of the vote.
        score: Score of the vote.
        best_member: Index of the best single member.
        best_member_score: Score of the best single member.
        pool_score: Score of the vote of all members with equal weights.
        path: The member added in each step and the score after the step, including steps after the best score. Empty
            with bags and exhaustive search, which have no single path.
    """

    members: tuple[int, ...]
    counts: tuple[int, ...]
    score: float
    best_member: int
    best_member_score: float
    pool_score: float
    path: tuple[tuple[int, float], ...] = ()


def select_members(
    logits: Logits,
    y_true: Labels,
    rule: VotingRule,
    *,
    method: SelectionMethod = "greedy",
    by: Measure = "accuracy",
    size: int | None = None,
    **options: int,
) -> Selection:
    """Select the members of a pool that vote best together.

    If several members are equally good by the measure, the other measure decides, then the lower index. If several
    ensembles are equally good by both measures, the smallest is returned.

    Args:
        logits: Logits of the pool on validation images, (n_members, n_samples, n_classes).
        y_true: True labels, int64 (n_samples,).
        rule: Voting rule whose scores are sums over members. Its weights are not used, because the selection sets them.
        method: `greedy`, `exhaustive` or `diverse`; see `select_greedy`, `select_exhaustive` and `select_diverse`.
        by: Measure to improve: `accuracy`, or `loss`, the negative log-likelihood of the vote's probabilities.
        size: Maximum number of members. A member that is selected twice counts as two. With bags, the maximum for each
            bag. Default: 20 for greedy, 3 for exhaustive, 10 for diverse.
        **options: `bags` and `seed` of `select_greedy`.

    Raises:
        UsageError: There are fewer than two members, the logits have the wrong shape or are not finite, the scores of
            the rule are not sums over members, or an exhaustive search would take too long.

    Example:
        >>> from fmcli.ensemble import make_rule
        >>> logits = np.log([[[0.8, 0.2], [0.6, 0.4]], [[0.4, 0.6], [0.1, 0.9]], [[0.3, 0.7], [0.9, 0.1]]])
        >>> selection = select_members(logits, np.array([0, 1]), make_rule("soft"), size=2)
        >>> selection.members, selection.counts, selection.score
        ((1, 0), (1, 1), 1.0)
        >>> select_members(logits, np.array([0, 1]), make_rule("soft"), method="exhaustive").members
        (0, 1)
    """
    size = DEFAULT_SIZES[method] if size is None else size
    additive = _check(logits, y_true, rule)
    if method == "exhaustive":
        _check_subsets(len(logits), size)
    pool = prepare_candidates(logits, y_true, rule=additive, by=by, size=size)
    return SELECTION_METHODS[method](pool, **options)


# --- methods ---------------------------------------------------------------------------------------------


def select_greedy(pool: Candidates, *, bags: int = 0, seed: int = 0) -> Selection:
    """Repeatedly add the member that improves the vote most. A member can be added several times.

    The selection starts with the best single members. It tries the best one, the best two and so on, up to a fifth of
    `pool.size`, and keeps the number with the best vote. Then it adds members one at a time until there are
    `pool.size`. The best ensemble of all steps is returned.

    With bags, the selection is repeated for random halves of the pool, and the counts of all halves are added. A member
    that is good on these images only by chance is then selected less often, because it is not in every half.

    Args:
        pool: The candidates.
        bags: Number of random halves of the pool; 0 selects from the whole pool.
        seed: Seed of the random halves.

    References:
        Caruana, Niculescu-Mizil, Crew and Ksikes, "Ensemble selection from libraries of models", ICML 2004: selection
        with replacement, sorted initialization and bags. The paper starts with 5 to 25 members, in pools of thousands.
    """

    def select_from(indices: Indices) -> list[Step]:
        return _grow(pool, _best_single_members(pool, indices, max(1, pool.size // 5)), lambda _: indices)

    if not bags:
        path = select_from(pool.indices)
        return _selection(pool, _best_prefix(path), path)
    generator = np.random.default_rng(seed)
    n_drawn = ceil(_BAG_SHARE * len(pool.indices))
    parts = [generator.choice(pool.indices, n_drawn, replace=False) for _ in range(bags)]
    return _selection(pool, [index for part in parts for index in _best_prefix(select_from(np.sort(part)))])


def select_exhaustive(pool: Candidates) -> Selection:
    """Evaluate all subsets of the pool with at most `pool.size` members, and return the best one.

    Among equally good subsets, the smallest is selected; among equally small ones, the one with the lowest indices.
    """
    *_, negated = _search(pool, empty_ensemble(pool))
    return _selection(pool, [-index for index in negated])


def select_diverse(pool: Candidates) -> Selection:
    """Repeatedly add a member that often disagrees with the vote and improves it. Each member is added at most once.

    The selection starts with the best single member. In each step, the remaining members are sorted by the number of
    images on which their label differs from the label of the current vote. Among the 40 % with the most differences,
    the member that improves the vote most is added. There are `pool.size` steps, or fewer if the pool is smaller. The
    best ensemble of all steps is returned.

    References:
        Li, Yu and Zhou, "Diversity regularized ensemble pruning", ECML PKDD 2012. The paper has two classes, and stops
        at the first step that does not improve the vote.
    """
    choices = pool.logits.argmax(axis=2)  # (n_members, n_samples)

    def most_different(ensemble: PartialEnsemble) -> Indices:
        remaining = np.setdiff1d(pool.indices, ensemble.members)
        labels = pool.rule.combine(pool.logits[list(ensemble.members)]).labels
        differences = (choices[remaining] != labels).sum(axis=1)
        order = np.argsort(-differences, kind="stable")
        return np.sort(remaining[order[: ceil(_DIVERSE_SHARE * len(remaining))]])

    path = _grow(pool, _best_single_members(pool, pool.indices, 1), most_different)
    return _selection(pool, _best_prefix(path), path)


SELECTION_METHODS: dict[SelectionMethod, Callable[..., Selection]] = {
    "greedy": select_greedy,
    "exhaustive": select_exhaustive,
    "diverse": select_diverse,
}


# --- steps -----------------------------------------------------------------------------------------------


def _best_single_members(pool: Candidates, indices: Indices, most: int) -> list[Step]:
    """Return the best single members, the best first: from 1 to `most` members, the number with the best vote."""
    ensemble, path = empty_ensemble(pool), list[Step]()
    first, second = (score_additions(pool, ensemble, indices, measure) for measure in MEASURES[pool.by])
    for index in indices[np.lexsort((-second, -first))][:most].tolist():
        ranking, _ = best_addition(pool, ensemble, np.array([index]))
        path.append((index, ranking))
        ensemble = ensemble.add(pool, index)
    return path[: len(_best_prefix(path))]


def _grow(pool: Candidates, start: Sequence[Step], candidates: Callable[[PartialEnsemble], Indices]) -> list[Step]:
    """Add the best candidate until there are `pool.size` members or no candidates."""
    ensemble, path = empty_ensemble(pool), list(start)
    for index, _ in start:
        ensemble = ensemble.add(pool, index)
    while len(path) < pool.size and len(indices := candidates(ensemble)):
        ranking, index = best_addition(pool, ensemble, indices)
        path.append((index, ranking))
        ensemble = ensemble.add(pool, index)
    return path


def _search(pool: Candidates, ensemble: PartialEnsemble) -> tuple[Ranking, int, tuple[int, ...]]:
    """Try all ways to add at least one member with a higher index. Return the best ensemble as a sort key.

    The sort key has the ranking, the negative size and the negative indices.
    """
    indices = pool.indices[max(ensemble.members, default=-1) + 1 :]
    ranking, index = best_addition(pool, ensemble, indices)
    members = (*ensemble.members, index)
    found = [(ranking, -len(members), tuple(-member for member in members))]
    if len(members) < pool.size:
        found += [_search(pool, ensemble.add(pool, index)) for index in indices[:-1].tolist()]
    return max(found)


def _best_prefix(path: Sequence[Step]) -> list[int]:
    """Return the members up to the best step of a path. Among equally good steps, the first one counts."""
    best = max(range(len(path)), key=lambda step: path[step][1])
    return [index for index, _ in path[: best + 1]]


def _selection(pool: Candidates, members: Sequence[int], path: Sequence[Step] = ()) -> Selection:
    """Return the selection. The voting rule itself computes the scores."""
    counts = Counter(members)
    _, best = best_addition(pool, empty_ensemble(pool), pool.indices)
    # The ranking of a step begins with the number of correct images, or with the negative loss.
    scale = len(pool.y_true) if pool.by == "accuracy" else -1
    return Selection(
        members=tuple(counts),
        counts=tuple(counts.values()),
        score=_score(pool, counts),
        best_member=best,
        best_member_score=_score(pool, Counter([best])),
        pool_score=_score(pool, Counter(pool.indices.tolist())),
        path=tuple((index, first / scale) for index, (first, _) in path),
    )


def _score(pool: Candidates, counts: Counter[int]) -> float:
    vote = replace(pool.rule, weights=tuple(counts.values())).combine(pool.logits[list(counts)])
    if pool.by == "accuracy":
        return float((vote.labels == pool.y_true).mean())
    likelihoods = vote.probabilities[np.arange(len(pool.y_true)), pool.y_true]
    return float(-np.log(np.maximum(likelihoods, MIN_PROBABILITY)).mean())


# --- checks ----------------------------------------------------------------------------------------------


def _check(logits: Logits, y_true: Labels, rule: VotingRule) -> AdditiveRule:
    """Return the rule without weights. Refuse other rules, wrong shapes and pools of one member."""
    rule = rule.unweighted
    if not isinstance(rule, AdditiveRule):
        possible = rules_where(lambda one: isinstance(one, AdditiveRule) and one.unweighted is one)
        raise UsageError(
            f"cannot select members for a {rule.name} vote, because its scores are not sums over members",
            hint=f"choose one of {', '.join(possible)}",
        )
    check_logits(logits)
    if not len(y_true) or y_true.shape != logits.shape[1:2]:
        raise UsageError(
            f"selection needs at least one image, and a label for each image; got logits of shape {logits.shape} and "
            f"labels of shape {y_true.shape}"
        )
    if len(logits) == 1:
        raise UsageError("selection needs a pool of at least two members; got 1")
    return replace(rule, weights=None)


def _check_subsets(n_members: int, size: int) -> None:
    n_subsets = sum(comb(n_members, k) for k in range(1, min(size, n_members) + 1))
    if n_subsets > MAX_SUBSETS:
        raise UsageError(
            f"{n_members} members have {n_subsets:,} subsets of at most {size} members; the limit is {MAX_SUBSETS:,}",
            hint="select fewer members, give a smaller pool, or use greedy selection",
            remedies=["size"],
        )
