"""Averages of a network's weights over the steps or epochs of training."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_DECAY_WARMUP = 10  # steps


class WeightAverage:
    """An average of a network's weights and normalization statistics: an exponential moving average, or a plain mean.

    In a moving average, the decay grows from 0.1 to its final value over the first steps, so that the average forgets
    the initial weights. A plain mean counts all updates equally and ignores the initial weights.

    Args:
        model: The network.
        decay: Decay of a moving average, in (0, 1); None for a plain mean.

    References:
        Polyak and Juditsky 1992. The warm-up is from TensorFlow's ExponentialMovingAverage. A plain mean over the
        last epochs: Izmailov, Podoprikhin, Garipov, Vetrov and Wilson, UAI 2018.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self.decay = decay
        self.updates = 0
        self._current = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
        self._averages = [tensor.clone() for tensor in self._current]

    def update(self) -> None:
        """Add the current weights to the average."""
        self.updates += 1
        share = 1 / self.updates
        if self.decay is not None:
            share = 1 - min(self.decay, self.updates / (self.updates + _DECAY_WARMUP - 1))
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, self._current, share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the network the averaged weights inside the block, then restore its own."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self) -> None:
        """Exchange the network's weights and their average. A second call restores both."""
        with torch.no_grad():
            for current, average in zip(self._current, self._averages, strict=True):
                held = current.clone()
                current.copy_(average)
                average.copy_(held)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages by index, and the number of updates, for `load_state_dict`."""
        averages = {str(index): average for index, average in enumerate(self._averages)}
        return averages | {"updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the averages that `state_dict` returned."""
        self.updates = int(state["updates"])
        with torch.no_grad():
            for index, average in enumerate(self._averages):
                average.copy_(state[str(index)])
