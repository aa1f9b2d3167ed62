"""Job in turns: each piece in a thread of its own, of which one runs at a time, from one step to the next."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

from fmcli.errors import DivergedError
from fmcli.events import BatchPredicted, Event, Reporter, StepFinished, StopRequest, can_stop_at
from fmcli.training.executors.job import Job, JobResult


def run_interleaved(
    jobs_by_name: Mapping[str, Job],
    at_once: int,
    reporter: Reporter,
    *,
    within: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Generator[JobResult]:
    """Do pieces of work, so many at a time: each takes a step, then waits until the others have taken one.

    For work that queues its steps on a GPU and does not wait for them, so that those of all fill it together. As never
    more than one runs, they come in the same order each time, and none needs to know of the others.

    What the reporter raises, Ctrl-C, or closing the generator stops all of them at their next event, and goes on once
    they have ended.

    Args:
        jobs_by_name: By name.
        at_once: How many are begun at a time.
        reporter: Told of what all of them announce.
        within: Makes what each piece of work is done within, in its own thread.

    Yields:
        How each ended, in the order in which they do.

    Raises:
        Exception: What a piece of work raised when it was stopped, in place of what stopped it.
    """
    waiting = deque(jobs_by_name.items())
    running: deque[_Running] = deque()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(_Running(*waiting.popleft(), within))
            said = running[0].go_on()
            if isinstance(said, JobResult):
                running.popleft()
                yield said
                continue
            reporter(said)
            if isinstance(said, StepFinished | BatchPredicted):
                running.rotate(-1)
    except BaseException as reason:
        failed = _let_end(running)
        if failed is not None:
            raise failed from reason  # not all was saved
        raise


def _let_end(running: Iterable["_Running"]) -> Exception | None:
    """Stop what has begun and wait until it has ended; return what went wrong with the first that could not."""
    failed: Exception | None = None
    for one in running:
        ended = one.stop()
        if ended.error is not None and not isinstance(ended.error, DivergedError):  # which had nothing to save
            failed = failed or ended.error
    return failed


class _Running:
    """A piece of work in its thread, which goes on while this one waits for what it says next."""

    def __init__(self, name: str, work: Job, within: Callable[[], AbstractContextManager[None]]) -> None:
        self._name, self._work, self._within = name, work, within
        self._may_go_on, self._has_said = threading.Semaphore(0), threading.Semaphore(0)
        self._said: Event | JobResult | None = None
        self._is_stopping = False
        self._thread = threading.Thread(target=self._do, name=name, daemon=True)
        self._thread.start()

    def go_on(self) -> Event | JobResult:
        """Let it go on, and return what it says next."""
        self._may_go_on.release()
        self._has_said.acquire()
        assert self._said is not None
        if isinstance(self._said, JobResult):
            self._thread.join()
        return self._said

    def stop(self) -> JobResult:
        """Let it end at the event that it has come to."""
        self._is_stopping = True
        while not isinstance(self._said, JobResult):
            self.go_on()
        return self._said

    def _do(self) -> None:
        self._may_go_on.acquire()
        try:
            if self._is_stopping:  # before it has begun
                raise StopRequest
            with self._within():
                ended = JobResult(self._name, result=self._work(self._report))
        except StopRequest:
            ended = JobResult(self._name, stopped=True)
        except DivergedError as error:
            ended = JobResult(self._name, error=error.with_traceback(None))  # which would keep images and network
        except Exception as error:  # whatever it is, it is raised where the work was asked for
            ended = JobResult(self._name, error=error)
        except BaseException as error:  # as SystemExit: nobody would hear of it
            ended = JobResult(self._name, error=RuntimeError(f"{type(error).__name__}: {error}"))
        self._say(ended)

    def _report(self, event: Event) -> None:
        self._say(event)
        self._may_go_on.acquire()
        if self._is_stopping and can_stop_at(event):
            raise StopRequest

    def _say(self, said: Event | JobResult) -> None:
        self._said = said
        self._has_said.release()
