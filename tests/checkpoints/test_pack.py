"""Packs: unpacking restores all files byte for byte, and a pack predicts like its members."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fmcli.checkpoints.checkpoint import load_checkpoint
from fmcli.checkpoints.history import HISTORY_FILE
from fmcli.checkpoints.layout import MODEL_FILE, RECIPE_FILE, find_checkpoints
from fmcli.checkpoints.pack import ENSEMBLE_FILE, read_pack, unpack, write_pack
from fmcli.checkpoints.tensors import load_tensors, save_tensors
from fmcli.cli.remedies import hint_of
from fmcli.data import LoadedImage
from fmcli.ensemble import Combiner, combine_predictions, evaluate_ensemble, fit_combiner
from fmcli.ensemble.file import FittedOn, MemberPath, read_ensemble_file
from fmcli.ensemble.predictions import load_predictions, predictions_file, stack_logits
from fmcli.errors import CheckpointError, FmcliError, UsageError
from fmcli.members.inference import label_images
from fmcli.members.pool import open_pool
from fmcli.members.predict import predict_pool
from fmcli.recipe import load_recipe
from fmcli.storage.reading import read_metadata
from fmcli.training.run import train_run
from tests.helpers import TINY_RECIPE, make_combiner

CPU = torch.device("cpu")
CARRIED = (MODEL_FILE, HISTORY_FILE, predictions_file("validation"))
NAMES = ("k5", "k3")


@pytest.fixture(scope="module")
def runs(drawn_images, tmp_path_factory) -> Path:
    """Runs `one` and `two` with members k3 and k5 and different seeds; read-only."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "tiny.toml").write_text(TINY_RECIPE.format(folder=drawn_images), "utf-8")
    for seed, name in enumerate(("one", "two")):
        recipe = load_recipe(str(folder / "tiny.toml"), ["trainer.epochs=1", f"trainer.seed={seed}"])
        train_run(recipe, folder / name, device=CPU)
    return folder


@pytest.fixture(scope="module")
def rule(runs) -> Combiner:
    """Fitted stacking with a temperature for k5 and k3 of run `one`."""
    found = [load_predictions(runs / "one" / name / predictions_file("validation")) for name in NAMES]
    return fit_combiner(make_combiner("stacking", groups=("5", "3")), stack_logits(found), found[0].labels)


@pytest.fixture(scope="module")
def pack(runs, rule, tmp_path_factory) -> Path:
    """A pack of run `one` with its members in another order; read-only."""
    path = tmp_path_factory.mktemp("packs") / "chosen.pack"
    write_pack(
        path, member_files(runs / "one"), rule, FittedOn(split="validation", images=40, data_digest="d", accuracy=1)
    )
    return path


def member_files(run, names=NAMES):
    files = [run / name / MODEL_FILE for name in names]
    return [MemberPath(name, file, read_metadata(file)["digest"]) for name, file in zip(names, files, strict=True)]


def names_in(pack):
    return [entry.name for entry in read_pack(pack, device=CPU)[0].members]


def rewritten(pack, target, change):
    """Write a pack with other metadata or tensors and a correct digest."""
    metadata, tensors = load_tensors(pack)
    contents = json.loads(metadata["pack"])
    change(contents, tensors)
    save_tensors(target, tensors, metadata | {"pack": json.dumps(contents)})
    return target


def assert_refused(path):
    """Check that reading fails with a one-line error that names the file; return the message."""
    with pytest.raises(CheckpointError) as caught:
        read_pack(path, device=CPU)
    assert path.name in caught.value.message
    assert "\n" not in caught.value.message
    assert "pydantic" not in caught.value.message
    return caught.value.message


# --- pack and unpack ------------------------------------------------------------------------------------


def test_unpacked_files_equal_the_packed_files_byte_for_byte(pack, runs, tmp_path):
    folders = unpack(pack, tmp_path / "out")
    assert folders == [tmp_path / "out" / name for name in NAMES]
    for name in NAMES:
        assert sorted(path.name for path in (tmp_path / "out" / name).iterdir()) == sorted(CARRIED)
        for file in CARRIED:
            assert (tmp_path / "out" / name / file).read_bytes() == (runs / "one" / name / file).read_bytes()
    assert (tmp_path / "out" / RECIPE_FILE).read_bytes() == (runs / "one" / RECIPE_FILE).read_bytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([ENSEMBLE_FILE, RECIPE_FILE, *NAMES])


def test_the_same_members_make_the_same_pack(pack, runs, rule, tmp_path):
    assert unpack(pack, tmp_path / "out")
    fitted_on = FittedOn(split="validation", images=40, data_digest="d", accuracy=1)
    write_pack(tmp_path / "again.pack", member_files(tmp_path / "out"), rule, fitted_on)
    assert (tmp_path / "again.pack").read_bytes() == pack.read_bytes()


