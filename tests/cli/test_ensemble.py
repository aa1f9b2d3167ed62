"""The commands of `fmcli ensemble`, run in this process."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fmcli.choices import RULE_NAMES
from fmcli.ensemble import make_rule
from fmcli.ensemble.file import MemberPath, describe_ensemble, write_ensemble_file
from fmcli.ensemble.predictions import load_predictions
from fmcli.errors import DataError
from fmcli.members.pool import open_pool
from fmcli.members.predict import predict_pool
from fmcli.recipe import load_recipe
from fmcli.training.run import train_run
from tests.helpers import TINY_RECIPE, make_combiner

POOL_RECIPE = TINY_RECIPE.replace('name = "k3"\n', 'name = "k3"\ncopies = 3\n').replace(
    'name = "k5"\n', 'name = "k5"\ncopies = 3\n'
)


@pytest.fixture(scope="module")
def pool(drawn_images, tmp_path_factory) -> Path:
    """A run of six members, three per kernel size. Tests must not write to it."""
    folder = tmp_path_factory.mktemp("pool")
    recipe = folder / "pool.toml"
    recipe.write_text(POOL_RECIPE.format(folder=drawn_images), "utf-8")
    train_run(load_recipe(str(recipe)), folder / "run", device=torch.device("cpu"))
    return folder / "run"


@pytest.fixture
def own_pool(pool, tmp_path) -> Path:
    """A copy of `pool` in a folder that the test may write to."""
    return Path(shutil.copytree(pool, tmp_path / "run"))


@pytest.fixture
def image_file(tmp_path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 180, (12, 12)).astype(np.uint8)).save(path)
    return path


def accuracy_of(result) -> float:
    assert result.status == 0, result.err
    return result.json["ensemble"]["accuracy"]


# --- evaluate --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["test", "validation"])
@pytest.mark.parametrize("vote", RULE_NAMES)
def test_every_voting_rule_can_be_chosen(cli, pool, vote, split):
    result = cli("ensemble", "evaluate", pool, "--vote", vote, "--split", split, "--format", "json")
    assert accuracy_of(result) > 0.8
    found = result.json
    assert found["vote"] == vote
    rule = make_rule(vote)
    assert found["cross_fitted"] is (rule.needs_fit and split == "validation")
    assert (found["weights"] is not None) == (rule.needs_fit and rule.takes_weights)
    assert found["groups"] == (["3", "3", "3", "5", "5", "5"] if rule.needs_groups else None)
    assert len(found["members"]) == 6
    for member in found["members"]:
        assert (member["lost_without"] is None) == (vote == "stacking")
    for measure in found["diversity"].values():
        assert np.array(measure["pairs"], dtype=float).shape == (6, 6)


def test_table_reports_the_significance_of_the_gain(cli, pool):
    result = cli("ensemble", "evaluate", pool, "--vote", "weighted-soft")
    assert result.status == 0
    for message in (
        "Weight",
        "Contribution",
        "Cochran's Q",
        "Q statistic",
        "at temperature",
        "Equal mass",
        "least certain",
    ):
        assert message in result.out


def test_weights_follow_the_order_of_members(cli, pool):
    alone = cli("evaluate", pool / "k5-1", "--format", "json").json["members"][0]
    only = cli("ensemble", "evaluate", pool, "--weights", "0,0,0,1,0,0", "--format", "json")
    assert accuracy_of(only) == alone["accuracy"]
    assert only.json["weights"] == [0, 0, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "1,2"], "6 members need 6"),
        (["--weights", "1,2,x,1,1,1"], "numbers separated by commas"),
        (["--weights", "1,1,1,1,1,-1"], "must be 0 or larger"),
        (["--weights", "0,0,0,0,0,0"], "at least one above 0"),
        (["--weights", "1,1,1,1,1,1", "--vote", "stacking"], "does not use weights"),
        (["--vote", "two-level", "--groups", "a,b"], "6 members need 6 groups, one per member; got 2"),
        (["--vote", "plurality"], "plurality"),
    ],
)
def test_invalid_weights_and_groups_are_refused(cli, pool, options, message):
    result = cli("ensemble", "evaluate", pool, *options)
    assert (result.status, result.out) == (2, "")
    assert message in result.err


def test_fitted_rule_needs_validation_images(cli, drawn_images, tmp_path):
    recipe = tmp_path / "none.toml"
    recipe.write_text(TINY_RECIPE.format(folder=drawn_images).replace("validation = { first = 40 }\n", ""), "utf-8")
    assert cli("train", "--recipe", recipe, "--output", tmp_path / "none", "--set", "trainer.epochs=1").status == 0
    assert cli("ensemble", "evaluate", tmp_path / "none").status == 0
    refused = cli("ensemble", "evaluate", tmp_path / "none", "--vote", "stacking")
    assert refused.status == 2
    assert "must be fitted on validation images" in refused.err
    refused = cli("ensemble", "select", tmp_path / "none", "--output", tmp_path / "chosen.toml")
    assert refused.status == 2
    assert "no validation images" in refused.err
    fitted = cli("ensemble", "fit", tmp_path / "none", "--output", tmp_path / "fitted.toml")
    assert fitted.status == 0
    assert "Nothing was fitted" in fitted.out


@pytest.mark.parametrize("views", ["flip", "shift", "flip-shift"])
def test_views_of_an_image_are_averaged(cli, pool, views):
    plain = cli("evaluate", pool / "k3-1", "--format", "json").json["members"][0]
    seen = cli("evaluate", pool / "k3-1", "--tta", views, "--format", "json").json["members"][0]
    assert seen["loss"] != plain["loss"]
    assert cli("ensemble", "evaluate", pool, "--tta", views).status == 0


# --- predictions as files --------------------------------------------------------------------------------


def test_saved_predictions_replace_their_members(cli, pool, tmp_path):
    for split in ("test", "validation"):
        saved = cli("evaluate", pool, "--split", split, "--save-predictions", tmp_path / "saved", "--quiet")
        assert saved.status == 0
    assert len(list((tmp_path / "saved").glob("*/test.safetensors"))) == 6
    options = ("--vote", "stacking", "--format", "json")
    of_networks = cli("ensemble", "evaluate", pool, *options).json
    of_files = cli("ensemble", "evaluate", tmp_path / "saved", *options).json
    assert of_files["ensemble"] == of_networks["ensemble"]
    assert of_files["temperature"] == of_networks["temperature"]
    chosen = cli("ensemble", "select", tmp_path / "saved", "--output", tmp_path / "saved.toml", "--size", "3")
    assert chosen.status == 0
    assert cli("ensemble", "evaluate", tmp_path / "saved.toml").status == 0
    refused = cli("predict", tmp_path / "saved.toml", tmp_path)
    assert refused.status == 2
    assert "has stored predictions but no network" in refused.err


def test_predictions_are_combined_without_importing_torch(cli, pool, tmp_path):
    for split in ("test", "validation"):
        assert cli("evaluate", pool, "--split", split, "--save-predictions", tmp_path / "saved").status == 0
    saved = sorted(map(str, (tmp_path / "saved").iterdir()))
    commands = [["evaluate"], ["compare", "--format", "json"]]
    commands += [[name, "--output", str(tmp_path / f"{name}.toml")] for name in ("fit", "select")]
    program = f"""
