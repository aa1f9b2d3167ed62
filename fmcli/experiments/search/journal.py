"""The journal of a search: Optuna's journal file with a digest in each line.

Its lock is released by the operating system when a process dies. Optuna's own lock file would remain.
"""

import hashlib
import json
import os
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


def open_journal(path: Path, *, repair: bool) -> JournalStorage:
    """Return the Optuna storage of a journal.

    Args:
        path: The journal, which is created if missing.
        repair: Cut off an incomplete last line that a killed process left.

    Raises:
        UsageError: A line is damaged.
    """
    journal = _CheckedJournal(path)
    if repair:
        journal.repair()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return JournalStorage(journal)


class _CheckedJournal(JournalFileBackend):
    """Optuna's journal with a digest at the end of each line. A line without a digest is accepted."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file_lock = FileLock(path.with_name(f".{path.name}.lock"))
        super().__init__(str(path), lock_obj=self._file_lock)  # type: ignore[arg-type]  # FileLock has acquire and release

    def repair(self) -> None:
        """Cut off an incomplete last line: its process was killed, or the disk was full."""
        with self._file_lock:
            _cut_incomplete_line(self._path)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append lines after the last complete line."""
        plain = [json.loads(json.dumps(log)) for log in logs]  # tuples become lists, as in the written line
        with self._file_lock:
            _cut_incomplete_line(self._path)  # another process may have been killed in the meantime
            super().append_logs([{**log, _DIGEST: _digest(log)} for log in plain])

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]  # Optuna 4: a list
        """Yield the lines from a line number to the end.

        Raises:
            UsageError: A line is damaged.
        """
        for number, log in enumerate(self._read_lines(log_number_from), start=log_number_from + 1):
            digest = log.pop(_DIGEST, None) if isinstance(log, dict) else ""
            if digest is not None and digest != _digest(log):
                raise UsageError(
                    f"line {number} of {printable(self._path)} is damaged or was edited: its digest does not match",
                    hint="restore the file or, if you edited the line, remove its digest",
                )
            yield log

    def _read_lines(self, log_number_from: int) -> Iterator[Any]:
        try:
            yield from super().read_logs(log_number_from)
        except ValueError as error:
            raise UsageError(
                f"{printable(self._path)} is damaged or was not written by fmcli: {printable(error)}",
                hint="restore the file",
                remedies=["output"],
            ) from error


def _digest(log: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(log, sort_keys=True).encode()).hexdigest()


def _cut_incomplete_line(path: Path) -> None:
    if not path.is_file() or path.stat().st_size == 0:
        return
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
