"""Claim the members of a run, one after another, so that several processes can train different members of it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock

from fmcli.checkpoints.layout import MODEL_FILE
from fmcli.storage.atomic import write_atomic
from fmcli.training.fingerprint import Fingerprint
from fmcli.training.run_folder import CLAIM_FILE, clean_member, lock_member, locked


class Claims:
    """The members that this process claims. Iterate over it to claim the next one and get its name.

    A process claims its next member before it releases the previous one. Therefore other processes see that it trains
    the run until no member is left that it could claim.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: list[str] = []
        self._fingerprints: Mapping[str, Fingerprint] = {}
        self._held: dict[str, FileLock] = {}
        self._next: str | None = None  # claimed, but not handed out yet
        self._ended: list[str] = []

    def start(self, names: Sequence[str], fingerprints: Mapping[str, Fingerprint]) -> None:
        """Claim the first member. The caller holds the lock of the run.

        Args:
            names: Names of the members to train, in order. Members that other processes train are skipped until they
                are released.
            fingerprints: Fingerprint of each member, which other processes read.
        """
        self._waiting, self._fingerprints = list(names), fingerprints
        self._next = self._claim()

    def claim_next(self) -> bool:
        """Claim the next member unless it is claimed already; return False if none is left.

        Then release the members that have ended.
        """
        if self._next is None and self._waiting:
            with locked(self._folder, timeout_s=-1):
                self._next = self._claim()
        for name in self._ended:
            self._release(name)
        self._ended = []
        return self._next is not None

    def __iter__(self) -> Iterator[str]:
        while self.claim_next():
            name, self._next = self._next, None
            assert name is not None
            yield name

    def end(self, name: str) -> None:
        """Release a member if it is claimed, but not before the next one is claimed."""
        if name in self._held:
            self._ended.append(name)

    def close(self) -> None:
        """Release all members."""
        for name in list(self._held):
            self._release(name)

    def _claim(self) -> str | None:
        for name in list(self._waiting):
            folder = self._folder / name
            lock = lock_member(folder)
            if lock is None:
                continue
            self._waiting.remove(name)
            if (folder / MODEL_FILE).is_file():  # another process has trained it since this run was planned
                lock.release()
                continue
            self._held[name] = lock
            clean_member(folder)
            write_atomic(folder / CLAIM_FILE, json.dumps(asdict(self._fingerprints[name])).encode())
            return name
        return None

    def _release(self, name: str) -> None:
        with suppress(OSError):  # a claim without a lock has no effect
            (self._folder / name / CLAIM_FILE).unlink(missing_ok=True)
        self._held.pop(name).release()


def read_claim(member_folder: Path) -> Fingerprint | None:
    """Return the fingerprint with which another process is training a member, or None if it has just ended."""
    try:
        return Fingerprint(**json.loads((member_folder / CLAIM_FILE).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
