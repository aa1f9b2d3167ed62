"""A member's history: a JSON object an epoch, in a file beside its checkpoint."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fmcli.errors import CheckpointError, printable
from fmcli.events import EpochFinished
from fmcli.files import write_atomic

HISTORY_FILE = "history.jsonl"


def write_history(folder: Path, history: Sequence[EpochFinished]) -> None:
    """Write a member's history.

    Raises:
        FmcliError: The file cannot be written.
    """
    lines = "".join(json.dumps(asdict(epoch)) + "\n" for epoch in history)
    write_atomic(folder / HISTORY_FILE, lines.encode())


def read_history(folder: Path) -> list[EpochFinished]:
    """Read a member's history.

    Raises:
        CheckpointError: It is not there, or damaged.
    """
    path = folder / HISTORY_FILE
    try:
        return [EpochFinished(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"cannot read {printable(path)}: {printable(error)}") from error


def best_epoch(history: Sequence[EpochFinished]) -> int:
    """Return the place of the epoch with the highest validation accuracy, the lower loss where several have it.

    Args:
        history: Of a training with validation images, one entry or more.
    """

    def rank(place: int) -> tuple[float, float, int]:
        epoch = history[place]
        return (epoch.validation_accuracy or 0.0, -(epoch.validation_loss or 0.0), -place)

    return max(range(len(history)), key=rank)
