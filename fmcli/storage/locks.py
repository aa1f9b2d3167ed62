"""Locks between processes. The operating system releases the lock of a process that dies."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_FILE = ".lock"
"""The file is never removed: otherwise two processes could each lock a different file of this name."""


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
    """Hold a folder's lock; first wait until no other process holds it.

    Raises:
        OSError: The folder, which is created if missing, is not writable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK_FILE):
        yield
