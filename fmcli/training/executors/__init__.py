"""Executors: each runs jobs in its own way. A module of this package is an executor, and `ExecutorName` lists them.

See `job.Executor` for the content of a module. `sequential` is the smallest example.
"""

from importlib import import_module
from typing import cast

from fmcli.choices import ExecutorName
from fmcli.training.executors.job import Executor, Job, JobResult, run_job

__all__ = ["Executor", "Job", "JobResult", "load_executor", "run_job"]


def load_executor(name: ExecutorName) -> Executor:
    """Import an executor."""
    return cast(Executor, import_module(f"{__name__}.{name}"))
