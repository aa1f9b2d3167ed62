"""Jobs, their results, and the interface of an executor."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from fmcli.events import Reporter, StopRequest


@dataclass(frozen=True, slots=True)
class Job:
    """Work for an executor. For example, it trains a member.

    Args:
        name: Name of the job.
        work: Function that sends events to a reporter and returns a result. If the executor does not share this
            process (see `Executor`), function and result must be picklable, such as a `functools.partial` of a
            module's function.
        threads: CPU threads that the work needs; None for all threads of the process.
        device: Device that the work needs, such as `cpu` or `cuda:0`.
    """

    name: str
    work: Callable[[Reporter], Any]
    threads: int | None = None
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class JobResult:
    """The result of a job.

    Args:
        name: Name of the job.
        result: The value that the work returned; None if it failed or was stopped.
        error: The exception that the work raised. If it ran in another process, a note has the traceback.
    """

    name: str
    result: Any = None
    error: Exception | None = None


class Executor(Protocol):
    """The content of a module in this package, which is named like the executor."""

    SHARES_PROCESS: bool
    """Whether jobs run in the calling process, so that they can use its images."""
    RUNS_IN_PARALLEL: bool
    """Whether several jobs can run at the same time."""

    def run(self, jobs: Iterator[Job], max_parallel: int, reporter: Reporter) -> Generator[JobResult]:
        """Run jobs.

        An exception of the reporter, Ctrl-C, or closing the generator stops all jobs at their next event, and is raised
        again after the jobs have saved their state and ended.

        Args:
            jobs: The jobs. Take the next one only when it can start, because other processes can take it until then.
            max_parallel: Maximum number of jobs that run at the same time.
            reporter: Receives the events of all jobs, in the calling thread. Steps may be left out.

        Yields:
            The result of each job when it ends, also if it fails. See `run_job`.
        """


def run_job(job: Job, reporter: Reporter) -> JobResult:
    """Run a job and return its result. If the reporter stops the job, the job saves its state first."""
    try:
        return JobResult(job.name, job.work(reporter))
    except StopRequest:
        return JobResult(job.name)
    except Exception as error:  # the caller raises it
        return JobResult(job.name, error=error)
    except BaseException as error:  # such as SystemExit; without a result, the caller would wait forever
        quoted = RuntimeError(f"{job.name} raised {type(error).__name__}: {error}")
        quoted.__cause__ = error
        return JobResult(job.name, error=quoted)
