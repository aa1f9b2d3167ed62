"""Several processes train different members of one run."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

import fmcli.training.run
import fmcli.training.run_folder
from fmcli.checkpoints.layout import MODEL_FILE, RECIPE_FILE
from fmcli.cli.remedies import hint_of
from fmcli.errors import CheckpointError, ExitStatus, RunInUseError, UsageError
from fmcli.events import (
    EpochFinished,
    MemberFinished,
    MemberStarted,
    RunJoined,
    StepFinished,
    StopRequest,
    TrainedElsewhere,
)
from fmcli.recipe import Recipe, load_recipe
from fmcli.storage.locks import LOCK_FILE, is_locked, try_lock
from fmcli.training import STATE_FILE
from fmcli.training.claims import CLAIM_FILE, Claims
from fmcli.training.run import train_run
from tests.helpers import TINY_RECIPE, StopAt
from tests.processes import start_fmcli

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def recipe_file(drawn_images, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(TINY_RECIPE.format(folder=drawn_images).replace("epochs = 3", "epochs = 2"), "utf-8")
    return path


@pytest.fixture(scope="module")
def recipe(recipe_file) -> Recipe:
    return load_recipe(str(recipe_file))


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory) -> Path:
    """A run that one process has trained. Tests must not write to it."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    train_run(recipe, folder, device=CPU)
    return folder


def train(recipe: Recipe, folder: Path, **options: object) -> list[str]:
    """Train in this process and return the names of the trained members."""
    return list(train_run(recipe, folder, device=CPU, **options))


def train_meanwhile(recipe: Recipe, folder: Path, meanwhile, *, at: type = MemberStarted, **options: object) -> None:
    """Train, and do something else at the first event of a type, as if another process did it."""
    done = []

    def reporter(event: object) -> None:
        if isinstance(event, at) and not done:
            done.append(event)
            meanwhile()

    train(recipe, folder, reporter=reporter, **options)
    assert done


def models(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob(f"*/{MODEL_FILE}")}


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_second_process_trains_the_member_that_is_not_claimed(recipe, alone, tmp_path):
    second = []

    def join() -> None:
        assert train(recipe, tmp_path / "run", reporter=second.append) == ["k5"]

    train_meanwhile(recipe, tmp_path / "run", join)
    assert [event for event in second if isinstance(event, RunJoined | TrainedElsewhere)] == [
        RunJoined(tmp_path / "run", ["k3"]),
        TrainedElsewhere(["k3"]),
    ]
    assert [event.member for event in second if isinstance(event, MemberStarted)] == ["k5"]
    assert models(tmp_path / "run") == models(alone)


def test_member_that_another_process_finished_meanwhile_is_in_the_result(recipe, tmp_path):
    events = []

    def reporter(event: object) -> None:
        events.append(event)
        if len(events) == 1:
            train(recipe, tmp_path / "run", members=["k5"])

    trained = train_run(recipe, tmp_path / "run", device=CPU, reporter=reporter)
    assert {name: [epoch.epoch for epoch in history] for name, history in trained.items()} == {
        "k3": [1, 2],
        "k5": [1, 2],
    }
    finished = [(event.member, event.already_trained) for event in events if isinstance(event, MemberFinished)]
    assert finished == [("k3", False), ("k5", True)]


def test_members_are_refused_by_name_while_another_process_trains_them(recipe, tmp_path):
    def meanwhile() -> None:
        with pytest.raises(RunInUseError, match=r"another process is training k3 in .*run") as caught:
            train(recipe, tmp_path / "run", members=["k5", "k3"])
        assert "train other members" in hint_of(caught.value)
        assert train(recipe, tmp_path / "run", members=["k5"]) == ["k5"]
        assert train(recipe, tmp_path / "run", members=["k5"]) == ["k5"]  # it is finished

    train_meanwhile(recipe, tmp_path / "run", meanwhile)


