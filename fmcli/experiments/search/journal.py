"""The journal of a search's trials: Optuna's, with a digest in each line, and a lock that dies with its owner."""

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


def open_journal(place: Path, *, mend: bool) -> JournalStorage:
    """Return the storage that a journal is.

    Args:
        place: The file; made where there is none.
        mend: Cut off what a process wrote of a line before it was killed.

    Raises:
        UsageError: A line is damaged.
    """
    journal = _CheckedJournal(place)
    if mend:
        journal.mend()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return JournalStorage(journal)


class _CheckedJournal(JournalFileBackend):
    """Optuna's journal, whose lines end with their digests; a line without one is taken as it is."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._guard = FileLock(place.with_name(f".{place.name}.lock"))  # Optuna's outlive a process that is killed
        super().__init__(str(place), lock_obj=self._guard)  # type: ignore[arg-type]  # it has what is called of one

    def mend(self) -> None:
        """Cut off what a process wrote of a line before it was killed, or had no room."""
        with self._guard:
            _cut_torn_line(self._place)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write lines, behind whole ones."""
        plain = [json.loads(json.dumps(log)) for log in logs]  # as it will be read
        with self._guard:
            _cut_torn_line(self._place)  # of another process since
            super().append_logs([{**log, _DIGEST: _digest(log)} for log in plain])

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]  # Optuna 4: a list
        """Yield lines from a number on.

        Raises:
            UsageError: One is damaged.
        """
        for number, log in enumerate(self._read_lines(log_number_from), start=log_number_from + 1):
            digest = log.pop(_DIGEST, None) if isinstance(log, dict) else ""
            if digest is not None and digest != _digest(log):
                raise UsageError(
                    f"line {number} of {printable(self._place)} is damaged or was changed: its digest is of "
                    "something else",
                    hint="bring the file back; if you changed it, remove the digest of that line",
                )
            yield log

    def _read_lines(self, log_number_from: int) -> Iterator[Any]:
        try:
            yield from super().read_logs(log_number_from)
        except ValueError as error:
            raise UsageError(
                f"{printable(self._place)} holds no search of fmcli, or is damaged: {printable(error)}",
                hint="bring the file back; --output searches elsewhere",
            ) from error


def _digest(log: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(log, sort_keys=True).encode()).hexdigest()


def _cut_torn_line(place: Path) -> None:
    if not place.is_file() or place.stat().st_size == 0:
        return
    with place.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
