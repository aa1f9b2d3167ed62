"""The state of a training between two epochs, and its file: what exact resumption needs."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from fmcli.errors import CheckpointError, printable
from fmcli.events import EpochFinished
from fmcli.tensors import load_tensors, save_tensors

STATE_FILE = "state.safetensors"
STATE_FORMAT = "fmcli-state-2"


@dataclass(frozen=True, slots=True)
class TrainingState:
    """What a training is at the end of an epoch.

    Args:
        recipe_digest: SHA-256 of the member's recipe.
        data_digest: SHA-256 of the training images.
        device: Its kind: random numbers go on there alone.
        afresh: The network is trained for the second time, for as many epochs as were best.
        history: An entry an epoch, of both trainings.
        updates: How often the average of the weights took them in.
        tensors: By name.
    """

    recipe_digest: str
    data_digest: str
    device: str
    afresh: bool
    history: Sequence[EpochFinished]
    updates: int
    tensors: dict[str, Tensor]


def save_state(path: Path, state: TrainingState) -> None:
    """Write a state, whole or not at all.

    Raises:
        FmcliError: The file cannot be written.
    """
    metadata = {
        "format": STATE_FORMAT,
        "recipe_digest": state.recipe_digest,
        "data_digest": state.data_digest,
        "device": state.device,
        "afresh": "true" if state.afresh else "false",
        "history": json.dumps([asdict(epoch) for epoch in state.history]),
        "updates": str(state.updates),
    }
    save_tensors(path, state.tensors, metadata)


def load_state(path: Path) -> TrainingState:
    """Read a state.

    Raises:
        CheckpointError: It is damaged, or not one of this fmcli.
    """
    metadata, tensors = load_tensors(path)
    if metadata.get("format") != STATE_FORMAT:
        raise CheckpointError(f"{printable(path)} is not a training state of this fmcli")
    return TrainingState(
        recipe_digest=metadata["recipe_digest"],
        data_digest=metadata["data_digest"],
        device=metadata["device"],
        afresh=metadata["afresh"] == "true",
        history=[EpochFinished(**entry) for entry in json.loads(metadata["history"])],
        updates=int(metadata["updates"]),
        tensors=tensors,
    )
