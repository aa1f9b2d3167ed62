"""Events that library code sends to a reporter while it trains. `report` displays them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


class StopRequest(BaseException):
    """Raised by a reporter to stop training.

    The trainer saves its state and raises the exception again, so that the run can be resumed. Trainers therefore send
    events only when their state can be saved, except for `CheckpointSaved`; see `can_stop_at`.
    """


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A run of a recipe is about to be trained, or loaded if it is finished."""

    name: str
    seed: int
    seeds: int  # number of seeds in total


@dataclass(frozen=True, slots=True)
class WaitingForRun:
    """Other processes are training all remaining runs; `folder` is the first of these runs."""

    folder: Path


@dataclass(frozen=True, slots=True)
class TrialStarted:
    """A trial of a search is about to start or resume."""

    number: int
    trials: int
    values: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class TrialFinished:
    """A trial of a search has ended. If it has no score, `reason` says why."""

    number: int
    score: float | None
    reason: str = ""


MemberState = Literal["finished", "resumes", "starts", "claimed"]
"""What a run will do with a member. A claimed member is being trained by another process."""


@dataclass(frozen=True, slots=True)
class PlannedMember:
    """The plan for one member of a run. It is not an event, but `report` displays it.

    Args:
        member: Name of the member.
        state: Whether the member is finished, resumes, starts, or is trained by another process.
        epoch: The epoch that is trained next, from 1; None for a finished or claimed member.
        steps_done: Number of steps of this epoch that an earlier process took.
        threads: CPU threads; None for a finished or claimed member.
        seconds: Estimated time to train it; None if unknown.
    """

    member: str
    state: MemberState
    epoch: int | None = None
    steps_done: int = 0
    threads: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class RunJoined:
    """Other processes are training members of the run, and this process trains other members of it."""

    folder: Path
    members: Sequence[str]  # that other processes are training


@dataclass(frozen=True, slots=True)
class TrainedElsewhere:
    """No member is left for this process, but other processes are still training members of the run."""

    members: Sequence[str]


@dataclass(frozen=True, slots=True)
class MembersInParallel:
    """Several members are about to train in parallel, although the caller did not request it."""

    jobs: int
    threads: int  # CPU threads per member
    speedup: float | None  # estimate, relative to one member at a time; None if a resumed run keeps its threads


@dataclass(frozen=True, slots=True)
class UnmeasuredFeature:
    """A run uses a feature whose correctness and speed have not been measured on a GPU."""

    feature: Literal["cuda-graph", "parallel-members"]


@dataclass(frozen=True, slots=True)
class InitialWeightsLoaded:
    """A member starts from the weights in a file, except those parameters whose initial weights are random."""

    member: str
    path: str
    random: tuple[str, ...]  # names of parameters


@dataclass(frozen=True, slots=True)
class MemberStarted:
    """A member is about to train its first epoch in this process."""

    member: str
    epochs: int
    steps_per_epoch: int
    first_epoch: int
    parameters: int
    device: str
    precision: str
    retrained: bool = False  # trained again from scratch, for the best number of epochs
    steps_done: int = 0  # steps of the first epoch that an earlier process took


@dataclass(frozen=True, slots=True)
class StepFinished:
    """The program has finished a training step. On a GPU, the computations may still be in the queue."""

    member: str
    step: int  # in this epoch, from 1


@dataclass(frozen=True, slots=True)
class BatchPredicted:
    """The network has processed a batch outside a training step.

    The batch contains validation images, or training images for the batch norm statistics of averaged weights.
    """

    member: str


@dataclass(frozen=True, slots=True)
class EpochFinished:
    """The results of one epoch. Accuracies are in [0, 1], losses in nats.

    Without validation images, the validation loss and accuracy are None.

    The training loss and accuracy are means over the steps of the epoch. They are measured on augmented images, and the
    weights change from step to step.
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
    retrained: bool = False  # trained again from scratch, for the best number of epochs


@dataclass(frozen=True, slots=True)
class CheckpointSaved:
    """A file of a run was written completely."""

    path: Path


@dataclass(frozen=True, slots=True)
class MemberFinished:
    """A member is trained."""

    member: str
    path: Path
    already_trained: bool = False  # by an earlier process


@dataclass(frozen=True, slots=True)
class MemberDiverged:
    """A member's loss or weights are no longer finite."""

    member: str
    reason: str
    n_remaining: int  # members of the run that still have to be trained


Event = (
    RunStarted
    | WaitingForRun
    | TrialStarted
    | TrialFinished
    | RunJoined
    | TrainedElsewhere
    | MembersInParallel
    | UnmeasuredFeature
    | InitialWeightsLoaded
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
    """Do nothing: the default reporter."""


def can_stop_at(event: Event) -> bool:
    """Return whether a reporter may raise `StopRequest` at this event.

    After a file is saved, a second event reports what was finished, such as an epoch. Stopping between the two events
    would lose the second one.
    """
    return not isinstance(event, CheckpointSaved)
