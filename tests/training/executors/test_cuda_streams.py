"""Jobs that take turns in one process."""

import threading
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from fmcli.errors import DataError, DivergedError, FmcliError
from fmcli.events import BatchPredicted, CheckpointSaved, MemberFinished, StepFinished, StopRequest
from fmcli.training.executors import Job, JobResult, cuda_streams


def take_steps(name, steps, reporter):
    for step in range(1, steps + 1):
        reporter(StepFinished(name, step))
    reporter(MemberFinished(name, Path()))
    return f"{name} is done"


def predict_batches(name, batches, reporter):
    for _ in range(batches):
        reporter(BatchPredicted(name))


def run_until_stopped(saved, name, reporter):
    """Take steps until stopped, then save."""
    try:
        while True:
            reporter(StepFinished(name, 1))
    except StopRequest:
        reporter(CheckpointSaved(Path(name)))  # does not raise a second StopRequest
        saved.append(name)
        raise


def fail(error, reporter):
    reporter(StepFinished("failing", 1))
    raise error


def fail_when_stopped(error, reporter):
    try:
        while True:
            reporter(StepFinished("failing", 1))
    except StopRequest:
        raise error from None


def run_turns(works, max_parallel, reporter):
    return cuda_streams.run((Job(name, work) for name, work in works.items()), max_parallel, reporter)


def ignore(event):
    pass


def stop(event):
    raise StopRequest


def test_jobs_take_steps_in_turns():
    events = []
    jobs = {
        "a": partial(take_steps, "a", 2),
        "b": partial(take_steps, "b", 4),
        "c": partial(predict_batches, "c", 3),
    }
    results = list(run_turns(jobs, 2, events.append))
    assert results == [JobResult("a", "a is done"), JobResult("b", "b is done"), JobResult("c")]
    assert "".join(event.member for event in events) == "abab" + "a" + "bcbc" + "b" + "c"
    assert [event.step for event in events if isinstance(event, StepFinished) and event.member == "b"] == [1, 2, 3, 4]


@pytest.mark.parametrize("max_parallel", [1, 2, 9])
def test_all_jobs_run_and_never_more_in_parallel_than_allowed(max_parallel):
    running = max_running = 0

    def job(reporter):
        nonlocal running, max_running
        running += 1
        max_running = max(max_running, running)
        reporter(StepFinished("m", 1))
        running -= 1

    assert len(list(run_turns(dict.fromkeys("abcd", job), max_parallel, ignore))) == 4
    assert max_running == min(max_parallel, 4)


def test_reporter_is_called_in_the_callers_thread():
    threads = set()
    list(run_turns({"a": partial(take_steps, "a", 3)}, 1, lambda _: threads.add(threading.current_thread())))
    assert threads == {threading.current_thread()}


@pytest.mark.parametrize("error", [DivergedError("nan", hint="less"), DataError("gone"), ZeroDivisionError()])
def test_error_of_a_job_is_in_its_result_and_other_jobs_continue(error):
    results = list(run_turns({"a": partial(fail, error), "b": partial(take_steps, "b", 3)}, 2, ignore))
    assert results == [JobResult("a", error=error), JobResult("b", "b is done")]


@pytest.mark.parametrize("error", [StopRequest, KeyboardInterrupt, BrokenPipeError])
@pytest.mark.parametrize("n_events", [2, 3])  # during the first event of b, or the second event of a
def test_exception_of_the_reporter_stops_all_jobs_after_they_have_saved(error, n_events):
    saved = []

    def reporter(event):
        nonlocal n_events
        n_events -= 1
        if n_events == 0:
            raise error

    jobs = {name: partial(run_until_stopped, saved, name) for name in "ab"}
    with pytest.raises(error):
        list(run_turns(jobs, 2, reporter))
    assert sorted(saved) == ["a", "b"]


def test_stop_does_not_start_a_waiting_job():
    saved, started = [], []
    jobs = {"a": partial(run_until_stopped, saved, "a"), "b": lambda _: started.append("b")}
    with pytest.raises(StopRequest):
        list(run_turns(jobs, 2, stop))
    assert (saved, started) == (["a"], [])


def test_no_thread_is_left():
    before = threading.active_count()
    list(run_turns({name: partial(take_steps, name, 2) for name in "abc"}, 2, ignore))
    assert threading.active_count() == before


def test_job_does_not_stop_directly_after_it_saved_a_checkpoint():
    reached = []

    def job(reporter):
        reporter(CheckpointSaved(Path("file")))
        reached.append("next step")
        reporter(StepFinished("m", 1))
        reached.append("end")

    with pytest.raises(StopRequest):
        list(run_turns({"m": job}, 1, stop))
    assert reached == ["next step"]


def test_closing_the_generator_stops_all_jobs():
    saved = []
    jobs = {"a": partial(take_steps, "a", 1), "b": partial(run_until_stopped, saved, "b")}
    with closing(run_turns(jobs, 2, ignore)) as results:
        assert next(results).name == "a"
    assert saved == ["b"]


def test_error_while_saving_replaces_the_stop_request():
    jobs = {"a": partial(fail_when_stopped, FmcliError("disk full")), "b": partial(run_until_stopped, [], "b")}
    with pytest.raises(FmcliError, match="disk full"):
        list(run_turns(jobs, 2, stop))


def test_diverged_job_does_not_replace_the_stop_request():
    with pytest.raises(StopRequest):
        list(run_turns({"a": partial(fail_when_stopped, DivergedError("nan"))}, 1, stop))


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit()])
def test_job_that_ends_its_thread_has_a_result(error):
    """Without a result, the caller would wait for ever."""
    first, second = run_turns({"a": partial(fail, error), "b": partial(take_steps, "b", 1)}, 2, ignore)
    assert (first.name, type(first.error)) == ("a", RuntimeError)
    assert str(first.error).startswith(f"a raised {type(error).__name__}")
    assert second == JobResult("b", "b is done")
