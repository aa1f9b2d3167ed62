"""The default number of parallel members: the estimate computed by hand, its limits, and its messages."""

import pytest
import torch

from fmcli.checkpoints.checkpoint import read_header
from fmcli.checkpoints.layout import MODEL_FILE
from fmcli.cli.remedies import describe_remedy
from fmcli.data import ImageSet
from fmcli.errors import CheckpointError
from fmcli.events import EpochFinished, MembersInParallel, MemberStarted, StopRequest
from fmcli.networks.tracing import trace_recipe
from fmcli.recipe import SourceFacts, load_recipe
from fmcli.recipe.layers import Conv, Dense, Flatten, MaxPool
from fmcli.recipe.tracing import trace_layers
from fmcli.report.console import Terminal
from fmcli.report.progress import TrainingProgress
from fmcli.training import STATE_FILE, concurrency
from fmcli.training.concurrency import Concurrency, choose_concurrency
from fmcli.training.executors import processes, sequential
from fmcli.training.recipe_checks import check_recipe, load_checked_splits
from fmcli.training.run import train_run
from tests.helpers import StopAt

CPU = torch.device("cpu")


@pytest.fixture
def jobs(tiny_recipe, monkeypatch):
    """Return a function that chooses the concurrency for the tiny recipe with many epochs."""
    monkeypatch.setattr(concurrency, "_processes_in_memory", lambda splits: 99)

    def choose(*overrides, available=4, device=CPU, epochs=10_000, members=None, **asked):
        recipe = load_recipe(str(tiny_recipe), [f"trainer.epochs={epochs}", *overrides])
        monkeypatch.setattr(torch, "get_num_threads", lambda: available)
        names = [member.name for member in recipe.members]
        splits = load_checked_splits(recipe)
        traces = trace_recipe(recipe, SourceFacts(splits.train.input_shape, splits.train.class_names))
        share = choose_concurrency(recipe, names[:members], splits, traces, device, **asked)
        return (share.jobs, share.threads) if share else None

    return choose


@pytest.mark.parametrize(("threads", "expected"), [(1, None), (2, (2, 1)), (3, (2, 1)), (16, (2, 8))])
def test_small_networks_train_in_parallel_up_to_the_number_of_threads_and_members(jobs, threads, expected):
    assert jobs(available=threads) == expected


@pytest.mark.parametrize(
    ("why", "overrides", "options"),
    [
        ("training takes less time than starting a process", [], {"epochs": 20}),
        ("much work in each step", ["model.widths=[256, 512]", "trainer.batch_size=200"], {}),
        ("augmentation uses worker processes", ['augment.albumentations=[{name="HorizontalFlip"}]'], {}),
        ("a GPU", [], {"device": torch.device("cuda")}),
    ],
)
def test_members_train_one_at_a_time_if_that_is_as_fast(jobs, why, overrides, options):
    assert jobs(*overrides, **options) is None, why


