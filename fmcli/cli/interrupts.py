"""What a command that trains does when it is told to stop."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fmcli.errors import ExitStatus, InterruptedRun

if TYPE_CHECKING:
    from fmcli.events import Event, Reporter


class _StopAtOnce(BaseException):
    """A signal that is not waited for. KeyboardInterrupt would let Python end by SIGINT, if raised within `exec`."""


@contextmanager
def interruptible(flag: str) -> Iterator[Callable[[Reporter], Reporter]]:
    """Turn Ctrl-C and SIGTERM into an error that names the command that goes on: the same one, with a flag.

    While a member trains, the first signal waits for the end of the step, so that all of it can be saved; a second one
    does not wait, and neither does the first while nothing trains.

    Args:
        flag: What lets the command go on with what is there; it takes the place of `--overwrite`.

    Yields:
        A function that makes a reporter heed signals, without which none is ever waited for.
    """
    from fmcli.events import (
        BatchAnswered,
        CheckpointSaved,
        EpochFinished,
        MemberStarted,
        StepFinished,
        StopRequest,
    )

    of_training = MemberStarted | StepFinished | BatchAnswered | EpochFinished | CheckpointSaved
    words = [word for word in sys.argv[1:] if word not in (flag, "--overwrite")]
    end = words.index("--") if "--" in words else len(words)
    command = shlex.join(["fmcli", *words[:end], flag, *words[end:]])
    received: list[int] = []
    training = False

    def stop(number: int, _: object) -> None:
        received.append(number)
        if not training or len(received) > 1:
            raise _StopAtOnce  # wherever this comes, so nothing can be saved

    def heeding(reporter: Reporter) -> Reporter:
        def report(event: Event) -> None:
            nonlocal training
            training = isinstance(event, of_training)
            # Also where Python or a library ignored the exception that the signal raised, as in a destructor. After a
            # file is saved, the event that it belongs to is yet to come.
            if received and not isinstance(event, CheckpointSaved):
                raise StopRequest
            reporter(event)

        return report

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    hint = f"what is done is kept; go on with: {command}"
    try:
        yield heeding
    except (StopRequest, _StopAtOnce):
        if received[:1] == [signal.SIGTERM]:
            raise InterruptedRun("terminated", exit_status=ExitStatus.TERMINATED, hint=hint) from None
        raise InterruptedRun("interrupted", exit_status=ExitStatus.INTERRUPTED, hint=hint) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