import sys
from fmcli.cli import run
for command in {commands}:
    assert run(["ensemble", *command, *{saved}]) == 0
    assert "torch" not in sys.modules, command
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_predictions_of_one_member_are_saved_as_one_file(cli, pool, tmp_path):
    file = tmp_path / "one.safetensors"
    assert cli("evaluate", pool / "k3-1", "--save-predictions", file).status == 0
    assert load_predictions(file).group == "3"
    refused = cli("evaluate", pool, "--save-predictions", file)
    assert refused.status == 2
    assert "give a folder" in refused.err


def test_csv_and_npy_predictions_of_other_tools_can_vote(cli, pool, tmp_path):
    first, second, *_ = predict_pool(open_pool([pool], device="cpu"), "test")
    probabilities = [
        np.exp(entry.logits) / np.exp(entry.logits).sum(axis=1, keepdims=True) for entry in (first, second)
    ]
    np.save(tmp_path / "forest.npy", probabilities[0])
    rows = [",".join(["label", *first.class_names])]
    rows += [
        ",".join([first.class_names[label], *map(str, row)])
        for label, row in zip(first.labels, probabilities[1], strict=True)
    ]
    (tmp_path / "svm.csv").write_text("\n".join(rows), "utf-8")
    both = cli("ensemble", "evaluate", tmp_path / "svm.csv", tmp_path / "forest.npy", "--format", "json")
    own = cli("ensemble", "evaluate", pool / "k3-1", pool / "k3-2", "--format", "json")
    assert accuracy_of(both) == accuracy_of(own)
    refused = cli("evaluate", tmp_path / "forest.npy")
    assert refused.status == 3
    assert "--labels" in refused.err
    for name in ("forest", "knn"):  # without validation labels, nothing can be fitted
        (tmp_path / name).mkdir()
        for split in ("test", "validation"):
            np.save(tmp_path / name / f"{split}.npy", probabilities[0])
    np.save(tmp_path / "truth.npy", first.labels)
    named = (tmp_path / "forest", tmp_path / "knn", "--labels", tmp_path / "truth.npy", "--format", "json")
    assert accuracy_of(cli("ensemble", "evaluate", *named, "--vote", "soft")) > 0.8
    labelled = cli("evaluate", tmp_path / "forest.npy", "--labels", tmp_path / "truth.npy", "--format", "json")
    assert labelled.json["members"][0]["accuracy"] == own.json["members"][0]["accuracy"]


