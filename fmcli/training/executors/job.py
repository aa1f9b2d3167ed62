"""Jobs, their results, and the loop that every executor shares."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fmcli.errors import DivergedError
from fmcli.events import Event, Reporter

Job = Callable[[Reporter], Any]
"""A function that sends events to a reporter and returns a result, such as the training of one member."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """The result of a job.

    Args:
        name: Name of the job.
        result: The job's return value; None if it failed or was stopped.
        error: The exception that it raised. From another process, the traceback is a note.
        stopped: Whether it was stopped after it saved its state.
    """

    name: str
    result: Any = None
    error: Exception | None = None
    stopped: bool = False


Message = Event | JobResult


class Executor(Protocol):
    """Runs several jobs at the same time."""

    @property
    def n_running(self) -> int:
        """Number of jobs that have started and not ended."""

    def start(self, name: str, job: Job) -> None:
        """Start a job."""

    def receive(self) -> Iterator[Message]:
        """Wait for running jobs, and yield the next message of one or more. A job ends with its `JobResult`."""

    def stop(self) -> Exception | None:
        """Stop all jobs, wait until they have saved, and return the first error that prevented one from saving."""

    def close(self) -> None:
        """End all jobs that are still running, without waiting for them to save."""


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
        Exception: An error of a stopped job, instead of the exception that stopped it, because its state is lost.
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
        error = executor.stop()
        if error is not None:
            raise error from reason
        raise
    finally:
        executor.close()


def first_failure(results: Iterable[JobResult]) -> Exception | None:
    """Return the first error of stopped jobs. A diverged member is not a failure, because it had nothing to save."""
    errors = [result.error for result in results]
    return next((error for error in errors if error is not None and not isinstance(error, DivergedError)), None)
