"""Run several jobs at the same time: the loop that executors for processes and threads share."""

from collections.abc import Generator, Iterator
from typing import Protocol

from fmcli.errors import DivergedError
from fmcli.events import Event, Reporter
from fmcli.training.executors.job import Job, JobResult

Message = Event | JobResult


class Workers(Protocol):
    """Processes or threads that run jobs."""

    @property
    def n_running(self) -> int:
        """Number of jobs that have started and not ended."""

    def start(self, job: Job) -> None:
        """Start a job."""

    def receive(self) -> Iterator[Message]:
        """Wait for running jobs, and yield the next message of at least one. A job ends with its `JobResult`."""

    def stop(self) -> list[JobResult]:
        """Stop all jobs, wait until they have saved their state, and return their results."""


def run_parallel(jobs: Iterator[Job], max_parallel: int, workers: Workers, reporter: Reporter) -> Generator[JobResult]:
    """Run jobs, a limited number at a time. See `Executor.run`.

    Args:
        jobs: The jobs.
        max_parallel: Maximum number of running jobs.
        workers: Run the jobs.
        reporter: Receives the events of all jobs.

    Yields:
        The result of each job, in the order in which they end.

    Raises:
        Exception: A stopped job could not save its state. This error replaces the exception that stopped the job.
    """
    try:
        while True:
            while workers.n_running < max_parallel and (job := next(jobs, None)) is not None:
                workers.start(job)
            if not workers.n_running:
                return
            for message in workers.receive():
                if isinstance(message, JobResult):
                    yield message
                else:
                    reporter(message)
    except BaseException as reason:
        for result in workers.stop():
            # A job that finds on saving that its member has diverged has no state to save.
            if result.error is not None and not isinstance(result.error, DivergedError):
                raise result.error from reason
        raise
