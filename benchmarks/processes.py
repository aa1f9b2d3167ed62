"""Processes that are measured: one at a time, with what they print and, on request, the memory of the whole tree."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

_SCRIPT = Path(sys.executable).with_name("fmcli")
FMCLI = (str(_SCRIPT),) if _SCRIPT.is_file() else (sys.executable, "-m", "fmcli")
EVERY = 0.02  # seconds between two looks at the memory


class FailedError(Exception):
    """A process failed or took too long; says how."""


@dataclass(frozen=True, slots=True)
class Done:
    """A process that went well.

    Args:
        output: What it printed.
        seconds: From its start to its end.
        peak_bytes: The most memory that it and its descendants held at once, before it printed anything; None if that
            was not asked for, or where there is no /proc.
    """

    output: str
    seconds: float
    peak_bytes: int | None


def run(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    limit: float | None = None,
    watch: bool = False,
) -> Done:
    """Run a process to its end.

    Args:
        command: With its arguments.
        environment: All of it; by default, this process's.
        limit: How long it may take, in seconds; by default, for ever.
        watch: Look at its memory until it prints something. (Unloading its libraries touches yet more.)

    Raises:
        FailedError: It did not end well, or in time.
    """
    peak = 0
    with TemporaryFile("w+") as output, TemporaryFile("w+") as errors:
        started = time.perf_counter()
        try:
            process = subprocess.Popen(command, stdout=output, stderr=errors, env=environment)
        except OSError as error:
            raise FailedError(f"{command[0]}: {error.strerror}") from None
        with _killed_after(limit, process):
            while watch and process.poll() is None and os.fstat(output.fileno()).st_size == 0:
                peak = max(peak, tree_bytes(process.pid))
                time.sleep(EVERY)
            process.wait()  # without a timeout: with one, Python looks but every 50 ms
        seconds = time.perf_counter() - started
        output.seek(0)
        errors.seek(0)
        if process.returncode != 0 and limit is not None and seconds >= limit:
            raise FailedError(f"took more than {limit:.0f} s")
        if process.returncode != 0:
            raise FailedError((errors.read().strip().splitlines() or [f"exit status {process.returncode}"])[-1])
        return Done(output.read(), seconds, peak or None)


@contextmanager
def _killed_after(limit: float | None, process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kill a process after a time, or where this one is interrupted."""
    timer = None if limit is None else threading.Timer(limit, process.kill)
    try:
        if timer is not None:
            timer.start()
        yield
    finally:
        if timer is not None:
            timer.cancel()
        process.kill()
        process.wait()


def tree_bytes(pid: int) -> int:
    """Return the proportional set size of a process and all its descendants.

    Pages that they share are counted once; those shared with other processes, such as the libraries of another
    training at the same time, in part.
    """
    return sum(_own_bytes(one) for one in _tree(pid))


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = thread.read_text().split()
        except OSError:  # it is over
            continue
        for child in children:
            yield from _tree(int(child))


def _own_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
