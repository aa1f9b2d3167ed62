"""Memory: how the C library keeps blocks that are freed."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_KEEP_UP_TO = 1 << 30  # bytes
_KEEP_UP_TO_IN_OLD_GLIBC = 1 << 25  # bytes; more is refused there


def keep_freed_memory() -> None:
    """Let the C library keep large blocks that are freed, where it is glibc.

    A training step on the CPU frees and asks for the same blocks each time; giving them back to the system in
    between doubles the time of small networks.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    if mallopt(_M_MMAP_THRESHOLD, _KEEP_UP_TO) or mallopt(_M_MMAP_THRESHOLD, _KEEP_UP_TO_IN_OLD_GLIBC):
        mallopt(_M_TRIM_THRESHOLD, _KEEP_UP_TO)
