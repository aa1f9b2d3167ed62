"""Processes that are measured: one at a time, with what they print and, on request, the memory of the whole tree."""

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

FMCLI = str(Path(sys.executable).with_name("fmcli"))
EVERY = 0.02  # seconds between two looks at the memory


class FailedError(Exception):
    """A process failed or took too long; says how."""


@dataclass(frozen=True, slots=True)
class Done:
    """A process that went well.

    Args:
        output: What it printed.
        seconds: From its start to its end.
        peak_bytes: The most memory that it and its descendants held at once; None if that was not asked for, or where
            there is no /proc.
    """

    output: str
    seconds: float
    peak_bytes: int | None


def run(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None, limit: float, watch: bool = False
) -> Done:
    """Run a process to its end.

    Args:
        command: With its arguments.
        environment: All of it; by default, this process's.
        limit: How long it may take, in seconds.
        watch: Look at its memory all the while.

    Raises:
        FailedError: It did not end well, or in time.
    """
    peak = 0
    with TemporaryFile("w+") as output, TemporaryFile("w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=errors, env=environment)
        try:
            while watch and process.poll() is None and time.perf_counter() - started < limit:
                peak = max(peak, tree_bytes(process.pid))
                time.sleep(EVERY)
            process.wait(max(limit - (time.perf_counter() - started), 0.001))
        except subprocess.TimeoutExpired:
            raise FailedError(f"took more than {limit:.0f} s") from None
        finally:
            process.kill()
            process.wait()
        seconds = time.perf_counter() - started
        output.seek(0)
        errors.seek(0)
        if process.returncode != 0:
            raise FailedError((errors.read().strip().splitlines() or [f"exit status {process.returncode}"])[-1])
        return Done(output.read(), seconds, peak or None)


def tree_bytes(pid: int) -> int:
    """Return the proportional set size of a process and all its descendants: shared pages are counted once."""
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
