"""Benchmarks: networks of the peers, operations, order, medians, tables, and one small run."""

import doctest
import importlib.util
import json
import os
import runpy
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.autograd import DeviceType

import benchmarks.run
from benchmarks import folding, peers, precision, processes, profile, summary
from benchmarks.peers import Clock, Job, torch_peer
from benchmarks.plan import Measurement, interleave, parse, plan
from benchmarks.works import INPUT_SHAPE, N_CLASSES, WORKS, load_work, training_bytes, training_operations
from fmcli.networks.build import build_model
from fmcli.networks.cpu import loading, pooling
from fmcli.recipe import load_recipe
from fmcli.recipe.layers import BatchNorm, Conv, Dense, Dropout, Flatten, GlobalAvgPool, MaxPool
from fmcli.recipe.tracing import trace_layers
from fmcli.training.run import train_run
from tests.processes import StartedProcess

PEERS = ("fmcli", "keras", "keras-bf16", "torch", "torch-bf16")


def expected_parameters(name: str) -> int:
    return sum(trace.parameters for trace in load_work(name).traces)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# --- the same tasks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORKS)
def test_networks_in_plain_pytorch_have_the_same_parameters_as_ours(name):
    traces = load_work(name).traces
    ours = build_model(traces)
    assert count(torch_peer.build_network(traces)) == count(ours) == expected_parameters(name)


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="needs the extra `bench`")
def test_networks_in_keras_have_the_same_parameters_as_ours():
    job = json.dumps(asdict(Job(task="parameters", images="")))
    command = [sys.executable, "-m", "benchmarks.peers.keras_peer", job]
    found = json.loads(processes.run(command, limit=200).output)
    assert {name: found[name] for name in WORKS} == {name: expected_parameters(name) for name in WORKS}


UNEVEN = (
    Conv(filters=4, kernel_size=4, padding="same", activation="relu"),
    MaxPool(size=2),
    Conv(filters=6, kernel_size=3, stride=2, padding="same", activation="tanh"),
    BatchNorm(activation="relu"),
    GlobalAvgPool(),
    Dense(units=N_CLASSES),
)