def test_unrelated_predictions_of_other_tools_are_evaluated_together(cli, tmp_path):
    for name, n_classes in (("three", 3), ("ten", 10)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "test.npy", np.eye(n_classes))
        np.save(tmp_path / name / "test-labels.npy", np.arange(n_classes))
    paths = [tmp_path / name / "test.npy" for name in ("three", "ten")]
    shown = cli("evaluate", *paths, "--format", "json")
    assert [member["accuracy"] for member in shown.json["members"]] == [1, 1]
    refused = cli("ensemble", "evaluate", *paths)
    assert refused.status in (3, 4)
    assert "classes" in refused.err


def test_ensemble_file_can_name_predictions_called_like_a_split(cli, tmp_path):
    folder = tmp_path / "predictions"
    folder.mkdir()
    for name in ("test", "knn", "test-labels"):
        np.save(folder / f"{name}.npy", np.arange(3) if name == "test-labels" else np.eye(3) * 0.7 + 0.1)
    members = (folder / "test.npy", folder / "knn.npy")
    made = cli("ensemble", "fit", *members, "--vote", "soft", "--output", folder / "both.toml")
    assert made.status == 0, made.err
    assert accuracy_of(cli("ensemble", "evaluate", folder / "both.toml", "--format", "json")) == 1


def test_weights_that_a_file_cannot_store_are_refused(cli, pool, own_pool, tmp_path):
    members = (own_pool / "k3-1", own_pool / "k3-2")
    refused = cli("ensemble", "fit", *members, "--weights", "2000000000,1", "-o", own_pool / "heavy.toml")
    assert refused.status == 2
    assert "k3-1: weight: Input should be less than or equal to" in refused.err
    assert "Traceback" not in refused.err


# --- fit, select -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["evaluate", "fit", "select", "compare"])
def test_unused_labels_are_refused(cli, pool, tmp_path, command):
    np.save(tmp_path / "truth.npy", np.zeros(40, np.int64))
    paths = [pool, pool / "k3-1"] if command == "compare" else [pool]
    output = ["--output", tmp_path / "made.toml"] if command in ("fit", "select") else []
    refused = cli("ensemble", command, *paths, "--labels", tmp_path / "truth.npy", *output)
    assert refused.status == 2
    assert "these members have the true classes" in refused.err


def test_labels_are_accepted_if_one_ensemble_needs_them(cli, pool, tmp_path):
    saved = cli("evaluate", pool / "k3-1", "--save-predictions", tmp_path / "own.safetensors")
    assert saved.status == 0
    own = load_predictions(tmp_path / "own.safetensors")
    rows = np.eye(4)[own.choices] * 0.8 + 0.05
    np.savetxt(tmp_path / "other.csv", rows, delimiter=",", header=",".join(own.class_names), comments="")
    np.save(tmp_path / "truth.npy", own.labels)
    paths = [tmp_path / "own.safetensors", tmp_path / "other.csv"]
    compared = cli("ensemble", "compare", *paths, "--labels", tmp_path / "truth.npy", "--format", "json")
    assert compared.status == 0, compared.err


