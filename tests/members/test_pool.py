"""Open members from paths of every kind and mixtures of them: names, predictions, fitting, and refused input."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fmcli.checkpoints.layout import MODEL_FILE
from fmcli.checkpoints.pack import write_pack
from fmcli.ensemble.file import MemberPath, describe_ensemble, write_ensemble_file
from fmcli.ensemble.predictions import load_predictions, save_predictions, stack_logits
from fmcli.errors import CheckpointError, DataError, Remedy, UsageError
from fmcli.members.pool import open_pool
from fmcli.members.predict import predict_pool
from fmcli.members.saving import write_predictions
from fmcli.members.validation import predict_for_fitting, predict_shared_validation, predict_validation
from fmcli.members.vote import fit_rule
from fmcli.recipe import load_recipe
from fmcli.storage.reading import read_metadata
from fmcli.training.run import train_run
from tests.helpers import TINY_RECIPE, make_combiner

CPU = torch.device("cpu")
CLASSES = ("top left", "top right", "bottom left", "bottom right")


def train(folder, images, *overrides):
    (folder.parent / "tiny.toml").write_text(TINY_RECIPE.format(folder=images), "utf-8")
    recipe = load_recipe(str(folder.parent / "tiny.toml"), ["trainer.epochs=1", *overrides])
    train_run(recipe, folder, device=CPU)
    return folder


@pytest.fixture(scope="module")
def runs(drawn_images, tmp_path_factory) -> Path:
    """Runs `one` and `two` with members k3 and k5 and different seeds; read-only."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("one", "two")):
        train(folder / name, drawn_images, f"trainer.seed={seed}")
    return folder


@pytest.fixture(scope="module")
def predicted(runs):
    """Predictions of k3 and k5 of run `one` on each split."""
    pool = open_pool([runs / "one"], device="cpu")
    return {split: predict_pool(pool, split) for split in ("validation", "test")}


@pytest.fixture(scope="module")
def stored(predicted, tmp_path_factory) -> Path:
    """The predictions of run `one` in every form; read-only."""
    folder = tmp_path_factory.mktemp("stored")
    for found in predicted.values():
        write_predictions(folder / "by split", found)  # k3/test.safetensors, k3/validation.safetensors, k5/…
    k3, k5 = predicted["test"]
    for directory in ("flat", "csv", "npy"):
        (folder / directory).mkdir()
    for name, one in (("first", k3), ("second", k5)):
        save_predictions(folder / "flat" / f"{name}.safetensors", one)
    write_csv(folder / "csv" / "knn.csv", k3)
    write_csv(folder / "csv" / "tree.csv", k5, order=[3, 1, 0, 2], labels=False)
    np.save(folder / "npy" / "knn.npy", probabilities_of(k3))
    return folder


def probabilities_of(predictions):
    powers = np.exp(predictions.logits.astype(np.float64))
    return powers / powers.sum(axis=1, keepdims=True)


def write_csv(path, predictions, order=range(4), *, labels=True):
    rows = [[CLASSES[index] for index in order], *probabilities_of(predictions)[:, list(order)].tolist()]
    if labels:
        truth = ["label", *(CLASSES[label] for label in predictions.labels)]
        rows = [[*row, label] for row, label in zip(rows, truth, strict=True)]
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows), "utf-8")
    return path


def opened(*paths, **options):
    return open_pool([Path(path) for path in paths], device="cpu", **options)


def member_paths(run, names=("k3", "k5")):
    return [MemberPath(name, run / name, read_metadata(run / name / MODEL_FILE)["digest"]) for name in names]


def ensemble_of(run, path, rule=None, names=("k3", "k5")):
    write_ensemble_file(path, describe_ensemble(member_paths(run, names), rule or make_combiner("soft"), path.parent))
    return path


def pack_of(run, path, rule=None):
    files = [replace(member, path=member.path / MODEL_FILE) for member in member_paths(run)]
    write_pack(path, files, rule or make_combiner("soft", groups=("3", "5")))
    return path