def test_nothing_is_left_for_a_third_process(recipe, tmp_path):
    third = []

    def join() -> None:
        train_meanwhile(recipe, tmp_path / "run", lambda: train(recipe, tmp_path / "run", reporter=third.append))

    train_meanwhile(recipe, tmp_path / "run", join)
    assert third == [RunJoined(tmp_path / "run", ["k3", "k5"]), TrainedElsewhere(["k3", "k5"])]


def test_command_that_has_nothing_to_train_succeeds_and_names_the_members(recipe, recipe_file, tmp_path, cli):
    words = ["train", "-r", recipe_file, "-o", tmp_path / "run", "--device", "cpu", "--plots", tmp_path / "plots"]

    def meanwhile() -> None:
        ended = cli(*words)
        assert ended.status == ExitStatus.DONE
        assert "still in training by other processes: k3, k5" in ended.err
        assert "Still in training by other processes: k3, k5" in ended.out
        assert not (tmp_path / "plots" / "curves.png").exists()

    train_meanwhile(recipe, tmp_path / "run", lambda: train_meanwhile(recipe, tmp_path / "run", meanwhile))


def test_different_recipe_is_refused_with_the_difference(recipe, recipe_file, tmp_path):
    other = load_recipe(str(recipe_file), ["trainer.batch_size=16"])

    def meanwhile() -> None:
        for options in ({}, {"resume": True}):
            with pytest.raises(UsageError, match=r"members\.k3\.trainer\.batch_size: was 32, now 16") as caught:
                train(other, tmp_path / "run", **options)
            assert "restore these values to join" in hint_of(caught.value)
            assert "--overwrite" not in hint_of(caught.value)

    train_meanwhile(recipe, tmp_path / "run", meanwhile, members=["k3"])


@pytest.mark.parametrize("options", [{"overwrite": True}, {"join": False}, {"join": False, "resume": True}])
def test_run_in_use_is_refused_before_images_are_loaded(recipe, recipe_file, tmp_path, monkeypatch, options):
    other = load_recipe(str(recipe_file), ["members.k3.name='other'"]) if options.get("overwrite") else recipe

    def meanwhile() -> None:
        before = files_in(tmp_path / "run")
        monkeypatch.setattr(fmcli.training.run, "load_splits", lambda *_: pytest.fail("images were loaded"))
        with pytest.raises(RunInUseError, match="another process is training the run in") as caught:
            train(other, tmp_path / "run", **options)
        assert "--output" in hint_of(caught.value)
        assert files_in(tmp_path / "run") == before

    train_meanwhile(recipe, tmp_path / "run", meanwhile, members=["k3"])


def test_run_that_no_process_trains_needs_resume(recipe, tmp_path):
    with pytest.raises(StopRequest):
        train(recipe, tmp_path / "run", reporter=StopAt(EpochFinished, 1, StopRequest))
    with pytest.raises(UsageError, match="already contains a run"):
        train(recipe, tmp_path / "run")
    assert train(recipe, tmp_path / "run", resume=True) == ["k3", "k5"]


@pytest.mark.parametrize("has_state", [False, True])
def test_joining_process_uses_the_threads_of_the_run(recipe, tmp_path, has_state):
    """Without a saved state, the number is known only from the claim of the other process."""
    seen = []

    def join() -> None:
        assert bool(list((tmp_path / "run").rglob(STATE_FILE))) == has_state
        torch.set_num_threads(2)
        try:
            train(recipe, tmp_path / "run", reporter=lambda event: seen.append((type(event), torch.get_num_threads())))
        finally:
            torch.set_num_threads(1)

    train_meanwhile(recipe, tmp_path / "run", join, at=EpochFinished if has_state else MemberStarted)
    assert (MemberStarted, 1) in seen
    assert (MemberStarted, 2) not in seen


