"""Train whole runs: files, resuming, parallel members, divergence and errors."""

import os
import shutil
import tomllib
from pathlib import Path

import pytest
import tomli_w
import torch
from safetensors.torch import load_file

import fmcli.training.run
from fmcli.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from fmcli.checkpoints.history import HISTORY_FILE, read_history
from fmcli.checkpoints.layout import (
    LAST_GOOD,
    MODEL_FILE,
    RECIPE_FILE,
    find_checkpoints,
    lost_snapshots,
    unfinished_members,
)
from fmcli.cli.remedies import hint_of
from fmcli.data import Splits, idx
from fmcli.errors import (
    CheckpointError,
    DataError,
    DivergedError,
    ExitStatus,
    FmcliError,
    RecipeError,
    Remedy,
    UsageError,
)
from fmcli.events import (
    EpochFinished,
    MemberDiverged,
    MemberFinished,
    MemberStarted,
    PlannedMember,
    StepFinished,
    StopRequest,
    UnmeasuredFeature,
)
from fmcli.recipe import Recipe, dump_recipe, load_recipe
from fmcli.report.console import Terminal
from fmcli.report.progress import TrainingProgress
from fmcli.storage.locks import LOCK_FILE
from fmcli.training import STATE_FILE, VALIDATION_FILE, member_setup
from fmcli.training.concurrency import Concurrency
from fmcli.training.plan import RunPlan
from fmcli.training.recipe_checks import check_augmentation
from fmcli.training.run import train_run
from fmcli.training.state import load_state
from tests.helpers import TINY_RECIPE, StopAt, draw_quadrants, write_idx_folder

CPU = torch.device("cpu")
RUN_FILES = {
    LOCK_FILE,
    RECIPE_FILE,
    *(f"{member}/{name}" for member in ("k3", "k5") for name in (LOCK_FILE, MODEL_FILE, HISTORY_FILE, VALIDATION_FILE)),
}


def tiny(tiny_recipe: Path, *overrides: str) -> Recipe:
    return load_recipe(str(tiny_recipe), ["trainer.epochs=1", *overrides])


def train(recipe: Recipe, folder: Path, **options: object) -> dict[str, list[EpochFinished]]:
    return train_run(recipe, folder, device=CPU, **options)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(drawn_images, tmp_path_factory) -> Path:
    """A finished run. Tests must not write to it."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(TINY_RECIPE.format(folder=drawn_images), "utf-8")
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(tiny(path), folder)
    return folder


@pytest.fixture
def run_folder(finished, tmp_path) -> Path:
    """A copy of a finished run, which a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


# --- a whole run ------------------------------------------------------------------------------------------


def test_run_writes_its_recipe_and_every_member(finished, tiny_recipe):
    assert set(files_in(finished)) == RUN_FILES
    assert load_recipe(str(finished / RECIPE_FILE)) == tiny(tiny_recipe)
    assert [path.parent.name for path in find_checkpoints(finished)] == ["k3", "k5"]


def test_result_has_the_history_of_each_requested_member(tiny_recipe, tmp_path):
    histories = train(tiny(tiny_recipe), tmp_path / "run", members=["k5"])
    assert [(name, [epoch.epoch for epoch in history]) for name, history in histories.items()] == [("k5", [1])]


def test_recipe_in_the_run_trains_the_same_run_again(finished, tmp_path):
    train(load_recipe(str(finished / RECIPE_FILE)), tmp_path / "again")
    for name in ("k3", "k5"):
        first, second = (load_file(folder / name / MODEL_FILE) for folder in (finished, tmp_path / "again"))
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_comments_whitespace_and_key_order_in_the_runs_recipe_can_be_edited(run_folder, tiny_recipe):
    path = run_folder / RECIPE_FILE
    table = tomllib.loads(path.read_text("utf-8"))
    text = "# my comment\n\n" + tomli_w.dumps(dict(reversed(table.items())), indent=1)
    path.write_text(text, "utf-8")
    (run_folder / "k5" / MODEL_FILE).unlink()
    train(tiny(tiny_recipe), run_folder, resume=True)
    assert path.read_text("utf-8") == text


@pytest.mark.parametrize("given", ["original", "edited"])
@pytest.mark.parametrize(
    ("before", "after", "difference"),
    [
        ("batch_size = 32", "batch_size = 16", "members.k3.trainer.batch_size: was {}, now {}"),
        ('vote = "majority"', 'vote = "soft"', "ensemble.vote: was {}, now {}"),
    ],
)
def test_a_value_that_was_edited_in_the_runs_recipe_is_refused(
    run_folder, tiny_recipe, given, before, after, difference
):
    path = run_folder / RECIPE_FILE
    path.write_text(path.read_text("utf-8").replace(before, after), "utf-8")
    recipe = load_recipe(str(path)) if given == "edited" else tiny(tiny_recipe)
    before, after = (text.split(" = ")[1].strip('"') for text in (before, after))
    values = (before, after) if given == "edited" else (after, before)
    with pytest.raises(FmcliError, match="a different recipe") as caught:
        train(recipe, run_folder, resume=True)
    assert difference.format(*values) in caught.value.message


def test_error_names_the_value_that_differs_from_the_state(tiny_recipe, tmp_path):
    recipe = tiny(tiny_recipe, "trainer.epochs=2")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", members=["k3"], reporter=StopAt(EpochFinished, 1))
    path = tmp_path / "run" / RECIPE_FILE
    path.write_text(path.read_text("utf-8").replace("batch_size = 32", "batch_size = 16"), "utf-8")
    with pytest.raises(CheckpointError, match=r"members\.k3\.trainer\.batch_size: was 32, now 16"):
        train(load_recipe(str(path)), tmp_path / "run", members=["k3"], resume=True)


