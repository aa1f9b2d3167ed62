"""Locks between processes. A process that dies, however, holds none any more."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_FILE = ".lock"
"""It stays: to remove it would let two processes lock two files of the same name."""


def try_lock(folder: Path) -> FileLock | None:
    """Return a folder's lock, held, or None where a living process holds it.

    Args:
        folder: Made if missing.

    Raises:
        OSError: The folder cannot be written to.
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
    """Hold a folder's lock, waiting for whoever holds it.

    Raises:
        OSError: The folder, made if missing, cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK_FILE):
        yield