@pytest.fixture
def copy(runs, tmp_path):
    """A writable copy of run `one`."""
    return Path(shutil.copytree(runs / "one", tmp_path / "copy"))


# --- every kind of path ---------------------------------------------------------------------------------


def test_runs_members_and_checkpoints_open_as_networks(runs):
    run = opened(runs / "one")
    assert (run.names, run.groups, run.combiner) == (("k3", "k5"), ("3", "5"), None)
    assert all(member.training.input_shape == (1, 12, 12) for member in run.members)
    assert run.require_networks() == run.networks == list(run.members)
    for path in (runs / "one" / "k5", runs / "one" / "k5" / MODEL_FILE):
        assert (opened(path).names, opened(path).groups) == (("k5",), ("5",))


def test_an_ensemble_file_gives_names_and_rule(copy):
    rule = make_combiner("two-level", "first", groups=("a", "b"), temperature=1.5)
    path = copy / "chosen.toml"
    write_ensemble_file(path, describe_ensemble([*member_paths(copy)][::-1], rule, copy))
    pool = opened(path)
    assert (pool.names, pool.groups) == (("k5", "k3"), ("a", "b"))
    assert (pool.combiner.rule.name, pool.combiner.rule.tie, pool.combiner.temperature) == ("two-level", "first", 1.5)


def test_a_pack_gives_networks_and_rule(runs, tmp_path):
    pool = opened(pack_of(runs / "one", tmp_path / "one.pack"))
    assert (pool.names, pool.groups, pool.combiner.rule.name) == (("k3", "k5"), ("3", "5"), "soft")
    assert [member.path for member in pool.require_networks()] == [tmp_path / "one.pack"] * 2


FORMS = {
    "a predictions file named after its split": ("by split/k3/test.safetensors", ["k3"], ["3"]),
    "a predictions file": ("flat/first.safetensors", ["first"], ["3"]),
    "a folder of split files": ("by split/k3", ["k3"], ["3"]),
    "a folder of such folders": ("by split", ["k3", "k5"], ["3", "5"]),
    "a flat folder": ("flat", ["first", "second"], ["3", "5"]),
    "a CSV": ("csv/knn.csv", ["knn"], [""]),
    "a folder of CSVs": ("csv", ["knn", "tree"], ["", ""]),
}


@pytest.mark.parametrize("form", FORMS)
def test_stored_predictions_are_members_without_a_network(stored, predicted, form):
    path, names, groups = FORMS[form]
    pool = opened(stored / path)
    assert (list(pool.names), list(pool.groups), pool.combiner) == (names, groups, None)
    found = predict_pool(pool, "test")
    assert [one.member for one in found] == names
    for one, own in zip(found, predicted["test"], strict=False):
        np.testing.assert_allclose(probabilities_of(one), probabilities_of(own), atol=1e-6)
        np.testing.assert_array_equal(one.labels, own.labels)
        assert (one.class_names, one.split) == (CLASSES, "test")
    with pytest.raises(UsageError, match=f"{names[0]} has stored predictions but no network"):
        pool.require_networks()


def test_an_array_takes_its_labels_from_a_file(stored, predicted, tmp_path):
    k3 = predicted["test"][0]
    np.save(tmp_path / "truth.npy", k3.labels)
    [found] = predict_pool(opened(stored / "npy" / "knn.npy"), "test", labels=tmp_path / "truth.npy")
    assert (found.class_names, found.member) == (("0", "1", "2", "3"), "knn")
    np.testing.assert_array_equal(found.labels, k3.labels)


def test_a_named_file_is_preferred_to_others_of_its_split(stored, predicted, tmp_path):
    save_predictions(tmp_path / "test.safetensors", predicted["test"][0])
    write_csv(tmp_path / "test.csv", predicted["test"][1])
    for name, own in (("test.csv", predicted["test"][1]), ("test.safetensors", predicted["test"][0])):
        [found] = predict_pool(opened(tmp_path / name), "test")
        np.testing.assert_array_equal(found.choices, own.choices)
    with pytest.raises(CheckpointError, match=r"test\.csv and .*test\.safetensors are both predictions on test"):
        opened(tmp_path)