@pytest.mark.parametrize(
    "traces",
    [trace_layers(UNEVEN, INPUT_SHAPE, N_CLASSES), load_work("quick-k3").traces],
    ids=["uneven", "quick-k3"],
)
def test_networks_in_plain_pytorch_compute_the_same_as_ours(traces):
    ours = build_model(traces, generator=torch.Generator().manual_seed(0)).eval()
    theirs = torch_peer.build_network(traces).eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    images = torch.rand(5, *INPUT_SHAPE, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(theirs(images), ours(images), rtol=1e-4, atol=1e-5)


def test_the_peer_uses_the_l2_penalties_of_the_recipe():
    work = load_work("mell-cnn")
    model = torch_peer.build_network(work.traces)
    assert [factor for factor, _ in torch_peer.find_penalties(work, model)] == [1e-4, 1e-4]
    assert [weight.shape[0] for _, weight in torch_peer.find_penalties(work, model)] == [128, 10]


def test_augmentation_is_rotation_and_translation_or_none():
    without, augmented = load_work("quick-k3").member.augment, load_work("quick-k3", augment=True).member.augment
    assert (without.rotate, without.translate, without.flip, without.shift, without.erase) == (0, 0, 0, 0, 0)
    assert (augmented.rotate, augmented.translate, augmented.flip, augmented.erase) == (20, 0.2, 0, 0)


def test_operations_and_bytes_of_a_small_network_by_hand():
    layers = (
        Conv(filters=2, kernel_size=3),  # (1, 6, 6) → (2, 4, 4): 32 outputs of 9 multiply-adds
        MaxPool(size=2),  # → (2, 2, 2)
        Flatten(),
        Dropout(rate=0.5),
        Dense(units=10),  # 80 multiply-adds
    )
    traces = trace_layers(layers, (1, 6, 6), 10)
    # Convolution: output and weight gradient. Dense layer: output, weight and input gradients.
    assert training_operations(traces) == 2 * (2 * 288 + 3 * 80)
    assert training_bytes(traces) == 2 * 5 * (32 + 8 + 8 + 8 + 10)


# --- the plan --------------------------------------------------------------------------------------------


def test_a_different_peer_goes_first_in_each_repeat():
    two = [Measurement("train", "a", ("x", "y", "z"), repeats=3), Measurement("train", "b", ("x",), repeats=1)]
    order = [(repeat, one.work, peer) for repeat, one, peer in interleave(two)]
    assert order == [
        *((0, "a", "x"), (0, "a", "y"), (0, "a", "z"), (0, "b", "x")),
        *((1, "a", "y"), (1, "a", "z"), (1, "a", "x")),
        *((2, "a", "z"), (2, "a", "x"), (2, "a", "y")),
    ]


def test_all_sections_are_planned_by_default():
    options = parse([])
    planned = plan(options, PEERS)
    assert {one.section for one in planned} == {"limits", "startup", "train", "predict", "memory", "accuracy"}
    trained = {(one.work, one.augment): one for one in planned if one.section == "train"}
    assert set(trained) == {(work, augment) for work in WORKS for augment in (False, True)}
    assert all(one.peers == PEERS and one.repeats == options.repeats for one in trained.values())
    assert [one.peers for one in planned if one.section == "accuracy"] == [("fmcli",)]


def test_sections_and_device_can_be_chosen():
    options = parse(["--works", "roy-1", "--sections", "train", "--augment", "with", "--repeats", "2"])
    assert plan(options, ("fmcli",)) == [Measurement("train", "roy-1", ("fmcli",), augment=True, repeats=2)]
    on_gpu = parse(["--device", "cuda"])
    assert on_gpu.peers == ("fmcli", "torch", "torch-bf16")
    assert on_gpu.output.name == "cuda.json"
    others = plan(parse(["--sections", "accuracy", "--accuracy-peers"]), PEERS)[1:]
    assert [(one.work, one.peers) for one in others] == [
        (work, PEERS[1:]) for work in ("quick-k3", "quick-k5", "quick-k7")
    ]


def test_peers_can_be_measured_without_fmcli():
    planned = plan(parse(["--accuracy-peers"]), ("keras",))
    assert {one.peers for one in planned} == {("machine",), ("keras",)}
    assert "startup" not in {one.section for one in planned}


# --- clocks and processes --------------------------------------------------------------------------------


@pytest.fixture
def at(monkeypatch):
    """Return a function that sets the time."""
    now = [100.0]
    monkeypatch.setattr(peers.time, "perf_counter", lambda: now[0])
    return lambda seconds: now.__setitem__(0, seconds)


def test_the_clock_counts_after_the_warm_up_until_the_time_is_up(at):
    clock = Clock(seconds=4, batch_size=10)
    for second in (100, 100.1, 100.2, 100.9):  # three steps suffice, but a quarter of the time is not over
        at(second)
        assert not clock.step()
    at(101)
    assert not clock.step()  # timing starts here
    ends = []
    for second in range(102, 110):
        at(second)
        ends.append(clock.step())
        if ends[-1]:
            break
    assert ends == [False] * 4 + [True]  # the time is over after four steps, but five are the minimum
    assert clock.answer() == {"images_per_second": 10.0, "steps": 5, "seconds": 5}


def test_the_clock_waits_for_the_device_at_both_ends(at):
    waits = []
    clock = Clock(seconds=1, batch_size=1, synchronize=lambda: waits.append(clock.steps))
    for second in range(101, 120):
        at(second)
        if clock.step():
            break
    assert waits == [3, 5]


def test_output_time_and_memory_of_a_process_are_measured():
    program = "import time; held = bytearray(60_000_000); time.sleep(0.5); print(len(held))"
    done = processes.run([sys.executable, "-c", program], limit=30, watch=True)
    assert done.output == "60000000\n"
    assert done.seconds >= 0.5
    if Path("/proc/self/smaps_rollup").exists():
        assert done.peak_bytes > 60_000_000


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_memory_of_child_processes_is_counted():
    child = "import time; held = bytearray(60_000_000); time.sleep(1)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{child}'])"
    assert processes.run([sys.executable, "-c", program], limit=30, watch=True).peak_bytes > 60_000_000


@pytest.mark.parametrize(
    ("program", "limit", "problem"),
    [("raise SystemExit('no luck')", 30, "no luck"), ("import time; time.sleep(600)", 0.5, "took more than")],
)
def test_a_process_that_fails_or_takes_too_long_is_reported(program, limit, problem):
    with pytest.raises(processes.FailedError, match=problem):
        processes.run([sys.executable, "-c", program], limit=limit)


def test_a_missing_command_is_reported():
    with pytest.raises(processes.FailedError, match="No such file"):
        processes.run(["no-such-command"], limit=1)


# --- figures ---------------------------------------------------------------------------------------------


def test_doctests_of_the_summary_pass():
    assert doctest.testmod(summary).failed == 0


def test_ratios_compare_medians_and_include_the_faster_keras():
    answers = {
        "fmcli": [{"images_per_second": rate} for rate in (90.0, 100.0, 500.0)],
        "keras": [{"images_per_second": rate} for rate in (10.0, 20.0, 30.0)],
        "keras-bf16": [{"images_per_second": 40.0}, {"error": "killed"}],
    }
    medians = {peer: summary.medians(given) for peer, given in answers.items()}
    assert summary.ratios(medians) == {"keras": 5.0, "keras-bf16": 2.5, "faster keras": 2.5}


def test_the_memory_ratio_is_fmcli_over_the_peer():
    assert summary.ratios({"fmcli": {"peak_bytes": 50}, "torch": {"peak_bytes": 100}}) == {"torch": 0.5}


def run_benchmarks(arguments: list[str]) -> None:
    """Run `benchmarks.run`. Its peers are forked from this process, which has loaded the libraries."""

    def run(command: list[str], **options: object) -> processes.Done:
        return fork_module(*command[2:]) if command[1] == "-m" else run_program(command, **options)

    run_program, benchmarks.run.run = processes.run, run
    sys.argv = ["run", *arguments]
    benchmarks.run.main()


def fork_module(module: str, job: str) -> processes.Done:
    with TemporaryFile("w+") as output:
        if not (child := os.fork()):
            os.dup2(output.fileno(), 1)
            sys.argv = [module, job]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        output.seek(0)
        return processes.Done(output.read(), seconds=1.0, peak_bytes=None)


@pytest.mark.slow
def test_a_small_run_writes_json_and_prints_the_tables(fashion_mnist, tmp_path):
    output = tmp_path / "cpu.json"
    part = "--sections train startup --works mell-cnn --augment with --peers fmcli torch --repeats 1 --threads 1"
    done = StartedProcess(run_benchmarks, [*part.split(), "--seconds", "0.1", "--output", str(output)]).finish()
    assert done.status == 0, done.err
    assert "| `mell-cnn`, batch 32 |" in done.out
    assert "| One step of `quick-k3` | seconds | lowest to highest | fmcli / peer |" in done.out
    written = json.loads(output.read_text())
    line = next(line for line in written["results"] if line["section"] == "train")
    assert line["parameters"] == expected_parameters("mell-cnn")
    assert line["ratios"]["torch"] > 0
    for peer in ("fmcli", "torch"):
        assert line["peers"][peer]["answers"][0]["steps"] >= 5
    assert written["machine"]["versions"]["fmcli"]


# --- profiles --------------------------------------------------------------------------------------------


def event(name, *, count=20, cpu=0.0, gpu=0.0, on_gpu=False, annotation=False):
    return SimpleNamespace(
        key=name,
        count=count,
        self_cpu_time_total=cpu,
        self_device_time_total=gpu,
        device_type=DeviceType.CUDA if on_gpu else DeviceType.CPU,
        is_user_annotation=annotation,
    )


def test_costs_are_per_step_and_count_once():
    events = [
        event("aten::conv2d", cpu=4000.0, gpu=300.0),
        event("aten::add", count=40, cpu=6000.0),
        event("a kernel", gpu=300.0, on_gpu=True),
        event("Optimizer.step", gpu=900.0, on_gpu=True, annotation=True),
        event("nothing"),
    ]
    on_cpu, on_gpu = (profile.sum_up(events, 20, on_gpu=on_gpu) for on_gpu in (False, True))
    assert [(cost.name, cost.calls, cost.seconds) for cost in on_cpu] == [
        ("aten::add", 2, pytest.approx(300e-6)),
        ("aten::conv2d", 1, pytest.approx(200e-6)),
    ]
    assert [(cost.name, cost.seconds) for cost in on_gpu] == [("a kernel", pytest.approx(15e-6))]
    assert list(profile.build(on_cpu, 1e-3, 1))[2:] == [
        "| `aten::add` | 2.0 | 300 | 30.0 % |",
        "| `1 more` | 1.0 | 200 | 20.0 % |",
        "| `between operators` |  | 500 | 50.0 % |",
        "| `whole step` |  | 1,000 | 100.0 % |",
    ]


@pytest.mark.slow
def test_a_profile_of_training_is_printed(fashion_mnist, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["profile", "mell-cnn", "--steps", "3", "--threads", "1"])
    profile.main()
    printed = capsys.readouterr().out
    assert "convolution" in printed
    assert "| `whole step` |" in printed


# --- effect of speed on accuracy -------------------------------------------------------------------------


def test_folding_and_bfloat16_are_compared_with_the_network_as_trained(tiny_recipe, monkeypatch, capsys, tmp_path):
    train_run(load_recipe(str(tiny_recipe)), tmp_path / "run", device=torch.device("cpu"))
    monkeypatch.setattr(sys, "argv", ["folding", str(tmp_path / "run"), "--output", str(tmp_path / "found.json")])
    folding.main()
    found = json.loads((tmp_path / "found.json").read_text())["results"]
    assert [line["voter"] for line in found] == ["k3", "k5", "vote"]
    for line in found[:2]:
        assert line["folded"]["logits"] < 1e-4
        assert line["folded"]["labels"] == 0
        assert line["folded"]["probabilities"] < line["folded, bf16"]["probabilities"] < 0.05
    assert capsys.readouterr().out.count("|") == 5 * 6


def test_networks_as_written_keep_the_layer_order_and_use_no_kernels():
    layers = [Conv(filters=4, kernel_size=3, activation="relu"), MaxPool(size=2), Flatten(), Dense(units=2)]
    traces = trace_layers(layers, (1, 8, 8), 2)
    names = [type(layer).__name__ for layer in build_model(traces)]
    assert names[1:3] == ["MaxPool2d", "ReLU"]
    with precision.as_written():
        names = [type(layer).__name__ for layer in build_model(traces)]
        assert names[1:3] == ["ReLU", "MaxPool2d"]
        assert loading.load_kernels(pooling._Pool, torch.float32) is None


def test_accuracies_are_compared_over_seeds(tiny_recipe, monkeypatch, capsys, tmp_path):
    tiny_recipe.write_text(tiny_recipe.read_text("utf-8").replace('precision = "fp32"', 'precision = "bf16"'), "utf-8")
    arguments = [f"{tiny_recipe}:1", "--seeds", "2", "--threads", "1"]
    paths = ["--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["precision", *arguments, *paths])
    precision.main()
    found = json.loads((tmp_path / "found.json").read_text())["results"]
    assert [(one["seed"], one["way"]) for one in found] == [(s, way) for s in (0, 1) for way in precision.WAYS]
    assert all(set(one["accuracy"]) == {"k3", "k5", "vote"} for one in found)
    precisions = {one["way"]: one["trained_on"]["precision"] for one in found}
    assert precisions == {"fast": "bf16", "as-written": "fp32"}
    shown = capsys.readouterr().out
    assert shown.count("±") == 6
    precision.main()  # everything is already trained
    assert capsys.readouterr().out == shown
