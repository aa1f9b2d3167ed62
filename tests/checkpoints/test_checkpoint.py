import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import fmcli
from fmcli.checkpoints.checkpoint import FORMAT, Header, load_checkpoint, read_header, save_checkpoint
from fmcli.checkpoints.layout import MODEL_FILE, RECIPE_FILE, find_checkpoints, make_names_unique, unfinished_members
from fmcli.checkpoints.tensors import load_tensors, save_tensors
from fmcli.data import load_splits
from fmcli.ensemble.predictions import load_predictions
from fmcli.errors import CheckpointError, FmcliError, Remedy
from fmcli.members.pool import open_pool
from fmcli.members.predict import predict_pool
from fmcli.networks.inference import InferenceNetwork, predict_logits
from fmcli.recipe import Recipe, load_recipe, recipe_digest
from fmcli.training import VALIDATION_FILE
from fmcli.training.run import train_run
from tests.helpers import TINY_RECIPE

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def recipe(drawn_images, tmp_path_factory) -> Recipe:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    text = TINY_RECIPE.format(folder=drawn_images) + '\n[reference]\nsource = "nowhere"\ntest_accuracy = 0.5\n'
    # The recipe must not list its members in alphabetical order.
    path.write_text(text.replace('"k3"', '"second"').replace('"k5"', '"first"'), "utf-8")
    return load_recipe(str(path), ["trainer.epochs=1"])


