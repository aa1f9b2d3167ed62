"""Choose an ensemble's members by their predictions on validation images.

All methods ask one question again and again: how good is the vote of those chosen so far with one more of them?
`candidates` answers it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, comb

import numpy as np

from fmcli.choices import Measure, TieRule
from fmcli.ensemble.candidates import (
    MEASURES,
    Candidates,
    Places,
    Standing,
    Team,
    best_addition,
    judge,
    no_team,
    read_candidates,
)
from fmcli.ensemble.rules import MEMBER_SCORES, TIE_RULES, VOTING_RULES, Labels, Logits
from fmcli.errors import UsageError, did_you_mean

Step = tuple[int, Standing]

_TINY = np.finfo(np.float64).tiny  # what a probability of 0 counts as: its logarithm is finite


@dataclass(frozen=True, slots=True)
class Selection:
    """Members chosen from a pool.

    Args:
        members: Their places in the pool, in the order in which they were first chosen.
        counts: How often each was chosen: the weights of the vote.
        score: Accuracy, in [0, 1], or mean negative log-likelihood, in nats, of the vote on the images that it was
            chosen on: better than new images will show.
        best_member: The place of the member that is best by itself.
        best_member_score: Its score, on these images likewise.
        pool_score: That of the vote of all members, each counted once.
        path: Each step's member and the score after it, to the end, which may lie beyond the best point; empty where
            there is no single path: of bags, and of a search through all subsets.
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
    """Add members one at a time, each time the one that makes the vote best.

    The members that are best by themselves enter first: the first of them, up to `initial`, as many as vote best. Then
    one is added at a time until there are `size`, and the best ensemble on the way is returned. Of equally good
    candidates the one with the better other measure enters, then the one of the lowest place; of equally good
    ensembles the smallest is returned.

    With `bags`, that is done for so many random parts of the pool and the counts are added up: a member that fits
    these images by chance is not in every part.

    Args:
        logits: (n_members, n_samples, n_classes), of validation images.
        y_true: (n_samples,).
        rule: One whose scores add up: `majority`, `soft`, `geometric` or `borda`.
        tie: Which tied class wins: `probability`, `lowest` or `first`; see `rules.majority_vote`.
        by: `accuracy`, or `loss`: the negative log-likelihood of the vote's probabilities.
        size: How many to choose at most, each counted as often as it is chosen; with bags, in each of them.
        initial: How many of the best to begin with at most; by default a fifth of `size`. The reference reports 5 to
            25, from pools of thousands.
        replace: Whether a member may be chosen again, which gives it more weight.
        bags: How many parts of the pool to choose from; 0 for the whole.
        bag_share: How much of the pool a part holds, in (0, 1].
        seed: Of the draw of the parts.

    Returns:
        The selection; without bags, with its path.

    Raises:
        UsageError: There is nothing to choose from, the logits are not of that shape or not finite, or an argument is
            out of its range.

    References:
        Caruana, Niculescu-Mizil, Crew and Ksikes, "Ensemble selection from libraries of models", ICML 2004: selection
        with replacement, sorted initialisation and bags.

    Example:
        >>> logits = np.log([[[0.8, 0.2], [0.6, 0.4]], [[0.4, 0.6], [0.1, 0.9]], [[0.3, 0.7], [0.9, 0.1]]])
        >>> chosen = select_greedy(logits, np.array([0, 1]), size=2)
        >>> chosen.members, chosen.counts, chosen.score
        ((1, 0), (1, 1), 1.0)
    """
    _check(logits, y_true, rule, tie, by, size)
    initial = max(1, size // 5) if initial is None else initial
    if not 1 <= initial <= size:
        raise UsageError(f"to begin with, there must be 1 to {size} members, as the size is {size}; got {initial}")
    if bags < 0:
        raise UsageError(f"the number of bags must be 0 or more; got {bags}", hint="0 chooses from the whole pool")
    _check_share("a bag's share of the pool", bag_share)
    pool = read_candidates(logits, y_true, rule, size, tie)

    def walk(places: Places) -> list[Step]:
        start = _sorted_start(pool, places, initial, by)
        return _grow(pool, start, size, by, lambda team: places if replace else np.setdiff1d(places, team.members))

    if not bags:
        path = walk(pool.places)
        return _selection(pool, by, _best_point(path), path)
    generator = np.random.default_rng(seed)
    parts = (generator.choice(pool.places, ceil(bag_share * len(logits)), replace=False) for _ in range(bags))
    return _selection(pool, by, [place for part in parts for place in _best_point(walk(np.sort(part)))])


def select_exhaustive(
    logits: Logits,
    y_true: Labels,
    *,
    rule: str = "soft",
    tie: TieRule = "probability",
    by: Measure = "accuracy",
    size: int = 3,
    at_most: int = 200_000,
) -> Selection:
    """Choose the best of all subsets of a pool.

    Args:
        logits: (n_members, n_samples, n_classes), of validation images.
        y_true: (n_samples,).
        rule: As in `select_greedy`.
        tie: Likewise.
        by: As in `select_greedy`. Of equally good subsets the smallest is chosen, then that of the lowest places.
        size: How many members to choose at most.
        at_most: How many subsets to look at; where there are more, the search is refused. So many, on 10,000 images,
            take minutes.

    Returns:
        The selection: each member once, in the pool's order.

    Raises:
        UsageError: As in `select_greedy`, or there are too many subsets.

    Example:
        >>> logits = np.log([[[0.8, 0.2], [0.6, 0.4]], [[0.4, 0.6], [0.1, 0.9]], [[0.3, 0.7], [0.9, 0.1]]])
        >>> select_exhaustive(logits, np.array([0, 1])).members
        (0, 1)
    """
    _check(logits, y_true, rule, tie, by, size)
    size = min(size, len(logits))
    n_subsets = sum(comb(len(logits), k) for k in range(1, size + 1))
    if n_subsets > at_most:
        raise UsageError(
            f"{len(logits)} members have {n_subsets:,} subsets of up to {size}; at most {at_most:,} can be searched",
            hint="choose fewer members, or from a smaller pool, or greedily",
        )
    pool = read_candidates(logits, y_true, rule, size, tie)
    *_, negated = _search(pool, no_team(pool), size, by)
    return _selection(pool, by, [-place for place in negated])


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
    """Add members one at a time, each time the best of those that differ most from the vote so far.

    The member that is best by itself comes first. Then, until there are `size`, the remaining ones are sorted by how
    many images they label otherwise than the chosen do together, and of the first `share` of them the one enters that
    makes the vote best. The best ensemble on the way is returned; the reference stops at the first step without gain.

    Args:
        logits: (n_members, n_samples, n_classes), of validation images.
        y_true: (n_samples,).
        rule: As in `select_greedy`.
        tie: Likewise.
        by: As in `select_greedy`.
        size: How many members to choose at most.
        share: How much of the remaining pool is diverse enough to enter, in (0, 1]: the less, the more diversity
            counts; at 1 it does not. The reference calls it ρ.

    Returns:
        The selection: each member once, with its path.

    Raises:
        UsageError: As in `select_greedy`.

    References:
        Li, Yu and Zhou, "Diversity regularized ensemble pruning", ECML PKDD 2012: DREP. There it is for two classes;
        here members differ on an image where their labels do.

    Example:
        >>> logits = np.log([[[0.8, 0.2], [0.6, 0.4]], [[0.4, 0.6], [0.1, 0.9]], [[0.3, 0.7], [0.4, 0.6]]])
        >>> select_diverse(logits, np.array([0, 1]), size=2, share=0.5).members
        (1, 0)
    """
    _check(logits, y_true, rule, tie, by, size)
    _check_share("the share of the pool that is diverse enough", share)
    pool = read_candidates(logits, y_true, rule, size, tie)
    choices = logits.argmax(axis=2)  # (n_members, n_samples)

    def differing_most(team: Team) -> Places:
        rest = np.setdiff1d(pool.places, team.members)
        labels = VOTING_RULES[rule](logits[list(team.members)], tie=tie).labels
        differences = (choices[rest] != labels).sum(axis=1)
        order = np.argsort(-differences, kind="stable")
        return np.sort(rest[order[: ceil(share * len(rest))]])

    path = _grow(pool, _sorted_start(pool, pool.places, 1, by), size, by, differing_most)
    return _selection(pool, by, _best_point(path), path)


SELECTION_METHODS: dict[str, Callable[..., Selection]] = {
    "greedy": select_greedy,
    "exhaustive": select_exhaustive,
    "diverse": select_diverse,
}


# --- steps -----------------------------------------------------------------------------------------------


def _sorted_start(pool: Candidates, places: Places, initial: int, by: Measure) -> list[Step]:
    """Return the members that are best by themselves, as many as vote best."""
    team, path = no_team(pool), list[Step]()
    first, second = (judge(pool, team, places, measure) for measure in MEASURES[by])
    for place in places[np.lexsort((-second, -first))][:initial].tolist():
        standing, _ = best_addition(pool, team, np.array([place]), by)
        path.append((place, standing))
        team = team.joined_by(pool, place)
    return path[: len(_best_point(path))]


def _grow(
    pool: Candidates, start: Sequence[Step], size: int, by: Measure, candidates: Callable[[Team], Places]
) -> list[Step]:
    """Add the best of the candidates until there are `size` members or no candidates."""
    team, path = no_team(pool), list(start)
    for place, _ in start:
        team = team.joined_by(pool, place)
    while len(path) < size and len(places := candidates(team)):
        standing, place = best_addition(pool, team, places, by)
        path.append((place, standing))
        team = team.joined_by(pool, place)
    return path


def _search(pool: Candidates, team: Team, size: int, by: Measure) -> tuple[Standing, int, tuple[int, ...]]:
    """Return the best team that begins with one, as what is highest: standing, minus its size, minus its places."""
    places = pool.places[max(team.members, default=-1) + 1 :]
    standing, place = best_addition(pool, team, places, by)
    members = (*team.members, place)
    found = [(standing, -len(members), tuple(-member for member in members))]
    if len(members) < size:
        found += [_search(pool, team.joined_by(pool, place), size, by) for place in places[:-1].tolist()]
    return max(found)


def _best_point(path: Sequence[Step]) -> list[int]:
    """Return the members up to the best point of a path, the first if several."""
    best = max(range(len(path)), key=lambda step: path[step][1])
    return [place for place, _ in path[: best + 1]]


def _selection(pool: Candidates, by: Measure, chosen: Sequence[int], path: Sequence[Step] = ()) -> Selection:
    """Return what was chosen, scored by the voting rule itself."""
    counts = Counter(chosen)
    _, best = best_addition(pool, no_team(pool), pool.places, by)
    if by == "accuracy":
        steps = tuple((place, right / len(pool.y_true)) for place, (right, _) in path)
    else:
        steps = tuple((place, -minus_loss) for place, (minus_loss, _) in path)
    return Selection(
        tuple(counts),
        tuple(counts.values()),
        _score(pool, by, counts),
        best,
        _score(pool, by, Counter([best])),
        _score(pool, by, Counter(pool.places.tolist())),
        steps,
    )


def _score(pool: Candidates, by: Measure, counts: Counter[int]) -> float:
    vote = VOTING_RULES[pool.rule](pool.logits[list(counts)], weights=list(counts.values()), tie=pool.tie)
    if by == "accuracy":
        return float((vote.labels == pool.y_true).mean())
    likelihoods = vote.probabilities[np.arange(len(pool.y_true)), pool.y_true]
    return float(-np.log(np.maximum(likelihoods, _TINY)).mean())


# --- what can be asked for -------------------------------------------------------------------------------


def _check(logits: Logits, y_true: Labels, rule: str, tie: str, by: str, size: int) -> None:
    if rule not in MEMBER_SCORES:
        raise UsageError(
            f"members cannot be chosen for the voting rule {rule!r}, as its scores do not add up member by member",
            hint=f"choose them for one of {', '.join(MEMBER_SCORES)}",
        )
    if tie not in TIE_RULES:
        raise UsageError(f"unknown tie rule {tie!r}; {did_you_mean(tie, list(TIE_RULES))}")
    if by not in MEASURES:
        raise UsageError(f"unknown measure {by!r}; {did_you_mean(by, list(MEASURES))}")
    if size < 1:
        raise UsageError(f"the size of an ensemble must be 1 or more; got {size}")
    if logits.ndim != 3 or 0 in logits.shape:
        raise UsageError(
            f"logits must be of shape (n_members, n_samples, n_classes), none of which 0; got {logits.shape}"
        )
    n_members, n_samples, n_classes = logits.shape
    if n_members == 1:
        raise UsageError("there is nothing to choose from in a pool of one member", hint="name two or more")
    if y_true.shape != (n_samples,):
        raise UsageError(f"there must be a label for each of {n_samples:,} images; got shape {y_true.shape}")
    if y_true.min() < 0 or y_true.max() >= n_classes:
        raise UsageError(f"labels must be 0 to {n_classes - 1}; got {y_true.min()} to {y_true.max()}")
    for place, member in enumerate(logits):
        if not np.isfinite(member).all():
            raise UsageError(f"logits must be finite, and member {place + 1} of the pool gave NaN or infinity")


def _check_share(what: str, share: float) -> None:
    if not 0 < share <= 1:
        raise UsageError(f"{what} must be above 0 and at most 1; got {share:g}")