def test_unpacking_restores_the_rule_and_its_images(pack, rule, tmp_path):
    unpack(pack, tmp_path)
    content, paths = read_ensemble_file(tmp_path / ENSEMBLE_FILE)
    own = content.combiner()
    assert (own.rule.name, own.rule.tie, own.temperature) == (rule.rule.name, rule.rule.tie, rule.temperature)
    assert own.rule.groups == rule.rule.groups
    assert own.rule.parameters() == rule.rule.parameters()
    assert content.fitted_on.images == 40
    assert paths == [tmp_path / name for name in NAMES]
    pool = open_pool([tmp_path / ENSEMBLE_FILE], device="cpu")  # checks the members' digests
    assert pool.names == NAMES


def test_a_packs_networks_equal_its_members(pack, runs, rule):
    ensemble, members = read_pack(pack, device=CPU)
    assert names_in(pack) == list(NAMES)
    for name, member in zip(NAMES, members, strict=True):
        own = load_checkpoint(runs / "one" / name, device=CPU)
        assert member.header == own.header
        assert not member.model.training
        state = own.model.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in member.model.state_dict().items())
    assert (ensemble.vote, ensemble.temperature) == ("stacking", rule.temperature)


def test_a_pack_is_evaluated_like_its_run(pack, runs, rule):
    folders = [runs / "one" / name for name in NAMES]
    packed, open_ = open_pool([pack], device="cpu"), open_pool(folders, device="cpu")
    found = [predict_pool(pool, "test") for pool in (packed, open_)]
    np.testing.assert_array_equal(stack_logits(found[0]), stack_logits(found[1]))
    results = [
        evaluate_ensemble(combine_predictions(found[0], packed.choose_rule())),
        evaluate_ensemble(combine_predictions(found[1], rule)),
    ]
    assert results[0].vote.report.accuracy == results[1].vote.report.accuracy
    assert results[0].vote.calibration == results[1].vote.calibration
    assert [one.name for one in results[0].members] == [one.name for one in results[1].members] == list(NAMES)


def test_a_pack_labels_images_like_its_run(pack, runs, rule):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 1, 12, 12), dtype=np.uint8)
    loaded = [LoadedImage(str(index), None, image) for index, image in enumerate(pixels)]
    packed = open_pool([pack], device="cpu")
    members = open_pool([runs / "one" / name for name in NAMES], device="cpu").require_networks()
    labelled = [
        list(label_images(networks, loaded, one, top=4))
        for networks, one in ((packed.require_networks(), packed.choose_rule()), (members, rule))
    ]
    assert labelled[0] == labelled[1]