@pytest.fixture(scope="module")
def run_folder(recipe, tmp_path_factory) -> Path:
    """A run of the members `second` and `first`; read-only."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train_run(recipe, folder, device=CPU)
    return folder


@pytest.fixture
def model_file(run_folder, tmp_path) -> Path:
    """A writable copy of a checkpoint."""
    return Path(shutil.copy(run_folder / "second" / MODEL_FILE, tmp_path / "model.safetensors"))


def content_of(path: Path) -> tuple[Header, dict[str, torch.Tensor]]:
    member = load_checkpoint(path, device=CPU)
    return member.header, {name: tensor.clone() for name, tensor in member.model.state_dict().items()}


def same_content(one: tuple[Header, dict[str, torch.Tensor]], other: tuple[Header, dict[str, torch.Tensor]]) -> bool:
    return (
        one[0] == other[0]
        and one[1].keys() == other[1].keys()
        and all(torch.equal(tensor, other[1][name]) for name, tensor in one[1].items())
    )


def rewritten(path: Path, target: Path, **changes: object) -> Path:
    """Write a checkpoint with other values in its header and a correct digest."""
    metadata, tensors = load_tensors(path)
    header = json.loads(metadata["header"]) | changes
    save_tensors(target, tensors, metadata | {"header": json.dumps(header)})
    return target


# --- round trip -------------------------------------------------------------------------------------------


def test_saved_network_gives_the_same_logits_when_loaded(run_folder, recipe):
    validation = load_splits(recipe.data).validation
    member = load_checkpoint(run_folder / "second" / MODEL_FILE, device=CPU)
    network = InferenceNetwork(member.model)
    logits = predict_logits(network, [torch.tensor(validation.images)], member.header.normalization)
    assert np.array_equal(logits.numpy(), load_predictions(run_folder / "second" / VALIDATION_FILE).logits)
    assert not member.model.training


def test_a_loaded_checkpoint_is_saved_unchanged(run_folder, tmp_path):
    member = load_checkpoint(run_folder / "second", device=CPU)
    save_checkpoint(tmp_path / "deep" / "er" / MODEL_FILE, member.model, member.header)
    assert same_content(content_of(tmp_path / "deep" / "er"), content_of(run_folder / "second"))


def test_header_is_complete(run_folder, recipe):
    header = read_header(run_folder / "first")
    splits = load_splits(recipe.data)
    assert (header.member, header.index) == (recipe.members[1], 1)
    assert (header.data, header.ensemble, header.reference) == (recipe.data, recipe.ensemble, recipe.reference)
    assert header.input_shape == (1, 12, 12)
    assert header.class_names == ("top left", "top right", "bottom left", "bottom right")
    assert header.mean == pytest.approx([splits.train.images.mean()])
    assert header.std == pytest.approx([splits.train.images.std()])
    assert header.background == "dark"
    assert header.epochs == 1
    assert (header.snapshot, header.name) == (None, "first")
    assert header.data_digests == {name: images.digest for name, images in splits.present().items()}
    assert header.recipe_digest == recipe_digest(recipe.members[1], recipe.data)
    assert header.versions["fmcli"] == fmcli.__version__
    assert header.versions["torch"] == torch.__version__
    assert header.trained_on["device"] == "cpu"
    assert header.soup is None
    model = load_checkpoint(run_folder / "first", device=CPU).model
    assert header.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_header_is_read_without_the_weights(model_file):
    """The header of a file with overwritten weights can be read, but the checkpoint cannot be loaded."""
    with safe_open(model_file, framework="pt") as file:
        size = model_file.stat().st_size - sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    content = bytearray(model_file.read_bytes())
    content[size:] = bytes(len(content) - size)
    header = read_header(model_file)
    model_file.write_bytes(content)
    assert read_header(model_file) == header
    with pytest.raises(CheckpointError, match="digest"):
        load_checkpoint(model_file, device=CPU)


def test_member_loads_from_its_folder_and_from_its_file(run_folder):
    by_folder = content_of(run_folder / "first")
    assert same_content(by_folder, content_of(run_folder / "first" / MODEL_FILE))
    assert read_header(run_folder / "first") == read_header(run_folder / "first" / MODEL_FILE)


def test_a_moved_run_folder_predicts_the_same(run_folder, tmp_path):
    moved = Path(shutil.copytree(run_folder, tmp_path / "elsewhere" / "run of two"))
    predictions = predict_pool(open_pool([moved], device="cpu"), "validation")
    for one in predictions:
        assert np.array_equal(one.logits, load_predictions(run_folder / one.member / VALIDATION_FILE).logits)


def test_a_checkpoint_file_is_enough(run_folder, tmp_path):
    alone = Path(shutil.copy(run_folder / "first" / MODEL_FILE, tmp_path / "any name.st"))
    assert same_content(content_of(alone), content_of(run_folder / "first"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0), (2, 3, 1, 2)])
def test_tensors_of_all_dtypes_and_shapes_are_restored(tmp_path, dtype, shape):
    tensors = {"one": torch.ones(shape).to(dtype), "two": torch.zeros(shape).to(dtype)}
    save_tensors(tmp_path / "file", tensors, {"a": "1", "ü": "\n"})
    metadata, loaded = load_tensors(tmp_path / "file")
    assert metadata == {"a": "1", "ü": "\n"}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == dtype
        assert torch.equal(loaded[name], tensor)


def test_memory_layout_does_not_change_the_file(tmp_path):
    tensor = torch.arange(2.0 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    save_tensors(tmp_path / "file", {"kernel": tensor.to(memory_format=torch.channels_last)}, {})
    assert torch.equal(load_tensors(tmp_path / "file")[1]["kernel"], tensor)


# --- damage -----------------------------------------------------------------------------------------------


def assert_refused(path: Path) -> str:
    """Check that loading fails with a one-line error that names the file; return the message."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, device=CPU)
    assert path.name in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("kept", [0.0, 1e-3, 0.01, 0.2, 0.5, 0.9, 0.999])
def test_truncated_file_is_refused(model_file, kept):
    content = model_file.read_bytes()
    model_file.write_bytes(content[: int(kept * len(content))])
    assert_refused(model_file)
    with pytest.raises(CheckpointError):
        read_header(model_file)


def test_file_with_trailing_bytes_is_refused(model_file):
    model_file.write_bytes(model_file.read_bytes() + b"\0")
    assert_refused(model_file)


