"""Update weights: optimizers (`optimizers`, `muon`), learning rates (`schedules`) and weight averages (`average`)."""

from fmcli.training.optim.average import WeightAverage
from fmcli.training.optim.optimizers import (
    build_optimizer,
    load_optimizer_state,
    optimizer_state,
    set_learning_rate,
)
from fmcli.training.optim.schedules import Schedule, build_schedule

__all__ = [
    "Schedule",
    "WeightAverage",
    "build_optimizer",
    "build_schedule",
    "load_optimizer_state",
    "optimizer_state",
    "set_learning_rate",
]
