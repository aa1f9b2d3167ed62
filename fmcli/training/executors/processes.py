"""Job side by side: each piece in a process of its own, whose events and end are told here."""

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from fmcli.errors import DivergedError, FmcliError, printable
from fmcli.events import BatchPredicted, Event, Reporter, StepFinished, StopRequest, can_stop_at
from fmcli.training.executors.job import Job, JobResult

_CONTEXT = multiprocessing.get_context("spawn")  # a forked one could not use the threads that its parent began
_EVERY = 0.05  # seconds between two steps that are told
_LAST_WORDS = 1.0  # seconds to leave in, once all is said


def run_in_processes(jobs_by_name: Mapping[str, Job], jobs: int, reporter: Reporter) -> Generator[JobResult]:
    """Do pieces of work, so many at a time.

    What the reporter raises, Ctrl-C, a process that dies, or closing the generator stops all of them at their next
    event, and goes on once they have ended; Ctrl-C meanwhile ends them at once. A process whose parent is gone ends at
    once, by itself.

    Args:
        jobs_by_name: By name; what can be pickled, such as a `functools.partial` of a function of a module. A
            script that asks for this needs `if __name__ == "__main__":`.
        jobs: How many processes.
        reporter: Told of what all of them announce, but not of every step.

    Yields:
        How each ended, in the order in which they do.

    Raises:
        FmcliError: A process died.
        Exception: What a piece of work raised when it was stopped, in place of what stopped it.
    """
    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # the first process would start it, which lets signals through again
    waiting = deque(jobs_by_name.items())
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                with _signals_held_back():
                    running.append(_start(*waiting.popleft()))
            for said in _heard(running):
                if isinstance(said, JobResult):
                    yield said
                else:
                    reporter(said)
    except BaseException as reason:
        failed = _let_end(running)
        if failed is not None:
            raise failed from reason  # not all was saved
        raise
    finally:
        for one in running:
            one.end()


@dataclass(slots=True)
class _Running:
    """A process at work; there is nothing to lose until it has told of something."""

    name: str
    process: SpawnProcess
    connection: Connection
    has_begun: bool = False

    def end(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _start(name: str, work: Job) -> _Running:
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_do, args=(name, work, theirs))
    process.start()
    theirs.close()
    return _Running(name, process, ours)


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Let signals wait; a process that is started meanwhile never gets those that a whole group receives."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _let_end(running: list[_Running]) -> Exception | None:
    """Stop processes and wait until they have saved and ended; return what went wrong with the first that could not.

    Those that have nothing to save end at once.
    """
    failed: Exception | None = None
    for one in list(running):
        if one.has_begun:
            with suppress(OSError):  # it is dead, and heard of below
                one.connection.send("stop")
        else:
            running.remove(one)
            one.end()
    while running:
        try:
            for said in _heard(running):
                if isinstance(said, JobResult) and said.error is not None and not isinstance(said.error, DivergedError):
                    failed = failed or said.error  # what diverged had nothing to save
        except FmcliError as error:
            failed = failed or error
    return failed


def _heard(running: list[_Running]) -> Iterator[Event | JobResult]:
    """Yield what processes say next; those that end are taken out.

    Raises:
        FmcliError: One died.
    """
    ready = set(wait([part for one in running for part in (one.connection, one.process.sentinel)]))
    for one in [one for one in running if ready & {one.connection, one.process.sentinel}]:
        with _signals_held_back():
            said = _hear(one)
            one.has_begun = True
            if said is None or isinstance(said, JobResult):
                running.remove(one)
                one.process.join(_LAST_WORDS)
                one.end()
        if said is None:
            raise FmcliError(
                f"the process of {printable(one.name)} {_end_of(one.process)}",
                hint="what is saved is kept; where memory ran out, --jobs 1 needs less",
            )
        yield said


def _hear(one: _Running) -> Event | JobResult | None:
    """Return what a process says next, or None where it is dead and has said all."""
    try:
        # Others may hold the other end open when it is dead: its own workers.
        said: Event | JobResult | None = one.connection.recv() if one.connection.poll() else None
    except (EOFError, OSError):
        return None
    return said


def _end_of(process: SpawnProcess) -> str:
    code = process.exitcode or 0
    return f"died with exit status {code}" if code >= 0 else f"was killed: {signal.strsignal(-code) or -code}"


def _do(name: str, work: Job, connection: Connection) -> None:
    """Do a piece of work in this process and tell of it."""
    told, stopping = 0.0, False

    def tell(said: Event | JobResult) -> None:
        try:
            connection.send(said)
        except OSError:
            os._exit(1)  # nobody listens

    def report(event: Event) -> None:
        nonlocal told, stopping
        try:
            stopping = stopping or (connection.poll() and connection.recv() == "stop")
        except (EOFError, OSError):
            os._exit(1)  # the parent is gone
        if stopping and can_stop_at(event):
            raise StopRequest
        if isinstance(event, StepFinished | BatchPredicted):
            if time.monotonic() - told < _EVERY:
                return
            told = time.monotonic()
        tell(event)

    if not hasattr(signal, "pthread_sigmask"):  # elsewhere they are held back
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        ended = JobResult(name, result=work(report))
    except StopRequest:
        ended = JobResult(name, stopped=True)
    except Exception as error:  # whatever it is, it is raised where the work was asked for
        ended = JobResult(name, error=_portable(error))
    tell(ended)


def _end_with_parent() -> None:
    """End this process once its parent is gone: whoever goes on with this work must not meet us there."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _portable(error: Exception) -> Exception:
    """Return an error that reaches another process whole: itself, or one that quotes it."""
    note = traceback.format_exc()
    if not isinstance(error, FmcliError | OSError | MemoryError):  # others may not be made anew from what they say
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(note)
    return error
