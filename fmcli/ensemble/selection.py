"""Select an ensemble's members by their predictions on validation images.

All methods repeat one question: how good is the vote with one more member? `candidates` answers it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, comb

import numpy as np

from fmcli.choices import Measure, TieRule
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
from fmcli.ensemble.rules import VOTING_RULES
from fmcli.ensemble.rules.additive import MEMBER_SCORES
from fmcli.ensemble.rules.vote import Labels, Logits
from fmcli.errors import UsageError, did_you_mean

Step = tuple[int, Ranking]
"""The member that was added, and the ranking of the ensemble with it."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Members selected from a pool.

    Scores are accuracies in [0, 1] or mean negative log-likelihoods in nats, on the images used for the selection. They
    are better than on new images.

    Args:
        members: Indices in the pool, in the order of selection.
        counts: How often each member was selected; the weights of the vote.
        score: Score of the vote.
        best_member: Index of the best single member.
        best_member_score: Score of the best single member.
        pool_score: Score of the vote of all members with equal weights.
        path: The member added in each step and the score after the step, including steps after the best score. Empty
            for bags and exhaustive search, which have no single path.
    """

    members: tuple[int, ...]
    counts: tuple[int, ...]
    score: float
    best_member: int
    best_member_score: float
    pool_score: float
    path: tuple[tuple[int, float], ...] = ()


# --- methods ---------------------------------------------------------------------------------------------


def select_greedy(
    logits: Logits,
    y_true: Labels,
    *,
    rule: str = "soft",
    tie: TieRule = "probability",
    by: Measure = "accuracy",
    size: int = 20,
    initial: int | None = None,
    replace: bool = True,
    bags: int = 0,
    bag_share: float = 0.5,
    seed: int = 0,
) -> Selection:
    """Add the member that improves the vote most, one at a time.

    Selection starts with the best single members: up to `initial` of them, but only the number with the best vote. It
    then adds members until there are `size`, and returns the best ensemble of all steps. Among equally good members,
    the other measure decides, then the lower index. Among equally good ensembles, the smallest is returned.

    With `bags`, selection is repeated for random parts of the pool and the counts are added. A member that is good on
    these images by chance is then selected less often, because it is not in every part.

    Args:
        logits: (n_members, n_samples, n_classes), of validation images.
        y_true: (n_samples,).
        rule: An additive rule: `majority`, `soft`, `geometric` or `borda`.
        tie: Tie rule: `probability`, `lowest` or `first`; see `rules.majority_vote`.
        by: Measure: `accuracy`, or `loss`, the negative log-likelihood of the vote's probabilities.
        size: Maximum number of selections, counting repeated ones; with bags, per bag.
        initial: Maximum number of members to start with; by default a fifth of `size`. The reference uses 5 to 25 with
            pools of thousands.
        replace: Whether a member can be selected several times, which increases its weight.
        bags: Number of random parts of the pool; 0 for the whole pool.
        bag_share: Share of the pool in each part, in (0, 1].
        seed: Seed for the random parts.

    Returns:
        The selection; without bags, with its path.

    Raises:
        UsageError: There are fewer than two members, the logits have another shape or are not finite, or an argument is
            out of range.

    References:
        Caruana, Niculescu-Mizil, Crew and Ksikes, "Ensemble selection from libraries of models", ICML 2004: selection
        with replacement, sorted initialization and bags.

    Example:
        >>> logits = np.log([[[0.8, 0.2], [0.6, 0.4]], [[0.4, 0.6], [0.1, 0.9]], [[0.3, 0.7], [0.9, 0.1]]])
        >>> selection = select_greedy(logits, np.array([0, 1]), size=2)
        >>> selection.members, selection.counts, selection.score
        ((1, 0), (1, 1), 1.0)
    """
    _check(logits, y_true, rule, by, size)
    initial = max(1, size // 5) if initial is None else initial
    if not 1 <= initial <= size:
        raise UsageError(f"selection must start with 1 to {size} members, because the size is {size}; got {initial}")
    if bags < 0:
        raise UsageError(f"the number of bags must be 0 or more; got {bags}", hint="0 selects from the whole pool")
    _check_share("a bag's share of the pool", bag_share)
    pool = prepare_candidates(logits, y_true, rule, size, tie)

    def select_from(indices: Indices) -> list[Step]:
        start = _best_single_members(pool, indices, initial, by)
        return _grow(
            pool, start, size, by, lambda ensemble: indices if replace else np.setdiff1d(indices, ensemble.members)
        )

    if not bags:
        path = select_from(pool.indices)
        return _selection(pool, by, _best_prefix(path), path)
    generator = np.random.default_rng(seed)
    parts = [generator.choice(pool.indices, ceil(bag_share * len(logits)), replace=False) for _ in range(bags)]
    return _selection(pool, by, [index for part in parts for index in _best_prefix(select_from(np.sort(part)))])


def select_exhaustive(
    logits: Logits,
    y_true: Labels,
    *,
    rule: str = "soft",
    tie: TieRule = "probability",
    by: Measure = "accuracy",
    size: int = 3,
    max_subsets: int = 200_000,
) -> Selection:
    """Select the best of all subsets of a pool.

    Args:
        logits: (n_members, n_samples, n_classes), of validation images.
        y_true: (n_samples,).
        rule: An additive rule, see `select_greedy`.
        tie: Tie rule, see `select_greedy`.
        by: Measure, see `select_greedy`. Among equally good subsets, the smallest is selected, then that with the
            lowest indices.
        size: Maximum number of members.
        max_subsets: Maximum number of subsets to evaluate. 200,000 subsets take minutes with 10,000 images.

    Returns:
        The selection: each member once, in the pool's order.

    Raises:
        UsageError: See `select_greedy`; or there are more subsets than `max_subsets`.

    Example:
        >>> logits = np.log([[[0.8, 0.2], [0.6, 0.4]], [[0.4, 0.6], [0.1, 0.9]], [[0.3, 0.7], [0.9, 0.1]]])
        >>> select_exhaustive(logits, np.array([0, 1])).members
        (0, 1)
    """
    _check(logits, y_true, rule, by, size)
    size = min(size, len(logits))
    n_subsets = sum(comb(len(logits), k) for k in range(1, size + 1))
    if n_subsets > max_subsets:
        raise UsageError(
            f"{len(logits)} members have {n_subsets:,} subsets of up to {size}; the limit is {max_subsets:,}",
            hint="select fewer members, use a smaller pool, or select greedily",
            remedies=["size"],
        )
    pool = prepare_candidates(logits, y_true, rule, size, tie)
    *_, negated = _search(pool, empty_ensemble(pool), size, by)
    return _selection(pool, by, [-index for index in negated])


def select_diverse(
    logits: Logits,
    y_true: Labels,
    *,
    rule: str = "soft",
    tie: TieRule = "probability",
    by: Measure = "accuracy",
    size: int = 10,
    share: float = 0.4,
) -> Selection:
    """Add the best of the members that differ most from the current vote, one at a time.

    Selection starts with the best single member. In each step, the remaining members are sorted by the number of images
    on which they differ from the current vote. Of the first `share` of them, the one that improves the vote most is
    added. There are `size` steps, and the best ensemble of all steps is returned. The reference stops at the first step
    without improvement.

    Args:
        logits: (n_members, n_samples, n_classes), of validation images.
        y_true: (n_samples,).
        rule: An additive rule, see `select_greedy`.
        tie: Tie rule, see `select_greedy`.
        by: Measure, see `select_greedy`.
        size: Maximum number of members.
        share: Share of the remaining members to choose from, in (0, 1]. A smaller share favours diversity; 1 ignores
            it. The reference calls it ρ.

    Returns:
        The selection: each member once, with its path.

    Raises:
        UsageError: See `select_greedy`.

    References:
        Li, Yu and Zhou, "Diversity regularized ensemble pruning", ECML PKDD 2012: DREP, for two classes. Here, members
        differ on an image if their labels do.

    Example:
        >>> logits = np.log([[[0.8, 0.2], [0.6, 0.4]], [[0.4, 0.6], [0.1, 0.9]], [[0.3, 0.7], [0.4, 0.6]]])
        >>> select_diverse(logits, np.array([0, 1]), size=2, share=0.5).members
        (1, 0)
    """
    _check(logits, y_true, rule, by, size)
    _check_share("the share of the remaining members", share)
    pool = prepare_candidates(logits, y_true, rule, size, tie)
    choices = logits.argmax(axis=2)  # (n_members, n_samples)

    def most_different(ensemble: PartialEnsemble) -> Indices:
        remaining = np.setdiff1d(pool.indices, ensemble.members)
        labels = VOTING_RULES[rule](logits[list(ensemble.members)], tie=tie).labels
        differences = (choices[remaining] != labels).sum(axis=1)
        order = np.argsort(-differences, kind="stable")
        return np.sort(remaining[order[: ceil(share * len(remaining))]])

    path = _grow(pool, _best_single_members(pool, pool.indices, 1, by), size, by, most_different)
    return _selection(pool, by, _best_prefix(path), path)


SELECTION_METHODS: dict[str, Callable[..., Selection]] = {
    "greedy": select_greedy,
    "exhaustive": select_exhaustive,
    "diverse": select_diverse,
}


# --- steps -----------------------------------------------------------------------------------------------


def _best_single_members(pool: Candidates, indices: Indices, initial: int, by: Measure) -> list[Step]:
    """Return up to `initial` of the best single members, in the number that has the best vote."""
    ensemble, path = empty_ensemble(pool), list[Step]()
    first, second = (score_additions(pool, ensemble, indices, measure) for measure in MEASURES[by])
    for index in indices[np.lexsort((-second, -first))][:initial].tolist():
        ranking, _ = best_addition(pool, ensemble, np.array([index]), by)
        path.append((index, ranking))
        ensemble = ensemble.add(pool, index)
    return path[: len(_best_prefix(path))]


def _grow(
    pool: Candidates, start: Sequence[Step], size: int, by: Measure, candidates: Callable[[PartialEnsemble], Indices]
) -> list[Step]:
    """Add the best candidate until there are `size` members or no candidates."""
    ensemble, path = empty_ensemble(pool), list(start)
    for index, _ in start:
        ensemble = ensemble.add(pool, index)
    while len(path) < size and len(indices := candidates(ensemble)):
        ranking, index = best_addition(pool, ensemble, indices, by)
        path.append((index, ranking))
        ensemble = ensemble.add(pool, index)
    return path


def _search(
    pool: Candidates, ensemble: PartialEnsemble, size: int, by: Measure
) -> tuple[Ranking, int, tuple[int, ...]]:
    """Return the best superset of an ensemble as a sort key: ranking, negative size, negative indices."""
    indices = pool.indices[max(ensemble.members, default=-1) + 1 :]
    ranking, index = best_addition(pool, ensemble, indices, by)
    members = (*ensemble.members, index)
    found = [(ranking, -len(members), tuple(-member for member in members))]
    if len(members) < size:
        found += [_search(pool, ensemble.add(pool, index), size, by) for index in indices[:-1].tolist()]
    return max(found)


def _best_prefix(path: Sequence[Step]) -> list[int]:
    """Return the members up to the best step of a path, the first if several are equally good."""
    best = max(range(len(path)), key=lambda step: path[step][1])
    return [index for index, _ in path[: best + 1]]


def _selection(pool: Candidates, by: Measure, members: Sequence[int], path: Sequence[Step] = ()) -> Selection:
    """Return the selection, with scores computed by the voting rule itself."""
    counts = Counter(members)
    _, best = best_addition(pool, empty_ensemble(pool), pool.indices, by)
    scale = (
        len(pool.y_true) if by == "accuracy" else -1
    )  # a ranking has the number of correct images, or minus the loss
    steps = tuple((index, first / scale) for index, (first, _) in path)
    return Selection(
        tuple(counts),
        tuple(counts.values()),
        _score(pool, by, counts),
        best,
        _score(pool, by, Counter([best])),
        _score(pool, by, Counter(pool.indices.tolist())),
        steps,
    )


def _score(pool: Candidates, by: Measure, counts: Counter[int]) -> float:
    vote = VOTING_RULES[pool.rule](pool.logits[list(counts)], weights=list(counts.values()), tie=pool.tie)
    if by == "accuracy":
        return float((vote.labels == pool.y_true).mean())
    likelihoods = vote.probabilities[np.arange(len(pool.y_true)), pool.y_true]
    return float(-np.log(np.maximum(likelihoods, MIN_PROBABILITY)).mean())


# --- checks ----------------------------------------------------------------------------------------------


def _check(logits: Logits, y_true: Labels, rule: str, by: str, size: int) -> None:
    if rule not in MEMBER_SCORES:
        raise UsageError(
            f"cannot select members for a {rule} vote, because its scores are not sums over members",
            hint=f"choose one of {', '.join(MEMBER_SCORES)}",
        )
    if by not in MEASURES:
        raise UsageError(f"unknown measure {by!r}; {did_you_mean(by, list(MEASURES))}")
    if size < 1:
        raise UsageError(f"the size of an ensemble must be 1 or more; got {size}")
    if logits.ndim != 3 or 0 in logits.shape:
        raise UsageError(
            f"logits must have the shape (n_members, n_samples, n_classes), none of them 0; got {logits.shape}"
        )
    if y_true.shape != logits.shape[1:2]:
        raise UsageError(f"{logits.shape[1]} images need labels of shape ({logits.shape[1]},); got {y_true.shape}")
    if len(logits) == 1:
        raise UsageError("selection needs a pool of two members or more; got 1")
    for index, member in enumerate(logits):
        if not np.isfinite(member).all():
            raise UsageError(f"logits must be finite; member {index + 1} of the pool gave NaN or infinity")


def _check_share(name: str, share: float) -> None:
    if not 0 < share <= 1:
        raise UsageError(f"{name} must be above 0 and at most 1; got {share:g}")