def test_folders_and_files_in_one_folder_vote_together(stored, tmp_path):
    for name in ("k3", "k5"):
        shutil.copytree(stored / "by split" / name, tmp_path / name)
    shutil.copy(stored / "npy" / "knn.npy", tmp_path / "forest.npy")
    np.save(tmp_path / "test-labels.npy", np.zeros(100, dtype=np.int64))
    for name in (".hidden.npy", "chosen.toml", "notes.txt"):
        (tmp_path / name).write_text("left alone")
    (tmp_path / "figures").mkdir()
    assert opened(tmp_path).names == ("forest", "k3", "k5")


@pytest.mark.parametrize("name", ["k5/first.npy", "weights.safetensors"])
def test_a_file_without_predictions_among_members_is_refused_by_name(stored, tmp_path, name):
    shutil.copytree(stored / "by split" / "k3", tmp_path / "k3")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    save_file({"weight": np.zeros(1)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{Path(name).parts[0]} cannot vote"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["forest.npy", "k5/test.npy"])
def test_a_member_inside_a_members_folder_is_refused_by_name(stored, tmp_path, name):
    shutil.copytree(stored / "by split" / "k3", tmp_path / "k3")
    (tmp_path / "k3" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "k3" / name).touch()
    with pytest.raises(CheckpointError, match=f"{Path(name).parts[0]} cannot vote: .*k3 is one member"):
        opened(tmp_path / "k3")


def test_label_files_are_found_next_to_other_tools_predictions(predicted, tmp_path):
    (tmp_path / "forest").mkdir()
    for split, found in predicted.items():
        np.save(tmp_path / "forest" / f"{split}.npy", probabilities_of(found[0]))
    np.save(tmp_path / "test-labels.npy", predicted["test"][0].labels)
    pool = opened(tmp_path / "forest")
    [found] = predict_pool(pool, "test")
    np.testing.assert_array_equal(found.labels, predicted["test"][0].labels)
    assert predict_validation(pool) is None  # no labels
    labels = "".join(f"{label}\n" for label in predicted["validation"][0].labels)
    (tmp_path / "forest" / "validation-labels.txt").write_text(labels)
    [found] = predict_validation(pool)
    np.testing.assert_array_equal(found.labels, predicted["validation"][0].labels)


def test_a_member_has_its_folders_name_inside_the_folder_too(stored, monkeypatch):
    monkeypatch.chdir(stored / "by split" / "k3")
    assert opened(".").names == opened("test.safetensors").names == ("k3",)


@pytest.mark.parametrize("name", ["missing", "missing.csv", "missing.npy", "missing.toml", "missing.safetensors"])
def test_a_missing_path_is_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match=f"{name} does not exist"):
        opened(tmp_path / name)


@pytest.mark.parametrize("content", [{}, {"notes.txt": "x"}, {"model.bin": "x"}, {".hidden.csv": "a\n1\n"}])
def test_a_folder_without_members_is_refused(tmp_path, content):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match="no trained member in"):
        opened(tmp_path)


def test_an_unfinished_member_is_not_read_as_predictions(copy):
    (copy / "k3" / MODEL_FILE).rename(copy / "k3" / "state.safetensors")
    (copy / "k3" / "validation.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no trained member in"):
        opened(copy / "k3")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"PK\3\4")
    with pytest.raises(CheckpointError, match=r"model\.pt"):
        opened(tmp_path / "model.pt")


@pytest.mark.parametrize("kind", ["checkpoint", "pack", "predictions"])
def test_a_file_of_another_version_is_refused(tmp_path, kind):
    save_file({"weight": np.zeros(1)}, tmp_path / "old.safetensors", {"format": f"fmcli-{kind}-0"})
    with pytest.raises(CheckpointError, match=f"has the format 'fmcli-{kind}-0', but this version of fmcli reads"):
        opened(tmp_path / "old.safetensors")


# --- mixtures -------------------------------------------------------------------------------------------


