"""Run jobs one at a time in this process."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager

import torch

from fmcli.events import Reporter
from fmcli.training.executors.job import Job, JobResult

SHARES_PROCESS = True
RUNS_IN_PARALLEL = False


def run(jobs: Iterator[Job], max_parallel: int, reporter: Reporter) -> Generator[JobResult]:
    """Run each job with its number of CPU threads. See `Executor.run`.

    Args:
        jobs: The jobs.
        max_parallel: Ignored.
        reporter: Receives the events.

    Yields:
        The result of each job, in order.
    """
    for job in jobs:
        try:
            with _threads(job.threads):
                result = JobResult(job.name, job.work(reporter))
        except Exception as error:  # the caller raises it; any other exception stops the caller immediately
            result = JobResult(job.name, error=error)
        yield result


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Use a number of CPU threads within the block."""
    before = torch.get_num_threads()
    if number in (None, before):
        yield
        return
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
