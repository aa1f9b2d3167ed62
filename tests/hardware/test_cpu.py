"""The number of CPU cores, from a fake /proc/loadavg and fake container quotas."""

import pytest

from fmcli.hardware import cpu
from fmcli.hardware.cpu import busy_cores, count_cores


@pytest.mark.parametrize(
    ("text", "busy"),
    [("0.52 0.58 0.59 1/812 4242", 0), ("1.9 0.1 0.1 3/812 4242", 2), ("", 0), ("0 0 0 none/1 2", 0)],
)
def test_busy_cores_are_the_running_threads_of_other_programs(monkeypatch, tmp_path, text, busy):
    (tmp_path / "loadavg").write_text(text)
    monkeypatch.setattr(cpu, "_LOAD_FILE", tmp_path / "loadavg")
    monkeypatch.setattr(cpu, "_SAMPLE_INTERVAL_S", 0)
    assert busy_cores() == busy


def test_without_a_load_file_no_core_is_busy(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu, "_LOAD_FILE", tmp_path / "nothing")
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
        (["200000", "100000"], 2),  # cgroup v1
        (["-1", "100000"], 4),
    ],
)
def test_a_container_quota_limits_the_number_of_cores(monkeypatch, tmp_path, texts, expected):
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    files = [tmp_path / str(index) for index in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(f"{text}\n")
    monkeypatch.setattr(cpu, "_QUOTA_FILES", ((tmp_path / "nothing",), files))
    assert count_cores() == expected