def test_flipped_bits_are_refused_or_have_no_effect(model_file):
    content, whole = model_file.read_bytes(), content_of(model_file)
    end_of_header = 8 + int.from_bytes(content[:8], "little")
    positions = [
        *range(8),
        *np.linspace(8, end_of_header - 1, 24, dtype=int),
        *np.linspace(end_of_header, len(content) - 1, 24, dtype=int),
    ]
    for count, position in enumerate(positions):
        changed = bytearray(content)
        changed[position] ^= 1 << (count % 8)
        model_file.write_bytes(changed)
        try:
            loaded = content_of(model_file)
        except CheckpointError:
            continue
        # Spaces pad the header; their values have no effect.
        assert content[position : position + 1] == b" ", f"byte {position} was changed without an error"
        assert same_content(loaded, whole)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"not a checkpoint\n" * 99, b"\x80\x04N.", b"\xff" * 64, b"\0" * 64], ids=repr
)
def test_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "other.bin").write_bytes(content)
    assert_refused(tmp_path / "other.bin")
    with pytest.raises(CheckpointError):
        read_header(tmp_path / "other.bin")


def test_pickled_checkpoint_of_torch_is_refused(tmp_path):
    torch.save({"0.weight": torch.zeros(2)}, tmp_path / "model.pt")
    assert "not a complete safetensors file" in assert_refused(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "other.safetensors is not a checkpoint written by fmcli"),
        ({"format": "pt"}, "other.safetensors is not a checkpoint written by fmcli"),
        (
            {"format": "fmcli-checkpoint-99"},
            f"has the format 'fmcli-checkpoint-99', but this version of fmcli reads '{FORMAT.name}'",
        ),
    ],
)
def test_a_file_of_another_program_or_version_is_refused(tmp_path, metadata, message):
    save_file({"0.weight": torch.zeros(2)}, tmp_path / "other.safetensors", metadata=metadata)
    assert message in assert_refused(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=message):
        read_header(tmp_path / "other.safetensors")


def test_predictions_and_checkpoints_are_not_confused(run_folder):
    assert_refused(run_folder / "first" / VALIDATION_FILE)
    with pytest.raises(CheckpointError, match="not a predictions file"):
        load_predictions(run_folder / "first" / MODEL_FILE)


def test_missing_file_is_refused_and_the_error_names_the_remedy(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at") as caught:
        load_checkpoint(tmp_path / "nothing", device=CPU)
    assert caught.value.remedies == (Remedy("train"),)
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path, device=CPU)