def test_fitted_ensemble_file_replaces_a_run(cli, own_pool, image_file, tmp_path):
    output = tmp_path / "fitted.toml"
    made = cli("ensemble", "fit", own_pool, "--vote", "weighted-soft", "--output", output, "--format", "json")
    assert made.status == 0, made.err
    weights = [member["weight"] for member in made.json["members"]]
    assert sum(weights) == pytest.approx(1)
    found = cli("ensemble", "evaluate", output, "--format", "json").json
    assert found["weights"] == pytest.approx(weights)
    assert found["temperature"] == made.json["temperature"]
    calibrated = cli("predict", output, image_file, "--format", "json").json[0]
    plain = cli("predict", own_pool, image_file, "--vote", "weighted-soft", "--format", "json").json[0]
    assert calibrated["label"] == plain["label"]
    assert calibrated["probability"] != plain["probability"]
    assert "score is too high" not in cli("ensemble", "evaluate", output).err
    assert "score is too high" in cli("ensemble", "evaluate", output, "--split", "validation").err
    for command in (["evaluate", output], ["plot", "confusion", output, "--output", tmp_path / "c.png"]):
        assert cli(*command).status == 0, command
    assert cli("ensemble", "fit", own_pool, "--output", output).status == 2  # it already exists
    assert cli("ensemble", "fit", own_pool, "--output", output, "--overwrite").status == 0


def test_evaluate_uses_an_edited_ensemble_file(cli, own_pool, tmp_path):
    output = tmp_path / "fitted.toml"
    members = [own_pool / "k3-1", own_pool / "k5-1"]
    assert cli("ensemble", "fit", *members, "--vote", "weighted-soft", "--weights", "2,1", "-o", output).status == 0
    text = output.read_text("utf-8")
    edited = text.replace("weight = 2.0", "weight = 0").replace('tie = "probability"', 'tie = "first"')
    output.write_text("# only k5-1 counts\n" + edited, "utf-8")
    found = cli("ensemble", "evaluate", output, "--format", "json")
    assert found.json["weights"] == [0, 1]
    assert found.json["tie"] == "first"
    assert accuracy_of(found) == cli("evaluate", members[1], "--format", "json").json["members"][0]["accuracy"]


@pytest.mark.parametrize("method", ["greedy", "exhaustive", "diverse"])
@pytest.mark.parametrize("by", ["accuracy", "loss"])
def test_members_are_selected_on_validation_images(cli, own_pool, tmp_path, method, by):
    output = tmp_path / "chosen.toml"
    options = ("--method", method, "--by", by, "--size", "3", "--output", output, "--format", "json")
    made = cli("ensemble", "select", own_pool, *options)
    assert made.status == 0, made.err
    chosen = [member["member"] for member in made.json["members"]]
    assert 1 <= len(chosen) <= 3
    assert made.json["considered"] == 6
    ranked = sorted([made.json["best_member_score"], made.json["score"]], reverse=by == "loss")
    assert ranked[1] == made.json["score"]
    found = cli("ensemble", "evaluate", output, "--format", "json").json
    assert [member["name"] for member in found["members"]] == chosen


@pytest.mark.parametrize(("method", "most"), [("greedy", 20), ("exhaustive", 3), ("diverse", 10)])
def test_selection_reports_its_gain(cli, own_pool, tmp_path, method, most):
    made = cli("ensemble", "select", own_pool, "--method", method, "--output", tmp_path / "chosen.toml")
    assert made.status == 0, made.err
    assert "Validation accuracy of the vote" in made.out
    assert "Best single member, k" in made.out
    assert "Vote of all 6" in made.out
    rows = [line.split() for line in made.out.splitlines() if line.lstrip().startswith(("k3-", "k5-"))]
    assert 1 <= sum(int(times) for _, times, _ in rows) <= most


@pytest.mark.parametrize("tie", ["lowest", "first"])
def test_selection_uses_the_tie_rule_that_it_writes(cli, own_pool, tmp_path, tie):
    output = tmp_path / "chosen.toml"
    options = ("--vote", "majority", "--tie", tie, "--output", output, "--format", "json")
    made = cli("ensemble", "select", own_pool, *options)
    found = cli("ensemble", "evaluate", output, "--split", "validation", "--format", "json")
    assert accuracy_of(found) == made.json["score"]