def test_networks_and_predictions_are_combined_in_the_given_order(runs, stored, predicted):
    pool = opened(stored / "csv" / "tree.csv", runs / "one" / "k5", stored / "flat" / "first.safetensors")
    assert (pool.names, pool.groups) == (("tree", "k5", "first"), ("", "5", "3"))
    found = predict_pool(pool, "test")
    k3, k5 = predicted["test"]
    for one, own in zip(found, (k5, k5, k3), strict=True):  # the tree's table has another column order and no labels
        np.testing.assert_allclose(probabilities_of(one), probabilities_of(own), atol=1e-6)
    assert stack_logits(found).shape == (3, 100, 4)
    with pytest.raises(UsageError, match="tree has stored predictions but no network"):
        pool.require_networks()


@pytest.mark.parametrize("order", [("tree.csv", "knn.csv"), ("knn.csv", "tree.csv")])
def test_one_table_with_labels_is_enough_in_any_order(stored, order):
    found = predict_pool(opened(*(stored / "csv" / name for name in order)), "test")
    assert stack_logits(found).shape == (2, 100, 4)
    assert {one.class_names for one in found} == {CLASSES}  # the order of the table with labels


@pytest.mark.parametrize("order", [("with", "without"), ("without", "with")])
def test_labels_of_one_array_are_enough_in_any_order(predicted, tmp_path, order):
    for name, own in zip(("with", "without"), predicted["test"], strict=True):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "test.npy", probabilities_of(own))
    np.save(tmp_path / "with" / "test-labels.npy", predicted["test"][0].labels)
    found = predict_pool(opened(*(tmp_path / name for name in order)), "test")
    for one in found:
        np.testing.assert_array_equal(one.labels, predicted["test"][0].labels)


def test_members_with_different_images_are_predicted_in_the_given_order(runs, drawn_images, tmp_path):
    other = train(tmp_path / "other", drawn_images, "data.validation.first=50", "trainer.epochs=1")
    paths = [runs / "one" / "k3", other / "k3", runs / "one" / "k5", other / "k5"]
    pool = opened(*paths)
    found = predict_pool(pool, "test")
    assert [one.member for one in found] == list(pool.names)
    for one, path in zip(found, paths, strict=True):
        [alone] = predict_pool(opened(path), "test")
        np.testing.assert_array_equal(one.logits, alone.logits)


def test_an_array_without_labels_is_refused(stored):
    with pytest.raises(DataError, match=r"the true classes of .*knn\.npy are unknown"):
        predict_pool(opened(stored / "npy" / "knn.npy"), "test")


def test_members_of_two_runs_get_unique_names(runs):
    pool = opened(runs / "two", runs / "one" / "k3")
    assert pool.names == ("two/k3", "k5", "one/k3")


def test_members_of_two_packs_get_unique_names(runs, tmp_path):
    packs = [pack_of(runs / name, tmp_path / f"{name}.pack") for name in ("one", "two")]
    pool = opened(*packs, must_match=False)
    assert pool.names == ("one.pack/k3", "one.pack/k5", "two.pack/k3", "two.pack/k5")


