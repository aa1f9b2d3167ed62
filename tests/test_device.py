"""Threads: as many as asked for, and a word where fewer would be faster."""

import pytest
import torch

from fmcli import device
from fmcli.device import busy_cores, set_threads

CPU = torch.device("cpu")


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Let the system say how many threads run."""
    monkeypatch.setattr(device, "_LOAD", tmp_path / "loadavg")
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
    monkeypatch.setattr(device, "_LOAD", tmp_path / "nothing")
    assert busy_cores() == 0


@pytest.mark.parametrize(
    ("running", "threads", "said"),
    [(1, 4, None), (2, 4, "another program keeps a core busy; beside that, --threads 3"), (2, 3, None), (9, 1, None)],
)
def test_fewer_threads_are_recommended_beside_other_programs(load, monkeypatch, running, threads, said):
    load(f"0.1 0.1 0.1 {running}/100 4242")
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    torch.set_num_threads(threads)
    found = set_threads(None, CPU)
    assert (found is None) if said is None else found.startswith(said)
    assert set_threads(None, torch.device("meta")) is None  # no CPU
    assert torch.get_num_threads() == threads


def test_at_least_one_thread_is_recommended(load, monkeypatch):
    load("0.1 0.1 0.1 9/100 4242")
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    torch.set_num_threads(2)
    assert set_threads(None, CPU).startswith("other programs keep 8 cores busy; beside that, --threads 1 may")


def test_threads_that_are_asked_for_are_taken_without_a_word(load):
    load("0.1 0.1 0.1 9/100 4242")
    assert set_threads(1, CPU) is None
    assert torch.get_num_threads() == 1