def test_greedy_selection_accepts_bags_and_seed(cli, own_pool, tmp_path):
    results = [
        cli(
            "ensemble",
            "select",
            own_pool,
            "--bags",
            "4",
            "--seed",
            "1",
            "--output",
            tmp_path / name,
            "--format",
            "json",
        )
        for name in ("one.toml", "two.toml")
    ]
    assert [result.status for result in results] == [0, 0]
    assert results[0].json["members"] == results[1].json["members"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["k3-1"], "at least two members"),
        ([".", "--vote", "stacking"], "majority"),
        ([".", "--method", "exhaustive", "--size", "0"], "size"),
        ([".", "--method", "exhaustive", "--bags", "0"], "--bags needs --method greedy"),
        ([".", "--method", "diverse", "--seed", "1"], "--seed needs --method greedy"),
    ],
)
def test_impossible_selections_are_refused(cli, own_pool, tmp_path, arguments, message):
    name, *options = arguments
    result = cli("ensemble", "select", own_pool / name, *options, "--output", tmp_path / "chosen.toml")
    assert (result.status, result.out) == (2, "")
    assert message in result.err
    assert not (tmp_path / "chosen.toml").exists()


def test_error_names_members_trained_on_the_validation_images(cli, own_pool, drawn_images, tmp_path):
    recipe = tmp_path / "other.toml"
    recipe.write_text(
        TINY_RECIPE.format(folder=drawn_images).replace("{ first = 40 }", "{ fraction = 0.25, seed = 1 }"), "utf-8"
    )
    train_run(load_recipe(str(recipe)), tmp_path / "other", device=torch.device("cpu"), members=["k3"])
    result = cli("ensemble", "select", own_pool, tmp_path / "other", "--output", tmp_path / "chosen.toml")
    assert result.status == 2
    assert "k3 was trained on" in result.err
    assert "k5-1" not in result.err


# --- compare ---------------------------------------------------------------------------------------------


def test_ensembles_are_compared(cli, pool):
    three = ",".join(str(pool / f"k3-{number}") for number in (1, 2, 3))
    result = cli("ensemble", "compare", pool, f"three={three}", pool / "k5-1", "--format", "json")
    assert result.status == 0, result.err
    first, second, third = result.json["ensembles"]
    assert (second["ensemble"], len(second["members"])) == ("three", 3)
    assert first["difference"] is None
    assert third["difference"] == pytest.approx(third["accuracy"] - first["accuracy"])
    assert third["difference_low"] <= third["difference"] <= third["difference_high"]
    assert third["adjusted_p_value"] >= third["p_value"]
    table = cli("ensemble", "compare", pool, f"three={three}", pool / "k5-1")
    assert "Holm" in table.out
    assert "Cochran" in table.out
    again = cli("ensemble", "compare", pool, f"again={pool}")
    assert "again have the same members" in again.out
    assert "Cochran" not in again.out
    lines = cli("ensemble", "compare", pool, pool / "k5-1", "--format", "jsonl").out.splitlines()
    of_lines = [json.loads(line) for line in lines]
    assert [(len(entry["members"]), entry["n_members"]) for entry in of_lines] == [(6, 6), (1, 1)]
    rows = csv.DictReader(cli("ensemble", "compare", pool, pool / "k5-1", "--format", "csv").out.splitlines())
    assert [(json.loads(entry["members"]), int(entry["n_members"])) for entry in rows] == [
        (entry["members"], entry["n_members"]) for entry in of_lines
    ]


def test_mixed_kernel_sizes_are_compared_with_a_single_one(cli, pool, tmp_path):
    result = cli("ensemble", "compare", pool, "--draws", "20", "--format", "json")
    assert result.status == 0, result.err
    mixed, *same = result.json["compositions"]
    assert (mixed["composition"], mixed["n_members"], mixed["ensembles"], mixed["mixed_gains"]) == ("3+5", 2, 9, None)
    assert [entry["composition"] for entry in same] == ["3+3", "5+5"]
    for entry in same:
        assert entry["ensembles"] == 3
        assert entry["mixed_gains"] == pytest.approx(mixed["accuracy"] - entry["accuracy"])
        assert entry["gain_low"] <= entry["mixed_gains"] <= entry["gain_high"]
    assert "On average, 3+5 is " in cli("ensemble", "compare", pool, "--draws", "20").out
    grouped = cli("ensemble", "compare", pool, "--draws", "20", "--groups", "a,b,a,b,a,b", "--format", "json")
    assert [entry["composition"] for entry in grouped.json["compositions"]] == ["a+b", "a+a", "b+b"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["{pool}"], 2, "needs at least two ensembles"),
        (["{pool}", "{pool}/nowhere"], 4, "nowhere"),
        (["{pool}", "a="], 2, "is not an ensemble"),
        (["{pool}", "{pool}"], 2, "two ensembles have the name"),
        (["a={pool}", "a={pool}/k3-1"], 2, "two ensembles have the name a"),
        (["{pool}/k3-1", "{pool}/k3-2", "--draws", "20"], 2, "all members are in group 3"),
        (["{pool}", "--size", "2"], 2, "--draws"),
        (["{pool}", "--draws", "20", "--vote", "stacking"], 2, "stacking"),
        (["{pool}", f"all={','.join(f'm{number:05}.npy' for number in range(1000))}"], 4, "m00000.npy does not exist"),
    ],
)
def test_impossible_comparisons_are_refused(cli, pool, arguments, status, message):
    result = cli("ensemble", "compare", *(argument.format(pool=pool) for argument in arguments))
    assert (result.status, result.out) == (status, "")
    assert message in result.err


