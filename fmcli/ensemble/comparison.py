"""Compare ensembles on the same images."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from fmcli.ensemble.combiner import Combiner
from fmcli.ensemble.evaluate import Evaluation, evaluate_vote
from fmcli.ensemble.predictions import Predictions, check_same_images, digest_arrays
from fmcli.ensemble.voting import VotingResult
from fmcli.errors import UsageError, printable
from fmcli.metrics.comparison import CochranTest, PairedTest, cochran_q_test, holm_correction, mcnemar_test


@dataclass(frozen=True, slots=True)
class ComparedEnsemble:
    """One ensemble of a comparison.

    Args:
        name: Name of the ensemble.
        members: Names of its members.
        rule: The fitted voting rule.
        evaluation: Scores of its vote.
        against_first: Test against the first ensemble; None for the first ensemble itself.
        adjusted_p_value: The p-value of that test after Holm's correction for the number of tests; None for the first
            ensemble.
    """

    name: str
    members: tuple[str, ...]
    rule: Combiner
    evaluation: Evaluation
    against_first: PairedTest | None
    adjusted_p_value: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Scores of several ensembles on the same images.

    Args:
        split: The split that was evaluated.
        ensembles: The ensembles, in order.
        agreement: Test for equal accuracy of all ensembles; None for two ensembles, whose paired test says the same.
        duplicates: Pairs of names of ensembles whose members gave equal logits, because their weights are the same.
    """

    split: str
    ensembles: tuple[ComparedEnsemble, ...]
    agreement: CochranTest | None
    duplicates: tuple[tuple[str, str], ...]


def compare_ensembles(names: Sequence[str], results: Sequence[VotingResult]) -> Comparison:
    """Compare ensembles on the same images.

    Args:
        names: Unique names of two or more ensembles.
        results: Each ensemble's vote, all on the same images.

    Raises:
        CheckpointError: Their images or classes differ.
        UsageError: There are fewer than two ensembles, or two have the same name.
    """
    if len(names) < 2:
        raise UsageError("a comparison needs two ensembles or more; got 1")
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(
            f"two ensembles are called {printable(repeated)}", hint="give one of them another name: NAME=PATH"
        )
    check_same_images([member for result in results for member in result.predictions])
    first, votes = results[0].predictions[0], [result.vote for result in results]
    tests = [mcnemar_test(first.labels, vote.labels, votes[0].labels) for vote in votes[1:]]
    adjusted = holm_correction([test.p_value for test in tests])
    ensembles = tuple(
        ComparedEnsemble(
            name,
            tuple(member.member for member in result.predictions),
            result.rule,
            evaluate_vote(result.vote, first.labels, first.class_names, name=name),
            against_first,
            p_value,
        )
        for name, result, against_first, p_value in zip(names, results, [None, *tests], [None, *adjusted], strict=True)
    )
    choices = np.stack([vote.labels for vote in votes])
    agreement = cochran_q_test(first.labels, choices) if len(votes) > 2 else None
    return Comparison(
        first.split, ensembles, agreement, _find_duplicates(names, [result.predictions for result in results])
    )


def _find_duplicates(names: Sequence[str], predictions: Sequence[Sequence[Predictions]]) -> tuple[tuple[str, str], ...]:
    """Return the pairs of ensembles whose members gave equal logits."""
    digests = [sorted(digest_arrays(member.logits) for member in members) for members in predictions]
    return tuple(
        (names[first], names[second])
        for first, second in combinations(range(len(names)), 2)
        if digests[first] == digests[second]
    )
