"""Threads: as many as asked for, and a word where fewer would be faster."""

import pytest
import torch

from fmcli.cli.thread_count import advice_on_threads, use_threads
from fmcli.hardware import cpu
from fmcli.hardware.cpu import busy_cores, count_cores

CPU = torch.device("cpu")


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Let the system say how many threads run, on four cores."""
    monkeypatch.setattr(cpu, "_LOAD", tmp_path / "loadavg")
    monkeypatch.setattr(cpu, "count_cores", lambda: 4)
    return (tmp_path / "loadavg").write_text


@pytest.fixture(autouse=True)
def _threads_of_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("text", "busy"),
    [("0.52 0.58 0.59 1/812 4242", 0), ("1.9 0.1 0.1 3/812 4242", 2), ("", 0), ("0 0 0 none/1 2", 0)],
)
def test_busy_cores_are_those_of_others(load, text, busy):
    load(text)
    assert busy_cores() == busy


def test_where_the_system_does_not_say_no_core_is_busy(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu, "_LOAD", tmp_path / "nothing")
    assert busy_cores() == 0
    assert count_cores() >= 1


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["200000 100000"], 2),
        (["150000 100000"], 2),
        (["10000 100000"], 1),
        (["900000 100000"], 4),
        (["max 100000"], 4),
        ([""], 4),
        (["1 0"], 4),
        (["200000", "100000"], 2),  # by version 1
        (["-1", "100000"], 4),
    ],
)
def test_a_container_that_may_use_the_time_of_so_many_cores_has_so_many(monkeypatch, tmp_path, texts, expected):
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    files = [tmp_path / str(place) for place in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(f"{text}\n")
    monkeypatch.setattr(cpu, "_QUOTAS", ((tmp_path / "nothing",), files))
    assert count_cores() == expected


def test_no_more_threads_are_used_than_there_are_cores_unless_asked_for(monkeypatch):
    monkeypatch.setattr(cpu, "count_cores", lambda: 3)
    for before, asked, after in ((4, None, 3), (2, None, 2), (4, 4, 4)):
        torch.set_num_threads(before)
        use_threads(asked, CPU, advise=False)
        assert torch.get_num_threads() == after


@pytest.mark.parametrize(
    ("running", "threads", "said"),
    [
        (1, 4, None),
        (2, 4, None),  # three of four cores are free
        (3, 4, "other programs keep 2 cores busy; beside that, --threads 2 may"),
        (9, 4, "other programs keep 8 cores busy; beside that, --threads 1 may"),
        (9, 1, None),
    ],
)
def test_fewer_threads_are_recommended_where_half_the_cores_are_busy(load, running, threads, said):
    load(f"0.1 0.1 0.1 {running}/100 4242")
    found = advice_on_threads(threads)
    assert (found is None) if said is None else found.startswith(said)


def test_one_other_program_on_two_cores(load, monkeypatch):
    load("0.1 0.1 0.1 2/100 4242")
    monkeypatch.setattr(cpu, "count_cores", lambda: 2)
    assert advice_on_threads(2).startswith("another program keeps a core busy; beside that, --threads 1 may")


def test_who_asks_for_threads_or_goes_on_hears_nothing(load):
    load("0.1 0.1 0.1 9/100 4242")
    torch.set_num_threads(4)
    assert use_threads(None, CPU, advise=False) is None
    assert use_threads(None, torch.device("meta"), advise=True) is None  # no CPU
    assert use_threads(3, CPU, advise=True) is None
    assert torch.get_num_threads() == 3
    torch.set_num_threads(4)
    assert "--threads 1 may be twice as fast" in use_threads(None, CPU, advise=True)
