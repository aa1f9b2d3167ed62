"""Run a process and measure its time and, on request, the memory of its process tree."""

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
POLL_INTERVAL_S = 0.02  # between memory readings


class FailedError(Exception):
    """A process failed or exceeded its time limit."""


@dataclass(frozen=True, slots=True)
class Done:
    """Result of a successful process.

    Args:
        output: Its standard output.
        seconds: Time from start to end.
        peak_bytes: Peak memory of the process tree before its first output; None if not requested or if there is no
            /proc.
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
    """Run a process and wait until it ends.

    Args:
        command: Program and arguments.
        environment: All environment variables. Default: the environment of this process.
        limit: Time limit in seconds. Default: none.
        watch: Measure the memory until the first output. Unloading libraries after it takes additional memory, which is
            not measured.

    Raises:
        FailedError: The process failed or exceeded its time limit.
    """
    peak = 0
    with TemporaryFile("w+") as output, TemporaryFile("w+") as errors:
        started = time.perf_counter()
        try:
            process = subprocess.Popen(command, stdout=output, stderr=errors, env=environment)
        except OSError as error:
            raise FailedError(f"{command[0]}: {error.strerror}") from None
        with _kill_after(limit, process):
            while watch and process.poll() is None and os.fstat(output.fileno()).st_size == 0:
                peak = max(peak, tree_bytes(process.pid))
                time.sleep(POLL_INTERVAL_S)
            process.wait()  # no timeout: with one, Python polls only every 50 ms
        seconds = time.perf_counter() - started
        output.seek(0)
        errors.seek(0)
        if process.returncode != 0 and limit is not None and seconds >= limit:
            raise FailedError(f"took more than {limit:.0f} s")
        if process.returncode != 0:
            raise FailedError((errors.read().strip().splitlines() or [f"exit status {process.returncode}"])[-1])
        return Done(output.read(), seconds, peak or None)


@contextmanager
def _kill_after(limit: float | None, process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kill a process after a time limit, or at the end of the block."""
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

    Pages shared within the tree count once. Pages shared with other processes, such as libraries, count in part.
    """
    return sum(_own_bytes(one) for one in _tree(pid))


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = thread.read_text().split()
        except OSError:  # the process has ended
            continue
        for child in children:
            yield from _tree(int(child))


def _own_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
