"""Run jobs in parallel, each in its own process. Their events and results arrive in the calling process."""

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import torch

from fmcli.errors import FmcliError, Remedy, printable
from fmcli.events import BatchPredicted, Event, Reporter, StepFinished, StopRequest, can_stop_at
from fmcli.training.executors.job import Job, JobResult, run_job
from fmcli.training.executors.parallel import Message, run_parallel

SHARES_PROCESS = False
RUNS_IN_PARALLEL = True
_CONTEXT = multiprocessing.get_context("spawn")  # a forked process could not use the parent's thread pools
_STEP_REPORT_INTERVAL_S = 0.05
_EXIT_TIMEOUT_S = 1.0  # maximum time between a process's result and its end
_HAS_SIGNAL_MASK = hasattr(signal, "pthread_sigmask")  # not on Windows


def run(jobs: Iterator[Job], max_parallel: int, reporter: Reporter) -> Generator[JobResult]:
    """Run jobs in parallel, each in its own process. See `Executor.run`.

    A second Ctrl-C kills the processes. A process exits if its parent dies.

    Args:
        jobs: The jobs. A script that calls this needs `if __name__ == "__main__":`.
        max_parallel: Maximum number of processes.
        reporter: Receives the events of all jobs, but not every step.

    Yields:
        The result of each job, in the order in which they end. If a process dies, its result has an `FmcliError`.

    Raises:
        Exception: A stopped job could not save its state. This error replaces the exception that stopped the job.
    """
    if _HAS_SIGNAL_MASK:
        resource_tracker.ensure_running()  # starting it unblocks signals, so start it before they are blocked
    yield from run_parallel(jobs, max_parallel, _Processes(), reporter)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block Ctrl-C and SIGTERM. Processes that start in this block ignore signals to the whole process group."""
    if not _HAS_SIGNAL_MASK:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(slots=True)
class _JobProcess:
    """A process that runs a job. Until it has sent a message, it has nothing to save."""

    name: str
    process: SpawnProcess
    connection: Connection
    has_sent: bool = False

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()

    def receive(self) -> Message:
        """Return the next message. If the process is dead, return a result with an error."""
        self.has_sent = True
        message: Message | None = None
        with suppress(EOFError, OSError):
            # Worker processes of a dead process may hold the other end open, so `recv` could wait forever.
            message = self.connection.recv() if self.connection.poll() else None
        if message is None or isinstance(message, JobResult):
            self.process.join(_EXIT_TIMEOUT_S)
            self.kill()
        return message or JobResult(self.name, error=_explain_exit(self.name, self.process.exitcode or 0))


def _explain_exit(name: str, status: int) -> FmcliError:
    how = f"died with exit status {status}" if status >= 0 else f"was killed: {signal.strsignal(-status) or -status}"
    return FmcliError(
        f"the process of {printable(name)} {how}",
        hint="saved files are kept; if memory ran out, train fewer members in parallel",
        remedies=[Remedy("jobs", 1)],
    )


def _start(job: Job) -> _JobProcess:
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_run_in_process, args=(job, theirs))
    process.start()
    theirs.close()
    return _JobProcess(job.name, process, ours)


class _Processes:
    def __init__(self) -> None:
        self._running: list[_JobProcess] = []

    @property
    def n_running(self) -> int:
        return len(self._running)

    def start(self, job: Job) -> None:
        with _signals_blocked():
            self._running.append(_start(job))

    def receive(self) -> Iterator[Message]:
        ready = set(wait([part for one in self._running for part in (one.connection, one.process.sentinel)]))
        for one in [one for one in self._running if ready & {one.connection, one.process.sentinel}]:
            with _signals_blocked():
                message = one.receive()
                if isinstance(message, JobResult):
                    self._running.remove(one)
            yield message

    def stop(self) -> list[JobResult]:
        results = []
        try:
            for one in list(self._running):
                if one.has_sent:
                    with suppress(OSError):  # the process is dead, which `receive` reports
                        one.connection.send("stop")
                else:
                    self._running.remove(one)
                    one.kill()
            while self._running:
                results += [message for message in self.receive() if isinstance(message, JobResult)]
        finally:
            for one in self._running:
                one.kill()
        return results


def _run_in_process(job: Job, connection: Connection) -> None:
    """Run a job in this process and send its events and its result to the parent."""
    parent = _ParentConnection(connection)
    if not _HAS_SIGNAL_MASK:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    result = run_job(job, parent.report)
    parent.send(result if result.error is None else JobResult(job.name, error=_picklable(result.error)))


class _ParentConnection:
    """The connection of a job's process to its parent."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._last_step_report, self._is_stopping = 0.0, False

    def send(self, message: Message) -> None:
        try:
            self._connection.send(message)
        except OSError:
            os._exit(1)  # the parent has died

    def report(self, event: Event) -> None:
        """Send an event, or raise `StopRequest` if the parent has asked this process to stop."""
        try:
            self._is_stopping = self._is_stopping or (self._connection.poll() and self._connection.recv() == "stop")
        except (EOFError, OSError):
            os._exit(1)  # the parent has died
        if self._is_stopping and can_stop_at(event):
            raise StopRequest
        if isinstance(event, StepFinished | BatchPredicted):
            if time.monotonic() - self._last_step_report < _STEP_REPORT_INTERVAL_S:
                return
            self._last_step_report = time.monotonic()
        self.send(event)


def _exit_with_parent() -> None:
    """Exit with the parent, so that a resumed run does not race an orphan process."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _picklable(error: Exception) -> Exception:
    """Return an error that can be sent to another process: the error itself, or a RuntimeError that quotes it."""
    note = "".join(traceback.format_exception(error))
    if not isinstance(error, FmcliError | OSError | MemoryError) and type(error) is not RuntimeError:
        # Other types may not unpickle.
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(note)
    return error
