"""Soft voting with fitted weights."""

from dataclasses import replace
from typing import Self

import numpy as np

from fmcli.ensemble.rules.soft import Soft
from fmcli.ensemble.rules.vote import Labels, Logits, probabilities_of

_MAX_EM_STEPS = 1000
_MIN_EM_GAIN_NATS = 1e-9


class WeightedSoft(Soft):
    """Hold a soft vote with weights that are fitted to validation images, unless they are given.

    The fitted weights sum to 1 and maximize the likelihood of the true classes. The vote is a mixture of the members'
    probability distributions. Expectation maximization fits the weights of a mixture: each step increases the
    likelihood, which has a single maximum.

    References:
        Dempster, Laird and Rubin, "Maximum likelihood from incomplete data via the EM algorithm", JRSS B 1977.
    """

    @property
    def unweighted(self) -> Soft:
        """A soft vote with equal weights."""
        return Soft(self.tie, None, self.groups)

    @property
    def needs_fit(self) -> bool:
        """Whether the weights are unknown."""
        return self.weights is None

    def fit(self, logits: Logits, y_true: Labels) -> Self:
        """Return the rule with the most likely weights; see `VotingRule.fit`."""
        samples = np.arange(len(y_true))
        likelihoods = np.stack([probabilities_of(member)[samples, y_true] for member in logits])
        likelihoods = np.maximum(likelihoods, np.finfo(np.float64).tiny)  # (n_members, n_samples)
        shares = np.full(len(logits), 1 / len(logits))
        previous = -np.inf
        for _ in range(_MAX_EM_STEPS):
            mixture = shares @ likelihoods
            current = float(np.log(mixture).mean())
            if current - previous < _MIN_EM_GAIN_NATS:
                break
            previous = current
            shares = shares * (likelihoods / mixture).mean(axis=1)
        return replace(self, weights=tuple((shares / shares.sum()).tolist()))
