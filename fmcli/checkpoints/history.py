"""Read and write a member's history: a file next to its checkpoint with one line of JSON per epoch."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fmcli.ensemble.file import first_problem
from fmcli.errors import CheckpointError, printable
from fmcli.events import EpochFinished
from fmcli.recipe.trainer import Monitor
from fmcli.storage.atomic import write_atomic
from fmcli.storage.reading import read_text

_EPOCH = TypeAdapter(EpochFinished)
HISTORY_FILE = "history.jsonl"
MAX_HISTORY_BYTES = 1 << 24  # an epoch takes about 300 bytes
_DIGEST_DIGITS = 16


def write_history(folder: Path, history: Sequence[EpochFinished]) -> None:
    """Write a member's history.

    Raises:
        FmcliError: The file cannot be written.
    """
    lines = "".join(json.dumps(_with_digest(asdict(epoch))) + "\n" for epoch in history)
    write_atomic(folder / HISTORY_FILE, lines.encode())


def read_history(folder: Path) -> list[EpochFinished]:
    """Read a member's history.

    Raises:
        CheckpointError: The file is missing, empty or damaged.
    """
    path = folder / HISTORY_FILE
    try:
        lines = read_text(path, MAX_HISTORY_BYTES, CheckpointError).splitlines()
        if not lines:
            raise ValueError("it is empty")
        return [_EPOCH.validate_python(_verified(json.loads(line))) for line in lines]
    except (ValueError, RecursionError) as error:
        problem = first_problem(error) if isinstance(error, ValidationError) else printable(error)
        raise CheckpointError(
            f"cannot read {printable(path)}: {problem}",
            hint=f"restore the file, or delete {printable(folder)} and train that member again",
        ) from error


def _with_digest(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "digest": hashlib.sha256(json.dumps(entry).encode()).hexdigest()[:_DIGEST_DIGITS]}


def _verified(entry: Any) -> dict[str, Any]:
    """Return an entry without its digest.

    Raises:
        ValueError: The digest is missing or does not match.
    """
    if not isinstance(entry, dict):
        raise ValueError("a line is not a JSON object")
    inner = {key: value for key, value in entry.items() if key != "digest"}
    if _with_digest(inner)["digest"] != entry.get("digest"):
        raise ValueError(f"the line of epoch {inner.get('epoch')} is damaged: it does not match its digest")
    return inner


def best_epoch(history: Sequence[EpochFinished], monitor: Monitor) -> int:
    """Return the index of the epoch with the best validation result. The first epoch wins a tie.

    Args:
        history: At least one epoch, each with validation metrics.
        monitor: `accuracy` compares the accuracy and, if it is equal, the loss. `loss` compares only the loss.
    """

    def rank(index: int) -> tuple[float, float, int]:
        accuracy, loss = history[index].validation_accuracy or 0.0, history[index].validation_loss or 0.0
        return (accuracy, -loss, -index) if monitor == "accuracy" else (-loss, 0.0, -index)

    return max(range(len(history)), key=rank)


def is_stalled(history: Sequence[EpochFinished], monitor: Monitor, patience: int) -> bool:
    """Return whether the last `patience` epochs brought no improvement.

    Args:
        history: At least one epoch, each with validation metrics.
        monitor: See `best_epoch`.
        patience: Number of epochs. As in Keras, 0 has the same effect as 1.
    """
    return len(history) - 1 - best_epoch(history, monitor) >= max(patience, 1)