def test_joining_process_may_not_use_other_threads(recipe, tmp_path):
    def meanwhile() -> None:
        with pytest.raises(CheckpointError, match=r"member k3 in .* is being trained with 1 CPU thread; the") as caught:
            train(recipe, tmp_path / "run", jobs=2, threads=2)
        assert "--threads 1" in hint_of(caught.value)

    train_meanwhile(recipe, tmp_path / "run", meanwhile, members=["k3"])


def test_member_that_another_process_stopped_is_continued(recipe, alone, tmp_path):
    """The second process stops in the middle of k5, and the first one continues with k5 after k3."""
    events = []

    def stop_in_k5() -> None:
        with pytest.raises(StopRequest):
            train(recipe, tmp_path / "run", save_after=0, reporter=StopAt(StepFinished, 3, StopRequest))

    def reporter(event: object) -> None:
        events.append(event)
        if len(events) == 1:
            stop_in_k5()

    train(recipe, tmp_path / "run", reporter=reporter)
    starts = [(event.member, event.steps_done) for event in events if isinstance(event, MemberStarted)]
    assert starts == [("k3", 0), ("k5", 3)]
    assert models(tmp_path / "run") == models(alone)


def test_files_of_a_member_in_training_are_kept(recipe, tmp_path):
    part = tmp_path / "run" / "k3" / f".{MODEL_FILE}.abc.part"

    def join() -> None:
        part.write_bytes(b"half a model")
        train(recipe, tmp_path / "run")
        assert part.is_file()

    train_meanwhile(recipe, tmp_path / "run", join)
    train(recipe, tmp_path / "run", resume=True)
    assert not part.exists()


def test_locks_and_claims_of_a_run(recipe, tmp_path):
    run = tmp_path / "run"

    def meanwhile() -> None:
        assert [is_locked(path) for path in (run, run / "k3", run / "k5")] == [False, True, False]
        assert json.loads((run / "k3" / CLAIM_FILE).read_bytes())["threads"] == 1

    train_meanwhile(recipe, run, meanwhile)
    assert not any(is_locked(path) for path in (run, run / "k3", run / "k5"))
    assert not list(run.rglob(CLAIM_FILE))


@pytest.mark.parametrize("jobs", [1, 2])
def test_next_member_is_claimed_before_the_last_one_is_released(recipe_file, tmp_path, monkeypatch, jobs):
    recipe = load_recipe(str(recipe_file), ["members.k3.copies=3", "trainer.epochs=1"])
    monkeypatch.setattr("fmcli.training.plan._choose_executor", lambda *_: "cuda_streams")
    left, release = [], Claims._release

    def release_and_look(claims: Claims, name: str) -> None:
        release(claims, name)
        left.append([member.name for member in recipe.members if is_locked(tmp_path / "run" / member.name)])

    monkeypatch.setattr(Claims, "_release", release_and_look)
    train(recipe, tmp_path / "run", jobs=jobs, threads=1)
    assert left[-1] == []
    assert all(left[:-jobs])


def test_finished_member_is_not_trained_again_although_it_was_planned(recipe, alone, tmp_path, monkeypatch):
    """Another process finishes k5 after this one has planned to train it, and before it is claimed."""
    shutil.copytree(alone, tmp_path / "copy")
    events = []

    def reporter(event: object) -> None:
        events.append(event)
        if len(events) == 1:
            shutil.copytree(tmp_path / "copy" / "k5", tmp_path / "run" / "k5")

    assert train(recipe, tmp_path / "run", reporter=reporter) == ["k3", "k5"]
    assert [event.member for event in events if isinstance(event, MemberStarted)] == ["k3"]


