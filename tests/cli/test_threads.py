"""The number of threads, and the advice to use fewer."""

import pytest
import torch

from fmcli.cli.thread_count import set_threads, thread_advice
from fmcli.hardware import cpu

CPU = torch.device("cpu")


@pytest.fixture
def load(tmp_path, monkeypatch):
    """A function that sets the content of /proc/loadavg on a machine with four cores."""
    monkeypatch.setattr(cpu, "_LOAD_FILE", tmp_path / "loadavg")
    monkeypatch.setattr(cpu, "_SAMPLE_INTERVAL_S", 0)
    monkeypatch.setattr(cpu, "count_cores", lambda: 4)
    return (tmp_path / "loadavg").write_text


@pytest.fixture(autouse=True)
def _restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_default_is_at_most_one_thread_per_core(monkeypatch):
    monkeypatch.setattr(cpu, "count_cores", lambda: 3)
    for before, asked, after in ((4, None, 3), (2, None, 2), (4, 4, 4)):
        torch.set_num_threads(before)
        set_threads(asked, CPU, advise=False)
        assert torch.get_num_threads() == after


@pytest.mark.parametrize(
    ("running", "threads", "advice"),
    [
        (1, 4, None),
        (2, 4, None),  # three of four cores are free
        (3, 4, "other programs are running 2 threads; --threads 2 may"),
        (9, 4, "other programs are running 8 threads; --threads 1 may"),
        (9, 1, None),
    ],
)
def test_fewer_threads_are_advised_if_half_the_cores_are_busy(load, running, threads, advice):
    load(f"0.1 0.1 0.1 {running}/100 4242")
    found = thread_advice(threads)
    assert (found is None) if advice is None else found.startswith(advice)


def test_advice_with_one_other_program_on_two_cores(load, monkeypatch):
    load("0.1 0.1 0.1 2/100 4242")
    monkeypatch.setattr(cpu, "count_cores", lambda: 2)
    assert thread_advice(2).startswith("another program is using a core; --threads 1 may")


def test_no_advice_if_threads_is_given_or_the_run_is_resumed(load):
    load("0.1 0.1 0.1 9/100 4242")
    torch.set_num_threads(4)
    assert set_threads(None, CPU, advise=False) is None
    assert set_threads(None, torch.device("meta"), advise=True) is None  # no CPU
    assert set_threads(3, CPU, advise=True) is None
    assert torch.get_num_threads() == 3
    torch.set_num_threads(4)
    assert "--threads 1 may be twice as fast" in set_threads(None, CPU, advise=True)