def test_unreadable_file_is_refused(model_file, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fmcli.storage.reading.safe_open", refuse)
    assert "Permission denied" in assert_refused(model_file)


def test_error_names_tensors_of_another_shape(model_file):
    metadata, tensors = load_tensors(model_file)
    save_tensors(model_file, tensors | {"0.weight": torch.zeros(8, 1, 5, 5)}, metadata)
    message = assert_refused(model_file)
    assert "0.weight is float32 (8, 1, 5, 5), but its network needs float32 (8, 1, 3, 3)" in message


def test_error_names_tensors_of_another_dtype(model_file):
    metadata, tensors = load_tensors(model_file)
    save_tensors(model_file, tensors | {"0.weight": tensors["0.weight"].double()}, metadata)
    assert "0.weight is float64" in assert_refused(model_file)


@pytest.mark.parametrize(("extra", "named"), [({}, "is missing"), ({"99.weight": torch.zeros(1)}, "99.weight")])
def test_error_names_missing_and_unexpected_tensors(model_file, extra, named):
    metadata, tensors = load_tensors(model_file)
    if not extra:
        del tensors["0.weight"]
    save_tensors(model_file, tensors | extra, metadata)
    assert named in assert_refused(model_file)


@pytest.mark.parametrize(
    "changes",
    [
        {"class_names": ["a", "b"]},
        {"class_names": "ab"},
        {"class_names": []},
        {"input_shape": [1, 12]},
        {"input_shape": [1, 0, 12]},
        {"input_shape": [3, 12, 12]},
        {"mean": []},
        {"mean": [1.0, 2.0]},
        {"std": [0.0]},
        {"std": [float("nan")]},
        {"member": None},
        {"background": "green"},
        {"unknown": 1},
        {"snapshot": 0},
    ],
    ids=str,
)
def test_header_that_does_not_fit_is_refused(model_file, changes):
    assert_refused(rewritten(model_file, model_file, **changes))


def test_header_of_an_impossible_network_is_refused(model_file):
    member = json.loads(load_tensors(model_file)[0]["header"])["member"]
    member["model"] = {"family": "sequential", "layers": [{"type": "flatten"}, {"type": "dense", "units": 3}]}
    assert_refused(rewritten(model_file, model_file, member=member))


def test_file_without_a_header_is_refused(model_file):
    metadata, tensors = load_tensors(model_file)
    del metadata["header"]
    save_tensors(model_file, tensors, metadata)
    assert "the header of" in assert_refused(model_file)


def test_names_in_a_file_cannot_send_control_characters_to_the_terminal(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "x", metadata={"format": "\x1b[31mred"})
    with pytest.raises(CheckpointError) as caught:
        read_header(tmp_path / "x")
    assert "\x1b" not in caught.value.message


@pytest.mark.parametrize("change", ["value", "dtype", "shape", "name", "text", "swap"])
def test_digest_covers_names_dtypes_shapes_values_and_metadata(tmp_path, change):
    path = tmp_path / "file"
    save_tensors(path, {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 4.0])}, {"note": "x"})
    assert load_tensors(path)[0] == {"note": "x"}
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name).clone() for name in ("a", "b")}
    match change:
        case "value":
            tensors["a"][0] = 1.5
        case "dtype":
            tensors["a"] = tensors["a"].view(torch.int32)
        case "shape":
            tensors["a"] = tensors["a"].view(2, 1)
        case "name":
            tensors["c"] = tensors.pop("a")
        case "text":
            metadata["note"] = "y"
        case "swap":
            tensors["a"], tensors["b"] = tensors["b"], tensors["a"]
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(CheckpointError, match="digest"):
        load_tensors(path)


def test_failed_write_leaves_the_old_file(model_file, monkeypatch):
    member = load_checkpoint(model_file, device=CPU)
    content = model_file.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(FmcliError, match="No space left on device"):
        save_checkpoint(model_file, member.model, member.header)
    assert model_file.read_bytes() == content
    assert [path.name for path in model_file.parent.iterdir()] == [model_file.name]


# --- find_checkpoints ----------------------------------------------------------------------------------------------


def names_of(paths: list[Path]) -> list[str]:
    return [path.parent.name for path in paths]


def test_members_are_in_the_order_of_the_recipe(run_folder):
    assert names_of(find_checkpoints(run_folder)) == ["second", "first"]


def test_members_are_sorted_by_name_without_a_recipe(run_folder, tmp_path):
    copy = Path(shutil.copytree(run_folder, tmp_path / "run"))
    (copy / RECIPE_FILE).unlink()
    assert names_of(find_checkpoints(copy)) == ["first", "second"]


def test_runs_members_and_files_are_found(run_folder):
    assert names_of(find_checkpoints(run_folder)) == ["second", "first"]
    for path in (run_folder / "first" / MODEL_FILE, run_folder / "first"):
        assert names_of(find_checkpoints(path)) == ["first"]


def test_untrained_members_are_left_out(run_folder, tmp_path):
    copy = Path(shutil.copytree(run_folder, tmp_path / "run"))
    shutil.rmtree(copy / "second")
    assert names_of(find_checkpoints(copy)) == ["first"]


def test_folder_without_members_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no trained member in"):
        find_checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match="missing does not exist"):
        find_checkpoints(tmp_path / "missing")


