import json
import math
from dataclasses import replace

import pytest
import torch

from fmcli.checkpoints.history import read_history
from fmcli.checkpoints.layout import MODEL_FILE
from fmcli.cli import run
from fmcli.errors import CheckpointError, DataError, DivergedError, ExitStatus, RecipeError, RunInUseError, UsageError
from fmcli.events import MemberFinished, RunStarted
from fmcli.experiments.reproduce import published_systems, reproduce
from fmcli.experiments.results import SeedResult, SystemResult
from fmcli.metrics.comparison import mean_interval, wilson_interval
from fmcli.recipe import ReferenceSpec, load_recipe
from fmcli.report.published import published_document
from fmcli.storage.locks import try_lock
from tests.helpers import TINY_RECIPE, StopAt
from tests.processes import start_fmcli

CPU = torch.device("cpu")
REFERENCE = """
[reference]
source = "A report"
train_accuracy = 0.9
test_accuracy = 0.25

[reference.test_recall]
"top left" = 0.99
"""


@pytest.fixture
def system(drawn_images, tmp_path):
    path = tmp_path / "pets.toml"
    path.write_text(TINY_RECIPE.format(folder=drawn_images).replace("epochs = 3", "epochs = 2") + REFERENCE, "utf-8")
    return path


def seed_result(seed: int, accuracy: float, **others) -> SeedResult:
    values = {
        "accuracy": {"train": 0.9, "validation": accuracy - 0.01, "test": accuracy},
        "n_images": {"validation": 5000, "test": 10000},
        "members": {"m1": accuracy},
        "recall": {"cat": accuracy, "dog": accuracy},
        "epochs": 10,
        "seconds": 5.0,
        "trained_on": {"device": "cpu"},
    }
    return SeedResult(seed=seed, **values | others)


def result_of(*accuracies: float, **reference) -> SystemResult:
    seeds = [seed_result(seed, accuracy) for seed, accuracy in enumerate(accuracies)]
    return SystemResult("a-system", ReferenceSpec(source="A report", **reference), seeds)


# --- figures ----------------------------------------------------------------------------------------------


def test_mean_and_spread_over_the_seeds():
    result = result_of(0.90, 0.91, 0.92, test_accuracy=0.905)
    assert result.mean == pytest.approx(0.91)
    assert result.spread == pytest.approx(0.01)
    assert result.difference == pytest.approx(0.005)
    # 97.5 % quantile of t with 2 degrees of freedom, from a table: 4.303
    half = 4.303 * 0.01 / math.sqrt(3)
    assert result.interval == pytest.approx((0.91 - half, 0.91 + half), abs=1e-5)
    assert result.interval == mean_interval([0.90, 0.91, 0.92])


def test_one_seed_has_the_interval_over_its_images_and_no_spread():
    result = result_of(0.90, test_accuracy=0.905)
    assert result.spread is None
    assert result.interval == wilson_interval(9000, 10000)


@pytest.mark.parametrize(
    ("published", "reached"), [(0.90, True), (0.91, True), (0.93, True), (0.94, False), (0.5, True), (None, None)]
)
def test_reached_is_at_or_above_or_within_the_interval(published, reached):
    assert result_of(0.90, 0.91, 0.92, test_accuracy=published).reached is reached


def test_validation_accuracy_is_compared_if_only_that_was_published():
    assert result_of(0.9, validation_accuracy=0.8).split == "validation"
    assert result_of(0.9, validation_accuracy=0.8).mean == pytest.approx(0.89)
    assert result_of(0.9, validation_accuracy=0.8, test_accuracy=0.8).split == "test"
    assert result_of(0.9).split == "test"
    assert result_of(0.9).difference is None


def test_document_lists_classes_far_below_the_report_and_changes_of_the_recipe():
    reference = ReferenceSpec(source="A report", test_accuracy=0.9, test_recall={"cat": 0.97, "dog": 0.91})
    result = SystemResult("pets", reference, [seed_result(0, 0.91)], ("trainer.epochs: was 5, now 2",))
    document = published_document([result, result_of(0.9)])
    main, classes = document.sheets
    assert [row["System"] for row in main.rows] == ["pets", "a-system"]
    assert "pets differs from the shipped recipe: trainer.epochs: was 5, now 2" in main.notes
    assert [list(row.values()) for row in classes.rows] == [
        ["cat", "97.00", "91.00", "-6.00"],
        ["dog", "91.00", "91.00", "+0.00"],
    ]
    assert classes.notes == ["More than 5 points below the published recall: cat"]
    json.dumps(document.payload)