def test_optional_files_of_a_member_can_be_missing(runs, tmp_path):
    (tmp_path / "k3").mkdir()
    shutil.copy(runs / "one" / "k3" / MODEL_FILE, tmp_path / "k3")
    (tmp_path / "k3" / HISTORY_FILE).write_bytes(b"")  # an empty file is packed, too
    write_pack(tmp_path / "one.pack", member_files(tmp_path, ["k3"]), make_combiner())
    [folder] = unpack(tmp_path / "one.pack", tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == sorted([MODEL_FILE, HISTORY_FILE])
    assert (folder / HISTORY_FILE).read_bytes() == b""
    assert not (tmp_path / "out" / RECIPE_FILE).exists()


def test_members_with_equal_names_are_unpacked_to_different_folders(runs, tmp_path):
    sources = [
        replace(source, name=f"{run}/k3") for run in ("one", "two") for source in member_files(runs / run, ["k3"])
    ]
    write_pack(tmp_path / "both.pack", sources, make_combiner("soft", weights=(2, 1)))
    assert [folder.name for folder in unpack(tmp_path / "both.pack", tmp_path / "out")] == ["one-k3", "two-k3"]
    for run in ("one", "two"):
        assert (tmp_path / "out" / f"{run}-k3" / MODEL_FILE).read_bytes() == (
            runs / run / "k3" / MODEL_FILE
        ).read_bytes()
    assert not (tmp_path / "out" / RECIPE_FILE).exists()  # the members have two recipes
    pool = open_pool([tmp_path / "both.pack"], device="cpu")
    assert (pool.names, pool.combiner.rule.weights) == (("one/k3", "two/k3"), (2, 1))
    assert [one.member for one in predict_pool(pool, "test")] == ["one/k3", "two/k3"]


def test_any_member_name_gets_its_own_folder(runs, tmp_path):
    names = ("one/k3", "one-k3", "one\\k3", "ONE-K3", "0-one-k3", "..", "ensemble.toml", "recipe.toml", "k" * 300)
    sources = [replace(member_files(runs / "one", ["k3"])[0], name=name) for name in names]
    write_pack(tmp_path / "all.pack", sources, make_combiner())
    folders = unpack(tmp_path / "all.pack", tmp_path / "out")
    assert len({folder.name.casefold() for folder in folders}) == len(names)
    assert {folder.parent for folder in folders} == {tmp_path / "out"}
    assert names_in(tmp_path / "all.pack") == list(names)
    assert open_pool([tmp_path / "out" / ENSEMBLE_FILE], device="cpu").names == names


def test_a_run_with_snapshots_is_unpacked_unchanged(drawn_images, tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY_RECIPE.format(folder=drawn_images), "utf-8")
    cyclic = ["trainer.epochs=2", "trainer.keep=snapshots", "schedule={ name = 'cyclic', cycles = 2 }"]
    run = tmp_path / "run"
    train_run(load_recipe(str(tmp_path / "tiny.toml"), cyclic), run, device=CPU)
    files = find_checkpoints(run)
    pool = open_pool([run], device="cpu")
    sources = [MemberPath(name, file) for name, file in zip(pool.names, files, strict=True)]
    write_pack(tmp_path / "all.pack", sources, make_combiner())
    unpack(tmp_path / "all.pack", tmp_path / "out")
    packed = {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("[!.]*") if path.is_file()}
    again = {str(path.relative_to(tmp_path / "out")): path.read_bytes() for path in tmp_path.glob("out/**/*.*")}
    again = {path: content for path, content in again.items() if path != ENSEMBLE_FILE}
    assert again == packed
    assert open_pool([tmp_path / "out"], device="cpu").names == pool.names
    write_pack(tmp_path / "few.pack", sources[1:], make_combiner())  # not the complete run: a snapshot is missing
    assert unpack(tmp_path / "few.pack", tmp_path / "few")[0] == tmp_path / "few" / "k3"
    assert not (tmp_path / "few" / RECIPE_FILE).exists()


def test_a_part_of_a_run_is_packed_without_the_recipe(runs, tmp_path):
    write_pack(tmp_path / "part.pack", member_files(runs / "one", ["k3"]), make_combiner())
    unpack(tmp_path / "part.pack", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [ENSEMBLE_FILE, "k3"]


def test_the_unpacked_ensemble_file_names_its_own_path(pack, tmp_path):
    unpack(pack, tmp_path / "out")
    text = (tmp_path / "out" / ENSEMBLE_FILE).read_text("utf-8")
    assert f"fmcli ensemble evaluate {tmp_path / 'out' / ENSEMBLE_FILE}\n" in text
    assert ".part" not in text


def test_files_in_the_working_directory_do_not_matter(runs, rule, pack, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "k3").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "here")
    write_pack(tmp_path / "again.pack", member_files(runs / "one"), rule)
    assert names_in(tmp_path / "again.pack") == list(NAMES)


# --- refused --------------------------------------------------------------------------------------------


def test_a_damaged_member_is_refused_and_no_pack_is_written(runs, tmp_path):
    shutil.copytree(runs / "one" / "k3", tmp_path / "k3")
    sources = member_files(tmp_path, ["k3"])
    content = (tmp_path / "k3" / MODEL_FILE).read_bytes()
    (tmp_path / "k3" / MODEL_FILE).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="digest"):
        write_pack(tmp_path / "bad.pack", sources, make_combiner())
    assert not (tmp_path / "bad.pack").exists()


