"""Majority voting with fitted weights."""

from dataclasses import replace
from typing import Self

import numpy as np

from fmcli.ensemble.rules.majority import Majority
from fmcli.ensemble.rules.vote import Labels, Logits


class WeightedMajority(Majority):
    """Hold a majority vote with weights that are fitted to validation images, unless they are given.

    The weights are optimal if members make mistakes independently of each other. A member with accuracy p has the
    weight log(p (n_classes - 1) / (1 - p)). One correct and one wrong image are added to the counts, so p is never 0
    or 1. A member that is not better than chance has the weight 0. If no member is better, all weights are 1.

    References:
        Shapley and Grofman, "Optimizing group judgmental accuracy in the presence of interdependencies", Public Choice
        1984. For more than two classes: Kuncheva and Rodríguez, "A weighted voting framework for classifiers
        ensembles", Knowledge and Information Systems 2014.

    Example:
        >>> logits = np.log([[[0.9, 0.1]] * 3, [[0.9, 0.1], [0.9, 0.1], [0.1, 0.9]]])
        >>> [round(weight, 3) for weight in WeightedMajority().fit(logits, np.array([0, 0, 0])).weights]
        [1.386, 0.405]
    """

    @property
    def unweighted(self) -> Majority:
        """A majority vote with equal weights."""
        return Majority(self.tie, None, self.groups)

    @property
    def needs_fit(self) -> bool:
        """Whether the weights are unknown."""
        return self.weights is None

    def fit(self, logits: Logits, y_true: Labels) -> Self:
        """Return the rule with weights from the members' accuracies; see `VotingRule.fit`."""
        n_classes = logits.shape[2]
        n_correct = (logits.argmax(axis=2) == y_true).sum(axis=1)
        accuracy = (n_correct + 1) / (len(y_true) + 2)
        weights = np.maximum(np.log(accuracy * (n_classes - 1) / (1 - accuracy)), 0.0) if n_classes > 1 else accuracy
        return replace(self, weights=tuple((weights if weights.any() else np.ones(len(logits))).tolist()))
