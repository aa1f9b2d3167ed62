"""What a run announces while it goes. The library emits these; `report` shows them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


class StopRequest(BaseException):
    """What a reporter raises to stop a training where it is: that is saved, to go on from there, and ends with this.

    So trainers report only where all that they would save fits together.
    """


@dataclass(frozen=True, slots=True)
class RunStarted:
    """One of several trainings of a recipe is about to begin, or to be looked up."""

    name: str
    seed: int
    seeds: int


@dataclass(frozen=True, slots=True)
class RunAwaited:
    """All that is left is being trained by other processes, this run first."""

    folder: Path


@dataclass(frozen=True, slots=True)
class TrialStarted:
    """A set of values of a search is about to be trained, or goes on."""

    number: int
    trials: int
    values: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class TrialFinished:
    """A set of values has its score, or None and the reason."""

    number: int
    score: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class MembersInParallel:
    """Several members are about to train at once, without having been asked for it."""

    jobs: int
    threads: int  # of each
    times: float | None  # as fast as one by one, by an estimate; None where a run goes on and keeps its threads


@dataclass(frozen=True, slots=True)
class MemberStarted:
    """A member is about to train its first epoch of this process."""

    member: str
    epochs: int
    steps_per_epoch: int
    first_epoch: int
    parameters: int
    device: str
    precision: str
    afresh: bool = False  # once more, for as many epochs as were best
    steps_done: int = 0  # of the first epoch, in an earlier process


@dataclass(frozen=True, slots=True)
class StepFinished:
    """A training step was issued (on a GPU: queued, not necessarily done)."""

    member: str
    step: int  # in this epoch, from 1


@dataclass(frozen=True, slots=True)
class BatchPredicted:
    """A batch of images has been answered: of validation images, or of others after the last step of an epoch."""

    member: str


@dataclass(frozen=True, slots=True)
class EpochFinished:
    """The figures of one epoch; accuracies in [0, 1], losses in nats, None without validation data.

    The training figures are the mean over the epoch's own steps: augmented images, weights on the move.
    """

    member: str
    epoch: int  # from 1
    lr: float
    train_loss: float
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    seconds: float
    images_per_second: float
    afresh: bool = False  # of the training that was begun afresh, for as many epochs as were best


@dataclass(frozen=True, slots=True)
class CheckpointSaved:
    """A file of a run is whole and in its place."""

    path: Path


@dataclass(frozen=True, slots=True)
class MemberFinished:
    """A member is trained; `already` when an earlier process had done it."""

    member: str
    path: Path
    already: bool = False


@dataclass(frozen=True, slots=True)
class MemberDiverged:
    """A member's loss or weights are no longer finite."""

    member: str
    reason: str
    others: int  # members of the run that are still to be trained


Event = (
    RunStarted
    | RunAwaited
    | TrialStarted
    | TrialFinished
    | MembersInParallel
    | MemberStarted
    | StepFinished
    | BatchPredicted
    | EpochFinished
    | CheckpointSaved
    | MemberFinished
    | MemberDiverged
)
Reporter = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Take an event and say nothing: the reporter of those who do not listen."""
