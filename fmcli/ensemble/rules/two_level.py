"""Two-level voting."""

from collections.abc import Sequence

import numpy as np

from fmcli.ensemble.rules.additive import majority_vote
from fmcli.ensemble.rules.vote import Logits, Vote, check_logits, count_votes, decide
from fmcli.errors import UsageError


def two_level_vote(logits: Logits, *, groups: Sequence[str], tie: str = "probability") -> Vote:
    """Hold a majority vote within each group of members, then a majority vote of the groups.

    Args:
        logits: (n_members, n_samples, n_classes).
        groups: Group of each member, such as its kernel size. Groups are in the order of their first members.
        tie: Tie rule for both levels, see `additive.majority_vote`. At the second level, `probability` compares the
            mean of the groups' mean probabilities, and `first` asks the groups in order.

    Returns:
        The vote. The score of a class is the number of groups that chose it.

    Raises:
        UsageError: The logits have the wrong shape or are not finite, or the number of groups is wrong.

    References:
        An, Lee, Park, Yang and So, "An ensemble of simple convolutional neural network models for MNIST digit
        recognition", arXiv 2008.10400: the heterogeneous ensemble.

    Example:
        >>> logits = np.eye(3)[[[0], [0], [1], [2], [1]]]  # five members, one image
        >>> two_level_vote(logits, groups=["3", "3", "5", "5", "7"]).labels
        array([1])
    """
    check_logits(logits)
    if len(groups) != len(logits):
        raise UsageError(
            f"{len(logits)} members need {len(logits)} groups, one per member; got {len(groups)}", remedies=["groups"]
        )
    votes = [
        majority_vote(logits[[member_group == group for member_group in groups]], tie=tie)
        for group in dict.fromkeys(groups)
    ]
    probabilities = np.mean([vote.probabilities for vote in votes], axis=0)
    answers = np.stack([vote.labels for vote in votes])  # (n_groups, n_samples)
    scores = np.eye(logits.shape[2])[answers].sum(axis=0)
    labels, ties = decide(scores, probabilities, answers, tie)
    return Vote(labels, count_votes(logits.argmax(axis=2), logits.shape[2]), scores, probabilities, ties)
