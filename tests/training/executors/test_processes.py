import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import closing
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path

import pytest

from fmcli.errors import DataError, DivergedError, FmcliError, RecipeError
from fmcli.events import BatchPredicted, CheckpointSaved, MemberFinished, StepFinished, StopRequest
from fmcli.training.executors import JobResult, run_in_processes
from tests.processes import StartedProcess

# What is done in other processes: functions of a module.


def count(upto, reporter):
    for step in range(upto):
        reporter(MemberFinished(f"of {upto}", Path(str(step))))
    return upto * 10


def count_steps(reporter):
    for step in range(1000):
        reporter(StepFinished("m", step))
        reporter(BatchPredicted("m"))
    reporter(MemberFinished("m", Path()))


def run_until_stopped(place, reporter):
    """Report until stopped, and leave a file then."""
    try:
        while True:
            time.sleep(0.01)
            reporter(MemberFinished("m", place))
    except StopRequest:
        place.write_text("saved")
        raise


def save_for_ever(place, reporter):
    """Report nothing but what is followed by something else, so that there is nowhere to stop."""
    while True:
        reporter(CheckpointSaved(place))
        place.touch()
        time.sleep(0.01)


def touch_for_ever(place, reporter):
    """Report once, and never again."""
    reporter(CheckpointSaved(place))
    while True:
        place.touch()
        time.sleep(0.01)


def fail(error, reporter):
    raise error


def die(reporter):
    os._exit(7)


