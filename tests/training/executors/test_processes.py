"""Jobs in their own processes."""

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
import torch

from fmcli.errors import DataError, DivergedError, FmcliError, RecipeError
from fmcli.events import BatchPredicted, CheckpointSaved, MemberFinished, StepFinished, StopRequest
from fmcli.training.executors import Job, JobResult, processes
from tests.processes import StartedProcess

# Jobs. A process can import only functions of a module.


def count(end, reporter):
    for number in range(end):
        reporter(MemberFinished(f"to {end}", Path(str(number))))
    return end * 10


def count_steps(reporter):
    for step in range(1000):
        reporter(StepFinished("m", step))
        reporter(BatchPredicted("m"))
    reporter(MemberFinished("m", Path()))


def run_until_stopped(path, reporter):
    """Report until stopped, then write a file."""
    try:
        while True:
            time.sleep(0.01)
            reporter(MemberFinished("m", path))
    except StopRequest:
        path.write_text("saved")
        raise


def save_for_ever(path, reporter):
    """Report only events at which a job does not stop."""
    while True:
        reporter(CheckpointSaved(path))
        path.touch()
        time.sleep(0.01)


def touch_for_ever(path, reporter):
    """Report once, and never again."""
    reporter(CheckpointSaved(path))
    while True:
        path.touch()
        time.sleep(0.01)


def fail(error, reporter):
    raise error


def leave(reporter):
    sys.exit(3)


def count_threads(reporter):
    return torch.get_num_threads()


def die(reporter):
    os._exit(7)


