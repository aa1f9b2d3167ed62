"""The display of training on standard error."""

from io import StringIO

import pytest

from fmcli.events import EpochFinished, MemberStarted, StepFinished
from fmcli.report.console import Terminal
from fmcli.report.progress import TrainingProgress


class TerminalStream(StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_shows_the_number_of_steps_even_if_not_every_step_is_reported(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    started = MemberStarted(
        "k3", epochs=2, steps_per_epoch=10, first_epoch=1, parameters=100, device="cpu", precision="fp32", steps_done=2
    )
    epoch = EpochFinished(
        "k3", epoch=1, lr=0.1, train_loss=1.0, train_accuracy=0.5, validation_loss=None, validation_accuracy=None,
        seconds=1.0, images_per_second=10.0,
    )  # fmt: skip
    positions = []
    with TrainingProgress(Terminal(err=TerminalStream())) as progress:
        for event in (started, StepFinished("k3", 4), epoch, StepFinished("k3", 7)):
            progress(event)
            positions.append(progress._bars.tasks[0].completed)
    assert positions == [2, 4, 10, 17]


@pytest.mark.parametrize(("steps_per_epoch", "noted"), [(1, True), (5, False)])
def test_a_training_of_few_steps_is_noted_once(steps_per_epoch, noted):
    stream = StringIO()
    with TrainingProgress(Terminal(err=stream), describe_remedy=lambda remedy: f"set {remedy.value}") as progress:
        for member in ("k3", "k5"):
            progress(
                MemberStarted(
                    member, epochs=10, steps_per_epoch=steps_per_epoch, first_epoch=1, parameters=100, device="cpu",
                    precision="fp32",
                )
            )  # fmt: skip
    note = "10 steps per member may be too few to learn from; set trainer.epochs=120 --set trainer.batch_size=32"
    assert stream.getvalue().split("\n").count(note) == noted