def test_error_names_the_damaged_line_of_a_history(run_folder):
    path = run_folder / "k3" / HISTORY_FILE
    [epoch] = read_history(path.parent)
    text = path.read_text("utf-8")
    path.write_text(text.replace(f"{epoch.train_loss}", f"{epoch.train_loss + 1}"), "utf-8")
    with pytest.raises(CheckpointError, match="the line of epoch 1 is damaged"):
        read_history(path.parent)
    path.write_text(text[: text.index(', "digest"')] + "}\n", "utf-8")
    with pytest.raises(CheckpointError, match="the line of epoch 1 is damaged"):
        read_history(path.parent)


def test_images_on_disk_give_the_same_weights(finished, tiny_recipe, monkeypatch, tmp_path):
    monkeypatch.setattr(idx, "MAX_IN_MEMORY_BYTES", 100)
    train(tiny(tiny_recipe), tmp_path / "run")
    for name in ("k3", "k5"):
        for file in (MODEL_FILE, VALIDATION_FILE):
            assert (tmp_path / "run" / name / file).read_bytes() == (finished / name / file).read_bytes()


@pytest.fixture(params=["processes", "turns"])
def parallel(request, monkeypatch):
    """Train parallel members in processes, or in turns in this process, as on an NVIDIA GPU."""
    if request.param == "turns":
        monkeypatch.setattr("fmcli.training.plan._choose_executor", lambda *_: "cuda_streams")
        monkeypatch.setattr(
            "fmcli.training.executors.processes._start", lambda *_: pytest.fail("a process was started")
        )


@pytest.mark.usefixtures("parallel")
def test_parallel_members_have_the_same_weights(finished, tiny_recipe, tmp_path):
    events = []
    histories = train(tiny(tiny_recipe), tmp_path / "run", jobs=2, threads=1, reporter=events.append)
    assert list(histories) == ["k3", "k5"]
    assert {event.member for event in events if isinstance(event, MemberFinished)} == {"k3", "k5"}
    for name in ("k3", "k5"):
        for file in (MODEL_FILE, VALIDATION_FILE):
            assert (tmp_path / "run" / name / file).read_bytes() == (finished / name / file).read_bytes()


@pytest.mark.parametrize(
    ("device", "jobs", "overrides", "remain", "expected"),
    [
        ("cuda", 2, [], True, ["parallel-members"]),
        ("cuda", 1, ["members.k3.trainer.cuda_graph=true"], True, ["cuda-graph"]),
        ("cuda", 2, ["trainer.cuda_graph=true"], True, ["parallel-members", "cuda-graph"]),
        ("cuda", 2, ["trainer.cuda_graph=true"], False, []),
        ("cuda", 1, [], True, []),
        ("cpu", 2, ["trainer.cuda_graph=true"], True, []),
    ],
)
def test_features_that_have_not_been_measured_on_a_gpu_are_found(
    tiny_recipe, device, jobs, overrides, remain, expected
):
    recipe = tiny(tiny_recipe, *overrides)
    states = ["starts", "resumes"] if remain else ["finished", "claimed"]
    members = [PlannedMember(name, state) for name, state in zip(("k3", "k5"), states, strict=True)]
    concurrency = Concurrency(jobs, 1)
    plan = RunPlan(recipe, Path(), torch.device(device), members, (), "sequential", concurrency, {}, {})
    assert [event.feature for event in plan.events(report_jobs=False)] == expected


def test_an_unmeasured_feature_is_printed_once(capfd):
    with TrainingProgress(Terminal()) as progress:
        for feature in ("cuda-graph", "parallel-members", "cuda-graph", "parallel-members"):
            progress(UnmeasuredFeature(feature))
    lines = capfd.readouterr().err.splitlines()
    assert [line.partition(" have not been measured on a GPU")[0] for line in lines] == [
        "CUDA graphs",
        "members in parallel",
    ]


@pytest.mark.usefixtures("parallel")
def test_parallel_members_can_be_stopped_and_resumed(finished, tiny_recipe, tmp_path):
    recipe = tiny(tiny_recipe)
    with pytest.raises(StopRequest):
        train(recipe, tmp_path / "run", jobs=2, threads=1, save_after=0, reporter=StopAt(StepFinished, 1, StopRequest))
    train(recipe, tmp_path / "run", jobs=2, threads=1, resume=True)
    for name in ("k3", "k5"):
        assert (tmp_path / "run" / name / MODEL_FILE).read_bytes() == (finished / name / MODEL_FILE).read_bytes()


