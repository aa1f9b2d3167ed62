"""Run jobs interleaved in one process: each in its own thread, but only one thread runs at a time."""

import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping

from fmcli.events import BatchPredicted, Event, Reporter, StepFinished, StopRequest, can_stop_at
from fmcli.training.executors.job import Job, JobResult, Message, run_job, run_jobs


def run_interleaved(jobs_by_name: Mapping[str, Job], max_parallel: int, reporter: Reporter) -> Generator[JobResult]:
    """Run jobs in turns: each takes one step, then waits until every other job has taken one.

    This is for jobs that queue their steps on a GPU without waiting, so that together they keep it busy. Only one job
    runs at a time. Therefore the order of their steps is always the same, and jobs need no locks.

    An exception of the reporter, Ctrl-C, or closing the generator stops all jobs at their next event. The exception is
    raised again after the jobs have ended.

    Args:
        jobs_by_name: The jobs by name.
        max_parallel: Maximum number of jobs that take turns.
        reporter: Receives the events of all jobs.

    Yields:
        The result of each job, in the order in which they end.

    Raises:
        Exception: A stopped job could not save its state. This error replaces the exception that stopped the job.
    """
    yield from run_jobs(jobs_by_name, max_parallel, _ThreadExecutor(), reporter)


class _ThreadExecutor:
    def __init__(self) -> None:
        self._running: deque[_JobThread] = deque()

    @property
    def n_running(self) -> int:
        return len(self._running)

    def start(self, name: str, job: Job) -> None:
        self._running.append(_JobThread(name, job))

    def receive(self) -> Iterator[Message]:
        message = self._running[0].resume()
        if isinstance(message, JobResult):
            self._running.popleft()
        yield message
        if isinstance(message, StepFinished | BatchPredicted):
            self._running.rotate(-1)

    def stop(self) -> list[JobResult]:
        return [job.stop() for job in self._running]


class _JobThread:
    """A job in its own thread, in lockstep with the caller."""

    def __init__(self, name: str, job: Job) -> None:
        self._name, self._job = name, job
        self._may_run, self._has_message = threading.Semaphore(0), threading.Semaphore(0)
        self._message: Message | None = None
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def resume(self) -> Message:
        """Let the job run until its next message, and return the message."""
        self._may_run.release()
        self._has_message.acquire()
        assert self._message is not None
        if isinstance(self._message, JobResult):
            self._thread.join()
        return self._message

    def stop(self) -> JobResult:
        """Stop the job at its current event and return its result."""
        self._is_stopping = True
        while not isinstance(self._message, JobResult):
            self.resume()
        return self._message

    def _run(self) -> None:
        self._may_run.acquire()
        is_stopped = self._is_stopping  # before the job has started
        self._send(JobResult(self._name) if is_stopped else run_job(self._name, self._job, self._report))

    def _report(self, event: Event) -> None:
        self._send(event)
        self._may_run.acquire()
        if self._is_stopping and can_stop_at(event):
            raise StopRequest

    def _send(self, message: Message) -> None:
        self._message = message
        self._has_message.release()