def test_three_members_share_two_threads_only_if_that_is_faster(jobs, tiny_recipe):
    alone = tiny_recipe.read_text("utf-8").split('\n[[members]]\nname = "k5"')[0]
    tiny_recipe.write_text(alone + "copies = 3\n", "utf-8")
    assert [jobs(available=threads) for threads in (2, 3)] == [(2, 1), (3, 1)]
    wider = "model.widths=[64, 128]"
    assert [jobs(wider, available=threads) for threads in (2, 3)] == [None, (3, 1)]


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Return a function that sets the machine's memory, in pages of 4 KiB, and its container's limit."""

    def have(pages, *, container=None):
        values = {"SC_PHYS_PAGES": pages, "SC_PAGE_SIZE": 1 << 12}
        monkeypatch.setattr(concurrency.os, "sysconf", values.__getitem__)
        monkeypatch.setattr(concurrency.os, "sysconf_names", values if pages else {})
        (tmp_path / "memory.max").write_text(f"{container}\n" if container else "max\n")
        monkeypatch.setattr(concurrency, "CGROUP_LIMITS", (tmp_path / "memory.max", tmp_path / "none"))

    return have


@pytest.mark.parametrize(
    ("pages", "container", "expected"),
    [(5 << 18, None, 2), (0, None, 1), (1, None, 1), (100 << 18, 7 << 30, 3), (5 << 18, 1 << 60, 2)],
    ids=["5 GiB", "unknown", "4 KiB", "a container of 7 GiB", "a container without a limit"],
)
def test_memory_limits_the_number_of_processes(tiny_recipe, machine, pages, container, expected):
    machine(pages, container=container)
    assert concurrency._processes_in_memory(load_checked_splits(load_recipe(str(tiny_recipe)))) == expected


def test_images_in_memory_count_for_every_process(tiny_recipe, machine, monkeypatch):
    splits = load_checked_splits(load_recipe(str(tiny_recipe)))
    machine(5 << 18)
    monkeypatch.setattr(concurrency, "PROCESS_BYTES", 5 << 28)
    assert concurrency._processes_in_memory(splits) == 1
    monkeypatch.setattr(ImageSet, "is_mapped", True)
    assert concurrency._processes_in_memory(splits) == 2


def test_estimate_by_hand(monkeypatch):
    monkeypatch.setattr(concurrency, "STEP_OVERHEAD_S", 1.0)
    monkeypatch.setattr(concurrency, "MULTIPLY_ADDS_PER_S", 10.0)
    monkeypatch.setattr(concurrency, "PROCESS_START_S", 100.0)
    workloads = [(2, 40.0), (3, 80.0), (1, 20.0)]  # on one thread: 2 · 5, 3 · 9 and 1 · 3 seconds
    assert concurrency._estimate_seconds(workloads, 1, 1) == 10 + 27 + 3
    assert concurrency._estimate_seconds(workloads, 1, 2) == 2 * 3 + 3 * 5 + 1 * 2
    assert concurrency._estimate_seconds(workloads, 2, 1) == max(110 + 103, 127)  # the third starts when the first ends
    assert concurrency._estimate_seconds(workloads, 3, 1) == 127


def test_fp32_slows_multiply_adds_down(tiny_recipe, monkeypatch):
    monkeypatch.setattr(concurrency, "STEP_OVERHEAD_S", 0.0)
    recipe = load_recipe(str(tiny_recipe))
    splits = load_checked_splits(recipe)
    traces = check_recipe(recipe, splits)
    seconds = {
        precision: concurrency.estimate_member_seconds(recipe.members[0], traces["k3"], 100, 1, precision)
        for precision in ("bf16", "fp32")
    }
    assert seconds["fp32"] == pytest.approx(1.3 * seconds["bf16"])


def test_multiply_adds_by_hand():
    layers = [Conv(filters=4, kernel_size=(3, 2)), MaxPool(size=2), Flatten(), Dense(units=5)]
    traces = trace_layers(layers, (2, 8, 9), 5)
    assert [trace.multiply_adds for trace in traces] == [(2 * 3 * 2) * (4 * 6 * 8), 0, 0, (4 * 3 * 4) * 5]


def test_finished_members_do_not_count(jobs):
    assert (jobs(), jobs(members=1), jobs(members=0)) == ((2, 2), None, None)


@pytest.mark.parametrize(
    ("run_threads", "options", "expected"),
    [
        (1, {}, (2, 1)),
        (2, {}, (2, 2)),
        (3, {}, (1, 3)),
        (1, {"members": 1}, (1, 1)),
        (1, {"epochs": 1}, (2, 1)),  # even a short run
        (1, {"jobs": 3}, (3, 1)),
        (2, {"jobs": 8}, (8, 2)),  # two members are left to train
        (4, {"jobs": 2, "members": 1}, (2, 4)),
        (1, {"jobs": 1}, (1, 1)),
        (4, {"jobs": 1}, None),  # in this process
        # too few cores, which is refused later
        (4, {}, None),
        (5, {}, None),
        (5, {"jobs": 1}, None),
        (3, {"jobs": 2}, (2, 2)),
        (0, {}, None),
        # another number was asked for, which is also refused later
        (1, {"threads": 2}, None),
        (1, {"threads": 2, "jobs": 2}, (2, 2)),
        (1, {"device": torch.device("cuda")}, None),
    ],
)
def test_a_resumed_run_keeps_its_threads(jobs, run_threads, options, expected):
    assert jobs(available=4, run_threads=run_threads, **options) == expected


def test_members_with_augmentation_processes_resume_one_at_a_time(jobs):
    assert jobs('augment.albumentations=[{name="HorizontalFlip"}]', available=4, run_threads=1) == (1, 1)


@pytest.mark.parametrize(("asked", "expected"), [(1, None), (2, (2, 2)), (3, (3, 2)), (9, (9, 2))])
@pytest.mark.parametrize("device", [CPU, torch.device("cuda")])
def test_explicitly_parallel_members_share_the_threads(jobs, device, asked, expected):
    assert jobs(available=4, jobs=asked, device=device) == expected
    assert jobs(available=4, jobs=asked, device=device, threads=3) == (expected and (asked, 3))


@pytest.fixture
def two(monkeypatch):
    """Choose two members in parallel, and list the members for which the estimate was made."""
    asked = []
    share = Concurrency(2, 1, 1.449)
    monkeypatch.setattr(
        concurrency, "_choose_fastest", lambda recipe, names, splits, traces: asked.append(list(names)) or share
    )
    monkeypatch.setattr(concurrency, "_processes_in_memory", lambda splits: 99)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield asked
    torch.set_num_threads(before)


def weights(folder):
    return [(folder / name / MODEL_FILE).read_bytes() for name in ("k3", "k5")]


def test_a_run_chooses_parallel_members_and_resumes_with_the_same_threads(tiny_recipe, two, tmp_path):
    recipe = load_recipe(str(tiny_recipe), ["trainer.epochs=20"])
    torch.set_num_threads(1)
    train_run(recipe, tmp_path / "whole", device=CPU)  # in this process
    torch.set_num_threads(2)

    events, stop = [], StopAt(EpochFinished, 1, StopRequest)
    with pytest.raises(StopRequest):
        train_run(
            recipe, tmp_path / "run", device=CPU, jobs=None, reporter=lambda event: (events.append(event), stop(event))
        )
    assert events[0] == MembersInParallel(2, 1, 1.449)
    events.clear()
    train_run(recipe, tmp_path / "run", device=CPU, jobs=None, resume=True, reporter=events.append)
    assert events[0] == MembersInParallel(2, 1, None)
    assert {read_header(tmp_path / "run" / name).trained_on["threads"] for name in ("k3", "k5")} == {"1"}
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")

    (tmp_path / "run" / "k5" / MODEL_FILE).unlink()
    with pytest.raises(CheckpointError, match="was trained with 1 CPU thread"):
        train_run(recipe, tmp_path / "run", device=CPU, jobs=None, threads=2, resume=True)
    events.clear()
    train_run(recipe, tmp_path / "run", device=CPU, jobs=None, resume=True, reporter=events.append)
    assert [event.member for event in events if isinstance(event, MemberStarted)] == ["k5"]
    assert not any(isinstance(event, MembersInParallel) for event in events)  # k5 trains alone, on one thread
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert two == [["k3", "k5"]]


def test_threads_of_a_run_are_also_read_from_members_that_are_not_trained_now(tiny_recipe, two, tmp_path):
    recipe = load_recipe(str(tiny_recipe), ["trainer.epochs=20"])
    stop = StopAt(EpochFinished, 1, StopRequest)
    with pytest.raises(StopRequest):
        train_run(recipe, tmp_path / "run", device=CPU, jobs=2, threads=1, members=["k3"], reporter=stop)
    train_run(recipe, tmp_path / "run", device=CPU, jobs=None, resume=True, members=["k5"])
    assert read_header(tmp_path / "run" / "k5").trained_on["threads"] == "1"
    assert not two
    (tmp_path / "run" / "k3" / STATE_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"k5 in .* was trained with 1 CPU thread; the rest of its run"):
        train_run(recipe, tmp_path / "run", device=CPU, jobs=None, threads=2, resume=True)


@pytest.mark.parametrize("options", [{"threads": 1}, {"jobs": 1}])
def test_an_explicit_number_of_threads_or_members_is_used(tiny_recipe, two, monkeypatch, tmp_path, options):
    monkeypatch.setattr("fmcli.training.executors.processes._start", lambda *_: pytest.fail("a process was started"))
    recipe = load_recipe(str(tiny_recipe), ["trainer.epochs=1"])
    train_run(recipe, tmp_path / "run", device=CPU, **{"jobs": None} | options)
    assert not two


def test_parallel_members_are_reported_with_the_option_to_avoid_them(cli, tiny_recipe, two, monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "run", sequential.run)
    words = ["train", "--device", "cpu", "-r", tiny_recipe, "--set", "trainer.epochs=1", "-o", tmp_path / "run"]
    expected = "training 2 members in parallel, 1 thread each: about 1.4 times as fast (one at a time: use --jobs 1)"
    assert expected in cli(*words).err
    assert "2 members in parallel" not in cli(*words, "--resume").err  # no member is left


def test_a_resumed_run_reports_why_members_train_in_parallel(capfd):
    with TrainingProgress(Terminal(), describe_remedy=describe_remedy) as progress:
        progress(MembersInParallel(2, 1, None))
        progress(MembersInParallel(3, 4, None))
    err = " ".join(capfd.readouterr().err.split())
    assert "2 members in parallel, 1 thread each: this run was started this way (one at a time: use --threads 1)" in err
    assert (
        "3 members in parallel, 4 threads each: this run was started this way (one at a time: use --threads 4)" in err
    )


@pytest.mark.parametrize("in_parallel", [True, False])
def test_advice_on_threads_is_printed_if_members_train_one_at_a_time(capfd, in_parallel):
    with TrainingProgress(Terminal(), "fewer threads") as progress:
        if in_parallel:
            progress(MembersInParallel(2, 1, 1.5))
        for member in ("k3", "k5"):
            progress(MemberStarted(member, 1, 1, 1, 1, "cpu", "fp32"))
    assert capfd.readouterr().err.count("fewer threads") == (0 if in_parallel else 1)
