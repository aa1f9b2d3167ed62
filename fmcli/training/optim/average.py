"""The average of a network's weights over the steps of a training."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_DECAY_WARMUP = 10  # steps


class WeightAverage:
    """An average of a network's weights and normalisation statistics: an exponential moving one, or an equal one.

    The decay grows from 0.1 to its value over the first steps, so that the average forgets the initial weights. In
    an equal average, every update counts the same, and the initial weights not at all.

    Args:
        model: Whose weights to average.
        decay: In (0, 1); None for an equal average.

    References:
        Polyak and Juditsky 1992; the warm-up is that of TensorFlow's ExponentialMovingAverage. Equal, after the last
        epochs: Izmailov, Podoprikhin, Garipov, Vetrov and Wilson, UAI 2018.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self.decay = decay
        self.updates = 0
        self._current = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
        self._averages = [tensor.clone() for tensor in self._current]

    def update(self) -> None:
        """Take in the weights as they are now."""
        self.updates += 1
        share = 1 / self.updates
        if self.decay is not None:
            share = 1 - min(self.decay, self.updates / (self.updates + _DECAY_WARMUP - 1))
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, self._current, share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the network have the averages, and put its own weights back afterwards."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self) -> None:
        """Exchange the network's weights and their average; once more puts them back."""
        with torch.no_grad():
            for current, average in zip(self._current, self._averages, strict=True):
                held = current.clone()
                current.copy_(average)
                average.copy_(held)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages by position, for `load_state_dict`."""
        return {str(place): average for place, average in enumerate(self._averages)}

    def load_state_dict(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Take over averages from `state_dict`."""
        self.updates = updates
        with torch.no_grad():
            for place, average in enumerate(self._averages):
                average.copy_(state[str(place)])