# --- training ---------------------------------------------------------------------------------------------


def test_each_seed_is_trained_and_scored_by_vote(system, tmp_path):
    events = []
    [result] = reproduce([str(system)], tmp_path / "out", seeds=2, device=CPU, reporter=events.append)
    assert (result.name, result.changes) == ("pets", ())
    assert [seed.seed for seed in result.seeds] == [0, 1]
    assert [event for event in events if isinstance(event, RunStarted)] == [
        RunStarted("pets", 0, 2),
        RunStarted("pets", 1, 2),
    ]
    for seed in result.seeds:
        assert set(seed.accuracy) == {"train", "validation", "test"}
        assert set(seed.members) == {"k3", "k5"}
        assert seed.n_images == {"validation": 40, "test": 100}
        assert seed.epochs == 2
        assert set(seed.recall) == {"top left", "top right", "bottom left", "bottom right"}
    first, second = (load_recipe(str(tmp_path / "out" / "pets" / f"seed-{seed}" / "recipe.toml")) for seed in (0, 1))
    assert {member.trainer.seed for member in first.members} == {0}
    assert {member.trainer.seed for member in second.members} == {1}


def test_finished_runs_are_not_trained_again(system, tmp_path):
    [before] = reproduce([str(system)], tmp_path / "out", seeds=1, device=CPU)
    with pytest.raises(UsageError, match="already has a run") as caught:
        reproduce([str(system)], tmp_path / "out", seeds=2, device=CPU)
    assert [remedy.action for remedy in caught.value.remedies] == ["skip-done", "overwrite", "output"]
    events = []
    options = {"seeds": 2, "device": CPU, "skip_done": True, "reporter": events.append}
    [after] = reproduce([str(system)], tmp_path / "out", **options)
    assert after.seeds[0] == before.seeds[0]
    trained = [event.path.parent.parent.name for event in events if isinstance(event, MemberFinished)]
    assert trained == ["seed-1", "seed-1"]


def test_an_interrupted_run_is_resumed(system, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        reproduce([str(system)], tmp_path / "broken", seeds=1, device=CPU, reporter=StopAt(MemberFinished))
    [resumed] = reproduce([str(system)], tmp_path / "broken", seeds=1, device=CPU, skip_done=True)
    [whole] = reproduce([str(system)], tmp_path / "whole", seeds=1, device=CPU)
    assert replace(resumed.seeds[0], seconds=0) == replace(whole.seeds[0], seconds=0)


def test_processes_share_the_trainings(system, tmp_path):
    command = ["reproduce", system, "--seeds", 3, "--skip-done", "--threads", 1, "--output", tmp_path / "out"]
    both = [start_fmcli(*command, "--device", "cpu", "--format", "json") for _ in range(2)]
    first, second = (process.finish() for process in both)
    assert (first.status, second.status) == (0, 0), (first, second)
    assert first.json == second.json
    assert len(first.json["systems"][0]["trainings"]) == 3
    trained = (first.err + second.err).count("k3: ")
    assert trained == 3


def test_changes_of_the_recipe_are_reported_also_for_finished_runs(system, tmp_path):
    change = "members.k3.trainer.epochs: was 2, now 1"
    options = {"seeds": 1, "device": CPU}
    [result] = reproduce([str(system)], tmp_path / "out", overrides=["trainer.epochs=1"], **options)
    assert change in result.changes
    [again] = reproduce([str(system)], tmp_path / "out", skip_done=True, **options)
    assert change in again.changes
    [overwritten] = reproduce([str(system)], tmp_path / "out", overwrite=True, **options)
    assert overwritten.changes == ()


def test_a_recipe_without_a_reference_is_refused_before_any_training(tiny_recipe, system, tmp_path):
    with pytest.raises(UsageError, match=r"no \[reference\]"):
        reproduce([str(system), str(tiny_recipe)], tmp_path / "out", seeds=1, device=CPU)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ('"top left" = 0.99', '"top lft" = 0.99', RecipeError, "did you mean 'top left'"),
        ("test_accuracy = 0.25", "validation_accuracy = 0.25", RecipeError, "needs validation images"),
        ("idx:", "idx:/nowhere", DataError, "nowhere"),
    ],
)
def test_a_bad_reference_or_missing_data_is_found_before_any_training(system, tmp_path, old, new, error, message):
    bad = tmp_path / "bad.toml"
    text = system.read_text("utf-8").replace(old, new)
    bad.write_text(text.replace("validation = { first = 40 }\n", "") if "validation" in new else text, "utf-8")
    with pytest.raises(error, match=message):
        reproduce([str(system), str(bad)], tmp_path / "out", seeds=1, device=CPU)
    assert not (tmp_path / "out").exists()


