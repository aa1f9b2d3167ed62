"""The state of a member in training, and its file. A resumed run continues from the file exactly."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmcli.checkpoints.history import best_epoch, is_stalled
from fmcli.checkpoints.tensors import load_tensors, save_tensors, with_prefix, without_prefix
from fmcli.data import DeviceLoader
from fmcli.events import EpochFinished
from fmcli.storage.reading import FileFormat
from fmcli.training.fingerprint import Fingerprint
from fmcli.training.learner import Learner

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
    timed_at: float = field(default_factory=time.perf_counter, init=False)  # when `seconds` was last increased

    @classmethod
    def start(cls, order: torch.Generator, n_steps: int, device: torch.device) -> "EpochProgress":
        """Return the progress of an epoch before its first step.

        Args:
            order: Generator of the order of the images.
            n_steps: Number of steps in the epoch.
            device: The training device.
        """
        losses = torch.zeros(n_steps, device=device)
        return cls(order.get_state(), losses, torch.zeros((), dtype=torch.int64, device=device))

    def batches(self, loader: DeviceLoader, order: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the remaining batches of images and labels. Wait for the device only after the last step.

        Args:
            loader: The training images.
            order: Generator of the order of the images.
        """
        if self.steps == len(loader):
            return
        order.set_state(self.order)
        yield from loader.epoch(order, skip=self.steps)
        self.correct.item()  # waits for the device
        self.measure_time()

    def add_step(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add the results of a step, without waiting for the device.

        Args:
            loss: Mean loss, ().
            logits: (N, n_classes).
            labels: int64 (N,).
        """
        self.losses[self.steps] = loss
        self.correct += (logits.argmax(dim=1) == labels).sum()
        self.steps += 1
        self.measure_time()

    def measure_time(self) -> None:
        """Add the time since the last call, or since the start, to `seconds`."""
        now = time.perf_counter()
        self.seconds += now - self.timed_at
        self.timed_at = now


class TrainingState:
    """Everything that changes while a member is trained.

    Args:
        learner: The network in training.
        first_pass: With `keep = "retrained"`: the epochs of the first pass, if the member is trained a second time.
    """

    def __init__(self, learner: Learner, first_pass: Sequence[EpochFinished] = ()) -> None:
        self.learner = learner
        self.first_pass = first_pass
        self.this_pass: list[EpochFinished] = []
        self.progress: EpochProgress | None = None  # None between epochs
        self.best: dict[str, Tensor] = {}  # weights of the best epoch, for `keep = "best"`
        self._trainer = learner.spec.trainer

    @property
    def retrained(self) -> bool:
        """Whether the member is trained a second time, from scratch, for the best number of epochs."""
        return bool(self.first_pass)

    @property
    def n_epochs(self) -> int:
        """Maximum number of epochs; in the second pass, the best number of epochs of the first."""
        return best_epoch(self.first_pass, self._trainer.monitor) + 1 if self.first_pass else self._trainer.epochs

    @property
    def history(self) -> list[EpochFinished]:
        """The finished epochs of both passes."""
        return [*self.first_pass, *self.this_pass]

    @property
    def is_trained(self) -> bool:
        """Whether no epoch of this pass is left, or the validation results have stopped improving."""
        trainer = self._trainer
        if len(self.this_pass) >= self.n_epochs:
            return True
        if trainer.patience is None or not self.this_pass or self.retrained:
            return False
        return is_stalled(self.this_pass, trainer.monitor, trainer.patience)

    def remaining_epochs(self) -> Iterator[int]:
        """Yield the index of each epoch that is left, from 0. The caller must train it before it takes the next."""
        while not self.is_trained:
            yield len(self.this_pass)

    def end_epoch(self, results: EpochFinished) -> None:
        """Add the results of an epoch, and keep its weights if they are the best."""
        trainer = self._trainer
        self.this_pass.append(results)
        self.progress = None
        if trainer.keep == "best" and best_epoch(self.this_pass, trainer.monitor) + 1 == results.epoch:
            self.best = self.learner.evaluated_weights()

    def use_trained_weights(self) -> int:
        """Give the network the weights to save, and return the number of epochs that they were trained for."""
        self.learner.model.load_state_dict(self.best or self.learner.evaluated_weights())
        return best_epoch(self.this_pass, self._trainer.monitor) + 1 if self.best else len(self.this_pass)


@dataclass(frozen=True, slots=True)
class SavedState:
    """The content of a state file.

    Args:
        fingerprint: Fingerprint of the member.
        retrained: Whether the member is being trained a second time.
        history: The finished epochs of both passes.
        tensors: Weights, optimizer, generators and averages, by name.
        progress: The partly trained epoch; None between epochs.
    """

    fingerprint: Fingerprint
    retrained: bool
    history: Sequence[EpochFinished]
    tensors: dict[str, Tensor]
    progress: EpochProgress | None = None

    def restore(self, learner: Learner, device: torch.device) -> TrainingState:
        """Return the state of training.

        Args:
            learner: A new network for the same pass.
            device: The training device.
        """
        learner.load(self.tensors)
        state = TrainingState(learner, [epoch for epoch in self.history if self.retrained and not epoch.retrained])
        state.this_pass = [epoch for epoch in self.history if epoch.retrained == self.retrained]
        state.best = {name: tensor.to(device) for name, tensor in without_prefix("best", self.tensors).items()}
        if self.progress is not None:  # the generator's state stays on the CPU
            state.progress = self.progress
            state.progress.losses, state.progress.correct = (
                tensor.to(device) for tensor in (self.progress.losses, self.progress.correct)
            )
        return state


def save_state(path: Path, state: TrainingState, fingerprint: Fingerprint) -> None:
    """Write a state atomically.

    Args:
        path: The state file.
        state: The state.
        fingerprint: Fingerprint of the member.

    Raises:
        FmcliError: The file cannot be written.
    """
    tensors = state.learner.state() | with_prefix("best", state.best)
    metadata = {
        "format": FORMAT.name,
        "fingerprint": json.dumps(asdict(fingerprint)),
        "retrained": "true" if state.retrained else "false",
        "history": json.dumps([asdict(epoch) for epoch in state.history]),
    }
    if state.progress is not None:
        names = [one.name for one in fields(EpochProgress) if one.init]
        progress = {name: getattr(state.progress, name) for name in names}
        tensors |= with_prefix("progress", {name: progress.pop(name) for name in _PROGRESS_TENSORS})
        metadata["progress"] = json.dumps(progress)
    save_tensors(path, tensors, metadata)


def load_state(path: Path) -> SavedState:
    """Read a state.

    Raises:
        CheckpointError: The file is damaged or has a different format.
    """
    metadata, tensors = load_tensors(path, FORMAT)
    progress = None
    if "progress" in metadata:
        parts: dict[str, Any] = {**without_prefix("progress", tensors), **json.loads(metadata["progress"])}
        progress = EpochProgress(**parts)
    return SavedState(
        fingerprint=Fingerprint(**json.loads(metadata["fingerprint"])),
        retrained=metadata["retrained"] == "true",
        history=[EpochFinished(**entry) for entry in json.loads(metadata["history"])],
        tensors=tensors,
        progress=progress,
    )
