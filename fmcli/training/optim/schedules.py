"""Schedules of the learning rate."""

import math
from collections.abc import Callable

from fmcli.recipe.schedule import (
    ConstantSchedule,
    CosineSchedule,
    CyclicSchedule,
    ExponentialSchedule,
    LinearSchedule,
    OneCycleSchedule,
    ScheduleSpec,
    StepSchedule,
)

Schedule = Callable[[int], float]


def build_schedule(spec: ScheduleSpec, *, lr: float, epochs: int, steps_per_epoch: int) -> Schedule:
    """Return the learning rate as a function of the step.

    Args:
        spec: The recipe's `[schedule]` table.
        lr: Peak learning rate.
        epochs: Number of epochs.
        steps_per_epoch: Number of steps per epoch.

    Returns:
        A function from the index of a step, counted from 0 over all epochs, to its learning rate.

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
            cycle = step * spec.cycles // total  # the first cycle includes the warm-up
            begin, end = max(cycle * total / spec.cycles, rising), (cycle + 1) * total / spec.cycles
        return lr * _share(spec, (step - begin) / max(end - begin, 1), step // steps_per_epoch)

    return schedule


def _share(spec: ScheduleSpec, done: float, epoch: int) -> float:
    """Return the learning rate after the warm-up, divided by the peak.

    Args:
        spec: The schedule.
        done: Completed share of the steps after the warm-up, or of this cycle, in [0, 1).
        epoch: Index of the epoch, from 0.
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
    """Return a value that falls from 1 to 0 along half a cosine."""
    return (1 + math.cos(math.pi * done)) / 2


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share
