"""The journal of a search's trials: Optuna's, with a digest in each line, and a lock that dies with its owner."""

import hashlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from fmcli.errors import UsageError, printable

_DIGEST = "digest"


def open_journal(place: Path, *, mend: bool) -> JournalStorage:
    """Return the storage that a journal is.

    Args:
        place: The file; made where there is none.
        mend: Cut off what a process wrote of a line before it was killed; what comes after would be unreadable.

    Raises:
        UsageError: A line is damaged.
    """
    lock = _Lock(place)
    if mend:
        lock.acquire()
        try:
            _cut_torn_line(place)
        finally:
            lock.release()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return JournalStorage(_CheckedJournal(str(place), lock_obj=lock))  # type: ignore[arg-type]


class _CheckedJournal(JournalFileBackend):
    """Optuna's journal, whose lines end with their digests; a line without one is taken as it is."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write lines."""
        plain = [json.loads(json.dumps(log)) for log in logs]  # as it will be read
        super().append_logs([{**log, _DIGEST: _digest(log)} for log in plain])

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]  # Optuna 4: a list
        """Yield lines from a number on.

        Raises:
            UsageError: One is damaged.
        """
        for number, log in enumerate(super().read_logs(log_number_from), start=log_number_from + 1):
            digest = log.pop(_DIGEST, None) if isinstance(log, dict) else ""
            if digest is not None and digest != _digest(log):
                raise UsageError(
                    f"line {number} of {printable(self._file_path)} is damaged or was changed: its digest is of "
                    "something else",
                    hint="bring the file back; if you changed it, remove the digest of that line",
                )
            yield log


def _digest(log: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(log, sort_keys=True).encode()).hexdigest()


class _Lock:
    """What Optuna locks its journal with; its own locks outlive a process that is killed."""

    def __init__(self, place: Path) -> None:
        self._lock = FileLock(place.with_name(f".{place.name}.lock"))

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._lock.acquire()
        return True

    def release(self) -> None:
        """Leave it to the next."""
        self._lock.release()


def _cut_torn_line(place: Path) -> None:
    if not place.is_file():
        return
    content = place.read_bytes()
    if content and not content.endswith(b"\n"):
        with place.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