def test_compare_cross_fits_on_validation_images_like_evaluate(cli, pool):
    options = ("--vote", "weighted-soft", "--split", "validation", "--format", "json")
    evaluated = cli("ensemble", "evaluate", pool, *options)
    compared = cli("ensemble", "compare", pool, f"two={pool / 'k3-1'},{pool / 'k3-2'}", *options)
    assert compared.status == 0, compared.err
    assert compared.json["ensembles"][0]["accuracy"] == accuracy_of(evaluated)
    assert compared.json["ensembles"][0]["loss"] == evaluated.json["ensemble"]["loss"]


# --- pack, unpack, soup ----------------------------------------------------------------------------------


def test_pack_predicts_like_its_run_and_unpacks_to_it(cli, pool, image_file, tmp_path):
    packed = tmp_path / "pool.safetensors"
    made = cli("ensemble", "pack", pool, "--output", packed)
    assert (made.status, made.out) == (0, f"{packed}\n")
    of_pack, of_run = (cli("ensemble", "evaluate", path, "--format", "json").json for path in (packed, pool))
    for entry in (of_pack, of_run):
        del entry["ensemble"]["coverage"], entry["ensemble"]["aurc"]  # a pack calibrates the probabilities of `predict`
    assert of_pack == of_run
    assert cli("predict", packed, image_file).status == 0
    assert cli("evaluate", packed).status == 0
    assert cli("ensemble", "unpack", packed, "--output", tmp_path / "again").status == 0
    for file in pool.rglob("*"):
        if file.is_file() and not file.name.startswith("."):
            assert (tmp_path / "again" / file.relative_to(pool)).read_bytes() == file.read_bytes(), file
    assert cli("ensemble", "unpack", packed, "--output", tmp_path / "again").status == 2
    of_unpacked = cli("ensemble", "evaluate", tmp_path / "again" / "ensemble.toml", "--format", "json").json
    del of_unpacked["ensemble"]["coverage"], of_unpacked["ensemble"]["aurc"]
    assert of_unpacked == of_run
    assert cli("ensemble", "pack", pool, "--output", tmp_path / "pool.zip").status == 2
    refused = cli("ensemble", "fit", packed, "--output", tmp_path / "fitted.toml")
    assert refused.status == 2
    assert "unpack" in refused.err
    refused = cli("ensemble", "pack", packed, "--output", tmp_path / "twice.safetensors")
    assert refused.status == 2
    assert "is already a pack" in refused.err
    assert "ensemble file" not in refused.err


def test_unpack_prints_the_ensemble_file_with_the_rule(cli, pool, tmp_path):
    packed, output = tmp_path / "two.safetensors", tmp_path / "out"
    two = (pool / "k3-1", pool / "k5-1")
    assert cli("ensemble", "pack", *two, "--weights", "2,1", "--output", packed).status == 0
    made = cli("ensemble", "unpack", packed, "--output", output)
    assert (made.status, made.out) == (0, f"{output / 'ensemble.toml'}\n")
    assert f"the rule is in {output / 'ensemble.toml'};" in made.err
    assert f"next: fmcli ensemble evaluate {output / 'ensemble.toml'}" in made.err
    assert cli("ensemble", "evaluate", output / "ensemble.toml", "--format", "json").json["weights"] == [2, 1]
    assert "not trained yet" not in cli("evaluate", output).err