@pytest.mark.usefixtures("parallel")
@pytest.mark.parametrize("parallel", ["turns"], indirect=True)
def test_members_in_turns_take_a_step_each(tiny_recipe, tmp_path):
    events = []
    train(tiny(tiny_recipe), tmp_path / "run", jobs=2, threads=1, reporter=events.append)
    steps = [event.member for event in events if isinstance(event, StepFinished)]
    assert steps == ["k3", "k5"] * (len(steps) // 2)


@pytest.mark.usefixtures("parallel")
def test_parallel_member_that_diverges_does_not_stop_the_other(tiny_recipe, tmp_path):
    recipe = tiny(tiny_recipe, "members.k3.optimizer.lr=1e30")
    with pytest.raises(DivergedError, match="1 of 2 members could not be trained: member k3"):
        train(recipe, tmp_path / "run", jobs=2, threads=1)
    assert (tmp_path / "run" / "k5" / MODEL_FILE).is_file()


def test_member_trained_alone_is_the_same_as_in_the_whole_run(finished, tiny_recipe, tmp_path):
    train(tiny(tiny_recipe), tmp_path / "run", members=["k5"])
    first, second = (load_file(folder / "k5" / MODEL_FILE) for folder in (finished, tmp_path / "run"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_members_are_in_recipe_order_for_any_order_of_requests(tiny_recipe, tmp_path):
    histories = train(tiny(tiny_recipe), tmp_path / "run", members=["k5", "k3", "k5"])
    assert list(histories) == ["k3", "k5"]


def test_each_copy_of_a_member_has_its_own_folder_and_random_numbers(tiny_recipe, tmp_path):
    recipe = tiny(tiny_recipe, "members.k3.copies=2")
    assert list(train(recipe, tmp_path / "run")) == ["k3-1", "k3-2", "k5"]
    first, second = (load_file(tmp_path / "run" / name / MODEL_FILE) for name in ("k3-1", "k3-2"))
    assert not any(torch.equal(first[key], second[key]) for key in first if key.endswith("0.weight"))
    assert load_recipe(str(tmp_path / "run" / RECIPE_FILE)) == recipe
    alone = train(recipe, tmp_path / "alone", members=["k3-2"])
    assert list(alone) == ["k3-2"]
    again = load_file(tmp_path / "alone" / "k3-2" / MODEL_FILE)
    assert all(torch.equal(second[key], again[key]) for key in second)
    train(recipe, tmp_path / "run", resume=True)
    with pytest.raises(UsageError, match="no member 'k3'"):
        train(recipe, tmp_path / "run", members=["k3"], resume=True)


def test_one_copy_is_the_member_itself(run_folder, tiny_recipe):
    before = files_in(run_folder)
    train(tiny(tiny_recipe, "members.k3.copies=1"), run_folder, resume=True)
    assert files_in(run_folder) == before


# --- an existing folder -----------------------------------------------------------------------------------


def test_finished_run_is_refused_and_unchanged(run_folder, tiny_recipe):
    before = files_in(run_folder)
    with pytest.raises(UsageError, match="already contains a run") as caught:
        train(tiny(tiny_recipe), run_folder)
    assert all(option in hint_of(caught.value) for option in ("--resume", "--overwrite", "--output"))
    assert files_in(run_folder) == before


def test_resume_and_overwrite_together_are_refused(run_folder, tiny_recipe):
    before = files_in(run_folder)
    with pytest.raises(UsageError, match="not both"):
        train(tiny(tiny_recipe), run_folder, resume=True, overwrite=True)
    assert files_in(run_folder) == before


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
def test_folder_that_is_not_a_run_is_refused_and_unchanged(tiny_recipe, tmp_path, options):
    folder = tmp_path / "photos"
    (folder / "k3").mkdir(parents=True)
    (folder / "k3" / MODEL_FILE).write_bytes(b"another program's file")
    (folder / "holiday.jpg").write_bytes(b"jpg")
    before = files_in(folder)
    with pytest.raises(UsageError, match="exists, but is not a run of fmcli") as caught:
        train(tiny(tiny_recipe), folder, **options)
    assert "--output" in hint_of(caught.value)
    assert files_in(folder) == before


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
def test_file_instead_of_a_folder_is_refused_and_unchanged(tiny_recipe, tmp_path, options):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UsageError, match="exists, but is not a run of fmcli"):
        train(tiny(tiny_recipe), tmp_path / "run", **options)
    assert (tmp_path / "run").read_text() == "a file"


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
def test_empty_folder_is_used(tiny_recipe, tmp_path, options):
    (tmp_path / "run").mkdir()
    train(tiny(tiny_recipe), tmp_path / "run", **options)
    assert set(files_in(tmp_path / "run")) == RUN_FILES


def test_overwriting_trains_from_scratch(run_folder, tiny_recipe):
    recipe = tiny(tiny_recipe, "trainer.seed=7")
    histories = train(recipe, run_folder, overwrite=True, members=["k3"])
    assert list(histories) == ["k3"]
    assert load_recipe(str(run_folder / RECIPE_FILE)) == recipe
    assert set(files_in(run_folder)) == {name for name in RUN_FILES if not name.startswith("k5/")}
    assert not (run_folder / "k5").exists()


def test_overwriting_removes_only_files_of_fmcli(run_folder, tiny_recipe, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / MODEL_FILE).write_bytes(b"elsewhere")
    other_files = {
        "notes.txt": b"mine",
        "k5/notes.txt": b"mine",
        "figures/one.png": b"mine",
        "own/weights.bin": b"mine",
    }
    for name, content in other_files.items():
        (run_folder / name).parent.mkdir(exist_ok=True)
        (run_folder / name).write_bytes(content)
    os.symlink(outside, run_folder / "linked")
    (run_folder / "kept").mkdir()
    train(tiny(tiny_recipe), run_folder, overwrite=True, members=["k3"])
    after = files_in(run_folder)
    assert {name: after[name] for name in other_files} == other_files
    assert (outside / MODEL_FILE).read_bytes() == b"elsewhere"
    assert (run_folder / "kept").is_dir()
    assert "k5/" + MODEL_FILE not in after


CYCLIC = [
    "trainer.epochs=3",
    "trainer.keep=snapshots",
    "schedule={ name = 'cyclic', cycles = 3 }",
    "optimizer.lr=0.001",
]
SNAPSHOT_FILES = {
    f"{member}/snapshot-{number}/{name}"
    for member in ("k3", "k5")
    for number in (1, 2)
    for name in (MODEL_FILE, VALIDATION_FILE)
}


@pytest.fixture(scope="module")
def finished_snapshots(drawn_images, tmp_path_factory) -> Path:
    """A finished run of two members with two snapshots each. Tests must not write to it."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(TINY_RECIPE.format(folder=drawn_images), "utf-8")
    folder = tmp_path_factory.mktemp("runs") / "snapshots"
    train(tiny(path, *CYCLIC), folder)
    return folder


def test_run_with_snapshots_writes_the_snapshots_of_every_member(finished_snapshots):
    assert set(files_in(finished_snapshots)) == RUN_FILES | SNAPSHOT_FILES
    folders = [str(path.parent.relative_to(finished_snapshots)) for path in find_checkpoints(finished_snapshots)]
    assert folders == ["k3/snapshot-1", "k3/snapshot-2", "k3", "k5/snapshot-1", "k5/snapshot-2", "k5"]


def test_overwriting_removes_snapshots_but_only_files_of_fmcli(finished_snapshots, tiny_recipe, tmp_path):
    folder = Path(shutil.copytree(finished_snapshots, tmp_path / "run"))
    (folder / "k3" / "snapshot-1" / "test.safetensors").write_bytes(b"predictions")
    (folder / "k3" / "snapshot-2" / f".{MODEL_FILE}.abc.part").write_bytes(b"half a model")
    (folder / "k5" / "snapshot-2" / "notes.txt").write_bytes(b"mine")
    (folder / "k5" / "snapshot-x").mkdir()
    (folder / "k5" / "snapshot-x" / MODEL_FILE).write_bytes(b"mine")
    os.symlink(finished_snapshots / "k3" / "snapshot-1", folder / "k5" / "snapshot-7")
    before = files_in(finished_snapshots)
    train(tiny(tiny_recipe), folder, overwrite=True)
    rest = {"k5/snapshot-2/notes.txt", f"k5/snapshot-x/{MODEL_FILE}"}
    assert {name for name in files_in(folder) if "snapshot-7" not in name} == RUN_FILES | rest
    assert [path.parent for path in find_checkpoints(folder)] == [folder / "k3", folder / "k5"]
    assert not (folder / "k3" / "snapshot-1").exists()
    assert files_in(finished_snapshots) == before


def test_other_members_train_after_one_diverged(tiny_recipe, tmp_path):
    recipe = tiny(tiny_recipe, "members.k3.optimizer.name=sgd", "members.k3.optimizer.lr=1e38")
    events = []
    with pytest.raises(
        DivergedError, match=r"1 of 2 members could not be trained: member k3: the loss of step"
    ) as caught:
        train(recipe, tmp_path / "run", reporter=events.append)
    assert hint_of(caught.value).startswith("try a lower members.k3.optimizer.lr; train only this member")
    assert "with --member k3 --set … --output …" in hint_of(caught.value)
    assert [event.member for event in events if isinstance(event, MemberDiverged)] == ["k3"]
    assert (tmp_path / "run" / "k5" / MODEL_FILE).is_file()
    assert not (tmp_path / "run" / "k3" / MODEL_FILE).exists()


def test_advice_for_a_diverged_copy_of_a_member_works(tiny_recipe, tmp_path):
    overrides = ["members.k3.copies=2", "optimizer.name=sgd", "optimizer.lr=1e38"]
    with pytest.raises(DivergedError) as caught:
        train(tiny(tiny_recipe, *overrides), tmp_path / "run", members=["k3-2"])
    assert hint_of(caught.value).startswith("try a lower optimizer.lr; train only this member")
    assert "with --member k3-2 --set … --output …" in hint_of(caught.value)
    train(tiny(tiny_recipe, *overrides, "optimizer.lr=1e-3"), tmp_path / "other", members=["k3-2"])

    overrides.append("members.k5.optimizer.lr=0.1")
    with pytest.raises(DivergedError) as caught:
        train(tiny(tiny_recipe, *overrides), tmp_path / "third", members=["k3-2"])
    assert hint_of(caught.value).startswith("try a lower members.k3.optimizer.lr; train only this member")
    assert "with --member k3-2 --set … --output …" in hint_of(caught.value)
    train(tiny(tiny_recipe, *overrides, "members.k3.optimizer.lr=1e-3"), tmp_path / "fourth", members=["k3-2"])


@pytest.fixture
def diverging_in_epoch_3(monkeypatch):
    """Raise the learning rate in the third epoch, so that the loss is no longer finite."""

    def build_schedule(spec, *, lr: float, epochs: int, steps_per_epoch: int):
        return lambda step: lr if step < 2 * steps_per_epoch else 1e38

    monkeypatch.setattr(member_setup, "build_schedule", build_schedule)


def test_the_last_good_weights_of_a_member_that_diverges_are_kept(diverging_in_epoch_3, tiny_recipe, tmp_path, cli):
    recipe = tiny(tiny_recipe, "optimizer.name=sgd", "trainer.epochs=3", "trainer.keep=last")
    folder = tmp_path / "run"
    with pytest.raises(DivergedError, match=r"in epoch 3 ") as caught:
        train(recipe, folder, members=["k3"])
    assert str(folder) not in caught.value.message  # a search stores the message
    assert f"the last saved weights are in {folder / 'k3' / LAST_GOOD}" in hint_of(caught.value)
    stopped = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        train(recipe, stopped, members=["k3"], reporter=StopAt(EpochFinished, 2))
    before = load_state(stopped / "k3" / STATE_FILE).tensors
    kept = load_checkpoint(folder / "k3" / LAST_GOOD / MODEL_FILE, device=torch.device("cpu"))
    assert kept.header.epochs == 2
    assert all(torch.equal(tensor, before[f"model.{name}"]) for name, tensor in kept.model.state_dict().items())
    assert "k3" in cli("evaluate", folder / "k3" / LAST_GOOD).out
    for path in (folder, folder / "k3"):  # weights in last-good do not vote
        with pytest.raises(CheckpointError, match="no trained member in"):
            find_checkpoints(path)
    with pytest.raises(CheckpointError, match="thread"):
        train(recipe, folder, members=["k3"], resume=True, jobs=2, threads=3)
    assert (folder / "k3" / LAST_GOOD / MODEL_FILE).exists()
    with pytest.raises(DivergedError):
        train(recipe, folder, members=["k3"], resume=True)
    assert (folder / "k3" / LAST_GOOD / MODEL_FILE).exists()
    train(tiny(tiny_recipe), folder, overwrite=True)
    assert not (folder / "k3" / LAST_GOOD).exists()


def test_other_members_train_if_the_last_good_weights_cannot_be_kept(diverging_in_epoch_3, tiny_recipe, tmp_path):
    recipe = tiny(tiny_recipe, "optimizer.name=sgd", "trainer.epochs=3", "trainer.keep=last")
    (tmp_path / "run").mkdir()

    def block_last_good(event: object) -> None:
        if isinstance(event, EpochFinished) and event.member == "k3":
            (tmp_path / "run" / "k3" / LAST_GOOD).touch()

    with pytest.raises(DivergedError, match="2 of 2 members") as caught:
        train(recipe, tmp_path / "run", reporter=block_last_good)
    assert "could not be kept" in hint_of(caught.value)
    assert (tmp_path / "run" / "k5" / LAST_GOOD / MODEL_FILE).is_file()


def test_weights_that_predict_nan_are_not_kept(tiny_recipe, tmp_path, monkeypatch):
    """The weights that are saved within an epoch are finite, but too large to predict with."""
    recipe = tiny(tiny_recipe, "optimizer.name=sgd", "trainer.epochs=3", "trainer.keep=last")
    rates = dict.fromkeys(range(2), 1e-3) | dict.fromkeys(range(2, 4), 1e18)
    monkeypatch.setattr(member_setup, "build_schedule", lambda *_, **__: lambda step: rates.get(step, 1e38))
    with pytest.raises(DivergedError) as caught:
        train(recipe, tmp_path / "run", members=["k3"], save_after=0.0)
    assert (tmp_path / "run" / "k3" / STATE_FILE).is_file()
    assert "the last saved weights predict NaN, too, so they are not kept" in hint_of(caught.value)
    assert not (tmp_path / "run" / "k3" / LAST_GOOD / MODEL_FILE).exists()


def test_last_good_weights_are_removed_when_the_member_is_trained(
    diverging_in_epoch_3, tiny_recipe, tmp_path, monkeypatch
):
    recipe = tiny(tiny_recipe, "optimizer.name=sgd", "trainer.epochs=3", "trainer.keep=last")
    with pytest.raises(DivergedError):
        train(recipe, tmp_path / "run", members=["k3"])
    assert (tmp_path / "run" / "k3" / LAST_GOOD).is_dir()
    monkeypatch.setattr(member_setup, "build_schedule", lambda *_, **__: lambda step: 1e-3)
    train(recipe, tmp_path / "run", members=["k3"], resume=True)
    assert (tmp_path / "run" / "k3" / MODEL_FILE).is_file()
    assert not (tmp_path / "run" / "k3" / LAST_GOOD).exists()


def test_divergence_has_an_exit_status(tiny_recipe, tmp_path, cli):
    done = cli(
        "train", "--recipe", tiny_recipe, "--set", "optimizer={name='sgd',lr=1e38}", "--output", tmp_path / "run"
    )
    assert done.status == ExitStatus.FAILED
    assert "optimizer.lr" in done.err


def test_moved_run_resumes(finished, tiny_recipe, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tiny(tiny_recipe), tmp_path / "run", reporter=StopAt(StepFinished, 2))
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    train(tiny(tiny_recipe), tmp_path / "elsewhere", resume=True)
    for member in ("k3", "k5"):
        ours, theirs = (load_file(run / member / MODEL_FILE) for run in (tmp_path / "elsewhere", finished))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_member_that_diverges_before_the_first_save_keeps_no_weights(tiny_recipe, tmp_path):
    recipe = tiny(tiny_recipe, "members.k3.optimizer.name=sgd", "members.k3.optimizer.lr=1e38")
    with pytest.raises(DivergedError) as caught:
        train(recipe, tmp_path / "run", members=["k3"])
    assert "last saved" not in hint_of(caught.value)
    assert not (tmp_path / "run" / "k3" / LAST_GOOD).exists()


def test_resuming_a_run_with_snapshots_trains_the_remaining_member(finished_snapshots, tiny_recipe, tmp_path):
    recipe, folder = tiny(tiny_recipe, *CYCLIC), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(recipe, folder, reporter=StopAt(EpochFinished, 5))
    assert set(find_checkpoints(folder)) == {
        folder / "k3" / name / MODEL_FILE for name in ("snapshot-1", "snapshot-2", "")
    }
    assert unfinished_members(folder) == ["k5"]
    events = []
    train(recipe, folder, resume=True, reporter=events.append)
    assert [(event.member, event.first_epoch) for event in events if isinstance(event, MemberStarted)] == [("k5", 3)]
    assert set(files_in(folder)) == RUN_FILES | SNAPSHOT_FILES
    for file in find_checkpoints(folder):
        ours, theirs = (load_file(path) for path in (file, finished_snapshots / file.relative_to(folder)))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_missing_snapshot_is_reported(finished_snapshots, tmp_path, cli):
    folder = Path(shutil.copytree(finished_snapshots, tmp_path / "run"))
    assert lost_snapshots(folder) == []
    assert cli("ensemble", "evaluate", folder).err.count("skipped") == 0
    (folder / "k3" / "snapshot-1" / MODEL_FILE).unlink()
    (folder / "k5" / MODEL_FILE).unlink()  # k5 now counts as not trained
    assert lost_snapshots(folder) == ["k3/snapshot-1"]
    err = cli("ensemble", "evaluate", folder).err
    assert f"skipped members of {folder} whose files are missing: k3/snapshot-1" in err
    assert "that are not trained yet: k5" in err


def test_overwriting_keeps_the_model_of_another_program(run_folder, tiny_recipe):
    (run_folder / "downloaded").mkdir()
    (run_folder / "downloaded" / MODEL_FILE).write_bytes(b"not a member of this run")
    train(tiny(tiny_recipe), run_folder, overwrite=True)
    assert (run_folder / "downloaded" / MODEL_FILE).read_bytes() == b"not a member of this run"


def test_overwriting_removes_files_of_a_killed_process(run_folder, tiny_recipe):
    (run_folder / "k5" / f".{MODEL_FILE}.abc.part").write_bytes(b"half a model")
    (run_folder / "k5" / STATE_FILE).write_bytes(b"a state")
    train(tiny(tiny_recipe), run_folder, overwrite=True, members=["k3"])
    assert not (run_folder / "k5").exists()


@pytest.mark.parametrize("failing", ["recipe", "data"])
def test_run_is_not_removed_if_the_new_run_cannot_start(run_folder, tiny_recipe, failing):
    before = files_in(run_folder)
    override = {"recipe": "data.validation.first=9999", "data": "data.source=idx:/nowhere"}[failing]
    with pytest.raises(FmcliError):
        train(tiny(tiny_recipe, override), run_folder, overwrite=True)
    assert files_in(run_folder) == before


# --- resuming ---------------------------------------------------------------------------------------------


def test_resuming_a_finished_run_trains_nothing(run_folder, tiny_recipe):
    before, events = files_in(run_folder), []
    histories = train(tiny(tiny_recipe), run_folder, resume=True, reporter=events.append)
    assert [(type(event), event.already_trained) for event in events] == [(MemberFinished, True)] * 2
    assert [len(history) for history in histories.values()] == [1, 1]
    assert files_in(run_folder) == before


def test_resuming_without_a_folder_starts_a_run(tiny_recipe, tmp_path):
    train(tiny(tiny_recipe), tmp_path / "new" / "run", resume=True)
    assert set(files_in(tmp_path / "new" / "run")) == RUN_FILES


def test_resuming_trains_the_remaining_members(finished, tiny_recipe, tmp_path):
    train(tiny(tiny_recipe), tmp_path / "run", members=["k5"])
    content = files_in(tmp_path / "run")
    events = []
    train(tiny(tiny_recipe), tmp_path / "run", resume=True, reporter=events.append)
    assert [event.member for event in events if isinstance(event, MemberStarted)] == ["k3"]
    after = files_in(tmp_path / "run")
    assert {name: after[name] for name in content} == content
    assert set(after) == RUN_FILES
    for name in ("k3", "k5"):
        first, second = (load_file(folder / name / MODEL_FILE) for folder in (finished, tmp_path / "run"))
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("threads", "7", "was trained with 7 CPU threads"),
        ("device", "NVIDIA H200", "was trained on cuda"),
        ("precision", "bf16", "was trained in bf16"),
        ("torch", "1.0", "was trained with torch 1.0"),
        ("fmcli", "0.0.1", r"was trained with fmcli 0\.0\.1"),
    ],
)
def test_remaining_member_is_not_trained_in_a_different_environment(run_folder, tiny_recipe, key, value, message):
    folder = run_folder / "k3"
    finished = load_checkpoint(folder / MODEL_FILE, device=CPU)
    table = "versions" if key in ("torch", "fmcli") else "trained_on"
    header = finished.header.model_copy(update={table: getattr(finished.header, table) | {key: value}})
    save_checkpoint(folder / MODEL_FILE, finished.model, header)
    train(tiny(tiny_recipe), run_folder, resume=True)  # nothing is left to train
    (run_folder / "k5" / MODEL_FILE).unlink()
    before = files_in(run_folder)
    with pytest.raises(
        CheckpointError, match=f"member k3 in .* {message}; the rest of its run would be trained"
    ) as caught:
        train(tiny(tiny_recipe), run_folder, resume=True)
    assert "--output" in hint_of(caught.value)
    assert files_in(run_folder) == before
    train(tiny(tiny_recipe), run_folder, resume=True, members=["k3"])


def test_threads_per_member_are_compared(run_folder, tiny_recipe):
    (run_folder / "k5" / MODEL_FILE).unlink()
    with pytest.raises(CheckpointError, match="was trained with 1 CPU thread; the rest of its run"):
        train(tiny(tiny_recipe), run_folder, resume=True, jobs=2, threads=2)
    train(tiny(tiny_recipe), run_folder, resume=True, jobs=2, threads=1)


def test_partly_trained_member_is_checked_before_another_is_trained(tiny_recipe, tmp_path):
    recipe = tiny(tiny_recipe, "trainer.epochs=2")
    with pytest.raises(StopRequest):
        train(recipe, tmp_path / "run", members=["k5"], reporter=StopAt(EpochFinished, 1, StopRequest))
    before = files_in(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"member k5 in .* was started with 1 CPU thread;") as caught:
        train(recipe, tmp_path / "run", resume=True, jobs=2, threads=2)
    assert "--threads 1" in hint_of(caught.value)
    assert files_in(tmp_path / "run") == before
    train(recipe, tmp_path / "run", resume=True, jobs=2, threads=1)


def test_finished_members_need_no_process(run_folder, tiny_recipe, monkeypatch):
    monkeypatch.setattr("fmcli.training.executors.processes._start", lambda *_: pytest.fail("a process was started"))
    events = []
    histories = train(tiny(tiny_recipe), run_folder, resume=True, jobs=2, reporter=events.append)
    assert [(type(event), event.already_trained) for event in events] == 2 * [(MemberFinished, True)]
    assert list(histories) == ["k3", "k5"]


def test_member_that_starts_later_does_not_train_on_changed_images(tiny_recipe, tmp_path):
    folder = tmp_path / "quadrants"
    images, labels = draw_quadrants(240, seed=1)
    write_idx_folder(folder, images, labels, test=draw_quadrants(100, seed=2), classes=("a", "b", "c", "d"))
    recipe = tiny(tiny_recipe, f"data.source=idx:{folder}")
    train(recipe, tmp_path / "run", members=["k3"])

    def change(event):
        if isinstance(event, MemberFinished):  # k3 has finished, and no process has started
            write_idx_folder(
                folder, images, labels[::-1], test=draw_quadrants(100, seed=2), classes=("a", "b", "c", "d")
            )

    with pytest.raises(
        CheckpointError,
        match=r"member k5 in .* was planned with different train images; it would now be trained with the current",
    ) as caught:
        train(recipe, tmp_path / "run", jobs=2, threads=1, resume=True, reporter=change)
    assert "--resume" in hint_of(caught.value)
    assert not (tmp_path / "run" / "k5" / MODEL_FILE).exists()


def test_checkpoint_without_environment_is_refused_if_a_member_is_left(run_folder, tiny_recipe):
    folder = run_folder / "k3"
    finished = load_checkpoint(folder / MODEL_FILE, device=CPU)
    save_checkpoint(folder / MODEL_FILE, finished.model, finished.header.model_copy(update={"trained_on": {}}))
    train(tiny(tiny_recipe), run_folder, resume=True)  # nothing is left to train
    (run_folder / "k5" / MODEL_FILE).unlink()
    with pytest.raises(CheckpointError, match="k3 does not record the device, threads and precision"):
        train(tiny(tiny_recipe), run_folder, resume=True)


def test_damaged_member_is_refused(run_folder, tiny_recipe):
    path = run_folder / "k3" / MODEL_FILE
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        train(tiny(tiny_recipe), run_folder, resume=True)


@pytest.mark.parametrize("options", [{}, {"resume": True}])
def test_run_that_another_process_finished_meanwhile_is_unchanged(tiny_recipe, tmp_path, monkeypatch, options):
    """Loading the images may take minutes, and the folder is locked only afterwards."""
    load = fmcli.training.run.load_splits

    def load_slowly(*arguments: object) -> Splits:
        monkeypatch.setattr("fmcli.training.run.load_splits", load)
        train(tiny(tiny_recipe, "optimizer.lr=0.5"), tmp_path / "run")
        return load(*arguments)

    monkeypatch.setattr("fmcli.training.run.load_splits", load_slowly)
    with pytest.raises(UsageError, match="a different recipe" if options else "already contains a run"):
        train(tiny(tiny_recipe), tmp_path / "run", **options)
    assert load_recipe(str(tmp_path / "run" / RECIPE_FILE)).members[0].optimizer.lr == 0.5


def test_run_stopped_in_its_second_member_resumes_there(tiny_recipe, tmp_path):
    recipe = tiny(tiny_recipe, "trainer.epochs=2")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", reporter=StopAt(EpochFinished, 3))
    assert not (tmp_path / "run" / "k5" / MODEL_FILE).exists()
    events = []
    train(recipe, tmp_path / "run", resume=True, reporter=events.append)
    assert [event.member for event in events if isinstance(event, MemberFinished) and event.already_trained] == ["k3"]
    assert [(event.member, event.first_epoch) for event in events if isinstance(event, MemberStarted)] == [("k5", 2)]
    train(recipe, tmp_path / "whole")
    first, second = (load_file(tmp_path / folder / "k5" / MODEL_FILE) for folder in ("run", "whole"))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.batch_size=16", "members.k3.trainer.batch_size: was 32, now 16"),
        ("members.k5.model.kernel_size=7", "members.k5.model.kernel_size: was 5, now 7"),
        ("data.validation.first=50", "data.validation.first: was 40, now 50"),
    ],
)
def test_resuming_with_a_different_recipe_lists_the_differences(run_folder, tiny_recipe, override, message):
    before = files_in(run_folder)
    with pytest.raises(UsageError, match="a different recipe") as caught:
        train(tiny(tiny_recipe, override), run_folder, resume=True)
    assert f"\n  {message}" in caught.value.message
    assert "--overwrite" in hint_of(caught.value)
    assert files_in(run_folder) == before


def test_resuming_with_an_additional_member_is_refused(run_folder, tiny_recipe):
    tiny_recipe.write_text(tiny_recipe.read_text() + '\n[[members]]\nname = "k7"\nmodel.kernel_size = 7\n')
    with pytest.raises(UsageError, match=r"members\.k7: was"):
        train(tiny(tiny_recipe), run_folder, resume=True)


def test_reference_can_be_added_before_resuming(run_folder, tiny_recipe):
    recipe = tiny(tiny_recipe, "reference.source=a paper")
    train(recipe, run_folder, resume=True)
    assert load_recipe(str(run_folder / RECIPE_FILE)) == recipe


def test_different_voting_rule_is_refused_because_checkpoints_record_it(run_folder, tiny_recipe):
    with pytest.raises(UsageError, match=r"ensemble\.vote: was majority, now soft"):
        train(tiny(tiny_recipe, "ensemble.vote=soft"), run_folder, resume=True)


def test_different_order_of_members_is_refused_because_seeds_depend_on_the_index(run_folder, tiny_recipe):
    recipe = tiny(tiny_recipe)
    reordered = recipe.model_copy(update={"members": recipe.members[::-1]})
    with pytest.raises(UsageError, match="order of members"):
        train(reordered, run_folder, resume=True)


def test_members_that_were_reordered_in_the_runs_recipe_are_refused(run_folder, tiny_recipe):
    recipe = tiny(tiny_recipe)
    reordered = recipe.model_copy(update={"members": recipe.members[::-1]})
    (run_folder / RECIPE_FILE).write_text(dump_recipe(reordered), "utf-8")
    with pytest.raises(CheckpointError, match=r"k5 in .* at index 1 of the recipe's members; .* at index 0"):
        train(reordered, run_folder, resume=True)
    shutil.rmtree(run_folder / "k5")
    with pytest.raises(CheckpointError, match=r"k3 in .* at index 0 of the recipe's members; .* at index 1") as caught:
        train(reordered, run_folder, resume=True)
    assert "restore the order of the members" in hint_of(caught.value)


def test_reordered_member_does_not_resume_from_its_state(tiny_recipe, tmp_path):
    recipe = tiny(tiny_recipe, "trainer.epochs=2")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", members=["k5"], reporter=StopAt(EpochFinished, 1))
    reordered = recipe.model_copy(update={"members": recipe.members[::-1]})
    (tmp_path / "run" / RECIPE_FILE).write_text(dump_recipe(reordered), "utf-8")
    with pytest.raises(CheckpointError, match=r"k5 in .* was started at index 1 of the recipe's members; resuming"):
        train(reordered, tmp_path / "run", resume=True)


def test_run_whose_recipe_is_damaged_does_not_resume(run_folder, tiny_recipe):
    (run_folder / RECIPE_FILE).write_text("[data\n")
    with pytest.raises(CheckpointError, match="not valid TOML"):
        train(tiny(tiny_recipe), run_folder, resume=True)


# --- errors before anything is written ---------------------------------------------------------------------


def test_unknown_member_is_refused_with_a_suggestion(tiny_recipe, tmp_path):
    with pytest.raises(UsageError, match="recipe tiny has no member 'k33'") as caught:
        train(tiny(tiny_recipe), tmp_path / "run", members=["k3", "k33"])
    assert caught.value.hint == "did you mean 'k3'?"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["data.source=idx:/nowhere"], DataError, "/nowhere is not a folder"),
        (["data.validation.first=240"], DataError, "leaves no training images; the source has 240"),
        (["model.form=plain"], RecipeError, r"members\.k3\.model\.layers"),
        (["data.classes=['a', 'b']"], DataError, "2 classes"),
    ],
)
def test_nothing_is_written_for_a_run_that_cannot_start(tiny_recipe, tmp_path, overrides, error, message):
    widths = [f"model.widths={[4] * 7}"] if "model.form=plain" in overrides else []
    with pytest.raises(error, match=message):
        train(tiny(tiny_recipe, *overrides, *widths), tmp_path / "deep" / "run")
    assert not (tmp_path / "deep").exists()


def test_error_names_every_impossible_network(tiny_recipe, tmp_path):
    with pytest.raises(RecipeError) as caught:
        train(tiny(tiny_recipe, "model.form=plain", f"model.widths={[4] * 7}"), tmp_path / "run")
    assert [problem.split(".model")[0] for problem in caught.value.problems] == ["members.k3", "members.k5"]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("GausNoise", {}, "did you mean 'GaussNoise'"),
        ("GaussNoise", {"st_range": 3}, "st_range"),
        ("RandomCrop", {"height": 5, "width": 5}, "must not change"),
        ("RandomCrop", {"height": 50, "width": 50}, "fails on a 12×12 image"),
    ],
)
def test_bad_augmentation_is_found_before_anything_is_written(tiny_recipe, tmp_path, name, arguments, message):
    table = ", ".join(f"{key} = {value}" for key, value in arguments.items())
    override = f"members.k5.augment.albumentations=[{{ name = '{name}', args = {{ {table} }} }}]"
    with pytest.raises(RecipeError, match=message):
        train(tiny(tiny_recipe, override), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(RecipeError, match=r"augment\.albumentations"):
        check_augmentation(tiny(tiny_recipe, override), (1, 12, 12))


def test_last_batch_of_one_image_is_found_before_anything_is_written(tiny_recipe, tmp_path):
    """Batch norm needs a variance. Without this check, torch would fail at the end of the first epoch."""
    write_idx_folder(tmp_path / "odd", *draw_quadrants(73), test=draw_quadrants(20))
    overrides = [f"data.source=idx:{tmp_path}/odd", "model.form=plain", "model.widths=[4]", "data.validation.first=40"]
    with pytest.raises(RecipeError, match="last batch") as caught:
        train(tiny(tiny_recipe, *overrides), tmp_path / "run")
    assert caught.value.remedies == (Remedy("set", "trainer.drop_last=true"),)
    assert not (tmp_path / "run").exists()
    train(tiny(tiny_recipe, *overrides, "trainer.drop_last=true"), tmp_path / "run")


@pytest.mark.parametrize(("bagging", "fits"), [(0.3, True), (0.4, True), (0.328, False)])
def test_last_batch_is_counted_in_the_images_that_bagging_draws(tiny_recipe, tmp_path, bagging, fits):
    """In batches of 65: 60 images are one batch, 80 leave a batch of 15, and 66 leave a batch of one."""
    overrides = [f"trainer.bagging={bagging}", "trainer.batch_size=65", "model.form=plain", "model.widths=[4]"]
    if fits:
        train(tiny(tiny_recipe, *overrides), tmp_path / "run")
    else:
        with pytest.raises(RecipeError, match="66 images in batches of 65 leave one image for the last batch"):
            train(tiny(tiny_recipe, *overrides), tmp_path / "run")


@pytest.mark.parametrize("path", ["f/run", "f/deeper/run", "x" * 300])
def test_folder_that_cannot_be_created_is_an_error(tiny_recipe, tmp_path, path):
    (tmp_path / "f").write_text("not a folder")
    with pytest.raises(FmcliError):
        train(tiny(tiny_recipe), tmp_path / path)


def test_damaged_finished_member_is_found_before_another_is_trained(finished, tiny_recipe, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "k3" / MODEL_FILE).unlink()
    weights = tmp_path / "run" / "k5" / MODEL_FILE
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    events = []
    with pytest.raises(CheckpointError, match="damaged"):
        train(tiny(tiny_recipe), tmp_path / "run", resume=True, reporter=events.append)
    assert events == []
