"""Display training on standard error: progress bars on a terminal, one line per epoch in a log."""

from collections.abc import Callable
from typing import Self

from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn

from fmcli import events
from fmcli.errors import Remedy, join_names, printable
from fmcli.report.console import Terminal
from fmcli.report.document import count, percent, show_value

_MIN_WIDE_COLUMNS = 70  # terminals narrower than this show no loss, accuracy and speed next to the bar

_FEW_STEPS = 50  # the vote of quick on 300 images of 3 classes was 35 to 52 % accurate after 10 steps, 75 % after 60

_FEATURES = {"cuda-graph": "CUDA graphs", "parallel-members": "members in parallel"}


class TrainingProgress:
    """A reporter that displays events. Use it as a context manager.

    Args:
        terminal: Terminal to print to.
        advice: Advice to print before members are trained one at a time. Default: none.
        describe_remedy: Function that returns the option for a remedy. Default: no options are printed.
    """

    def __init__(
        self, terminal: Terminal, advice: str | None = None, describe_remedy: Callable[[Remedy], str] | None = None
    ) -> None:
        self.terminal = terminal
        self._advice = advice
        self._describe_remedy = describe_remedy
        self._running: dict[str, tuple[events.MemberStarted, TaskID]] = {}  # members in training and their bars
        self._steps_before_epoch: dict[str, int] = {}  # position of each bar at the start of the current epoch
        self._printed: set[str] = set()
        self._interactive = terminal.err.is_terminal and not terminal.quiet
        wide = terminal.err.width >= _MIN_WIDE_COLUMNS
        columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn(bar_width=None if wide else 8)]
        columns += [TextColumn("{task.fields[scores]}")] if wide else []
        columns += [TimeRemainingColumn(compact=True)]
        self._bars = Progress(
            *columns, console=terminal.err, transient=True, expand=wide, disable=not self._interactive
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, event: events.Event) -> None:
        """Display one event."""
        match event:
            case events.StepFinished():
                self._move_bar(event)
            case events.EpochFinished():
                self._finish_epoch(event)
            case events.MemberStarted():
                self._start_member(event)
            case events.MemberFinished() | events.MemberDiverged():
                self._end_member(event)
            case events.MembersInParallel():
                self._advice = None
                self.terminal.note(self._describe_parallel(event))
            case events.UnmeasuredFeature():
                self._note_once(
                    f"{_FEATURES[event.feature]} have not been measured on a GPU; check the results and the speed"
                )
            case events.InitialWeightsLoaded():
                self.terminal.note(
                    f"{event.member}: initial weights from {printable(event.path)}; random: {join_names(event.random)}"
                )
            case events.RunStarted():
                self.terminal.note(f"{event.name}: training run {event.seed + 1} of {event.seeds}, seed {event.seed}")
            case events.WaitingForRun() | events.RunJoined() | events.TrainedElsewhere():
                self._note_once(_describe_others(event))
            case events.TrialStarted():
                values = ", ".join(f"{key} = {show_value(value)}" for key, value in event.values.items())
                self.terminal.note(f"trial {event.number} (the last is trial {event.trials - 1}): {values}")
            case events.TrialFinished():
                self._end_trial(event)
            case events.CheckpointSaved():
                self.terminal.detail(f"wrote {event.path}")

    def _note_once(self, text: str) -> None:
        if text not in self._printed:
            self._printed.add(text)
            self.terminal.note(text)

    def _start_member(self, event: events.MemberStarted) -> None:
        self._remove_bar(event.member)
        if self._advice is not None:
            self.terminal.note(self._advice)
            self._advice = None
        what = "retraining from scratch" if event.retrained else f"{event.parameters:,} parameters"
        length = f"{count(event.epochs, 'epoch')} of {count(event.steps_per_epoch, 'step')}"
        is_resumed = event.steps_done or 1 < event.first_epoch <= event.epochs
        resumed = f", resuming at epoch {event.first_epoch}" if is_resumed else ""
        resumed += f" after step {event.steps_done}" if event.steps_done else ""
        self.terminal.note(f"{event.member}: {what}, {length} on {event.device} in {event.precision}{resumed}")
        if event.epochs * event.steps_per_epoch < _FEW_STEPS:
            self._note_once(self._describe_short_training(event.epochs * event.steps_per_epoch))
        task = self._bars.add_task(
            f"{event.member} {event.first_epoch}/{event.epochs}",
            total=(event.epochs - event.first_epoch + 1) * event.steps_per_epoch,
            completed=event.steps_done,
            scores="",
        )
        self._running[event.member] = (event, task)
        self._steps_before_epoch[event.member] = 0

    def _finish_epoch(self, event: events.EpochFinished) -> None:
        running = self._running.get(event.member)
        if running and self._interactive:
            start, task = running
            loss = event.train_loss if event.validation_loss is None else event.validation_loss
            accuracy = event.train_accuracy if event.validation_accuracy is None else event.validation_accuracy
            steps = (event.epoch - start.first_epoch + 1) * start.steps_per_epoch
            self._steps_before_epoch[event.member] = steps
            self._bars.update(
                task,
                completed=steps,
                description=f"{event.member} {min(event.epoch + 1, start.epochs)}/{start.epochs}",
                scores=f"loss {loss:.3f}  {percent(accuracy)} %  {event.images_per_second:,.0f}/s",
            )
            return
        total = running[0].epochs if running else event.epoch
        scores = f"training accuracy {percent(event.train_accuracy)} %, loss {event.train_loss:.4f}"
        if event.validation_loss is not None:
            scores += f"; validation accuracy {percent(event.validation_accuracy)} %, loss {event.validation_loss:.4f}"
        speed = f"{event.seconds:.1f} s, {event.images_per_second:,.0f} images/s"
        self.terminal.note(f"{event.member} {event.epoch}/{total}: {scores}; {speed}")

    def _end_member(self, event: events.MemberFinished | events.MemberDiverged) -> None:
        self._remove_bar(event.member)
        if isinstance(event, events.MemberFinished):
            if event.already_trained:
                self.terminal.note(f"{event.member} is already trained")
        elif event.n_remaining:  # without remaining members, the command fails with this reason
            self.terminal.note(f"{event.reason}; continuing with the other members")

    def _end_trial(self, event: events.TrialFinished) -> None:
        for member in list(self._running):
            self._remove_bar(member)
        result = event.reason if event.score is None else f"validation accuracy {percent(event.score)} %"
        self.terminal.note(f"trial {event.number}: {result}")

    def _move_bar(self, event: events.StepFinished) -> None:
        if event.member in self._running:
            # Processes do not report every step, so the number of events is not the number of steps.
            _, task = self._running[event.member]
            self._bars.update(task, completed=self._steps_before_epoch[event.member] + event.step)

    def _remove_bar(self, member: str) -> None:
        if member in self._running:
            self._bars.remove_task(self._running.pop(member)[1])

    def _describe_short_training(self, steps: int) -> str:
        remedy = Remedy("set", "trainer.epochs=120 --set trainer.batch_size=32")
        options = f"; {self._describe_remedy(remedy)}" if self._describe_remedy else ""
        return f"{count(steps, 'step')} per member may be too few to learn from{options}"

    def _describe_parallel(self, event: events.MembersInParallel) -> str:
        if event.speedup is None:
            reason, remedy = "this run was started this way", Remedy("threads", event.threads)
        else:
            reason, remedy = f"about {event.speedup:.1f} times as fast", Remedy("jobs", 1)
        option = f" (one at a time: {self._describe_remedy(remedy)})" if self._describe_remedy else ""
        return f"training {event.jobs} members in parallel, {count(event.threads, 'thread')} each: {reason}{option}"


def _describe_others(event: events.WaitingForRun | events.RunJoined | events.TrainedElsewhere) -> str:
    """Return a line about the work of other processes."""
    match event:
        case events.WaitingForRun():
            return f"waiting for another process to train {printable(event.folder)}"
        case events.RunJoined():
            return f"joining a run in progress; in training by other processes: {join_names(event.members)}"
        case events.TrainedElsewhere():
            return f"no member is left to train here; still in training by other processes: {join_names(event.members)}"