def test_vote_without_fitted_weights_is_packed_without_images(cli, own_pool, tmp_path, monkeypatch):
    for file in own_pool.glob("*/validation.safetensors"):
        file.unlink()

    def lose(*_, **__):
        raise DataError("no images here")

    monkeypatch.setattr("fmcli.data.load_splits", lose)
    packed = tmp_path / "pool.safetensors"
    made = cli("ensemble", "pack", own_pool, "--vote", "soft", "--output", packed)
    assert made.status == 0, made.err
    assert "without a temperature" in made.err
    assert "no images here" in made.err
    assert open_pool([packed], device="cpu").combiner.temperature == 1
    refused = cli("ensemble", "pack", own_pool, "--vote", "stacking", "--output", tmp_path / "other.safetensors")
    assert refused.status == 3
    assert not (tmp_path / "other.safetensors").exists()


@pytest.mark.parametrize("command", ["fit", "select"])
def test_name_of_an_ensemble_file_must_end_in_toml(cli, pool, tmp_path, command):
    refused = cli("ensemble", command, pool, "--output", tmp_path / "chosen.json")
    assert refused.status == 2
    assert "must end in .toml" in refused.err
    assert f"--output {tmp_path / 'chosen.toml'}" in refused.err
    assert not (tmp_path / "chosen.json").exists()


def test_error_names_a_missing_member_and_its_ensemble(cli, own_pool, tmp_path):
    output = tmp_path / "fitted.toml"
    assert cli("ensemble", "fit", own_pool, "--output", output).status == 0
    shutil.rmtree(own_pool / "k3-2")
    refused = cli("ensemble", "evaluate", output)
    assert refused.status == 4
    assert f"{output} has the member k3-2, but {own_pool / 'k3-2'} does not exist" in refused.err
    assert "fmcli ensemble fit" in refused.err


def test_soup_is_a_member_with_averaged_weights(cli, pool, tmp_path):
    paths = [pool / f"k3-{number}" for number in (1, 2, 3)]
    made = cli("ensemble", "soup", *paths, "--method", "uniform", "--output", tmp_path / "soup")
    assert made.status == 0, made.err
    assert "averaged" in made.err
    assert cli("evaluate", tmp_path / "soup").status == 0
    assert cli("ensemble", "evaluate", pool, tmp_path / "soup").status == 0
    again = cli("ensemble", "soup", *paths, "--output", tmp_path / "soup")
    assert (again.status, "already" in again.err) == (2, True)


def test_uniform_soup_without_batch_norm_is_the_mean(cli, drawn_images, tmp_path):
    recipe = tmp_path / "plain.toml"
    recipe.write_text(
        f"""
[data]
source = "idx:{drawn_images}"
validation = {{ first = 40 }}
[model]
family = "sequential"
layers = [{{ type = "flatten" }}, {{ type = "dense", units = 4 }}]
[trainer]
epochs = 1
[[members]]
name = "m"
copies = 2
""",
        "utf-8",
    )
    train_run(load_recipe(str(recipe)), tmp_path / "run", device=torch.device("cpu"))
    assert cli("ensemble", "soup", tmp_path / "run", "--method", "uniform", "--output", tmp_path / "soup").status == 0
    members = open_pool([tmp_path / "run", tmp_path / "soup"], device="cpu").members
    first, second, soup = (member.checkpoint.model.state_dict() for member in members)
    for name, tensor in soup.items():
        torch.testing.assert_close(tensor, (first[name] + second[name]) / 2)


def test_soups_of_different_networks_are_refused(cli, pool, tmp_path):
    result = cli("ensemble", "soup", pool, "--output", tmp_path / "soup")
    assert result.status == 2
    assert "k5-1 has a different network from k3-1" in result.err
    assert not (tmp_path / "soup").exists()


# --- predict ---------------------------------------------------------------------------------------------


def test_data_info_of_packs_and_ensemble_files(cli, own_pool, tmp_path):
    assert cli("ensemble", "fit", own_pool, "--output", tmp_path / "fitted.toml").status == 0
    assert cli("ensemble", "pack", own_pool, "--output", tmp_path / "packed.safetensors").status == 0
    shown = [cli("data", "info", path, "--format", "json").json for path in (own_pool, *tmp_path.glob("*ed.*"))]
    assert len(shown) == 3
    assert shown[0] == shown[1] == shown[2]


def test_data_info_refuses_an_ensemble_file_of_another_version(cli, tmp_path):
    (tmp_path / "newer.toml").write_text('format = "fmcli-ensemble-2"\n')
    result = cli("data", "info", tmp_path / "newer.toml")
    assert result.status == 4
    assert "has the format 'fmcli-ensemble-2', but this version of fmcli reads 'fmcli-ensemble-1'" in result.err


