"""Two-level voting."""

import numpy as np

from fmcli.ensemble.rules.base import VotingRule
from fmcli.ensemble.rules.majority import Majority
from fmcli.ensemble.rules.vote import Logits, Vote
from fmcli.errors import UsageError


class TwoLevel(VotingRule):
    """Hold a majority vote within each group of members, then a majority vote of the groups.

    The score of a class is the number of groups that chose it. The tie rule applies to both levels. Between groups,
    `probability` compares the mean of the groups' mean probabilities, and `first` asks the groups in the order of their
    first members.

    References:
        An, Lee, Park, Yang and So, "An ensemble of simple convolutional neural network models for MNIST digit
        recognition", arXiv 2008.10400: the heterogeneous ensemble.

    Example:
        >>> logits = np.eye(3)[[[0], [0], [1], [2], [1]]]  # five members, one image
        >>> TwoLevel(groups=("3", "3", "5", "5", "7")).combine(logits).labels
        array([1])
    """

    needs_groups = True
    probability_decides = False
    probability_meaning = "the mean of its groups' mean probabilities"
    tie_meaning = "Ties between groups"

    def combine(self, logits: Logits) -> Vote:
        """Vote within groups, then between groups; see `VotingRule.combine`.

        Raises:
            UsageError: The number of groups is wrong.
        """
        groups = self.groups
        if len(groups) != len(logits):
            raise UsageError(
                f"{len(logits)} members need {len(logits)} groups, one per member; got {len(groups)}",
                remedies=["groups"],
            )
        majority = Majority(self.tie)
        votes = [
            majority.combine(logits[[member_group == group for member_group in groups]])
            for group in dict.fromkeys(groups)
        ]
        probabilities = np.mean([vote.probabilities for vote in votes], axis=0)
        answers = np.stack([vote.labels for vote in votes])  # (n_groups, n_samples)
        scores = np.eye(logits.shape[2])[answers].sum(axis=0)
        return self.decide(logits, scores, probabilities, voters=answers)
