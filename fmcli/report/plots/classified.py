"""The input of the figures that evaluate a member or a vote."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class ClassifiedSplit:
    """The images of a split as a member or a vote classified them.

    Args:
        name: Name of the member or vote for titles.
        split: `train`, `validation` or `test`.
        class_names: Class names in label order.
        labels: True classes, int64 (n_samples,).
        predicted: Predicted classes, int64 (n_samples,).
        probabilities: Class probabilities, (n_samples, n_classes); each row sums to 1.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probabilities: NDArray[np.floating[Any]]

    @property
    def title(self) -> str:
        """Name and split, such as `k3 on test`."""
        return f"{self.name} on {self.split}"

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each prediction is correct, bool (n_samples,)."""
        return np.asarray(self.predicted == self.labels)

    @property
    def confidence(self) -> NDArray[np.floating[Any]]:
        """Probability of each predicted class, (n_samples,)."""
        return np.asarray(self.probabilities[np.arange(len(self.labels)), self.predicted])
