"""Evaluate quickly how good a vote is with each possible additional member.

In an additive rule, each member gives each class a score, and the class with the highest sum wins. The lead of a class
is its sum minus the sum of the true class. To evaluate a candidate, its leads are added to the leads of the selected
members. An image is classified correctly if all leads are then negative. If the highest lead is 0, or too close to 0
for single precision, the voting rule itself decides.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcli.choices import Measure
from fmcli.ensemble.rules.additive import AdditiveRule
from fmcli.ensemble.rules.vote import Floats, Labels, Logits, probabilities_of

Ranking = tuple[float, float]
"""Quality of an ensemble by the requested measure, and by the other measure; higher is better."""
Indices = NDArray[np.intp]

MEASURES: dict[str, tuple[Measure, Measure]] = {"accuracy": ("accuracy", "loss"), "loss": ("loss", "accuracy")}
"""For each measure: the measure itself, then the measure that decides between equally good ensembles."""
MIN_PROBABILITY = np.finfo(np.float64).tiny  # replaces smaller probabilities, so that the logarithm is finite
_MAX_LEAD = 1e30  # larger leads are clipped, so that their sums are finite in single precision
_BLOCK_VALUES = 2**17  # values per block; a block fits in the processor's cache


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """A pool of members, and the leads that each member adds to a vote (explained at the top of this module).

    Args:
        logits: (n_members, n_samples, n_classes).
        y_true: True labels, int64 (n_samples,).
        rule: Voting rule, without weights.
        by: Measure to improve.
        size: Maximum number of members of an ensemble.
        indices: Indices of the members, int64 (n_members,).
        leads: Leads of all classes except the true class, float32 (n_classes - 1, n_samples, n_members).
        min_leads: Minimum of the leads over members, float32 (n_classes - 1, n_samples).
        max_leads: Maximum of the leads over members, float32 (n_classes - 1, n_samples).
        tolerance: Largest rounding error that one member adds to a lead, float32 (n_samples,).
        true_probabilities: Probability of the true class, float64 (n_samples, n_members).
    """

    logits: Logits
    y_true: Labels
    rule: AdditiveRule
    by: Measure
    size: int
    indices: Indices
    leads: NDArray[np.float32]
    min_leads: NDArray[np.float32]
    max_leads: NDArray[np.float32]
    tolerance: NDArray[np.float32]
    true_probabilities: Floats


@dataclass(frozen=True, slots=True, eq=False)
class PartialEnsemble:
    """The members selected so far, and the sums of their leads and probabilities.

    Args:
        members: Indices in the pool; an index is repeated if the member was selected several times.
        leads: Sums of the members' leads, float64 (n_classes - 1, n_samples).
        true_probabilities: Sums of the probabilities of the true class, float64 (n_samples,).
    """

    members: tuple[int, ...]
    leads: Floats
    true_probabilities: Floats

    def add(self, pool: Candidates, index: int) -> "PartialEnsemble":
        """Return the ensemble with one more member."""
        return PartialEnsemble(
            (*self.members, index),
            self.leads + pool.leads[:, :, index],
            self.true_probabilities + pool.true_probabilities[:, index],
        )


def empty_ensemble(pool: Candidates) -> PartialEnsemble:
    """Return an ensemble without members."""
    return PartialEnsemble((), np.zeros(pool.min_leads.shape), np.zeros(len(pool.y_true)))


def prepare_candidates(logits: Logits, y_true: Labels, *, rule: AdditiveRule, by: Measure, size: int) -> Candidates:
    """Compute the leads that each member adds to a vote. `Candidates` explains the arguments."""
    n_members, n_samples, n_classes = logits.shape
    other_classes = (y_true[:, None] + np.arange(1, n_classes)) % n_classes  # (n_samples, n_classes - 1)
    leads = np.empty((n_classes - 1, n_samples, n_members), dtype=np.float32)
    true_probabilities = np.empty((n_samples, n_members))
    for rows in _blocks(np.arange(n_samples), n_members * n_classes):
        shape = (n_members, len(rows), n_classes)
        flat = logits[:, rows].reshape(-1, n_classes)
        probabilities = probabilities_of(flat).reshape(shape)
        scores = rule.member_scores(flat).reshape(shape)
        if rule.scores_are_points and rule.tie == "probability":
            scores = scores + probabilities / (4 * size)  # sums to less than half a point, so it only decides ties
        true = y_true[rows][None, :, None]
        lead = np.take_along_axis(scores, other_classes[rows][None], axis=2) - np.take_along_axis(scores, true, axis=2)
        leads[:, rows] = lead.clip(-_MAX_LEAD, _MAX_LEAD).transpose(2, 1, 0)
        true_probabilities[rows] = np.take_along_axis(probabilities, true, axis=2)[:, :, 0].T
    min_leads, max_leads = leads.min(axis=2), leads.max(axis=2)
    largest = np.maximum(np.abs(min_leads), np.abs(max_leads)).max(axis=0, initial=0)
    tolerance = np.float32(1e-7) * (1 + largest)
    return Candidates(
        logits=logits,
        y_true=y_true,
        rule=rule,
        by=by,
        size=size,
        indices=np.arange(n_members),
        leads=leads,
        min_leads=min_leads,
        max_leads=max_leads,
        tolerance=tolerance,
        true_probabilities=true_probabilities,
    )


def best_addition(pool: Candidates, ensemble: PartialEnsemble, indices: Indices) -> tuple[Ranking, int]:
    """Find the best additional member. Return the ranking of the ensemble with it, and its index.

    Args:
        pool: The pool.
        ensemble: The members selected so far.
        indices: Members to choose from, in ascending order. Among equally good members, the first one is chosen.
    """
    ranking = []
    for measure in MEASURES[pool.by]:
        values = score_additions(pool, ensemble, indices, measure)
        ranking.append(float(values.max()))
        indices = indices[values == values.max()]
    return (ranking[0], ranking[1]), int(indices[0])


def score_additions(pool: Candidates, ensemble: PartialEnsemble, indices: Indices, measure: Measure) -> NDArray[Any]:
    """Return the score of the ensemble with each additional member, (n_indices,); higher is better.

    For `accuracy`, the score is the number of correct images, int64; for `loss`, the negative mean loss, float64.
    """
    if measure == "accuracy":
        return _count_correct(pool, ensemble, indices)
    return -_mean_losses(pool, ensemble, indices).round(12)  # smaller differences are only rounding errors


def _count_correct(pool: Candidates, ensemble: PartialEnsemble, indices: Indices) -> NDArray[np.int64]:
    """Count the images that the vote classifies correctly with each additional member."""
    tolerance = (len(ensemble.members) + 1) * pool.tolerance
    # Most images are correct with every candidate, or wrong with every candidate. They need no further work.
    always_correct = (ensemble.leads + pool.max_leads).max(axis=0, initial=-np.inf) < -tolerance
    always_wrong = (ensemble.leads + pool.min_leads).max(axis=0, initial=-np.inf) > tolerance
    n_correct = np.full(len(indices), np.count_nonzero(always_correct))
    for rows in _blocks(np.flatnonzero(~(always_correct | always_wrong)), len(indices) * len(pool.leads)):
        highest = _add_leads(pool, ensemble, rows, indices).max(axis=0)  # (n_rows, n_indices)
        n_correct += np.count_nonzero(highest < -tolerance[rows, None], axis=0)
        row, column = np.nonzero(np.abs(highest) <= tolerance[rows, None])
        if len(row):
            is_correct = _vote_exactly(pool, ensemble, rows[row], indices[column])
            n_correct += np.bincount(column[is_correct], minlength=len(indices))
    return n_correct


def _vote_exactly(pool: Candidates, ensemble: PartialEnsemble, rows: Indices, indices: Indices) -> NDArray[np.bool_]:
    """Apply the voting rule to pairs of an image and an additional member; return whether it is correct, (n_pairs,)."""
    counts = Counter(ensemble.members)
    selected = pool.logits[np.ix_(np.array([*counts], dtype=np.intp), rows)]
    voters = np.concatenate([selected, pool.logits[indices, rows][None]])  # (n_voters, n_pairs, n_classes)
    vote = replace(pool.rule, weights=(*counts.values(), 1)).combine(voters)
    return np.asarray(vote.labels == pool.y_true[rows])


def _mean_losses(pool: Candidates, ensemble: PartialEnsemble, indices: Indices) -> Floats:
    """Return the mean negative log-likelihood of the vote with each additional member, float64 (n_indices,)."""
    size = len(ensemble.members) + 1
    total = np.zeros(len(indices))
    for rows in _blocks(np.arange(len(pool.y_true)), len(indices) * (len(pool.leads) + 1)):
        if pool.rule.scores_are_log_probabilities:
            leads = _add_leads(pool, ensemble, rows, indices) / np.float32(size)
            highest = leads.max(axis=0, initial=0)  # the true class has a lead of 0
            odds = np.exp(leads - highest).sum(axis=0) + np.exp(-highest)
            losses = np.minimum(highest + np.log(odds), -np.log(MIN_PROBABILITY))
        else:
            sums = _take(pool.true_probabilities, rows, indices) + ensemble.true_probabilities[rows, None]
            losses = -np.log(np.maximum(sums / size, MIN_PROBABILITY))
        total += losses.sum(axis=0, dtype=np.float64)
    return total / len(pool.y_true)


def _add_leads(pool: Candidates, ensemble: PartialEnsemble, rows: Indices, indices: Indices) -> NDArray[np.float32]:
    """Return the leads on the given images with each additional member, (n_classes - 1, n_rows, n_indices)."""
    leads = _take(pool.leads, rows, indices)
    leads += ensemble.leads[:, rows, None].astype(np.float32)
    return leads


def _take(values: NDArray[Any], rows: Indices, indices: Indices) -> NDArray[Any]:
    """Return the given indices of the last two axes. `indices` must be in ascending order."""
    start, stop = indices[0], indices[-1] + 1
    if stop - start == len(indices):  # slicing is several times faster than indexing
        return values[..., start:stop][..., rows, :]
    return values[..., rows[:, None], indices]


def _blocks(rows: Indices, row_values: int) -> Iterator[Indices]:
    """Yield blocks of rows that fit in the cache, given the number of values per row."""
    height = max(1, _BLOCK_VALUES // max(1, row_values))
    for start in range(0, len(rows), height):
        yield rows[start : start + height]
