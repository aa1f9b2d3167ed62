"""Rules in which each member gives each class a score, and the class with the highest sum wins."""

from abc import abstractmethod

import numpy as np
from scipy.special import softmax

from fmcli.ensemble.rules.base import VotingRule
from fmcli.ensemble.rules.vote import Floats, Logits, Vote, count_votes, decide, normalize_weights, probabilities_of


class AdditiveRule(VotingRule):
    """A rule that adds up the weighted scores of all members; the class with the highest sum wins.

    A subclass implements `member_scores`. Members can then be selected quickly: see `ensemble.candidates`.
    """

    takes_weights = True
    probability_decides = False
    scores_are_points = False
    """Whether all scores are multiples of one half, as votes and ranks are. Such sums often tie."""
    scores_are_log_probabilities = False
    """Whether the vote's probabilities are the softmax of its scores. Otherwise they are the members' mean."""

    @abstractmethod
    def member_scores(self, logits: Logits) -> Floats:
        """Return the scores that one member gives the classes.

        Args:
            logits: The member's logits, (n_samples, n_classes).

        Returns:
            The scores, float64 (n_samples, n_classes).
        """

    @property
    def probability_meaning(self) -> str:
        """End of the sentence `The vote's probability is …`."""
        return f"the {'' if self.weights is None else 'weighted '}mean of its members' probabilities"

    def combine(self, logits: Logits) -> Vote:
        """Add up the weighted scores of all members; see `VotingRule.combine`.

        With the tie rule `first`, members with weight 0 are not asked.
        """
        shares = normalize_weights(self.weights, len(logits))
        scores = np.zeros(logits.shape[1:], order="F")
        probabilities = np.zeros(logits.shape[1:], order="F")
        for member, share in zip(logits, shares, strict=True):  # one member at a time, to save memory
            scores += share * self.member_scores(member)
            probabilities += share * probabilities_of(member)
        choices = logits.argmax(axis=2)  # (n_members, n_samples)
        labels, ties = decide(scores, probabilities, choices[shares > 0], self.tie)
        if self.scores_are_log_probabilities:
            probabilities = np.asarray(softmax(scores, axis=1))
        return Vote(labels, count_votes(choices, logits.shape[2]), scores, probabilities, ties)
