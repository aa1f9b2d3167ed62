"""Jobs one after another, and properties of every executor."""

from typing import get_args

import pytest
import torch

from fmcli.choices import ExecutorName
from fmcli.errors import DivergedError
from fmcli.events import MemberFinished, StopRequest
from fmcli.training.executors import Job, JobResult, load_executor


def ignore(event):
    pass


def count_threads(reporter):
    return torch.get_num_threads()


def fail(error):
    def work(reporter):
        raise error

    return work


def run(*jobs, reporter=ignore):
    return list(load_executor("sequential").run(iter(jobs), 1, reporter))


def test_jobs_run_in_order_with_their_threads():
    jobs = [Job("a", count_threads, threads=2), Job("b", count_threads)]
    assert run(*jobs) == [JobResult("a", 2), JobResult("b", 1)]
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("error", [DivergedError("nan"), ZeroDivisionError()])
def test_error_of_a_job_is_in_its_result(error):
    assert run(Job("a", fail(error)), Job("b", count_threads)) == [JobResult("a", error=error), JobResult("b", 1)]


@pytest.mark.parametrize("error", [StopRequest, KeyboardInterrupt, SystemExit])
def test_stop_is_raised_immediately(error):
    with pytest.raises(error):
        run(Job("a", fail(error())), Job("b", lambda _: pytest.fail("b was started")))


def finish(reporter):
    reporter(MemberFinished("a", None))
    return "done"


@pytest.mark.parametrize("name", get_args(ExecutorName))
def test_every_executor_takes_a_job_only_when_it_can_start(name):
    """Another process can take a job until then."""
    taken, events = [], []

    def jobs():
        for number in range(3):
            taken.append(number)
            yield Job(f"job {number}", finish)

    for ended, result in enumerate(load_executor(name).run(jobs(), 1, events.append), start=1):
        assert (result, len(taken)) == (JobResult(f"job {ended - 1}", "done"), ended)
    assert len(events) == 3


@pytest.mark.parametrize("name", get_args(ExecutorName))
def test_every_executor_stops_at_an_event(name):
    def stop(event):
        raise StopRequest

    with pytest.raises(StopRequest):
        list(load_executor(name).run(iter([Job("a", finish), Job("b", finish)]), 1, stop))