@pytest.mark.parametrize("part", [0.0, 0.1, 0.3, 0.5, 0.9, 0.999])
def test_a_pack_with_a_changed_byte_is_refused(pack, tmp_path, part):
    content = bytearray(pack.read_bytes())
    content[int(part * len(content))] ^= 1
    (tmp_path / "bad.pack").write_bytes(content)
    assert_refused(tmp_path / "bad.pack")
    with pytest.raises(CheckpointError):
        unpack(tmp_path / "bad.pack", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kept", [0.0, 0.2, 0.999])
def test_a_truncated_pack_is_refused(pack, tmp_path, kept):
    content = pack.read_bytes()
    (tmp_path / "bad.pack").write_bytes(content[: int(kept * len(content))])
    assert_refused(tmp_path / "bad.pack")


def test_a_checkpoint_is_not_a_pack_and_the_error_names_the_command(runs):
    with pytest.raises(CheckpointError, match="is not a pack") as caught:
        read_pack(runs / "one" / "k3" / MODEL_FILE, device=CPU)
    assert "fmcli ensemble pack" in hint_of(caught.value)


def test_a_path_without_a_pack_file_is_refused(runs, tmp_path):
    for path in (runs / "one", tmp_path / "none"):
        for read in (lambda path: unpack(path, tmp_path / "out"), lambda path: read_pack(path, device=CPU)):
            with pytest.raises(CheckpointError, match=r"is a folder, not a pack|none does not exist") as caught:
                read(path)
            assert "fmcli ensemble pack" in hint_of(caught.value)


def test_a_failure_leaves_no_files(pack, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise FmcliError("no room")

    monkeypatch.setattr("fmcli.checkpoints.pack.write_ensemble_file", fail)
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "out", tmp_path / "empty"):
        with pytest.raises(FmcliError, match="no room"):
            unpack(pack, folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


HOSTILE_NAMES = [
    *("../k3", "..", ".", "a/b", "/tmp/k3", "a\\b", "a\0b", "recipe.toml", "ensemble.toml"),
    *("../snapshot-1", "/snapshot-1", "k3/snapshot-1/snapshot-2", "k3/snapshot-0"),
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_member_folder_outside_the_target_is_refused(pack, tmp_path, name):
    def change(contents, _):
        contents["ensemble"]["members"][1]["path"] = name

    bad = rewritten(pack, tmp_path / "in" / "bad.pack", change)
    with pytest.raises(CheckpointError, match=r"not a plain name|should match pattern"):
        unpack(bad, tmp_path / "in" / "out")
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["bad.pack"]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "model.safetensors", "evil.py", "sub/history.jsonl", ""])
def test_an_unexpected_file_is_refused_before_writing(pack, tmp_path, name):
    def change(_, tensors):
        tensors[f"file.1.{name}"] = torch.zeros(3, dtype=torch.uint8)

    bad = rewritten(pack, tmp_path / "in" / "bad.pack", change)
    with pytest.raises(CheckpointError, match="unexpected file"):
        unpack(bad, tmp_path / "in" / "out")
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["bad.pack"]


def test_a_file_tensor_with_another_dtype_is_refused(pack, tmp_path):
    def change(_, tensors):
        tensors[f"file.0.{HISTORY_FILE}"] = torch.zeros(3)

    with pytest.raises(CheckpointError, match="unexpected file"):
        unpack(rewritten(pack, tmp_path / "bad.pack", change), tmp_path / "out")


DAMAGED = {
    "a member too few": lambda contents, _: contents["headers"].pop(),
    "no members": lambda contents, _: contents.update(headers=[]),
    "an unknown key": lambda contents, _: contents.update(colour="red"),
    "an unknown rule": lambda contents, _: contents["ensemble"].update(vote="plurality"),
    "two of one folder": lambda contents, _: contents["ensemble"]["members"][1].update(path="k5"),
    "two of one name": lambda contents, _: contents["ensemble"]["members"][1].update(name="k5"),
    "ragged stacking": lambda contents, _: contents["ensemble"]["stacking"]["coefficients"][0].pop(),
    "a header that is none": lambda contents, _: contents["headers"][1].update(header="{}"),
    "a checkpoint of another format": lambda contents, _: contents["headers"][1].update(format="x"),
    "a tensor too few": lambda _, tensors: tensors.pop("model.1.0.weight"),
    "a tensor of another shape": lambda _, tensors: tensors.update({"model.1.0.weight": torch.zeros(1)}),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_an_inconsistent_pack_is_refused(pack, tmp_path, kind):
    assert_refused(rewritten(pack, tmp_path / "bad.pack", DAMAGED[kind]))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"ensemble": 1}', "[" * 100_000])
def test_a_pack_with_damaged_metadata_is_refused(pack, tmp_path, text):
    metadata, tensors = load_tensors(pack)
    save_tensors(tmp_path / "bad.pack", tensors, metadata | {"pack": text})
    assert_refused(tmp_path / "bad.pack")


def test_a_folder_with_files_is_left_unchanged(pack, tmp_path):
    for path in (tmp_path / "file", tmp_path / "full"):
        path.mkdir() if path.name == "full" else path.write_text("mine")
    (tmp_path / "full" / "k3").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "full"):
        with pytest.raises(UsageError, match="is not an empty folder") as caught:
            unpack(pack, path)
        assert "output" in [remedy.action for remedy in caught.value.remedies]
    assert (tmp_path / "full" / "k3").read_text() == "mine"


def test_folders_that_differ_only_in_case_are_refused(pack, tmp_path):
    def change(contents, _):
        contents["ensemble"]["members"][1]["path"] = "K5"

    with pytest.raises(CheckpointError, match="the same folder"):
        unpack(rewritten(pack, tmp_path / "bad.pack", change), tmp_path / "out")


def test_unpacking_accepts_an_empty_folder(pack, tmp_path):
    (tmp_path / "out").mkdir()
    assert len(unpack(pack, tmp_path / "out")) == 2
