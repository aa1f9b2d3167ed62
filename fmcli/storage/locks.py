"""Lock folders between processes. The operating system releases the locks of a process that dies."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_FILE = ".lock"
"""Name of the lock file. It is never removed: two processes could then lock two different files of this name."""


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


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder. Wait if another process holds it.

    Args:
        folder: Created if missing.

    Raises:
        OSError: The folder is not writable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK_FILE):
        yield
