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


class _TerminatedError(BaseException):
    """SIGTERM arrived."""


@contextmanager
def interruptible(flag: str) -> Iterator[Callable[[Reporter], Reporter]]:
    """Turn Ctrl-C and SIGTERM into an error that names the command that goes on: the same one, with a flag.

    Args:
        flag: What lets the command go on with what is there; it takes the place of `--overwrite`.

    Yields:
        A function that makes a reporter heed signals, too: an exception that a signal raises may be lost where Python
        or a library ignores all exceptions, as in a destructor, and is then raised again at the next event.
    """
    words = [word for word in sys.argv[1:] if word not in (flag, "--overwrite")]
    end = words.index("--") if "--" in words else len(words)
    command = shlex.join(["fmcli", *words[:end], flag, *words[end:]])
    received: list[type[BaseException]] = []

    def stop(number: int, _: object) -> None:
        received.append(_TerminatedError if number == signal.SIGTERM else KeyboardInterrupt)
        raise received[-1]

    def heeding(reporter: Reporter) -> Reporter:
        def report(event: Event) -> None:
            if received:
                raise received[-1]
            reporter(event)

        return report

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    hint = f"what is finished is kept; go on with: {command}"
    try:
        yield heeding
    except KeyboardInterrupt:
        raise InterruptedRun("interrupted", exit_status=ExitStatus.INTERRUPTED, hint=hint) from None
    except _TerminatedError:
        raise InterruptedRun("terminated", exit_status=ExitStatus.TERMINATED, hint=hint) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
