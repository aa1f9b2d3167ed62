"""Update weights: optimizers (`optimizers`, `muon`), learning rates (`schedules`) and weight averages (`average`)."""

from fmcli.training.optim.average import WeightAverage
from fmcli.training.optim.optimizers import build_optimizer, set_learning_rate
from fmcli.training.optim.schedules import Schedule, build_schedule

__all__ = ["Schedule", "WeightAverage", "build_optimizer", "build_schedule", "set_learning_rate"]