def be_killed(others, reporter):
    """Be killed once the others have begun."""
    while not others.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def overlap_with_another(folder, name, reporter):
    """Record start and end; end only after a second job has started, or after a minute."""
    (folder / f"{name} begins {time.monotonic()}").touch()
    deadline = time.monotonic() + 60
    while len(list(folder.glob("* begins *"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    (folder / f"{name} ends {time.monotonic()}").touch()


def say_which_signals_wait(reporter):
    return sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def ignore(event):
    pass


def test_each_piece_of_work_is_done_and_told():
    events = []
    ended = list(run_in_processes({"a": partial(count, 2), "b": partial(count, 3)}, 2, events.append))
    assert {one.name: one.result for one in ended} == {"a": 20, "b": 30}
    for upto in (2, 3):
        steps = [int(str(event.path)) for event in events if event.member == f"of {upto}"]
        assert steps == list(range(upto))


def test_exactly_the_requested_number_of_jobs_run_in_parallel(tmp_path):
    jobs = {name: partial(overlap_with_another, tmp_path, name) for name in "abcde"}
    assert {one.name for one in run_in_processes(jobs, 2, ignore)} == set(jobs)
    events = sorted((path.name.split()[1:] for path in tmp_path.iterdir()), key=lambda words: float(words[1]))
    running = max_running = 0
    for kind, _ in events:
        running += 1 if kind == "begins" else -1
        max_running = max(max_running, running)
    assert max_running == 2


def test_not_every_step_is_told():
    events = []
    list(run_in_processes({"m": count_steps}, 1, events.append))
    assert 1 <= len(events) < 500
    assert isinstance(events[-1], MemberFinished)


@pytest.mark.parametrize(
    "error",
    [
        DivergedError("nan", hint="less"),
        DataError("gone"),
        RecipeError("wrong", problems=["a: b"], hint="mend it"),
        OSError(28, "No space left on device"),
    ],
)
def test_an_error_is_brought_here_and_the_others_go_on(error):
    ended = {one.name: one for one in run_in_processes({"a": partial(fail, error), "b": partial(count, 1)}, 2, ignore)}
    assert ended["b"] == JobResult("b", result=10)
    found = ended["a"].error
    assert (type(found), str(found), getattr(found, "hint", None)) == (
        type(error),
        str(error),
        getattr(error, "hint", None),
    )
    assert "in fail" in found.__notes__[0]


def fail_oddly(reporter):
    class Odd(Exception):  # no other process knows it
        def __init__(self, *, reason):
            super().__init__(f"it is {reason}")

    raise Odd(reason="odd")


def test_an_error_that_cannot_travel_is_quoted():
    (ended,) = run_in_processes({"a": fail_oddly}, 1, ignore)
    assert (type(ended.error), str(ended.error)) == (RuntimeError, "Odd: it is odd")
    assert "in fail_oddly" in ended.error.__notes__[0]


def fail_to_save(reporter):
    try:
        while True:
            reporter(MemberFinished("m", Path()))
            time.sleep(0.01)
    except StopRequest:
        raise FmcliError("no room to save") from None


def diverge_when_stopped(reporter):
    try:
        while True:
            reporter(MemberFinished("m", Path()))
            time.sleep(0.01)
    except StopRequest:
        raise DivergedError("the loss is nan") from None


def test_what_diverged_has_nothing_to_save_and_is_no_reason_to_tell_of_in_place_of_the_stop(tmp_path):
    works = {"a": diverge_when_stopped, "b": partial(run_until_stopped, tmp_path / "b")}
    heard = set()

    def reporter(event):
        heard.add(event.path)
        if len(heard) == 2:
            raise StopRequest

    with pytest.raises(StopRequest):
        list(run_in_processes(works, 2, reporter))
    assert (tmp_path / "b").read_text() == "saved"


@pytest.mark.parametrize("error", [StopRequest, KeyboardInterrupt])
def test_what_cannot_be_saved_is_told_instead_of_the_stop(error):
    def reporter(event):
        raise error

    with pytest.raises(FmcliError, match="no room to save"):
        list(run_in_processes({"a": fail_to_save}, 1, reporter))


def test_a_process_that_dies_is_told():
    with pytest.raises(FmcliError, match="the process of a died with exit status 7"):
        list(run_in_processes({"a": die}, 1, ignore))


def test_a_process_that_is_killed_lets_the_others_save(tmp_path):
    works = {
        "a": partial(be_killed, tmp_path / "begun"),
        "b": partial(run_until_stopped, tmp_path / "b"),
    }
    with pytest.raises(FmcliError, match="the process of a was killed: Killed") as caught:
        list(run_in_processes(works, 2, lambda event: (tmp_path / "begun").touch()))
    assert "memory" in caught.value.hint
    assert (tmp_path / "b").read_text() == "saved"


@pytest.mark.parametrize("error", [StopRequest, KeyboardInterrupt])
def test_a_request_to_stop_stops_all_and_lets_them_save(error, tmp_path):
    works = {name: partial(run_until_stopped, tmp_path / name) for name in "ab"}
    heard = set()

    def reporter(event):
        heard.add(event.path.name)
        if heard == {"a", "b"}:
            raise error

    with pytest.raises(error):
        list(run_in_processes(works, 2, reporter))
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["saved", "saved"]


def test_whoever_stops_listening_stops_all(tmp_path):
    works = {"a": partial(count, 1), "b": partial(run_until_stopped, tmp_path / "b"), "c": partial(count, 1)}
    heard = []
    with closing(run_in_processes(works, 2, heard.append)) as ends:
        assert next(ends).name == "a"
        assert next(ends).name == "c"
    if tmp_path / "b" in [event.path for event in heard]:  # else it had not begun
        assert (tmp_path / "b").read_text() == "saved"


def run_and_signal(work, numbers, path):
    """Run a job and send signals to this process after the first event."""

    def send_signals():
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.5)

    def reporter(event):
        if not seen:
            threading.Thread(target=send_signals, daemon=True).start()
        seen.append(event)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores SIGINT
    seen = []
    try:
        list(run_in_processes({"a": partial(work, path)}, 1, reporter))
    except KeyboardInterrupt:
        sys.exit("interrupted")


def wait_until_untouched(path: Path) -> None:
    before = 0
    while before != (before := path.stat().st_mtime_ns):
        time.sleep(0.5)


def test_second_ctrl_c_ends_what_does_not_stop(tmp_path):
    # More than two signals: Python raises only one error for signals that arrive together.
    ended = StartedProcess(run_and_signal, save_for_ever, 100 * [signal.SIGINT], tmp_path / "a").finish()
    assert "interrupted" in ended.err
    wait_until_untouched(tmp_path / "a")


@pytest.mark.parametrize("work", [save_for_ever, touch_for_ever])
def test_a_process_whose_parent_is_killed_ends(work, tmp_path):
    assert StartedProcess(run_and_signal, work, [signal.SIGKILL], tmp_path / "a").finish().status == -signal.SIGKILL
    wait_until_untouched(tmp_path / "a")


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals cannot be held back")
@pytest.mark.parametrize("is_first", [True, False])
def test_signals_to_the_whole_group_are_for_the_parent_alone(is_first, monkeypatch):
    monkeypatch.setattr("fmcli.training.executors.processes._CONTEXT", multiprocessing.get_context("spawn"))
    if is_first:
        resource_tracker._resource_tracker._stop()  # the first process of all starts it, and lets signals through
    (ended,) = run_in_processes({"a": say_which_signals_wait}, 1, ignore)
    assert ended.result == [signal.SIGINT, signal.SIGTERM]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
