"""The CPU's cores: how many there are, and how many are busy."""

import math
import os
import time
from contextlib import suppress
from pathlib import Path

_QUOTAS = (  # of a container on Linux, by control groups of version 2 and 1: microseconds of cores' time, in so many
    (Path("/sys/fs/cgroup/cpu.max"),),
    (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")),
)
_LOAD = Path("/proc/loadavg")  # of Linux; its fourth field: runnable threads, of all
_SAMPLES = 5
_BETWEEN_SAMPLES = 0.05  # seconds


def count_cores() -> int:
    """Return how many cores this process may use, all of their time or, in a container, as much as that of so many."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    count = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    for files in _QUOTAS:
        with suppress(OSError, ValueError, ZeroDivisionError):  # there is none, or it says "max"
            quota, period = (int(word) for file in files for word in file.read_text().split())
            if quota > 0:  # -1 is "max" in version 1
                count = max(min(count, math.ceil(quota / period)), 1)
    return count


def busy_cores() -> int:
    """Return how many threads of other programs run just now; 0 where that cannot be told."""
    samples = []
    try:
        for sample in range(_SAMPLES):
            time.sleep(_BETWEEN_SAMPLES if sample else 0)
            running = _LOAD.read_text().split()[3].partition("/")[0]
            samples.append(int(running) - 1)  # itself
    except (OSError, IndexError, ValueError):
        return 0
    return max(min(samples), 0)
