"""The plan of a run, and `fmcli train --plan`."""

import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fmcli.checkpoints.layout import MODEL_FILE
from fmcli.cli.remedies import hint_of
from fmcli.data import load_splits
from fmcli.errors import ExitStatus, UsageError
from fmcli.events import EpochFinished, MemberStarted, PlannedMember, StepFinished, StopRequest
from fmcli.networks import tracing as networks_tracing
from fmcli.recipe import load_recipe
from fmcli.report.plan import plan_document
from fmcli.training.concurrency import FP32_SLOWDOWN, MULTIPLY_ADDS_PER_S, PROCESS_START_S, STEP_OVERHEAD_S
from fmcli.training.executors import JobResult
from fmcli.training.plan import RunPlan, plan_run
from fmcli.training.run import train_run
from tests.helpers import StopAt

CPU = torch.device("cpu")
STEPS = 7  # per epoch of the tiny recipe


@pytest.fixture
def plan(tiny_recipe, tmp_path):
    """Return a function that plans the tiny recipe in the folder `run`."""
    recipe = load_recipe(str(tiny_recipe))
    splits = load_splits(recipe.data)

    def make(**options) -> RunPlan:
        return plan_run(recipe, tmp_path / "run", splits, CPU, **options)

    return make


@pytest.fixture
def train(tiny_recipe, tmp_path):
    def call(**options):
        return train_run(load_recipe(str(tiny_recipe)), tmp_path / "run", device=CPU, **options)

    return call


def stop(train, count: int, kind: type = EpochFinished, **options) -> None:
    with pytest.raises(StopRequest):
        train(reporter=StopAt(kind, count, StopRequest), **options)


