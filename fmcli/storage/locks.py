"""Lock folders between processes. The operating system releases the locks of a process that dies."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_FILE = ".lock"
"""Name of the lock file. Removing it lets two processes lock two different files of this name."""


def try_lock(folder: Path) -> FileLock | None:
    """Lock a folder and return the lock, or None if another process holds it.

    Args:
        folder: Created if missing.

    Raises:
        OSError: The folder is not writable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    return lock


def is_locked(folder: Path) -> bool:
    """Return whether a process holds the lock of a folder. Create no file.

    This function holds the lock for a moment, and `try_lock` of another process fails during this moment. If that
    matters, call both functions only while you hold another lock that all processes use.

    Raises:
        OSError: The lock file cannot be opened.
    """
    if not os.path.isfile(folder / LOCK_FILE):
        return False
    lock = try_lock(folder)
    if lock is not None:
        lock.release()
    return lock is None


@contextmanager
def locked(folder: Path, timeout_s: float = -1) -> Iterator[None]:
    """Hold the lock of a folder. Wait if another process holds it.

    Args:
        folder: Created if missing.
        timeout_s: Maximum time to wait, in seconds. Default: no limit.

    Raises:
        TimeoutError: Another process still holds the lock.
        OSError: The folder is not writable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK_FILE).acquire(timeout=timeout_s):
        yield
