"""Pieces of work that take turns within one process."""

import threading
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from fmcli.errors import DataError, DivergedError, FmcliError
from fmcli.events import BatchPredicted, CheckpointSaved, MemberFinished, StepFinished, StopRequest
from fmcli.training.executors import JobResult, run_interleaved


def take_steps(name, steps, reporter):
    for step in range(1, steps + 1):
        reporter(StepFinished(name, step))
    reporter(MemberFinished(name, Path()))
    return f"{name} is done"


def answer(name, batches, reporter):
    for _ in range(batches):
        reporter(BatchPredicted(name))


def run_until_stopped(saved, name, reporter):
    """Take steps until stopped, and save then."""
    try:
        while True:
            reporter(StepFinished(name, 1))
    except StopRequest:
        reporter(CheckpointSaved(Path(name)))  # still messages by nobody, and no second stop
        saved.append(name)
        raise


def fail(error, reporter):
    reporter(StepFinished("failing", 1))
    raise error


def raise_when_stopped(error, reporter):
    try:
        while True:
            reporter(StepFinished("failing", 1))
    except StopRequest:
        raise error from None


def ignore(event):
    pass


def test_each_takes_a_step_in_its_turn():
    events = []
    works = {"a": partial(take_steps, "a", 2), "b": partial(take_steps, "b", 4), "c": partial(answer, "c", 3)}
    ended = list(run_interleaved(works, 2, events.append))
    assert ended == [JobResult("a", "a is done"), JobResult("b", "b is done"), JobResult("c")]
    assert "".join(event.member for event in events) == "abab" + "a" + "bcbc" + "b" + "c"
    assert [event.step for event in events if isinstance(event, StepFinished) and event.member == "b"] == [1, 2, 3, 4]


@pytest.mark.parametrize("at_once", [1, 2, 9])
def test_all_is_done_however_many_are_begun_at_a_time(at_once):
    begun = most = 0

    def work(reporter):
        nonlocal begun, most
        begun += 1
        most = max(most, begun)
        reporter(StepFinished("m", 1))
        begun -= 1

    assert len(list(run_interleaved(dict.fromkeys("abcd", work), at_once, ignore))) == 4
    assert most == min(at_once, 4)


def test_the_reporter_is_called_where_the_work_was_asked_for_and_never_twice_at_once():
    threads = set()
    list(run_interleaved({"a": partial(take_steps, "a", 3)}, 1, lambda _: threads.add(threading.current_thread())))
    assert threads == {threading.current_thread()}


@pytest.mark.parametrize("error", [DivergedError("nan", hint="less"), DataError("gone"), ZeroDivisionError()])
def test_an_error_is_brought_here_and_the_others_go_on(error):
    ended = list(run_interleaved({"a": partial(fail, error), "b": partial(take_steps, "b", 3)}, 2, ignore))
    assert ended == [JobResult("a", error=error), JobResult("b", "b is done")]


@pytest.mark.parametrize("error", [StopRequest, KeyboardInterrupt, BrokenPipeError])
@pytest.mark.parametrize("left", [2, 3])  # where b has begun, and where it is a's turn again
def test_what_the_reporter_raises_stops_all_and_lets_them_save(error, left):
    saved = []

    def reporter(event):
        nonlocal left
        left -= 1
        if left == 0:
            raise error

    works = {name: partial(run_until_stopped, saved, name) for name in "ab"}
    with pytest.raises(error):
        list(run_interleaved(works, 2, reporter))
    assert sorted(saved) == ["a", "b"]


def test_what_has_not_begun_does_not_begin_to_be_stopped():
    saved, begun = [], []

    def reporter(event):
        raise StopRequest

    works = {"a": partial(run_until_stopped, saved, "a"), "b": lambda _: begun.append("b")}
    with pytest.raises(StopRequest):
        list(run_interleaved(works, 2, reporter))
    assert (saved, begun) == (["a"], [])


def test_what_ends_the_thread_is_an_error_of_the_work():
    def leave(reporter):
        raise SystemExit(3)

    ended = list(run_interleaved({"a": leave, "b": partial(take_steps, "b", 2)}, 2, ignore))
    assert (str(ended[0].error), ended[1].result) == ("SystemExit: 3", "b is done")


def test_no_thread_is_left():
    before = threading.active_count()
    list(run_interleaved({name: partial(take_steps, name, 2) for name in "abc"}, 2, ignore))
    assert threading.active_count() == before


def test_a_stop_waits_for_the_event_that_a_saved_file_belongs_to():
    messages = []

    def work(reporter):
        reporter(CheckpointSaved(Path("file")))
        messages.append("goes on")
        reporter(StepFinished("m", 1))
        messages.append("is not reached")

    def reporter(event):
        raise StopRequest

    with pytest.raises(StopRequest):
        list(run_interleaved({"m": work}, 1, reporter))
    assert messages == ["goes on"]


def test_whoever_stops_listening_stops_all():
    saved = []
    works = {"a": partial(take_steps, "a", 1), "b": partial(run_until_stopped, saved, "b")}
    with closing(run_interleaved(works, 2, ignore)) as ends:
        assert next(ends).name == "a"
    assert saved == ["b"]


def test_what_cannot_be_saved_is_told_instead_of_the_stop():
    works = {"a": partial(raise_when_stopped, FmcliError("no room")), "b": partial(run_until_stopped, [], "b")}

    def reporter(event):
        raise StopRequest

    with pytest.raises(FmcliError, match="no room"):
        list(run_interleaved(works, 2, reporter))


def test_what_diverged_has_nothing_to_save():
    def reporter(event):
        raise StopRequest

    with pytest.raises(StopRequest):
        list(run_interleaved({"a": partial(raise_when_stopped, DivergedError("nan"))}, 1, reporter))


def test_each_is_done_within_something_of_its_own_in_its_own_thread():
    said = []

    @contextmanager
    def within():
        thread = threading.current_thread()
        said.append(("enters", thread.name))
        yield
        said.append(("leaves", thread.name))

    list(run_interleaved({name: partial(take_steps, name, 2) for name in "ab"}, 2, ignore, context=within))
    assert said == [("enters", "a"), ("enters", "b"), ("leaves", "a"), ("leaves", "b")]


def test_what_cannot_be_entered_is_an_error_of_the_work():
    @contextmanager
    def within():
        raise RuntimeError("no stream")
        yield

    (ended,) = run_interleaved({"a": partial(take_steps, "a", 1)}, 1, ignore, context=within)
    assert str(ended.error) == "no stream"
