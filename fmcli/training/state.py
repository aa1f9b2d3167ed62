"""The state of a partly trained member between two steps, and its file. A resumed run continues from it exactly."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmcli.checkpoints.tensors import load_tensors, save_tensors, with_prefix, without_prefix
from fmcli.events import EpochFinished
from fmcli.storage.reading import FileFormat
from fmcli.training.fingerprint import Fingerprint

STATE_FILE = "state.safetensors"
FORMAT = FileFormat("fmcli-state-6", "a training state", remedies=["overwrite"])
_PROGRESS_TENSORS = ("order", "losses", "correct")


@dataclass(slots=True)
class EpochProgress:
    """A partly trained epoch.

    Args:
        order: State of the generator before it drew the order of this epoch's images.
        losses: float32 (n_steps,), the mean loss of each step taken.
        correct: int64 (), number of correctly classified images in these steps.
        steps: Number of steps taken.
        seconds: Duration of these steps.
        ended: Whether only validation is left.
    """

    order: Tensor
    losses: Tensor
    correct: Tensor
    steps: int = 0
    seconds: float = 0.0
    ended: bool = False

    def on_device(self, device: torch.device) -> "EpochProgress":
        """Return a copy with losses and counts on a device. The generator's state stays on the CPU."""
        return replace(self, losses=self.losses.to(device), correct=self.correct.to(device))


@dataclass(frozen=True, slots=True)
class TrainingState:
    """The state of a partly trained member between two steps.

    Args:
        fingerprint: Fingerprint of the member.
        retrained: Whether the member is being trained a second time, from scratch, for the best number of epochs.
        history: The finished epochs of the first and the second time.
        tensors: Weights, optimizer, generators and averages, by name.
        progress: The partly trained epoch; None between epochs.
    """

    fingerprint: Fingerprint
    retrained: bool
    history: Sequence[EpochFinished]
    tensors: dict[str, Tensor]
    progress: EpochProgress | None = None


def save_state(path: Path, state: TrainingState) -> None:
    """Write a state atomically.

    Raises:
        FmcliError: The file cannot be written.
    """
    tensors = dict(state.tensors)
    metadata = {
        "format": FORMAT.name,
        "fingerprint": json.dumps(asdict(state.fingerprint)),
        "retrained": "true" if state.retrained else "false",
        "history": json.dumps([asdict(epoch) for epoch in state.history]),
    }
    if state.progress is not None:
        progress = {field.name: getattr(state.progress, field.name) for field in fields(EpochProgress)}
        tensors |= with_prefix("progress", {name: progress.pop(name) for name in _PROGRESS_TENSORS})
        metadata["progress"] = json.dumps(progress)
    save_tensors(path, tensors, metadata)


def load_state(path: Path) -> TrainingState:
    """Read a state.

    Raises:
        CheckpointError: The file is damaged or has a different format.
    """
    metadata, tensors = load_tensors(path, FORMAT)
    progress = None
    if "progress" in metadata:
        parts: dict[str, Any] = {**without_prefix("progress", tensors), **json.loads(metadata["progress"])}
        progress = EpochProgress(**parts)
    return TrainingState(
        fingerprint=Fingerprint(**json.loads(metadata["fingerprint"])),
        retrained=metadata["retrained"] == "true",
        history=[EpochFinished(**entry) for entry in json.loads(metadata["history"])],
        tensors=tensors,
        progress=progress,
    )