def test_an_unfinished_run_is_refused_and_the_error_names_the_remedy(run_folder, tmp_path):
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(run_folder / RECIPE_FILE, unfinished)
    with pytest.raises(CheckpointError, match="no trained member in") as caught:
        find_checkpoints(unfinished)
    assert caught.value.remedies == (Remedy("resume-run", unfinished),)


# --- snapshots --------------------------------------------------------------------------------------------


@pytest.fixture
def with_snapshots(run_folder, tmp_path) -> Path:
    """A run whose member `second` has eleven snapshots."""
    copy = Path(shutil.copytree(run_folder, tmp_path / "run"))
    for number in range(1, 12):
        model = copy / "second" / f"snapshot-{number}" / MODEL_FILE
        model.parent.mkdir()
        rewritten(copy / "second" / MODEL_FILE, model, snapshot=number)
    return copy


OF_SECOND = [*(f"second/snapshot-{number}" for number in range(1, 12)), "second"]


def folders_of(paths: list[Path], run: Path) -> list[str]:
    return [str(path.parent.relative_to(run)) for path in paths]


def test_snapshots_are_in_order_before_their_member(with_snapshots):
    run = with_snapshots
    assert folders_of(find_checkpoints(run), run) == [*OF_SECOND, "first"]
    assert folders_of(find_checkpoints(run / "second"), run) == OF_SECOND
    assert [read_header(path).name for path in find_checkpoints(run / "second")] == OF_SECOND


def test_a_file_or_a_snapshots_folder_is_one_checkpoint(with_snapshots):
    member = with_snapshots / "second"
    assert find_checkpoints(member / MODEL_FILE) == [member / MODEL_FILE]
    assert find_checkpoints(member / "snapshot-3") == [member / "snapshot-3" / MODEL_FILE]


def test_other_folders_of_a_member_are_not_snapshots(with_snapshots):
    member = with_snapshots / "second"
    for name in ("snapshot-0", "snapshot-01", "snapshot-", "snapshot-1.old", "best"):
        shutil.copytree(member / "snapshot-1", member / name)
    (member / "snapshot-12").mkdir()
    (member / "snapshot-13").write_text("a file")
    assert folders_of(find_checkpoints(member), with_snapshots) == OF_SECOND


def test_snapshots_of_an_untrained_member_are_left_out(with_snapshots):
    (with_snapshots / "second" / MODEL_FILE).unlink()
    assert folders_of(find_checkpoints(with_snapshots), with_snapshots) == ["first"]
    assert unfinished_members(with_snapshots) == ["second"]
    with pytest.raises(CheckpointError, match="no trained member in"):
        find_checkpoints(with_snapshots / "second")


def test_snapshots_of_several_runs_get_unique_names(with_snapshots, tmp_path):
    other = Path(shutil.copytree(with_snapshots, tmp_path / "other"))
    files = [run / "second" / name / MODEL_FILE for run in (with_snapshots, other) for name in ("snapshot-1", "")]
    names = [read_header(file).name for file in files]
    assert names == ["second/snapshot-1", "second"] * 2
    assert make_names_unique(names, files) == [
        "run/second/snapshot-1", "run/second", "other/second/snapshot-1", "other/second"
    ]  # fmt: skip
    assert make_names_unique(names[:2], files[:2]) == names[:2]
    same = [files[0], tmp_path / "elsewhere" / "run" / "second" / "snapshot-1" / MODEL_FILE]
    assert make_names_unique(names[:1] * 2, same) == [
        f"{tmp_path.name}/run/second/snapshot-1", "elsewhere/run/second/snapshot-1"
    ]  # fmt: skip


def test_all_header_fields_are_tested():
    """Add a line to `test_header_is_complete` for each new field of the header."""
    assert set(Header.model_fields) == {
        "member", "index", "data", "ensemble", "reference", "input_shape", "class_names", "mean", "std", "background",
        "parameters", "epochs", "snapshot", "data_digests", "recipe_digest", "versions", "trained_on",
        "soup",
    }  # fmt: skip
