"""Compare ensembles on the same images."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from fmcli.ensemble.evaluate import Evaluation, evaluate_vote
from fmcli.ensemble.predictions import check_same_images, digest_arrays
from fmcli.ensemble.rules.base import VotingRule
from fmcli.ensemble.voting import VotingResult
from fmcli.errors import UsageError, printable
from fmcli.metrics.comparison import CochranTest, PairedTest, cochran_q_test, holm_correction, mcnemar_test


@dataclass(frozen=True, slots=True)
class ComparedEnsemble:
    """One ensemble of a comparison.

    Args:
        name: Name of the ensemble.
        members: Names of the members.
        rule: The fitted voting rule.
        evaluation: Scores of the vote.
        against_first: Test whether this ensemble is as accurate as the first; None for the first ensemble itself.
        adjusted_p_value: The p-value of the test after Holm's correction for the number of tests; None for the first
            ensemble.
    """

    name: str
    members: tuple[str, ...]
    rule: VotingRule
    evaluation: Evaluation
    against_first: PairedTest | None
    adjusted_p_value: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Scores of several ensembles on the same images.

    Args:
        split: The split that was evaluated.
        ensembles: The ensembles, in the given order.
        agreement: Test whether all ensembles are equally accurate; None for two ensembles, which `against_first`
            already compares.
        duplicates: Names of each pair of ensembles whose members have the same logits.
    """

    split: str
    ensembles: tuple[ComparedEnsemble, ...]
    agreement: CochranTest | None
    duplicates: tuple[tuple[str, str], ...]


def compare_ensembles(names: Sequence[str], results: Sequence[VotingResult]) -> Comparison:
    """Compare ensembles on the same images.

    Args:
        names: Unique names of at least two ensembles.
        results: The vote of each ensemble, all on the same images.

    Raises:
        CheckpointError: The ensembles' images or classes differ.
        UsageError: There are fewer than two ensembles, or two have the same name.
    """
    if len(names) < 2:
        raise UsageError("a comparison needs at least two ensembles; got 1")
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(
            f"two ensembles have the name {printable(repeated)}", hint="give one of them a new name: NAME=PATH"
        )
    check_same_images([member for result in results for member in result.predictions])
    first, votes = results[0].predictions[0], [result.vote for result in results]
    tests = [mcnemar_test(first.labels, vote.labels, votes[0].labels) for vote in votes[1:]]
    adjusted = holm_correction([test.p_value for test in tests])
    ensembles = tuple(
        ComparedEnsemble(
            name,
            tuple(member.member for member in result.predictions),
            result.combiner.rule,
            evaluate_vote(result.vote, first.labels, first.class_names, name=name),
            against_first,
            p_value,
        )
        for name, result, against_first, p_value in zip(names, results, [None, *tests], [None, *adjusted], strict=True)
    )
    choices = np.stack([vote.labels for vote in votes])
    agreement = cochran_q_test(first.labels, choices) if len(votes) > 2 else None
    return Comparison(first.split, ensembles, agreement, _find_duplicates(names, results))


def _find_duplicates(names: Sequence[str], results: Sequence[VotingResult]) -> tuple[tuple[str, str], ...]:
    """Return the names of each pair of ensembles whose members have the same logits."""
    digests = [sorted(digest_arrays(member.logits) for member in result.predictions) for result in results]
    pairs = combinations(zip(names, digests, strict=True), 2)
    return tuple((name, other) for (name, digest), (other, other_digest) in pairs if digest == other_digest)