def test_contradicting_options_are_refused(system, tmp_path):
    options = {"seeds": 1, "device": CPU}
    with pytest.raises(UsageError, match="not both"):
        reproduce([str(system)], tmp_path / "out", skip_done=True, overwrite=True, **options)
    with pytest.raises(UsageError, match=r"cannot set trainer\.seed=7"):
        reproduce([str(system)], tmp_path / "out", overrides=["trainer.seed=7"], **options)


def test_interrupted_overwriting_continues_without_old_runs(system, tmp_path):
    options = {"seeds": 2, "device": CPU}
    reproduce([str(system)], tmp_path / "out", overrides=["trainer.epochs=1"], **options)

    with pytest.raises(KeyboardInterrupt):
        reproduce([str(system)], tmp_path / "out", overwrite=True, reporter=StopAt(MemberFinished), **options)
    [result] = reproduce([str(system)], tmp_path / "out", skip_done=True, **options)
    assert result.changes == ()
    assert [seed.epochs for seed in result.seeds] == [2, 2]


def test_overwriting_removes_no_run_if_another_process_trains_one(system, tmp_path):
    options = {"seeds": 2, "device": CPU}
    reproduce([str(system)], tmp_path / "out", overrides=["trainer.epochs=1"], **options)
    runs = [tmp_path / "out" / "pets" / f"seed-{seed}" for seed in range(2)]
    weights = [(run / "k3" / MODEL_FILE).read_bytes() for run in runs]
    lock = try_lock(runs[1] / "k5")
    with pytest.raises(RunInUseError, match="seed-1"):
        reproduce([str(system)], tmp_path / "out", overwrite=True, **options)
    assert [(run / "k3" / MODEL_FILE).read_bytes() for run in runs] == weights
    lock.release()
    [result] = reproduce([str(system)], tmp_path / "out", overwrite=True, **options)
    assert [seed.epochs for seed in result.seeds] == [2, 2]


def test_overwriting_keeps_files_that_fmcli_did_not_write(system, tmp_path):
    options = {"seeds": 1, "device": CPU}
    reproduce([str(system)], tmp_path / "out", **options)
    figure = tmp_path / "out" / "pets" / "seed-0" / "figure.png"
    figure.write_bytes(b"a figure")
    [_] = reproduce([str(system)], tmp_path / "out", overwrite=True, **options)
    assert figure.read_bytes() == b"a figure"


def test_overwriting_refuses_a_folder_that_is_not_a_run(system, tmp_path):
    weights = tmp_path / "out" / "pets" / "seed-0" / "k3" / MODEL_FILE
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"unknown")
    with pytest.raises(UsageError, match="is not a run of fmcli"):
        reproduce([str(system)], tmp_path / "out", seeds=1, device=CPU, overwrite=True)
    assert weights.read_bytes() == b"unknown"


def test_a_diverging_system_does_not_stop_the_others(system, tmp_path):
    wild = tmp_path / "wild.toml"
    text = system.read_text("utf-8").replace("lr = 1e-2", 'name = "sgd"\nlr = 1e38')
    wild.write_text(text, "utf-8")
    options = {"seeds": 2, "device": CPU}
    with pytest.raises(DivergedError, match=r"2 of 4 runs diverged: wild, seed 0: .*; wild, seed 1"):
        reproduce([str(wild), str(system)], tmp_path / "out", **options)
    [result] = reproduce([str(system)], tmp_path / "out", skip_done=True, **options)
    assert len(result.seeds) == 2


def test_an_empty_history_is_an_error(system, tmp_path):
    reproduce([str(system)], tmp_path / "out", seeds=1, device=CPU)
    (tmp_path / "out" / "pets" / "seed-0" / "k3" / "history.jsonl").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"history\.jsonl: it is empty"):
        reproduce([str(system)], tmp_path / "out", seeds=1, device=CPU, skip_done=True)


def test_the_same_recipe_twice_is_refused(system, tmp_path):
    with pytest.raises(UsageError, match="have the same name"):
        reproduce([str(system), f"{system.parent}/./{system.name}"], tmp_path / "out", seeds=1, device=CPU)


def test_systems_without_a_published_accuracy_come_last():
    names = published_systems()
    assert set(names[-4:]) == {"kernel-vote", "same-kernel-3", "same-kernel-5", "same-kernel-7"}