def test_process_that_holds_the_lock_of_the_run_for_too_long_is_an_error(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(fmcli.training.run_folder, "RUN_LOCK_TIMEOUT_S", 0.1)
    lock = try_lock(tmp_path / "run")
    with pytest.raises(RunInUseError, match="another process has locked the run"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / RECIPE_FILE).exists()
    lock.release()
    assert train(recipe, tmp_path / "run") == ["k3", "k5"]


def test_member_folder_that_cannot_be_locked_is_an_error(recipe, tmp_path, cli, recipe_file):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RECIPE_FILE).write_text(recipe_file.read_text())
    (tmp_path / "run" / "k3").write_text("not a folder")
    ended = cli("train", "-r", recipe_file, "-o", tmp_path / "run", "--resume", "--device", "cpu")
    assert (ended.status, "cannot write to" in ended.err) == (ExitStatus.FAILED, True)


# --- real processes ---------------------------------------------------------------------------------------


def start(recipe_file: Path, folder: Path, *words: object):
    return start_fmcli("train", "-r", recipe_file, "-o", folder, "--device", "cpu", "--threads", 1, *words)


def wait_for(*paths: Path) -> None:
    until = time.monotonic() + 60
    while not all(path.exists() for path in paths):
        assert time.monotonic() < until
        time.sleep(0.01)


LONG = ("--set", "trainer.epochs=20")  # the second process has time to join


@pytest.fixture(scope="module")
def long_run(recipe_file, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "long"
    train_run(load_recipe(str(recipe_file), [LONG[1]]), folder, device=CPU)
    return folder


@pytest.mark.parametrize("words", [(("--member", "k3"), ("--member", "k5")), ((), ())], ids=["members", "run"])
def test_two_shells_train_two_members_of_one_run(recipe_file, long_run, tmp_path, words):
    run = tmp_path / "run"
    first = start(recipe_file, run, *LONG, *words[0], "--format", "json")
    wait_for(run / "k3" / CLAIM_FILE)
    second = start(recipe_file, run, *LONG, *words[1], "--format", "json")
    first, second = first.finish(), second.finish()
    assert (first.status, second.status) == (0, 0), (first.err, second.err)
    assert "k3: " in first.err
    assert "k5: " in second.err
    assert "k3: " not in second.err
    assert "joining a run in progress; in training by other processes: k3" in second.err
    assert models(run) == models(long_run)
    members = [{epoch["member"] for epoch in result.json["epochs"]} for result in (first, second)]
    if words[0]:
        assert members == [{"k3"}, {"k5"}]
    elsewhere = second.json["training_elsewhere"]
    assert elsewhere in ([], ["k3"])
    assert ("still in training by other processes: k3" in second.err) == bool(elsewhere)


def test_running_process_continues_the_member_of_a_killed_process(recipe_file, long_run, tmp_path):
    run = tmp_path / "run"
    first = start(recipe_file, run, *LONG)
    wait_for(run / "k3" / CLAIM_FILE)
    second = start(recipe_file, run, *LONG)
    wait_for(run / "k5" / STATE_FILE)
    os.kill(first.pid, signal.SIGKILL)
    assert first.finish().status == -signal.SIGKILL
    ended = second.finish()
    assert ended.status == 0, ended.err
    assert "k3: " in ended.err
    assert models(run) == models(long_run)


def test_run_of_killed_processes_resumes(recipe_file, long_run, tmp_path):
    run = tmp_path / "run"
    both = [start(recipe_file, run, *LONG)]
    wait_for(run / "k3" / CLAIM_FILE)
    both.append(start(recipe_file, run, *LONG))
    wait_for(run / "k3" / STATE_FILE, run / "k5" / STATE_FILE)
    for process in both:
        os.kill(process.pid, signal.SIGKILL)
        assert process.finish().status == -signal.SIGKILL
    refused = start(recipe_file, run, *LONG).finish()
    assert (refused.status, "already contains a run" in refused.err) == (ExitStatus.USAGE, True)
    resumed = start(recipe_file, run, *LONG, "--resume").finish()
    assert resumed.status == 0, resumed.err
    assert resumed.err.count("resuming at epoch") == 2
    assert models(run) == models(long_run)
    assert {path.name for path in run.rglob(".*")} == {LOCK_FILE}
