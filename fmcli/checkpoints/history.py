"""A member's history: a JSON object an epoch, in a file beside its checkpoint."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fmcli.errors import CheckpointError, printable
from fmcli.events import EpochFinished
from fmcli.recipe.training import Monitor
from fmcli.storage.atomic import write_atomic
from fmcli.storage.reading import read_text

_EPOCH = TypeAdapter(EpochFinished)
HISTORY_FILE = "history.jsonl"
LARGEST_HISTORY = 1 << 24  # bytes; an epoch takes three hundred
_DIGITS = 16  # of a line's digest


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
        CheckpointError: It is not there, empty or damaged.
    """
    path = folder / HISTORY_FILE
    try:
        lines = read_text(path, LARGEST_HISTORY, CheckpointError).splitlines()
        if not lines:  # it is written with the first epoch
            raise CheckpointError(
                f"{printable(path)} is empty",
                hint=f"bring it back; or delete {printable(folder)} and resume, which trains that member again",
            )
        return [_EPOCH.validate_python(_without_digest(json.loads(line))) for line in lines]
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(
            f"cannot read {printable(path)}: {printable(first['loc'][0] if first['loc'] else 'a line')}: {first['msg']}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {printable(path)}: {printable(error)}") from error


def _with_digest(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "digest": hashlib.sha256(json.dumps(entry).encode()).hexdigest()[:_DIGITS]}


def _without_digest(entry: Any) -> Any:
    """Return an entry that is as it was written; one without a digest is taken as it is.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(entry, dict) or "digest" not in entry:
        return entry
    inner = {key: value for key, value in entry.items() if key != "digest"}
    if _with_digest(inner)["digest"] != entry["digest"]:
        raise ValueError(f"the line of epoch {inner.get('epoch')} is damaged")
    return inner


def best_epoch(history: Sequence[EpochFinished], monitor: Monitor) -> int:
    """Return the place of the epoch that validated best, the first if several did equally.

    Args:
        history: Of a training with validation images, one entry or more.
        monitor: `accuracy`: the highest, and of several that have it the lowest loss; `loss`: the lowest.
    """

    def rank(place: int) -> tuple[float, float, int]:
        accuracy, loss = history[place].validation_accuracy or 0.0, history[place].validation_loss or 0.0
        return (accuracy, -loss, -place) if monitor == "accuracy" else (-loss, 0.0, -place)

    return max(range(len(history)), key=rank)


def is_stalled(history: Sequence[EpochFinished], monitor: Monitor, patience: int) -> bool:
    """Tell whether so many epochs in a row were no better than the best before them (0 does as 1).

    Args:
        history: One entry or more.
        monitor: See `best_epoch`.
        patience: In epochs, as Keras counts it.
    """
    return len(history) - 1 - best_epoch(history, monitor) >= max(patience, 1)