def test_warning_about_a_member_that_votes_twice(cli, own_pool, tmp_path):
    shutil.copytree(own_pool / "k3-1", tmp_path / "again")
    message = cli("ensemble", "evaluate", own_pool, tmp_path / "again").err
    assert "has the same weights as" in message
    assert "has the same weights as" not in cli("ensemble", "evaluate", own_pool).err
    assert "has the same predictions as" not in message


def test_warning_about_predictions_that_vote_twice(cli, pool, tmp_path):
    assert cli("evaluate", pool, "--save-predictions", tmp_path / "one").status == 0
    shutil.copytree(tmp_path / "one" / "k3-1", tmp_path / "one" / "again")
    for command in ("evaluate", "compare"):
        message = cli("ensemble", command, tmp_path / "one").err
        assert message.count("has the same predictions as") == 1, message
    shutil.rmtree(tmp_path / "one" / "again")
    assert "has the same predictions as" not in cli("ensemble", "evaluate", tmp_path / "one").err


def test_note_about_other_predictions_in_the_same_folder(cli, pool, tmp_path):
    assert "also has" not in cli("evaluate", pool / "k3-1", "--save-predictions", tmp_path / "predictions").err
    message = cli("evaluate", pool / "k5-1", "--save-predictions", tmp_path / "predictions").err
    assert "also has predictions from k3-1; they vote together" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "{predictions}", "--tta", "flip"], "has stored predictions but no network"),
        (["ensemble", "evaluate", "{predictions}", "--tta", "flip"], "has stored predictions but no network"),
        (["ensemble", "evaluate", "{pool}", "--vote", "two-level", "--groups", ",,,,,"], "names separated by commas"),
        (["ensemble", "compare", "{pool}", "--seed", "3"], "need --draws"),
        (["ensemble", "unpack", "{fitted}", "--output", "again"], "fmcli ensemble evaluate"),
    ],
)
def test_option_without_effect_is_refused(cli, own_pool, tmp_path, arguments, message):
    paths = {"pool": own_pool, "predictions": tmp_path / "predictions", "fitted": tmp_path / "fitted.toml"}
    assert cli("evaluate", own_pool, "--save-predictions", paths["predictions"]).status == 0
    assert cli("ensemble", "fit", own_pool, "--output", paths["fitted"]).status == 0
    refused = cli(*(word.format(**paths) for word in arguments))
    assert refused.status in (2, 4)
    assert message in " ".join(refused.err.split())


def test_coverage_uses_the_threshold_of_predict(cli, own_pool, drawn_images, tmp_path):
    """Check a plain run and an ensemble file, whose temperature applies to both commands."""
    images = np.fromfile(drawn_images / "t10k-images-idx3-ubyte", np.uint8, offset=16).reshape(-1, 12, 12)
    np.save(tmp_path / "test.npy", images)
    fitted = own_pool / "fitted.toml"
    paths = [MemberPath(name, own_pool / name) for name in ("k3-1", "k5-1")]
    write_ensemble_file(fitted, describe_ensemble(paths, make_combiner("soft", temperature=3.0), own_pool))
    lines = []
    for members in ([own_pool / "k3-1", own_pool / "k5-1", "--vote", "soft"], [fitted]):
        shown = cli("ensemble", "evaluate", *members, "--format", "json").json["ensemble"]
        lines += [entry["probability_from"] for entry in shown["coverage"] if entry["kept"] == 0.9]
    options = ("--invert", "never", "--reject-below", lines[1] - 1e-6, "--format", "jsonl")
    labelled = cli("predict", fitted, tmp_path / "test.npy", *options).records
    assert sum(not entry["undecided"] for entry in labelled) == 90
    assert lines[1] < lines[0] - 0.01


@pytest.mark.parametrize("format_", ["table", "json", "jsonl", "csv"])
def test_uncertain_images_are_reported_as_undecided(cli, pool, image_file, format_):
    result = cli("predict", pool, image_file, "--reject-below", "1", "--format", format_)
    assert result.status == 0
    if format_ == "json":
        assert json.loads(result.out)[0]["label"] is None
    assert "undecided" in result.out
    decided = cli("predict", pool, image_file, "--reject-below", "0", "--format", "json").json[0]
    assert decided["undecided"] is False
    assert decided["label"] is not None
