"""Benchmarks: tables of results."""

import doctest
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import markdown
from benchmarks.plan import Measurement
from benchmarks.run import collect
from benchmarks.run_tables import accuracy, build
from benchmarks.table import TABLES, main, sources
from benchmarks.works import load_work, training_operations

DOCS = Path(__file__).parent.parent / "docs"
PEERS = ("fmcli", "keras", "keras-bf16", "torch", "torch-bf16")


def test_doctests_of_the_formats_pass():
    assert doctest.testmod(markdown).failed == 0


def rates(*values: float) -> list[dict]:
    return [{"images_per_second": value} for value in values]


def result() -> dict:
    """Return an invented result of a run."""
    operations = training_operations(load_work("m3").traces)
    fails = [{"error": "took more than 600 s"}, {"error": "took more than 600 s"}]
    limits = {
        "bf16_operations_per_second": 200.0 * operations,
        "fp32_operations_per_second": 1e12,
        "copied_bytes_per_second": 1e10,
    }
    curve = [[10.0, 0.91], [20.0, 0.925], [30.0, 0.935]]
    whole = {"members": {"k3": curve}, "train_seconds": 30.0, "command_seconds": 33.0, "vote_accuracy": 0.9412}
    answers = {
        Measurement("limits", "machine", ("machine",)): {"machine": [limits]},
        Measurement("train", "m3", PEERS[:4]): {
            "fmcli": rates(100.0),
            "keras": rates(10.0),
            "keras-bf16": rates(20.0),
            "torch": fails,
        },
        Measurement("train", "m3", PEERS[:2], augment=True): {"fmcli": rates(80.0), "keras": rates(8.0)},
        Measurement("predict", "quick", PEERS[:2]): {"fmcli": rates(12345.6), "keras": rates(1000.0)},
        Measurement("memory", "quick-k3", ("fmcli", "torch")): {
            "fmcli": [{"peak_bytes": 2**29}],
            "torch": [{"peak_bytes": 2**30}],
        },
        Measurement("accuracy", "quick", ("fmcli",)): {"fmcli": [whole]},
        Measurement("startup", "fmcli --help", ("fmcli",)): {"fmcli": [{}, {"seconds": 0.11}]},
        Measurement("startup", "quick-k3", PEERS[:2]): {"fmcli": [{}, {"seconds": 4}], "keras": [{}, {"seconds": 16}]},
    }
    machine = {"cpu": "A", "gpu": None, "cores": 2, "cpu_bf16": ["amx_bf16"], "python": "3", "versions": {}}
    return {
        "results": collect(answers),
        "command": ["python", "-m", "benchmarks.run"],
        "schedule_seconds": {"fmcli": 7200.0},
        "machine": machine | {"commit": "abc"},
        "options": {"device": "cpu", "sections": ["train"], "threads": 2, "repeats": 1},
        "load_before": 0.0,
        "began": "today",
        "notes": ["keras is skipped: tensorflow is not installed"],
    }


@pytest.mark.parametrize(
    "line",
    [
        "| `m3`, batch 120 | 100 | 10 | 20 | – |",
        "| `m3`, batch 120 | 5.0 | 10.0 | 5.0 |",
        "| `m3`, batch 120 | 50 % | 5 % |",
        "| `m3`, batch 120 | 80 | 8 |",
        "| `m3`, batch 120 | 10.0 | 10.0 |",
        "| lowest to highest | 10.0 to 10.0 | 10.0 to 10.0 |",
        "| `m3`, batch 120 | 100 | 80 | +25.0 % | +25 to +25 % |",
        "| fmcli | 12,346 | 12,346 to 12,346 | 1.00 |",
        "| Keras | 1,000 | 1,000 to 1,000 | 12.35 |",
        "| fmcli | 512 | 512 to 512 | 1.00 |",
        "| PyTorch | 1,024 | 1,024 to 1,024 | 0.50 |",
        "| `quick`, k3, fmcli | 10.0 | 20.0 | 30.0 | – | 93.50 % after 30.0 s |",
        "| `quick`, vote |  |  |  |  | 94.12 % after 30.0 s; whole command 33.0 s |",
        "| fmcli | 2.0 h |",
        "| `fmcli --help` | 0.11 |",
        "| Keras | 16.00 | 16.00 to 16.00 | 0.25 |",
        "Measured once.",
        "train m3, torch: took more than 600 s (2 times)",
        "keras is skipped: tensorflow is not installed",
    ],
)
def test_the_tables_contain(line):
    assert line in list(build(json.loads(json.dumps(result()))))


