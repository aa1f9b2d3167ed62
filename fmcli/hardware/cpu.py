"""The number of CPU cores, and how many are busy."""

import math
import os
import time
from contextlib import suppress
from pathlib import Path

_QUOTA_FILES = (
    # A container's CPU quota on Linux (cgroup v2, then v1): CPU time per period, and the period, in microseconds.
    (Path("/sys/fs/cgroup/cpu.max"),),
    (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")),
)
_LOAD_FILE = Path("/proc/loadavg")  # Linux; the fourth field is "running threads/all threads"
_SAMPLES = 5
_SAMPLE_INTERVAL_S = 0.05


def count_cores() -> int:
    """Return the number of cores that this process may use; a container's CPU quota is rounded up to whole cores."""
    affinity = getattr(os, "sched_getaffinity", None)  # exists only on Linux
    count = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    for files in _QUOTA_FILES:
        with suppress(OSError, ValueError, ZeroDivisionError):  # no such file, or no limit ("max")
            quota, period = (int(word) for file in files for word in file.read_text().split())
            if quota > 0:  # cgroup v1 writes -1 for no limit
                count = max(min(count, math.ceil(quota / period)), 1)
    return count


def busy_cores() -> int:
    """Return the number of running threads of other programs: the minimum of several samples, or 0 if unknown."""
    samples = []
    try:
        for sample in range(_SAMPLES):
            time.sleep(_SAMPLE_INTERVAL_S if sample else 0)
            running = _LOAD_FILE.read_text().split()[3].partition("/")[0]
            samples.append(int(running) - 1)  # without this thread
    except (OSError, IndexError, ValueError):
        return 0
    return max(min(samples), 0)