def files_in(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


def member_seconds(plan: RunPlan, name: str, steps: int, threads: int = 1) -> float:
    """Compute the estimate by hand. Three times the multiply-adds: the forward pass and two gradients."""
    multiply_adds = sum(trace.multiply_adds for trace in plan.traces[name])
    multiply_adds *= FP32_SLOWDOWN if plan.fingerprints[name].precision == "fp32" else 1
    return steps * (STEP_OVERHEAD_S + 3 * 32 * multiply_adds / MULTIPLY_ADDS_PER_S / threads)


def test_new_run_starts_every_member_and_no_folder_is_created(plan, tmp_path):
    found = plan()
    assert [(one.member, one.state, one.epoch, one.threads) for one in found.members] == [
        ("k3", "starts", 1, 1),
        ("k5", "starts", 1, 1),
    ]
    assert (found.executor, found.concurrency.jobs) == ("sequential", 1)
    assert [one.seconds for one in found.members] == pytest.approx(
        [member_seconds(found, name, 3 * STEPS) for name in ("k3", "k5")]
    )
    assert found.seconds == pytest.approx(sum(one.seconds for one in found.members))
    assert not (tmp_path / "run").exists()


def test_plan_can_be_pickled(plan):
    found = plan()
    assert pickle.loads(pickle.dumps(found)) == found


def test_parallel_members_take_as_long_as_the_slowest(plan):
    found = plan(jobs=2, threads=1)
    assert found.executor == "processes"
    assert found.seconds == pytest.approx(PROCESS_START_S + max(one.seconds for one in found.members))


def test_requested_members_are_planned(plan):
    assert [one.member for one in plan(members=["k5"]).members] == ["k5"]


def test_finished_and_partly_trained_members(plan, train, tmp_path):
    stop(train, 3 * STEPS + STEPS + 2, StepFinished)  # after two steps of the second epoch of k5
    before = files_in(tmp_path / "run")
    finished, resumes = plan(resume=True).members
    assert finished == PlannedMember("k3", "finished")
    assert (resumes.state, resumes.epoch, resumes.steps_done) == ("resumes", 2, 2)
    assert resumes.seconds == pytest.approx(member_seconds(plan(resume=True), "k5", 2 * STEPS - 2))
    assert [one.state for one in plan(overwrite=True).members] == ["starts", "starts"]
    with pytest.raises(UsageError, match="already contains a run") as caught:  # as without --plan
        plan()
    assert "--resume" in hint_of(caught.value)
    assert files_in(tmp_path / "run") == before


def test_plan_is_what_happens(plan, train, tmp_path):
    stop(train, 2)
    resumes = plan(resume=True).members[0]
    events = []
    train(resume=True, reporter=events.append)
    first = next(event for event in events if isinstance(event, MemberStarted))
    assert (first.member, first.first_epoch, first.steps_done) == (resumes.member, resumes.epoch, resumes.steps_done)


def test_member_that_another_process_trains(plan, train, tmp_path):
    seen = []

    def look(event) -> None:
        if isinstance(event, MemberStarted) and not seen:
            before = files_in(tmp_path / "run")
            seen.append(plan())
            assert files_in(tmp_path / "run") == before

    train(reporter=look)
    [found] = seen
    assert [one.state for one in found.members] == ["claimed", "starts"]
    assert list(found.in_use) == ["k3"]
    assert found.seconds == found.members[1].seconds


def test_sequential_executor_trains_one_member_at_a_time(plan, train, tmp_path):
    for call in (plan, train):
        with pytest.raises(UsageError, match="'sequential' trains one member at a time, not 2"):
            call(executor="sequential", jobs=2)
    assert not (tmp_path / "run").exists()
    assert plan(executor="sequential", jobs=None).concurrency.jobs == 1


def test_shapes_are_traced_once(train, monkeypatch):
    traced = []
    trace = networks_tracing.trace_members
    monkeypatch.setattr(networks_tracing, "trace_members", lambda *words: traced.append(words) or trace(*words))
    monkeypatch.setattr("fmcli.training.loop.trace_network", lambda *_: pytest.fail("traced again"))
    train()
    assert len(traced) == 1


def run_backwards(jobs, max_parallel, reporter):
    for job in reversed(list(jobs)):
        yield JobResult(job.name, job.work(reporter))


def test_executor_is_a_module_of_its_name(plan, train, monkeypatch):
    module = SimpleNamespace(SHARES_PROCESS=True, RUNS_IN_PARALLEL=False, run=run_backwards)
    monkeypatch.setitem(sys.modules, "fmcli.training.executors.backwards", module)
    events = []
    assert list(train(executor="backwards", reporter=events.append)) == ["k3", "k5"]
    assert [event.member for event in events if isinstance(event, MemberStarted)] == ["k5", "k3"]


def test_chosen_executor_trains_the_members(train, tmp_path, monkeypatch):
    started = []
    from fmcli.training.executors import processes

    start = processes._start
    monkeypatch.setattr(processes, "_start", lambda job: started.append(job.name) or start(job))
    train(executor="processes", jobs=1)
    assert started == ["k3", "k5"]
    assert (tmp_path / "run" / "k5" / MODEL_FILE).is_file()


# --- the command ------------------------------------------------------------------------------------------


def test_command_prints_the_plan_and_writes_nothing(cli, tiny_recipe, train, tmp_path):
    words = ["train", "--plan", "-r", tiny_recipe, "-o", tmp_path / "run", "--device", "cpu", "--jobs", 1]
    shown = cli(*words)
    assert (shown.status, shown.err) == (ExitStatus.DONE, "")
    assert [line.split()[:4] for line in shown.out.splitlines() if line.startswith("k")] == [
        ["k3", "starts", "sequential", "1"],
        ["k5", "starts", "sequential", "1"],
    ]
    assert "estimated total time: 0 s" in shown.out
    assert not (tmp_path / "run").exists()

    stop(train, 4)
    before = files_in(tmp_path / "run")
    refused = cli(*words)
    assert (refused.status, "--resume" in refused.err) == (ExitStatus.USAGE, True)
    payload = cli(*words, "--resume", "--format", "json").json
    assert (payload["run"], payload["executor"], payload["jobs"]) == (str(tmp_path / "run"), "sequential", 1)
    first, second = payload["members"]
    assert first == {
        "member": "k3", "state": "finished", "epoch": None, "steps_done": 0, "threads": None, "seconds": None,
        "executor": None,
    }  # fmt: skip
    assert (second["state"], second["epoch"], second["executor"], second["threads"]) == ("resumes", 2, "sequential", 1)
    assert payload["seconds"] == second["seconds"] > 0
    rows = cli(*words, "--resume", "--format", "csv").rows
    assert [row["state"] for row in rows] == ["finished", "resumes"]
    assert "resumes at epoch 2" in cli(*words, "--resume").out
    assert files_in(tmp_path / "run") == before


def test_networks_of_torchvision_have_no_estimate(tiny_recipe, tmp_path):
    model = "model={ family = 'torchvision', name = 'squeezenet1_1' }"
    recipe = load_recipe(str(tiny_recipe), [f"members.{name}.{model}" for name in ("k3", "k5")])
    plan = plan_run(recipe, tmp_path / "run", load_splits(recipe.data), CPU)
    assert [member.seconds for member in plan.members] == [None, None]
    assert plan.seconds is None


def test_document_of_a_plan_without_estimates():
    members = [PlannedMember("k3", "claimed"), PlannedMember("k5", "resumes", 2, 5, threads=4)]
    document = plan_document("runs/x", members, executor="cuda_streams", jobs=2, seconds=None)
    [sheet] = document.sheets
    assert [row["State"] for row in sheet.rows] == ["in training by another process", "resumes at epoch 2 after step 5"]
    assert sheet.notes == ["Run: runs/x", "Members in parallel: 2"]