def test_several_training_runs_are_shown_as_mean_and_spread():
    curves = [[[10.0, 0.91], [20.0, 0.935]], [[14.0, 0.89], [24.0, 0.925]]]
    answers = [
        {"members": {"m1": curve}, "train_seconds": 1 + index, "command_seconds": 5, "vote_accuracy": 0.91}
        for index, curve in enumerate(curves)
    ]
    of_peer = [{"members": {"quick-k3": curve}} for curve in curves]
    line = {"work": "roy-1", "peers": {"fmcli": {"answers": [*answers, {"error": "took too long"}]}}}
    rows = list(accuracy([line, {"work": "quick-k3", "peers": {"keras": {"answers": of_peer}}}], (90, 92, 93)))
    assert "| `roy-1`, m1, fmcli | 24.0 | 24.0 | – | 92.50 % after 24.0 s |" in rows
    times = "17.0 ± 9.9 | 22.0 ± 2.8 | – | 93.00 ± 0.71 % after 22.0 ± 2.8 s |"
    assert f"| `roy-1`, mean of 2, m1, fmcli | {times}" in rows
    assert "| `roy-1`, mean of 2, vote |  |  |  | 91.00 ± 0.00 % after 1.5 ± 0.7 s; whole command 5.0 ± 0.0 s |" in rows
    assert f"| `quick-k3`, mean of 2, Keras | {times}" in rows


def test_rows_have_the_length_of_their_heading():
    check_widths(list(build(result())))


def check_widths(lines: list[str]) -> None:
    for line, following in pairwise(lines):
        if line.startswith("|") and following.startswith("|"):
            assert line.count("|") == following.count("|")


@pytest.mark.parametrize("name", TABLES)
def test_each_table_of_the_documentation_has_rows_as_long_as_its_heading(name):
    lines = list(TABLES[name].lines())
    assert re.fullmatch(r"\|(---\|)+", lines[1])
    assert lines[2].startswith("|")
    assert "" in lines
    check_widths(lines)
    assert all(len(line) <= 120 for line in lines if not line.startswith("|"))


def test_the_table_of_sources_has_a_command_for_each_file():
    lines = list(sources())
    check_widths(lines)
    assert all("| `python -m benchmarks." in line for line in lines[2:])


def test_each_table_is_on_a_page():
    text = "".join((DOCS / page).read_text("utf-8") for page in ("performance.md", "published-systems.md"))
    shown = re.findall(r"<!-- output of: python -m benchmarks.table (\S+) -->", text)
    assert sorted(shown) == sorted([*TABLES, "sources"])


def test_a_table_is_printed_by_name(capsys):
    main(["quick"])
    assert capsys.readouterr().out.splitlines() == list(TABLES["quick"].lines())
    main([])
    assert capsys.readouterr().out.split() == [*TABLES, "sources"]
    with pytest.raises(SystemExit, match="unknown table 'quik'; expected one of: "):
        main(["quik"])


def test_all_tables_of_a_result_file_are_printed(tmp_path, capsys):
    (tmp_path / "cpu.json").write_text(json.dumps(result()))
    main([str(tmp_path / "cpu.json")])
    assert capsys.readouterr().out.splitlines() == list(build(result()))
