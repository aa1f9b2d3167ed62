"""Settings of the C library's memory allocator."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
_THRESHOLD_BYTES = 1 << 30
_OLD_GLIBC_THRESHOLD_BYTES = 1 << 25  # old versions of glibc refuse larger values


def keep_freed_memory() -> None:
    """Make glibc keep large freed blocks instead of returning them to the operating system.

    A training step on the CPU allocates and frees the same blocks each time. Returning them in between doubles the time
    of small networks. Other C libraries are left unchanged.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    if mallopt(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES) or mallopt(_M_MMAP_THRESHOLD, _OLD_GLIBC_THRESHOLD_BYTES):
        mallopt(_M_TRIM_THRESHOLD, _THRESHOLD_BYTES)
