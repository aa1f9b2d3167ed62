"""A training on standard error: a bar on a terminal, a line an epoch in a log."""

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn

from fmcli.errors import printable
from fmcli.events import (
    CheckpointSaved,
    EpochFinished,
    Event,
    MemberDiverged,
    MemberFinished,
    MembersInParallel,
    MemberStarted,
    RunStarted,
    StepFinished,
    TrialFinished,
    TrialStarted,
    WaitingForRun,
)
from fmcli.report.console import Terminal
from fmcli.report.document import percent, show_value

_NARROW = 70  # columns


class TrainingProgress:
    """A `Reporter` that shows events as they come; use it as a context manager.

    Args:
        terminal: Where to.
        advice: What to tell where members are about to train one by one.
    """

    def __init__(self, terminal: Terminal, advice: str | None = None) -> None:
        self.terminal, self._advice = terminal, advice
        self._begun: dict[str, _Begun] = {}
        self._bar: Progress | None = None
        self._awaited: Path | None = None
        if terminal.err.is_terminal and not terminal.quiet:
            wide = terminal.err.width >= _NARROW
            columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn(bar_width=None if wide else 8)]
            columns += [TextColumn("{task.fields[figures]}")] if wide else []
            self._bar = Progress(
                *columns, TimeRemainingColumn(compact=True), console=terminal.err, transient=True, expand=wide
            )

    def __enter__(self) -> "TrainingProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case StepFinished():
                self._step(event)
            case RunStarted():
                self.terminal.note(f"{event.name}: training {event.seed + 1} of {event.seeds}, seed {event.seed}")
            case WaitingForRun():
                if event.folder != self._awaited:
                    self._awaited = event.folder
                    self.terminal.note(f"waiting for another process, which trains {printable(event.folder)}")
            case TrialStarted():
                values = ", ".join(f"{key} = {show_value(value)}" for key, value in event.values.items())
                self.terminal.note(f"trial {event.number} of 0 to {event.trials - 1}: {values}")
            case TrialFinished():
                result = (
                    f"no score, {event.reason}" if event.score is None else f"{percent(event.score)} % on validation"
                )
                for member in list(self._begun):
                    self._drop(member)
                self.terminal.note(f"trial {event.number}: {result}")
            case MembersInParallel():
                self._advice = None
                self.terminal.note(_at_once(event))
            case MemberStarted():
                self._start(event)
            case EpochFinished():
                self._epoch(event)
            case MemberFinished() | MemberDiverged():
                self._end(event)
            case CheckpointSaved():
                self.terminal.detail(f"wrote {event.path}")

    def _start(self, event: MemberStarted) -> None:
        self._drop(event.member)
        if self._advice is not None:
            self.terminal.note(self._advice)
            self._advice = None
        left = event.epochs - event.first_epoch + 1
        begun = event.first_epoch > 1 or event.steps_done
        again = f", going on with epoch {event.first_epoch}" if begun and event.first_epoch <= event.epochs else ""
        again += f" after step {event.steps_done}" if event.steps_done else ""
        what = "afresh, for as many epochs as were best" if event.retrained else f"{event.parameters:,} parameters"
        self.terminal.note(
            f"{event.member}: {what}, {event.epochs} × {event.steps_per_epoch} steps "
            f"on {event.device} in {event.precision}{again}"
        )
        self._begun[event.member] = one = _Begun(event)
        if self._bar is not None:
            name = f"{event.member} {event.first_epoch}/{event.epochs}"
            one.task = self._bar.add_task(
                name, total=left * event.steps_per_epoch, completed=event.steps_done, figures=""
            )

    def _step(self, event: StepFinished) -> None:
        one = self._begun.get(event.member)
        if self._bar is not None and one is not None and one.task is not None:
            self._bar.update(one.task, completed=one.epochs_done * one.started.steps_per_epoch + event.step)

    def _end(self, event: MemberFinished | MemberDiverged) -> None:
        self._drop(event.member)
        if isinstance(event, MemberDiverged):
            if event.n_remaining:  # else the command ends with the reason
                self.terminal.note(f"{event.reason}; the others are trained all the same")
        elif event.already_trained:
            self.terminal.note(f"{event.member} is trained already")

    def _epoch(self, event: EpochFinished) -> None:
        one = self._begun.get(event.member)
        total = event.epoch if one is None else one.started.epochs
        accuracy = event.train_accuracy if event.validation_accuracy is None else event.validation_accuracy
        if one is not None:
            one.epochs_done += 1
        if self._bar is not None and one is not None and one.task is not None:
            loss = event.train_loss if event.validation_loss is None else event.validation_loss
            self._bar.update(
                one.task,
                completed=one.epochs_done * one.started.steps_per_epoch,
                description=f"{event.member} {min(event.epoch + 1, total)}/{total}",
                figures=f"loss {loss:.3f}  {percent(accuracy)} %  {event.images_per_second:,.0f}/s",
            )
            return
        validation = (
            f"; validation {percent(event.validation_accuracy)} %, loss {event.validation_loss:.4f}"
            if event.validation_loss is not None
            else ""
        )
        self.terminal.note(
            f"{event.member} {event.epoch}/{total}: train {percent(event.train_accuracy)} %, "
            f"loss {event.train_loss:.4f}{validation}; {event.seconds:.1f} s, {event.images_per_second:,.0f} images/s"
        )

    def _drop(self, member: str) -> None:
        one = self._begun.pop(member, None)
        if self._bar is not None and one is not None and one.task is not None:
            self._bar.remove_task(one.task)


@dataclass(slots=True)
class _Begun:
    """A member that trains.

    Args:
        started: What was said when it began in this process.
        epochs_done: How many since.
        task: Its line in the bar.
    """

    started: MemberStarted
    epochs_done: int = 0
    task: TaskID | None = None


def _at_once(event: MembersInParallel) -> str:
    threads = "a thread" if event.threads == 1 else f"{event.threads} threads"
    if event.speedup is None:
        why = f"the run was begun with {threads} each (--threads {event.threads}: one by one)"
        return f"{event.jobs} members at once: {why}"
    why = f"{event.speedup:.1f} times as fast by an estimate (--jobs 1: one by one)"
    return f"{event.jobs} members at once, {threads} each: {why}"
