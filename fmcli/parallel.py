"""Work side by side: each piece in a process of its own, whose events and end are told here.

Small networks in small batches keep one core busy, and not two: threads would wait for each other at every operation.
"""

import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event as Flag
from typing import Any, cast

from fmcli.errors import FmcliError, printable
from fmcli.events import BatchAnswered, CheckpointSaved, Event, Reporter, StepFinished, StopRequest

_CONTEXT = multiprocessing.get_context("spawn")  # a forked one could not use the threads that its parent began
_EVERY = 0.05  # seconds between two steps that are told
_LAST_WORDS = 1.0  # seconds to leave in, once all is said
Work = Callable[[Reporter], Any]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a piece of work ended.

    Args:
        name: Which one.
        result: What it returned; None where it failed or was stopped.
        error: Why it failed, with the traceback as a note.
        stopped: Whether it was stopped, and left what is needed to go on.
    """

    name: str
    result: Any = None
    error: Exception | None = None
    stopped: bool = False


def side_by_side(works: Mapping[str, Work], jobs: int, reporter: Reporter) -> Generator[Ended]:
    """Do pieces of work, so many at a time.

    What the reporter raises, Ctrl-C, a process that dies, or closing the generator stops all of them at their next
    event, and goes on once they have ended; Ctrl-C meanwhile ends them at once. A process whose parent is gone ends by
    itself.

    Args:
        works: By name; what can be pickled, such as a `functools.partial` of a function of a module.
        jobs: How many processes.
        reporter: Told of what all of them announce, but not of every step.

    Yields:
        How each ended, in the order in which they do.

    Raises:
        FmcliError: A process died.
    """
    waiting = deque(works.items())
    stop = _CONTEXT.Event()
    running: dict[Connection, _Running] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                connection, process = _start(*waiting.popleft(), stop)
                running[connection] = process
            for said in _heard(running):
                if isinstance(said, Ended):
                    yield said
                else:
                    reporter(said)
    except BaseException:
        stop.set()
        _let_end(running)
        raise
    finally:
        for one in running.values():
            one.end()


@dataclass(slots=True)
class _Running:
    """A process at work; there is nothing to lose until it has told of something."""

    name: str
    process: SpawnProcess
    has_begun: bool = False

    def end(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.join()


def _start(name: str, work: Work, stop: Flag) -> tuple[Connection, _Running]:
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_do, args=(name, work, theirs, stop, os.getpid()))
    with _signals_held_back():
        process.start()
    theirs.close()
    return ours, _Running(name, process)


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


def _let_end(running: dict[Connection, _Running]) -> None:
    """Wait until processes that were told to stop have saved and ended; those that have nothing to save end at once."""
    for connection in [connection for connection, one in running.items() if not one.has_begun]:
        running.pop(connection).end()
    while running:
        with suppress(FmcliError):  # one that dies now is told no more
            for _ in _heard(running):
                pass


def _heard(running: dict[Connection, _Running]) -> Iterator[Event | Ended]:
    """Yield what processes say next; those that end are taken out."""
    for connection in cast(list[Connection], wait(list(running))):
        one = running[connection]
        try:
            said: Event | Ended = connection.recv()
        except EOFError:
            del running[connection]
            one.process.join()
            raise FmcliError(
                f"the process of {printable(one.name)} {_end_of(one.process)}",
                hint="what is saved is kept; where memory ran out, fewer at once need less",
            ) from None
        one.has_begun = True
        if isinstance(said, Ended):
            del running[connection]
            one.process.join(_LAST_WORDS)
            one.end()
        yield said


def _end_of(process: SpawnProcess) -> str:
    code = process.exitcode or 0
    return f"died with exit status {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"


def _do(name: str, work: Work, connection: Connection, stop: Flag, parent: int) -> None:
    """Do a piece of work in this process and tell of it."""
    told = 0.0

    def tell(said: Event | Ended) -> None:
        try:
            connection.send(said)
        except BrokenPipeError:
            os._exit(1)

    def report(event: Event) -> None:
        nonlocal told
        if os.name == "posix" and os.getppid() != parent:
            os._exit(1)  # whoever goes on with this work must not meet us there
        if stop.is_set() and not isinstance(event, CheckpointSaved):  # which belongs to an event yet to come
            raise StopRequest
        if isinstance(event, StepFinished | BatchAnswered):
            if time.monotonic() - told < _EVERY:
                return
            told = time.monotonic()
        tell(event)

    if os.name != "posix":  # elsewhere they are held back
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        ended = Ended(name, result=work(report))
    except StopRequest:
        ended = Ended(name, stopped=True)
    except Exception as error:  # whatever it is, it is raised where the work was asked for
        error.add_note(traceback.format_exc())
        ended = Ended(name, error=error)
    tell(ended)
