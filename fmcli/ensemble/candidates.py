"""How good a vote is with one member more: asked of all candidates at once, and answered from sums.

A candidate adds its scores to those of the members chosen so far, and the vote is right where no other class then
leads the true one. Where that is too close for single precision, or a tie, the rule itself votes.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcli.choices import Measure
from fmcli.ensemble.rules import MEMBER_SCORES, VOTING_RULES, Floats, Labels, Logits

Standing = tuple[float, float]
"""How good an ensemble is by the measure asked for, then by the other; more is better."""
Places = NDArray[np.intp]

MEASURES: dict[str, tuple[Measure, Measure]] = {"accuracy": ("accuracy", "loss"), "loss": ("loss", "accuracy")}
"""Each measure, and the one that decides between what is equally good by it."""
_COUNTING_RULES = ("majority", "borda")  # whole and half points: ties are common, and probabilities decide them
_FAR = 1e30  # no score leads by more: single precision holds the sums
_TINY = np.finfo(np.float64).tiny  # what a probability of 0 counts as: its logarithm is finite
_BLOCK = 2**17  # numbers at a time: a processor's cache holds them


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Members to choose from, and what each adds to a vote.

    Args:
        logits: (n_members, n_samples, n_classes).
        y_true: (n_samples,).
        rule: How they vote.
        tie: Which tied class wins.
        places: (n_members,), 0 and up.
        leads: float32 (n_classes - 1, n_samples, n_members), by how much each other class leads the true one.
        least: float32 (n_classes - 1, n_samples), of the leads over the members.
        most: Likewise.
        slack: float32 (n_samples,), how wrong a lead may be by rounding, for each member that votes.
        truths: float64 (n_samples, n_members), the probability of the true class.
    """

    logits: Logits
    y_true: Labels
    rule: str
    tie: str
    places: Places
    leads: NDArray[np.float32]
    least: NDArray[np.float32]
    most: NDArray[np.float32]
    slack: NDArray[np.float32]
    truths: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Team:
    """Members chosen so far, a place as often as it was chosen, and the sums of their leads and truths."""

    members: tuple[int, ...]
    leads: Floats  # (n_classes - 1, n_samples)
    truths: Floats  # (n_samples,)

    def joined_by(self, pool: Candidates, place: int) -> "Team":
        """Return the team with one member more."""
        leads = self.leads + pool.leads[:, :, place]
        return Team((*self.members, place), leads, self.truths + pool.truths[:, place])


def no_team(pool: Candidates) -> Team:
    """Return the team of nobody, to begin with."""
    return Team((), np.zeros(pool.least.shape), np.zeros(len(pool.y_true)))


def read_candidates(logits: Logits, y_true: Labels, rule: str, size: int, tie: str = "probability") -> Candidates:
    """Work out what each member adds to a vote.

    Args:
        logits: (n_members, n_samples, n_classes).
        y_true: (n_samples,).
        rule: One whose scores add up; see `rules.MEMBER_SCORES`.
        size: How many members will vote, at most.
        tie: Which tied class wins; see `rules.TIE_RULES`.
    """
    n_members, n_samples, n_classes = logits.shape
    others = (y_true[:, None] + np.arange(1, n_classes)) % n_classes  # (n_samples, n_classes - 1)
    leads = np.empty((n_classes - 1, n_samples, n_members), dtype=np.float32)
    truths = np.empty((n_samples, n_members))
    for rows in _blocks(np.arange(n_samples), n_members * n_classes):
        shape = (n_members, len(rows), n_classes)
        flat = logits[:, rows].reshape(-1, n_classes)
        probabilities = MEMBER_SCORES["soft"](flat).reshape(shape)
        scores = MEMBER_SCORES[rule](flat).reshape(shape)
        if rule in _COUNTING_RULES and tie == "probability":
            scores = scores + probabilities / (4 * size)  # less than half a point in all: they decide no more than ties
        true = y_true[rows][None, :, None]
        ahead = np.take_along_axis(scores, others[rows][None], axis=2) - np.take_along_axis(scores, true, axis=2)
        leads[:, rows] = ahead.clip(-_FAR, _FAR).transpose(2, 1, 0)
        truths[rows] = np.take_along_axis(probabilities, true, axis=2)[:, :, 0].T
    least, most = leads.min(axis=2), leads.max(axis=2)
    slack = np.float32(1e-7) * (1 + np.maximum(np.abs(least), np.abs(most)).max(axis=0, initial=0))
    return Candidates(logits, y_true, rule, tie, np.arange(n_members), leads, least, most, slack, truths)


