"""Jobs, their results, and the loop that every executor shares."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fmcli.errors import DivergedError
from fmcli.events import Event, Reporter, StopRequest

Job = Callable[[Reporter], Any]
"""A function that sends events to a reporter and returns a result. For example, it trains a member."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """The result of a job.

    Args:
        name: Name of the job.
        result: The job's return value; None if it failed or was stopped.
        error: The exception that the job raised. If it ran in another process, a note has the traceback.
    """

    name: str
    result: Any = None
    error: Exception | None = None


Message = Event | JobResult


class Executor(Protocol):
    """Runs several jobs at the same time."""

    @property
    def n_running(self) -> int:
        """Number of jobs that have started and not ended."""

    def start(self, name: str, job: Job) -> None:
        """Start a job."""

    def receive(self) -> Iterator[Message]:
        """Wait for running jobs, and yield the next message of at least one. A job ends with its `JobResult`."""

    def stop(self) -> list[JobResult]:
        """Stop all jobs, wait until they have saved their state, and return their results."""


def run_jobs(
    jobs_by_name: Mapping[str, Job], max_parallel: int, executor: Executor, reporter: Reporter
) -> Generator[JobResult]:
    """Run jobs, a limited number at a time.

    Args:
        jobs_by_name: The jobs by name.
        max_parallel: Maximum number of running jobs.
        executor: Runs the jobs.
        reporter: Receives the events of all jobs.

    Yields:
        The result of each job, in the order in which they end.

    Raises:
        Exception: A stopped job could not save its state. This error replaces the exception that stopped the job.
    """
    waiting = deque(jobs_by_name.items())
    try:
        while waiting or executor.n_running:
            while waiting and executor.n_running < max_parallel:
                executor.start(*waiting.popleft())
            for message in executor.receive():
                if isinstance(message, JobResult):
                    yield message
                else:
                    reporter(message)
    except BaseException as reason:
        for result in executor.stop():
            # A job that finds on saving that its member has diverged has no state to save.
            if result.error is not None and not isinstance(result.error, DivergedError):
                raise result.error from reason
        raise


def run_job(name: str, job: Job, reporter: Reporter) -> JobResult:
    """Run a job and return its result. If the reporter stops the job, the job saves its state first."""
    try:
        return JobResult(name, job(reporter))
    except StopRequest:
        return JobResult(name)
    except Exception as error:  # the caller raises it
        return JobResult(name, error=error)
