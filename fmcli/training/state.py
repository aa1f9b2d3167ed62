"""The state of a training between two steps, and its file: what exact resumption needs."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from fmcli.checkpoints.tensors import load_tensors, save_tensors, with_prefix, without_prefix
from fmcli.events import EpochFinished
from fmcli.storage.reading import check_format
from fmcli.training.fingerprint import Fingerprint

STATE_FILE = "state.safetensors"
STATE_FORMAT = "fmcli-state-5"
_PROGRESS_TENSORS = ("order", "losses", "correct")


@dataclass(slots=True)
class EpochProgress:
    """How far an epoch has come.

    Args:
        order: The state of the generator before it drew the order of this epoch's images.
        losses: float32 (n_steps,), the mean of each step that is taken.
        correct: int64 (), how many images were answered rightly in these.
        steps: How many are taken.
        seconds: How long that took.
        ended: All steps are taken, and what follows the last of them is done, but for validation.
    """

    order: Tensor
    losses: Tensor
    correct: Tensor
    steps: int = 0
    seconds: float = 0.0
    ended: bool = False


@dataclass(frozen=True, slots=True)
class TrainingState:
    """What a training is between two steps.

    Args:
        fingerprint: What it was done with.
        retrained: The network is trained for the second time, for as many epochs as were best.
        history: An entry an epoch, of both trainings.
        updates: How often the average of the weights took them in.
        tensors: By name.
        progress: Of an epoch that is begun; None between epochs.
    """

    fingerprint: Fingerprint
    retrained: bool
    history: Sequence[EpochFinished]
    updates: int
    tensors: dict[str, Tensor]
    progress: EpochProgress | None = None


def save_state(path: Path, state: TrainingState) -> None:
    """Write a state, whole or not at all.

    Raises:
        FmcliError: The file cannot be written.
    """
    tensors = dict(state.tensors)
    metadata = {
        "format": STATE_FORMAT,
        "fingerprint": json.dumps(asdict(state.fingerprint)),
        "retrained": "true" if state.retrained else "false",
        "history": json.dumps([asdict(epoch) for epoch in state.history]),
        "updates": str(state.updates),
    }
    if state.progress is not None:
        progress = {field.name: getattr(state.progress, field.name) for field in fields(EpochProgress)}
        tensors |= with_prefix("progress", {name: progress.pop(name) for name in _PROGRESS_TENSORS})
        metadata["progress"] = json.dumps(progress)
    save_tensors(path, tensors, metadata)


def load_state(path: Path) -> TrainingState:
    """Read a state.

    Raises:
        CheckpointError: It is damaged, or not one of this fmcli.
    """
    metadata, tensors = load_tensors(path)
    check_format(path, metadata, STATE_FORMAT, kind="a training state", remedies=["overwrite"])
    progress = None
    if "progress" in metadata:
        parts: dict[str, Any] = {**without_prefix("progress", tensors), **json.loads(metadata["progress"])}
        progress = EpochProgress(**parts)
    return TrainingState(
        fingerprint=Fingerprint(**json.loads(metadata["fingerprint"])),
        retrained=metadata["retrained"] == "true",
        history=[EpochFinished(**entry) for entry in json.loads(metadata["history"])],
        updates=int(metadata["updates"]),
        tensors=tensors,
        progress=progress,
    )