def test_files_with_equal_names_get_unique_names(stored, runs, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(stored / "csv" / "knn.csv", tmp_path / folder / "knn.csv")
        shutil.copy(runs / "one" / "k3" / MODEL_FILE, tmp_path / folder / "some.st")
    shutil.copytree(stored / "by split", tmp_path / "a" / "stored")
    for name in ("knn.csv", "some.st"):
        pool = opened(tmp_path / "a" / name, tmp_path / "b" / name)
        assert len(set(pool.names)) == 2
    assert opened(runs / "one", tmp_path / "a" / "stored").names == ("one/k3", "one/k5", "stored/k3", "stored/k5")


@pytest.mark.parametrize("ending", ["", "/model.safetensors"])
def test_a_network_given_twice_is_refused(runs, ending):
    with pytest.raises(CheckpointError, match="given twice"):
        opened(runs / "one", Path(f"{runs}/two/../one/k5{ending}"))


@pytest.mark.parametrize(
    "paths",
    [
        ("csv/knn.csv", "csv"),
        ("by split", "by split/k5"),
        ("by split/k3", "by split/k3/test.safetensors"),
        ("flat/first.safetensors", "flat/../flat/first.safetensors"),
    ],
)
def test_predictions_given_twice_are_refused(stored, paths):
    with pytest.raises(CheckpointError, match="given twice"):
        opened(*(stored / path for path in paths))


@pytest.mark.parametrize("must_match", [True, False])
def test_a_pack_given_twice_is_refused(runs, tmp_path, must_match):
    path = pack_of(runs / "one", tmp_path / "one.pack")
    with pytest.raises((CheckpointError, UsageError), match=r"given twice|cannot be a member"):
        opened(path, path, must_match=must_match)


@pytest.mark.parametrize("kind", ["pack", "toml"])
def test_an_ensemble_among_other_members_is_refused_if_all_must_match(runs, copy, kind):
    path = pack_of(copy, copy / "one.pack") if kind == "pack" else ensemble_of(copy, copy / "one.toml")
    with pytest.raises(UsageError, match="is an ensemble with its own rule") as caught:
        opened(runs / "two", path)
    assert "ensemble compare" in caught.value.hint
    apart = opened(runs / "two", path, must_match=False)
    assert len(apart.members) == 4
    assert apart.combiner is None


def test_members_with_other_classes_are_refused_by_name_if_all_must_match(runs, drawn_images, tmp_path):
    images = shutil.copytree(drawn_images, tmp_path / "renamed")
    (images / "classes.txt").write_text("a\nb\nc\nd\n")
    other = train(tmp_path / "other", images)
    with pytest.raises(CheckpointError, match="has the classes"):
        opened(runs / "one", other)
    assert len(opened(runs / "one", other, must_match=False).members) == 4


def test_subsets_of_a_pool_keep_names_and_groups(runs):
    pool = opened(runs / "one", runs / "two")
    part = pool.subset([3, 0])
    assert (part.names, part.groups) == (("two/k5", "one/k3"), ("5", "3"))


# --- members of ensemble files --------------------------------------------------------------------------


def test_a_member_trained_again_after_the_ensemble_is_refused(copy, runs):
    path = ensemble_of(copy, copy / "chosen.toml")
    shutil.copy(runs / "two" / "k5" / MODEL_FILE, copy / "k5" / MODEL_FILE)
    with pytest.raises(CheckpointError, match=r"k5.*have changed since the ensemble was created"):
        opened(path)


def test_a_missing_member_of_an_ensemble_is_refused(copy):
    path = ensemble_of(copy, copy / "chosen.toml")
    shutil.rmtree(copy / "k5")
    with pytest.raises(CheckpointError, match=r"k5 does not exist"):
        opened(path)


def test_an_ensemble_moved_with_its_members_predicts_the_same(copy, tmp_path, predicted):
    ensemble_of(copy, copy / "chosen.toml")
    copy.rename(tmp_path / "moved")
    found = predict_pool(opened(tmp_path / "moved" / "chosen.toml"), "test")
    np.testing.assert_array_equal(stack_logits(found), stack_logits(predicted["test"]))


def test_an_ensemble_file_can_name_stored_predictions(copy, predicted):
    table = write_csv(copy / "knn.csv", predicted["test"][1])
    path = copy / "chosen.toml"
    write_ensemble_file(
        path, describe_ensemble([member_paths(copy)[0], MemberPath("neighbours", table)], make_combiner("soft"), copy)
    )
    found = predict_pool(opened(path), "test")
    assert [one.member for one in found] == ["k3", "neighbours"]


def test_a_run_cannot_be_one_member_of_an_ensemble(copy):
    path = copy.parent / "chosen.toml"
    write_ensemble_file(path, describe_ensemble([MemberPath("all", copy)], make_combiner(), copy.parent))
    with pytest.raises(CheckpointError, match="has 2 members"):
        opened(path)


@pytest.mark.parametrize("name", ["itself", "another", "a pack"])
def test_an_ensemble_cannot_be_a_member_of_an_ensemble(copy, name):
    path = copy / "chosen.toml"
    member = {
        "itself": lambda: path,
        "another": lambda: ensemble_of(copy, copy / "other.toml", names=["k3"]),
        "a pack": lambda: pack_of(copy, copy / "other.pack"),
    }[name]()
    write_ensemble_file(path, describe_ensemble([MemberPath("all", member)], make_combiner(), copy))
    with pytest.raises(CheckpointError, match="is an ensemble and cannot be a member"):
        opened(path)


# --- rules ----------------------------------------------------------------------------------------------


def test_an_ensembles_rule_is_the_default(copy):
    rule = make_combiner("weighted-soft", "first", (3.0, 1.0), temperature=2.0)
    pool = opened(ensemble_of(copy, copy / "chosen.toml", rule))
    assert pool.choose_rule() is pool.combiner
    assert pool.combiner.rule.weights == (3.0, 1.0)
    other = pool.choose_rule(tie="lowest")
    assert (other.rule.name, other.rule.tie, other.rule.weights) == ("weighted-soft", "lowest", (3.0, 1.0))
    assert other.temperature == 2
    other = pool.choose_rule(vote="majority").rule
    assert (other.name, other.tie, other.weights) == ("majority", "first", None)
    other = pool.choose_rule(weights=[1, 2]).rule
    assert (other.name, other.tie, other.weights) == ("weighted-soft", "first", (1, 2))
    other = pool.choose_rule(vote="two-level", groups=["a", "b"]).rule
    assert (other.name, other.groups) == ("two-level", ("a", "b"))


def test_groups_of_the_networks_are_the_default(runs):
    pool = opened(runs / "one")
    assert pool.choose_rule(vote="two-level").rule.groups == ("3", "5")
    with pytest.raises(UsageError, match="2 members need 2 groups, one per member; got 3"):
        pool.choose_rule(groups=["a", "b", "c"])


# --- predictions ----------------------------------------------------------------------------------------


def test_a_split_without_stored_predictions_is_refused(stored):
    for path, said in (("flat", "first on test, not on train"), ("by split", "k3 on validation, test, not on train")):
        with pytest.raises(DataError, match=said) as caught:
            predict_pool(opened(stored / path), "train")
        assert caught.value.remedies[0].action == "split"


def test_a_file_named_after_another_split_is_refused(predicted, tmp_path):
    save_predictions(tmp_path / "test.safetensors", predicted["validation"][0])
    with pytest.raises(DataError, match="has predictions on validation, but its name says test"):
        predict_pool(opened(tmp_path), "test")


def test_written_predictions_are_read_back_unchanged(stored, predicted):
    for one, own in zip(predict_pool(opened(stored / "by split"), "test"), predicted["test"], strict=True):
        np.testing.assert_array_equal(one.logits, own.logits)
        for name in ("member", "split", "data_digest", "recipe_digest", "group", "class_names"):
            assert getattr(one, name) == getattr(own, name)


def test_one_file_can_hold_only_one_member(predicted, tmp_path):
    [path] = write_predictions(tmp_path / "k3.safetensors", predicted["test"][:1])
    assert load_predictions(path).member == "k3"
    with pytest.raises(UsageError, match="one file, but there are 2 members"):
        write_predictions(tmp_path / "both.safetensors", predicted["test"])


@pytest.mark.parametrize("name", ["preds.npy", "preds.csv", "preds.SAFETENSORS"])
def test_predictions_cannot_be_written_to_a_file_with_another_suffix(predicted, tmp_path, name):
    with pytest.raises(UsageError, match=f"{name}: its name ends in"):
        write_predictions(tmp_path / name, predicted["test"])
    assert not any(tmp_path.iterdir())


def test_predictions_of_another_recipe_are_not_replaced(predicted, tmp_path):
    k3, k5 = predicted["test"]
    write_predictions(tmp_path / "saved", [k3, k5])
    write_predictions(tmp_path / "saved", [k3, k5])  # equal predictions may be replaced
    other = replace(k5, recipe_digest="0" * 64)
    with pytest.raises(UsageError, match=rf"has predictions of k5 on test \(recipe {k5.recipe_digest[:12]}\).*0{{12}}"):
        write_predictions(tmp_path / "saved", [replace(k3, member="new"), other])
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["k3", "k5"]  # nothing was written
    (tmp_path / "text.safetensors").write_text("a letter")
    with pytest.raises(CheckpointError, match=r"text\.safetensors"):
        write_predictions(tmp_path / "text.safetensors", [k3])


def test_predictions_of_another_split_or_tool_are_not_replaced(predicted, tmp_path):
    path = tmp_path / "saved.safetensors"
    write_predictions(path, predicted["test"][:1])
    with pytest.raises(UsageError, match=r"predictions of k3 on test .* by k3 on validation"):
        write_predictions(path, predicted["validation"][:1])
    of_others = [replace(predicted["test"][0], recipe_digest="", member=name) for name in ("forest", "svm")]
    path = tmp_path / "other.safetensors"
    for _ in range(2):
        write_predictions(path, of_others[:1])
    with pytest.raises(UsageError, match=r"forest on test \(another tool\), which would be replaced by svm"):
        write_predictions(path, of_others[1:])


def test_predictions_with_views_never_replace_the_ones_of_training(copy, predicted, tmp_path):
    before = (copy / "k3" / "validation.safetensors").read_bytes()
    with pytest.raises(UsageError, match="averages over views cannot be written"):
        write_predictions(copy, predicted["validation"], views="flip")
    assert (copy / "k3" / "validation.safetensors").read_bytes() == before
    write_predictions(copy, predicted["validation"])
    write_predictions(tmp_path / "elsewhere", predicted["validation"], views="flip")


# --- validation -----------------------------------------------------------------------------------------


def test_validation_predictions_of_training_are_reused(copy, predicted, monkeypatch):
    monkeypatch.setattr("fmcli.members.validation.predict_pool", lambda *_, **__: pytest.fail("computed again"))
    found = predict_validation(opened(copy))
    np.testing.assert_array_equal(stack_logits(found), stack_logits(predicted["validation"]))
    assert [(one.member, one.group) for one in found] == [("k3", "3"), ("k5", "5")]


@pytest.mark.parametrize("change", ["gone", "damaged", "other recipe", "other images", "other weights of the member"])
def test_validation_predictions_of_other_weights_are_computed_again(copy, predicted, change):
    path = copy / "k3" / "validation.safetensors"
    wrong = replace(predicted["validation"][0], logits=np.zeros((40, 4), dtype=np.float32))
    match change:
        case "gone":
            path.unlink()
        case "damaged":
            path.write_bytes(path.read_bytes()[:-1])
        case "other recipe":
            save_predictions(path, replace(wrong, recipe_digest="0" * 64))
        case "other images":
            save_predictions(path, replace(wrong, data_digest="0" * 64))
        case "other weights of the member":
            save_predictions(path, replace(wrong, member="k3/snapshot-1"))
    found = predict_validation(opened(copy))
    np.testing.assert_allclose(stack_logits(found), stack_logits(predicted["validation"]), atol=1e-6)


def test_validation_predictions_with_views_are_computed(runs, predicted):
    found = predict_validation(opened(runs / "one"), views="flip")
    assert not np.allclose(stack_logits(found), stack_logits(predicted["validation"]))


def test_stored_members_have_validation_predictions_only_with_a_file(stored, runs):
    assert len(predict_validation(opened(stored / "by split"))) == 2
    assert predict_validation(opened(stored / "flat")) is None
    assert predict_validation(opened(runs / "one" / "k3", stored / "csv" / "knn.csv")) is None


def test_networks_without_validation_images_have_no_validation_predictions(drawn_images, tmp_path):
    path = tmp_path / "none.toml"
    path.write_text(TINY_RECIPE.format(folder=drawn_images).replace("validation = { first = 40 }\n", ""), "utf-8")
    train_run(load_recipe(str(path), ["trainer.epochs=1"]), tmp_path / "run", device=CPU)
    pool = opened(tmp_path / "run")
    assert predict_validation(pool) is None
    soft = pool.choose_rule(vote="soft")
    assert fit_rule(pool, soft) is soft
    with pytest.raises(UsageError, match="weighted-soft must be fitted on validation images") as caught:
        fit_rule(pool, pool.choose_rule(vote="weighted-soft"))
    assert caught.value.remedies == (Remedy("weights"), Remedy("vote", "soft"))
    with pytest.raises(UsageError, match="k3 has no validation images"):
        predict_shared_validation(pool)


def test_a_rule_is_fitted_on_validation_images_and_keeps_given_weights(runs):
    pool = opened(runs / "one")
    fitted = fit_rule(pool, pool.choose_rule(vote="weighted-soft"))
    assert sum(fitted.rule.weights) == pytest.approx(1)
    assert fitted.temperature != 1
    plain = fit_rule(pool, pool.choose_rule(vote="weighted-soft"), calibrate=False)
    assert (plain.rule.weights, plain.temperature) == (fitted.rule.weights, 1)
    given = pool.choose_rule(vote="weighted-soft", weights=[1, 2])
    assert fit_rule(pool, given).rule.weights == (1, 2)
    assert fit_rule(pool, given, calibrate=False) is given


def test_a_rule_is_fitted_on_networks_and_other_tools_predictions(runs, predicted, tmp_path):
    (tmp_path / "knn").mkdir()
    write_csv(tmp_path / "knn" / "validation.csv", predicted["validation"][1])
    pool = opened(runs / "one" / "k3", tmp_path / "knn")
    fitted = fit_rule(pool, pool.choose_rule(vote="weighted-soft"))
    expected = fit_rule(opened(runs / "one"), make_combiner("weighted-soft"))
    assert fitted.rule.weights == pytest.approx(expected.rule.weights, abs=1e-4)


def test_the_rule_of_an_ensemble_is_fitted_only_if_incomplete(copy):
    done = opened(ensemble_of(copy, copy / "done.toml", make_combiner("soft", temperature=2.0)))
    assert predict_for_fitting(done, done.choose_rule()) is None
    assert fit_rule(done, done.choose_rule()) is done.combiner
    for vote in ("weighted-soft", "stacking"):
        unfitted = opened(ensemble_of(copy, copy / "unfitted.toml", make_combiner(vote)))
        assert not fit_rule(unfitted, unfitted.choose_rule(), calibrate=False).needs_fit


def test_another_tie_rule_keeps_the_fitted_stacking(copy):
    rule = make_combiner("stacking", coefficients=np.ones((4, 8)), intercepts=np.zeros(4))
    pool = opened(ensemble_of(copy, copy / "stacked.toml", rule))
    fitted = fit_rule(pool, pool.choose_rule(tie="lowest"))
    assert (fitted.rule.tie, fitted.rule.parameters()) == ("lowest", rule.rule.parameters())


def test_rules_are_not_fitted_on_different_validation_images(runs, drawn_images, tmp_path):
    other = train(tmp_path / "other", drawn_images, "data.validation={ first = 60 }", "trainer.seed=5")
    pool = opened(runs / "one", other)
    assert predict_for_fitting(pool, pool.choose_rule(vote="soft")) is None
    with pytest.raises(UsageError, match="cannot fit or select on the validation images of one/k3"):
        predict_for_fitting(pool, pool.choose_rule(vote="stacking"))
    with pytest.raises(UsageError, match=r"other/k3 has different validation images|trained on"):
        predict_shared_validation(pool)


def test_members_are_not_selected_on_images_that_one_was_trained_on(runs, drawn_images, tmp_path):
    other = train(tmp_path / "other", drawn_images, "data.validation={ first = 20 }")
    with pytest.raises(UsageError, match="other/k3 was trained on 20 of them; other/k5 was trained on 20 of them"):
        predict_shared_validation(opened(runs / "one", other))
    assert len(predict_shared_validation(opened(runs / "one", runs / "two"))) == 4
