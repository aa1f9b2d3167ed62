"""Run jobs interleaved in one process: each in its own thread, but only one thread runs at a time."""

import threading
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from fmcli.events import BatchPredicted, Event, Reporter, StepFinished, StopRequest, can_stop_at
from fmcli.hardware.device import use_own_stream
from fmcli.training.executors.job import Job, JobResult, run_job
from fmcli.training.executors.parallel import Message, run_parallel

SHARES_PROCESS = True
RUNS_IN_PARALLEL = True


def run(jobs: Iterator[Job], max_parallel: int, reporter: Reporter) -> Generator[JobResult]:
    """Run jobs in turns: each takes one step, then waits until every other job has taken one. See `Executor.run`.

    This is for jobs that queue their steps on a GPU without waiting, so that together they keep it busy. Processes
    would take turns of milliseconds on the GPU, and only one would compute at a time. Only one job runs at a time.
    Therefore the order of their steps is always the same, and jobs need no locks.

    Args:
        jobs: The jobs.
        max_parallel: Maximum number of jobs that take turns.
        reporter: Receives the events of all jobs.

    Yields:
        The result of each job, in the order in which they end.

    Raises:
        Exception: A stopped job could not save its state. This error replaces the exception that stopped the job.
    """
    yield from run_parallel(jobs, max_parallel, _Threads(), reporter)


class _Threads:
    def __init__(self) -> None:
        self._running: deque[_JobThread] = deque()

    @property
    def n_running(self) -> int:
        return len(self._running)

    def start(self, job: Job) -> None:
        self._running.append(_JobThread(job))

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

    def __init__(self, job: Job) -> None:
        self._job = job
        self._may_run, self._has_message = threading.Semaphore(0), threading.Semaphore(0)
        self._message: Message | None = None
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name=job.name, daemon=True)
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
        if self._is_stopping:  # before the job has started
            self._send(JobResult(self._job.name))
            return
        self._send(run_job(replace(self._job, work=self._run_on_stream), self._report))

    def _run_on_stream(self, reporter: Reporter) -> Any:
        device = torch.device(self._job.device)
        with use_own_stream(device) if device.type == "cuda" else nullcontext():  # tests run on a CPU
            return self._job.work(reporter)

    def _report(self, event: Event) -> None:
        self._send(event)
        self._may_run.acquire()
        if self._is_stopping and can_stop_at(event):
            raise StopRequest

    def _send(self, message: Message) -> None:
        self._message = message
        self._has_message.release()