def be_killed(started, reporter):
    """Be killed after a file shows that the other job has started."""
    while not started.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def overlap_with_another(folder, name, reporter):
    """Record start and end; end only after a second job has started, or after a minute."""
    (folder / f"{name} starts {time.monotonic()}").touch()
    deadline = time.monotonic() + 60
    while len(list(folder.glob("* starts *"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    (folder / f"{name} ends {time.monotonic()}").touch()


def list_blocked_signals(reporter):
    return sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def run_in_processes(works, max_parallel, reporter):
    return processes.run((Job(name, work) for name, work in works.items()), max_parallel, reporter)


def ignore(event):
    pass


def test_all_jobs_run_and_their_events_arrive_in_order():
    events = []
    results = list(run_in_processes({"a": partial(count, 2), "b": partial(count, 3)}, 2, events.append))
    assert {one.name: one.result for one in results} == {"a": 20, "b": 30}
    for end in (2, 3):
        numbers = [int(str(event.path)) for event in events if event.member == f"to {end}"]
        assert numbers == list(range(end))


def test_exactly_the_requested_number_of_jobs_run_in_parallel(tmp_path):
    jobs = {name: partial(overlap_with_another, tmp_path, name) for name in "abcde"}
    assert {one.name for one in run_in_processes(jobs, 2, ignore)} == set(jobs)
    events = sorted((path.name.split()[1:] for path in tmp_path.iterdir()), key=lambda words: float(words[1]))
    running = max_running = 0
    for kind, _ in events:
        running += 1 if kind == "starts" else -1
        max_running = max(max_running, running)
    assert max_running == 2


def test_only_some_steps_are_reported():
    events = []
    list(run_in_processes({"m": count_steps}, 1, events.append))
    assert 1 <= len(events) < 500
    assert isinstance(events[-1], MemberFinished)


@pytest.mark.parametrize(
    "error",
    [
        DivergedError("nan", hint="less"),
        DataError("gone"),
        RecipeError("wrong", problems=["a: b"], hint="fix it"),
        OSError(28, "No space left on device"),
    ],
)
def test_error_of_a_job_is_in_its_result_and_other_jobs_continue(error):
    jobs = {"a": partial(fail, error), "b": partial(count, 1)}
    results = {one.name: one for one in run_in_processes(jobs, 2, ignore)}
    assert results["b"] == JobResult("b", result=10)
    found = results["a"].error
    assert (type(found), str(found), getattr(found, "hint", None)) == (
        type(error),
        str(error),
        getattr(error, "hint", None),
    )
    assert "in fail" in found.__notes__[0]


def fail_oddly(reporter):
    class Odd(Exception):  # cannot be unpickled in another process
        def __init__(self, *, reason):
            super().__init__(f"it is {reason}")

    raise Odd(reason="odd")


def test_error_that_cannot_be_pickled_is_quoted():
    (result,) = run_in_processes({"a": fail_oddly}, 1, ignore)
    assert (type(result.error), str(result.error)) == (RuntimeError, "Odd: it is odd")
    assert "in fail_oddly" in result.error.__notes__[0]


def fail_to_save(reporter):
    try:
        while True:
            reporter(MemberFinished("m", Path()))
            time.sleep(0.01)
    except StopRequest:
        raise FmcliError("disk full") from None


def diverge_when_stopped(reporter):
    try:
        while True:
            reporter(MemberFinished("m", Path()))
            time.sleep(0.01)
    except StopRequest:
        raise DivergedError("the loss is nan") from None


def test_diverged_job_does_not_replace_the_stop_request(tmp_path):
    jobs = {"a": diverge_when_stopped, "b": partial(run_until_stopped, tmp_path / "b")}
    reported = set()

    def reporter(event):
        reported.add(event.path)
        if len(reported) == 2:
            raise StopRequest

    with pytest.raises(StopRequest):
        list(run_in_processes(jobs, 2, reporter))
    assert (tmp_path / "b").read_text() == "saved"


@pytest.mark.parametrize("error", [StopRequest, KeyboardInterrupt])
def test_error_while_saving_replaces_the_stop_request(error):
    def reporter(event):
        raise error

    with pytest.raises(FmcliError, match="disk full"):
        list(run_in_processes({"a": fail_to_save}, 1, reporter))


def test_dead_process_is_an_error_of_its_job():
    results = list(run_in_processes({"a": die, "b": partial(count, 1)}, 1, ignore))
    assert str(results[0].error) == "the process of a died with exit status 7"
    assert results[1] == JobResult("b", result=10)


def test_job_that_exits_has_a_result():
    (result,) = run_in_processes({"a": leave}, 1, ignore)
    assert (type(result.error), str(result.error)) == (RuntimeError, "a raised SystemExit: 3")


def test_process_has_the_threads_of_its_job():
    (result,) = processes.run(iter([Job("a", count_threads, threads=3)]), 1, ignore)
    assert result.result == 3


def test_other_jobs_can_save_after_a_process_was_killed(tmp_path):
    jobs = {
        "a": partial(be_killed, tmp_path / "started"),
        "b": partial(run_until_stopped, tmp_path / "b"),
    }
    with closing(run_in_processes(jobs, 2, lambda event: (tmp_path / "started").touch())) as results:
        error = next(results).error
    assert str(error) == "the process of a was killed: Killed"
    assert "memory" in error.hint
    assert (tmp_path / "b").read_text() == "saved"


@pytest.mark.parametrize("error", [StopRequest, KeyboardInterrupt])
def test_exception_of_the_reporter_stops_all_jobs_after_they_have_saved(error, tmp_path):
    jobs = {name: partial(run_until_stopped, tmp_path / name) for name in "ab"}
    reported = set()

    def reporter(event):
        reported.add(event.path.name)
        if reported == {"a", "b"}:
            raise error

    with pytest.raises(error):
        list(run_in_processes(jobs, 2, reporter))
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["saved", "saved"]


def test_closing_the_generator_stops_all_jobs(tmp_path):
    jobs = {"a": partial(count, 1), "b": partial(run_until_stopped, tmp_path / "b"), "c": partial(count, 1)}
    events = []
    with closing(run_in_processes(jobs, 2, events.append)) as results:
        assert next(results).name == "a"
        assert next(results).name == "c"
    if tmp_path / "b" in [event.path for event in events]:  # otherwise b had not started
        assert (tmp_path / "b").read_text() == "saved"


def run_and_signal(job, signals, path):
    """Run a job and send signals to this process after the first event."""

    def send_signals():
        for number in signals:
            os.kill(os.getpid(), number)
            time.sleep(0.5)

    def reporter(event):
        if not seen:
            threading.Thread(target=send_signals, daemon=True).start()
        seen.append(event)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores SIGINT
    seen = []
    try:
        list(run_in_processes({"a": partial(job, path)}, 1, reporter))
    except KeyboardInterrupt:
        sys.exit("interrupted")


def wait_until_untouched(path: Path) -> None:
    before = 0
    while before != (before := path.stat().st_mtime_ns):
        time.sleep(0.5)


def test_second_ctrl_c_kills_a_job_that_does_not_stop(tmp_path):
    # More than two signals: Python raises only one error for signals that arrive together.
    ended = StartedProcess(run_and_signal, save_for_ever, 100 * [signal.SIGINT], tmp_path / "a").finish()
    assert "interrupted" in ended.err
    wait_until_untouched(tmp_path / "a")


@pytest.mark.parametrize("job", [save_for_ever, touch_for_ever])
def test_process_exits_if_its_parent_is_killed(job, tmp_path):
    assert StartedProcess(run_and_signal, job, [signal.SIGKILL], tmp_path / "a").finish().status == -signal.SIGKILL
    wait_until_untouched(tmp_path / "a")


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals cannot be blocked on this platform")
@pytest.mark.parametrize("is_first", [True, False])
def test_job_processes_block_signals_to_the_process_group(is_first, monkeypatch):
    monkeypatch.setattr("fmcli.training.executors.processes._CONTEXT", multiprocessing.get_context("spawn"))
    if is_first:
        resource_tracker._resource_tracker._stop()  # the first process would start it again and unblock the signals
    (result,) = run_in_processes({"a": list_blocked_signals}, 1, ignore)
    assert result.result == [signal.SIGINT, signal.SIGTERM]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
