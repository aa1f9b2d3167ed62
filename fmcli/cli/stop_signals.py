"""What a command that trains does when it is told to stop."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from fmcli.errors import ExitStatus, InterruptedRun, printable

if TYPE_CHECKING:
    from fmcli.events import Event, Reporter


_ENDS: dict[int, tuple[str, ExitStatus]] = {
    signal.SIGINT: ("interrupted", ExitStatus.INTERRUPTED),
    signal.SIGTERM: ("terminated", ExitStatus.TERMINATED),
}


@contextmanager
def interruptible(flag: str) -> Iterator[Callable[[Reporter], Reporter]]:
    """Turn Ctrl-C and SIGTERM into an error that names the command that goes on: the same one, with a flag.

    With `--overwrite`, nothing new is trained before the first event, and what was there may be gone: until then, no
    command is named that would go on.

    While a member trains, the first signal waits for the end of the step, so that all of it can be saved; a second one
    does not wait, and neither does the first while nothing trains: then the process ends at once.

    Args:
        flag: What lets the command go on with what is there; it takes the place of `--overwrite`.

    Yields:
        A function that makes a reporter heed signals, without which none is ever waited for.
    """
    from fmcli.events import (
        BatchPredicted,
        CheckpointSaved,
        EpochFinished,
        MemberDiverged,
        MemberFinished,
        MemberStarted,
        StepFinished,
        StopRequest,
        can_stop_at,
    )

    words = [word for word in sys.argv[1:] if word not in (flag, "--overwrite")]
    end = words.index("--") if "--" in words else len(words)
    command = shlex.join([*_program(), *words[:end], flag, *words[end:]])
    has_begun = "--overwrite" not in sys.argv
    received: list[int] = []
    training: set[str] = set()  # members, of which several may train at once

    def stop(number: int, _: object) -> None:
        received.append(number)
        if not training or len(received) > 1:
            _leave(received[0], hint if has_begun else "nothing is trained yet: the same command starts anew")

    def heeding(reporter: Reporter) -> Reporter:
        def report(event: Event) -> None:
            nonlocal has_begun
            has_begun = True
            match event:
                case MemberStarted() | StepFinished() | BatchPredicted() | EpochFinished():
                    training.add(event.member)
                case MemberFinished() | MemberDiverged():
                    training.discard(event.member)
                case CheckpointSaved():
                    pass
                case _:  # between two runs
                    training.clear()
            if received and can_stop_at(event):
                raise StopRequest
            reporter(event)

        return report

    hint = f"what is done is kept; go on with: {command}"
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield heeding
    except StopRequest:
        word, status = _ENDS[received[0]]
        raise InterruptedRun(word, exit_status=status, hint=hint) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _program() -> list[str]:
    """Return the words by which fmcli was called, so that they work again where it is not on the PATH."""
    called = Path(sys.argv[0])
    if called.parts[-2:] == ("fmcli", "__main__.py"):
        return [sys.executable, "-m", "fmcli"]
    is_elsewhere = called.parent != Path() and called.stem == "fmcli" and shutil.which("fmcli") != str(called)
    return [sys.argv[0] if is_elsewhere else "fmcli"]


def _leave(number: int, hint: str) -> NoReturn:
    """End the process from within a signal's handler, as a kill would, which all that is written survives.

    An exception, raised wherever the signal happens to come, could be lost in a destructor, be taken for another by a
    library, or abort the process in C++.
    """
    word, status = _ENDS[number]
    before = "\x1b[?25h\n" if os.isatty(2) else ""  # the cursor, which a progress bar hides
    with suppress(OSError):
        os.write(2, f"{before}error: {word}\nhint:  {printable(hint)}\n".encode(errors="backslashreplace"))
    os._exit(status)
