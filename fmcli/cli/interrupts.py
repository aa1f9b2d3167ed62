"""What a command that trains does when it is told to stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from fmcli.errors import ExitStatus, InterruptedRun


class _TerminatedError(BaseException):
    """SIGTERM arrived."""


@contextmanager
def interruptible(command: str) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into an error that names the command that goes on.

    Args:
        command: To type next.
    """

    def stop(*_: object) -> None:
        raise _TerminatedError

    before = signal.signal(signal.SIGTERM, stop)
    hint = f"what is finished is kept; go on with: {command}"
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedRun("interrupted", exit_status=ExitStatus.INTERRUPTED, hint=hint) from None
    except _TerminatedError:
        raise InterruptedRun("terminated", exit_status=ExitStatus.TERMINATED, hint=hint) from None
    finally:
        signal.signal(signal.SIGTERM, before)
