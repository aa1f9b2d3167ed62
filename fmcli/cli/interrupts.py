"""What a command that trains does when it is told to stop."""

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fmcli.errors import ExitStatus, InterruptedRun


class _TerminatedError(BaseException):
    """SIGTERM arrived."""


@contextmanager
def interruptible(flag: str) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into an error that names the command that goes on: the same one, with a flag.

    Args:
        flag: What lets the command go on with what is there; it takes the place of `--overwrite`.
    """
    words = [word for word in sys.argv[1:] if word not in (flag, "--overwrite")]
    end = words.index("--") if "--" in words else len(words)
    command = shlex.join(["fmcli", *words[:end], flag, *words[end:]])

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