def best_addition(pool: Candidates, team: Team, places: Places, by: Measure) -> tuple[Standing, int]:
    """Return how good the team is with the member that makes it best, and that member."""
    standing = []
    for measure in MEASURES[by]:
        values = judge(pool, team, places, measure)
        standing.append(float(values.max()))
        places = places[values == values.max()]
    return (standing[0], standing[1]), int(places[0])


def judge(pool: Candidates, team: Team, places: Places, measure: Measure) -> NDArray[Any]:
    """Return how good the team is with each of some members more: (n_places,), more is better."""
    if measure == "accuracy":
        return _count_right(pool, team, places)
    return -_mean_losses(pool, team, places).round(12)  # what differs by less does so by rounding


def _count_right(pool: Candidates, team: Team, places: Places) -> NDArray[np.int64]:
    """Count the images that the vote gets right."""
    slack = (len(team.members) + 1) * pool.slack
    # Whoever joins, the answer to most images stays right or stays wrong.
    safe = (team.leads + pool.most).max(axis=0, initial=-np.inf) < -slack
    lost = (team.leads + pool.least).max(axis=0, initial=-np.inf) > slack
    right = np.full(len(places), np.count_nonzero(safe))
    for rows in _blocks(np.flatnonzero(~(safe | lost)), len(places) * len(pool.leads)):
        highest = _add_leads(pool, team, rows, places).max(axis=0)  # (n_rows, n_places)
        right += np.count_nonzero(highest < -slack[rows, None], axis=0)
        row, column = np.nonzero(np.abs(highest) <= slack[rows, None])
        if len(row):
            voted_right = _vote_exactly(pool, team, rows[row], places[column])
            right += np.bincount(column[voted_right], minlength=len(places))
    return right


def _vote_exactly(pool: Candidates, team: Team, rows: Places, places: Places) -> NDArray[np.bool_]:
    """Return, for pairs of an image and a member that joins, whether the voting rule is right."""
    counts = Counter(team.members)
    before = pool.logits[np.ix_(np.array([*counts], dtype=np.intp), rows)]
    voters = np.concatenate([before, pool.logits[places, rows][None]])  # (n_members, n_pairs, n_classes)
    vote = VOTING_RULES[pool.rule](voters, weights=[*counts.values(), 1], tie=pool.tie)
    return np.asarray(vote.labels == pool.y_true[rows])


def _mean_losses(pool: Candidates, team: Team, places: Places) -> Floats:
    """Return the mean negative log-likelihood of the vote's probabilities."""
    size = len(team.members) + 1
    total = np.zeros(len(places))
    for rows in _blocks(np.arange(len(pool.y_true)), len(places) * (len(pool.leads) + 1)):
        if pool.rule == "geometric":
            leads = _add_leads(pool, team, rows, places) / np.float32(size)
            highest = leads.max(axis=0, initial=0)  # the true class's lead of 0 included
            odds = np.exp(leads - highest).sum(axis=0) + np.exp(-highest)
            losses = np.minimum(highest + np.log(odds), -np.log(_TINY))
        else:
            truths = _take(pool.truths, rows, places) + team.truths[rows, None]
            losses = -np.log(np.maximum(truths / size, _TINY))
        total += losses.sum(axis=0, dtype=np.float64)
    return total / len(pool.y_true)


def _add_leads(pool: Candidates, team: Team, rows: Places, places: Places) -> NDArray[np.float32]:
    """Return the leads on some images with each of some members more: (n_classes - 1, n_rows, n_places)."""
    leads = _take(pool.leads, rows, places)
    leads += team.leads[:, rows, None].astype(np.float32)
    return leads


def _take(values: NDArray[Any], rows: Places, places: Places) -> NDArray[Any]:
    """Return rows and places, which ascend, of the last two axes."""
    first, behind = places[0], places[-1] + 1
    if behind - first == len(places):  # a slice is several times faster
        return values[..., first:behind][..., rows, :]
    return values[..., rows[:, None], places]


def _blocks(rows: Places, width: int) -> Iterator[Places]:
    """Divide rows of so many numbers into blocks that the cache holds."""
    height = max(1, _BLOCK // max(1, width))
    for start in range(0, len(rows), height):
        yield rows[start : start + height]
