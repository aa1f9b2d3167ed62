"""Optimizers, learning-rate schedules, and the average of the weights."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fmcli.recipe.training import (
    AdamSpec,
    AdamWSpec,
    ConstantSchedule,
    CosineSchedule,
    CyclicSchedule,
    ExponentialSchedule,
    LinearSchedule,
    OneCycleSchedule,
    OptimizerSpec,
    ScheduleSpec,
    SgdSpec,
    StepSchedule,
)

Schedule = Callable[[int], float]
_DECAY_WARMUP = 10  # steps; see WeightAverage


def build_optimizer(spec: OptimizerSpec, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe; weight decay reaches kernels, not biases and normalisation."""
    kernels = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    match spec:
        case AdamSpec():
            parameters = [*kernels, *others]
            return torch.optim.Adam(parameters, lr=spec.lr, betas=spec.betas, eps=spec.eps, fused=True)
        case AdamWSpec():
            groups = _decayed(kernels, others, spec.weight_decay)
            return torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps, fused=True)
        case SgdSpec():
            groups = _decayed(kernels, others, spec.weight_decay)
            return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, nesterov=spec.nesterov, fused=True)


def _decayed(kernels: list[nn.Parameter], others: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    groups = [{"params": kernels, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_schedule(spec: ScheduleSpec, *, lr: float, epochs: int, steps_per_epoch: int) -> Schedule:
    """Return the learning rate as a function of the step.

    Args:
        spec: The recipe's `[schedule]` table.
        lr: The highest learning rate.
        epochs: How many.
        steps_per_epoch: How many.

    Returns:
        From a step, counted from 0 over the whole training, to a learning rate.

    Example:
        >>> schedule = build_schedule(ExponentialSchedule(gamma=0.5), lr=1.0, epochs=3, steps_per_epoch=2)
        >>> [schedule(step) for step in range(6)]
        [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    """
    total = epochs * steps_per_epoch
    rising = spec.warmup * total  # steps

    def schedule(step: int) -> float:
        if step < rising and isinstance(spec, OneCycleSchedule):
            return lr * _between(spec.start, 1.0, 1 - _half_cosine(step / rising))
        if step < rising:
            return lr * (step + 1) / (rising + 1)
        begin, end = rising, float(total)
        if isinstance(spec, CyclicSchedule):
            cycle = step * spec.cycles // total  # the warm-up is a part of the first
            begin, end = max(cycle * total / spec.cycles, rising), (cycle + 1) * total / spec.cycles
        return lr * _share(spec, (step - begin) / max(end - begin, 1), step // steps_per_epoch)

    return schedule


def _share(spec: ScheduleSpec, done: float, epoch: int) -> float:
    """Return the learning rate as a part of the highest, after the warm-up.

    Args:
        spec: The schedule.
        done: How much of the steps after the warm-up is over, or of those of this cycle, in [0, 1).
        epoch: From 0.
    """
    match spec:
        case ConstantSchedule():
            return 1.0
        case ExponentialSchedule(gamma=gamma):
            return gamma**epoch
        case StepSchedule(every=every, gamma=gamma):
            return gamma ** (epoch // every)
        case LinearSchedule(final=final):
            return _between(final, 1.0, 1 - done)
        case CosineSchedule(final=final) | CyclicSchedule(final=final) | OneCycleSchedule(final=final):
            return _between(final, 1.0, _half_cosine(done))


def _half_cosine(done: float) -> float:
    """Return the way from 1 to 0 along half a cosine."""
    return (1 + math.cos(math.pi * done)) / 2


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


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
