"""What the figures of an evaluation are drawn from."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What a member, or a vote, says of every image of a split.

    Args:
        name: Who answers, as titles call it.
        split: `train`, `validation` or `test`.
        class_names: In label order.
        labels: (n_samples,), the true classes.
        choices: (n_samples,), the predicted ones.
        probabilities: (n_samples, n_classes), each row adding up to 1.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    labels: NDArray[np.int64]
    choices: NDArray[np.int64]
    probabilities: NDArray[np.floating[Any]]

    @property
    def title(self) -> str:
        """Who answers, and what: `k3 on test`."""
        return f"{self.name} on {self.split}"

    @property
    def right(self) -> NDArray[np.bool_]:
        """Where the predicted class is the true one: bool (n_samples,)."""
        return np.asarray(self.choices == self.labels)

    @property
    def chosen_probability(self) -> NDArray[np.floating[Any]]:
        """The probability of the predicted class: (n_samples,)."""
        return np.asarray(self.probabilities[np.arange(len(self.labels)), self.choices])