# --- the command ------------------------------------------------------------------------------------------


def test_command_prints_the_table_and_json(system, tmp_path, capfd):
    words = ["reproduce", str(system), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert run(words) == ExitStatus.DONE
    out, err = capfd.readouterr()
    assert "pets" in out
    assert "25.00" in out
    assert "pets: recall of each class on test" in out
    assert "pets: training run 1 of 1, seed 0" in err
    assert run([*words, "--skip-done", "--format", "json", "--quiet"]) == ExitStatus.DONE
    out, err = capfd.readouterr()
    [shown] = json.loads(out)["systems"]
    assert shown["published"] == 0.25
    assert shown["source"] == "A report"
    assert shown["test_recall"]["top left"]["published"] == 0.99
    assert len(shown["trainings"]) == 1
    assert err == ""


def test_command_refuses_an_unknown_system(capfd):
    assert run(["reproduce", "roy-4"]) == ExitStatus.USAGE
    assert "did you mean" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            '[reference]\nsource = "x"\n[reference.test_recall]\nSirt = 0.5\n',
            r"Sirt: no such class; did you mean 'Shirt'",
        ),
        ('[reference]\nsource = "x"\n[reference.test_recall]\nShirt = 74\n', "test_recall.Shirt: got 74"),
        ("[trainer]\npatience = -1\n", "trainer.patience: got -1"),
        ("[trainer]\npatience = 3\n", "trainer.patience: got 3, which needs validation images"),
        ('[trainer]\nkeep = "retrained"\n', "trainer.keep: got 'retrained', which needs validation images"),
        ('[trainer]\nmonitor = "los"\n', "trainer.monitor: got 'los'; did you mean 'loss'"),
    ],
)
def test_bad_references_and_stopping_rules_are_reported(tmp_path, table, message):
    path = tmp_path / "bad.toml"
    path.write_text(
        '[data]\nsource = "fashion-mnist"\n[model]\nfamily = "kernel-cnn"\nkernel_size = 3\nwidths = [8]\n' + table
    )
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(path))


def test_test_pixels_can_have_their_own_scale(drawn_images, tmp_path, capfd):
    accuracy = {}
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_RECIPE.format(folder=drawn_images), "utf-8")
    for scale in ("", "data.normalize_test.divide_by=0.01"):
        words = ["train", "--recipe", str(path), "--output", str(tmp_path / f"out{scale}"), "--member", "k3", "--quiet"]
        assert run([*words, *(["--set", scale] if scale else [])]) == ExitStatus.DONE
        for split in ("validation", "test"):
            capfd.readouterr()
            words = ["evaluate", str(tmp_path / f"out{scale}"), "--split", split, "--format", "json"]
            assert run(words) == ExitStatus.DONE
            accuracy[scale, split] = json.loads(capfd.readouterr().out)["members"][0]["loss"]
    plain, other = ("", "data.normalize_test.divide_by=0.01")
    assert accuracy[plain, "validation"] == accuracy[other, "validation"]
    assert accuracy[other, "test"] > 10 * accuracy[plain, "test"]


def test_snapshots_vote_and_their_training_counts_once(system, tmp_path):
    system.write_text(
        system.read_text()
        .replace("epochs = 2", 'epochs = 4\nkeep = "snapshots"')
        .replace("[trainer]", '[schedule]\nname = "cyclic"\ncycles = 2\n\n[trainer]')
    )
    [result] = reproduce([str(system)], tmp_path / "out", seeds=1, device=CPU)
    [seed] = result.seeds
    assert list(seed.members) == ["k3/snapshot-1", "k3", "k5/snapshot-1", "k5"]
    histories = [read_history(tmp_path / "out" / "pets" / "seed-0" / name) for name in ("k3", "k5")]
    assert seed.epochs == 4
    assert seed.seconds == pytest.approx(sum(epoch.seconds for history in histories for epoch in history))
    assert seed.accuracy["train"] == pytest.approx(sum(history[-1].train_accuracy for history in histories) / 2)
    again = reproduce([str(system)], tmp_path / "out", seeds=1, device=CPU, skip_done=True)
    assert again == [result]


def test_a_damaged_checkpoint_is_an_error(system, tmp_path):
    options = {"seeds": 1, "device": CPU}
    reproduce([str(system)], tmp_path / "out", **options)
    (tmp_path / "out" / "pets" / "seed-0" / "k3" / MODEL_FILE).write_bytes(b"")
    with pytest.raises(CheckpointError):
        reproduce([str(system)], tmp_path / "out", skip_done=True, **options)
