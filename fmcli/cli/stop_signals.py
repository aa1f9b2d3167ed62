"""Stop training at Ctrl-C or SIGTERM, and print the command that continues it."""

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from fmcli import events
from fmcli.errors import ExitStatus, InterruptedRun, printable
from fmcli.events import Reporter

_SIGNAL_STATUS = 128  # the exit status after a signal is this plus the signal's number


@contextmanager
def interruptible(reporter: Reporter, resume_flag: str) -> Iterator[Reporter]:
    """Turn Ctrl-C and SIGTERM into an error whose hint is the command that continues the work.

    While a member trains, the first signal takes effect at the end of the step, so that the state can be saved. A
    second signal, or one while no member trains, ends the process immediately.

    With `--overwrite`, an earlier run may be deleted before the first event, and nothing new is trained. Until then
    the hint is to run the same command again.

    Args:
        reporter: Reporter that displays the events.
        resume_flag: Option that continues existing work. In the hint it replaces `--overwrite`.

    Yields:
        The reporter to pass to the training. It passes the events on, and stops the training after a signal.
    """
    hint = f"finished work is saved; continue with: {_resume_command(resume_flag)}"
    can_resume = "--overwrite" not in sys.argv
    received: list[int] = []
    training: set[str] = set()  # names of members; several can train in parallel

    def stop(number: int, _: object) -> None:
        received.append(number)
        if not training or len(received) > 1:
            _exit_now(received[0], hint if can_resume else "nothing was trained yet; run the same command again")

    def report(event: events.Event) -> None:
        nonlocal can_resume
        can_resume = True
        match event:
            case events.MemberStarted() | events.StepFinished() | events.BatchPredicted() | events.EpochFinished():
                training.add(event.member)
            case events.MemberFinished() | events.MemberDiverged():
                training.discard(event.member)
            case events.CheckpointSaved():
                pass
            case _:  # other events are sent between two runs
                training.clear()
        if received and events.can_stop_at(event):
            raise events.StopRequest
        reporter(event)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield report
    except events.StopRequest:
        raise InterruptedRun(ExitStatus(_SIGNAL_STATUS + received[0]), hint=hint) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _resume_command(flag: str) -> str:
    """Return the command line of this process with `flag` in place of `--overwrite`, quoted for a shell."""
    words = [word for word in sys.argv[1:] if word not in (flag, "--overwrite")]
    end = words.index("--") if "--" in words else len(words)
    return shlex.join([*_program(), *words[:end], flag, *words[end:]])


def _program() -> list[str]:
    """Return the words that call fmcli in the same way as this process, even if it is not on the PATH."""
    called = Path(sys.argv[0])
    if called.parts[-2:] == ("fmcli", "__main__.py"):
        return [sys.executable, "-m", "fmcli"]
    is_off_path = called.parent != Path() and called.stem == "fmcli" and shutil.which("fmcli") != str(called)
    return [sys.argv[0] if is_off_path else "fmcli"]


def _exit_now(number: int, hint: str) -> NoReturn:
    """End the process from within a signal handler, as a kill would. Everything written to disk stays valid.

    An exception would be raised at an arbitrary point: it could be lost in a destructor, be swallowed by a library, or
    abort the process in C++ code.
    """
    status = ExitStatus(_SIGNAL_STATUS + number)
    show_cursor = "\x1b[?25h\n" if os.isatty(2) else ""  # the progress bar hides the cursor
    with suppress(OSError):
        os.write(
            2,
            f"{show_cursor}error: {status.name.lower()}\nhint:  {printable(hint)}\n".encode(errors="backslashreplace"),
        )
    os._exit(status)
