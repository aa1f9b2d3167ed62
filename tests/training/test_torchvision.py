"""Train networks of torchvision: results, exact resuming, weights from a file, and every command on such a member."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision import models

from fmcli.checkpoints.checkpoint import load_checkpoint, read_header
from fmcli.checkpoints.layout import MODEL_FILE
from fmcli.checkpoints.tensors import load_tensors, save_tensors
from fmcli.data import ImageSet, Splits
from fmcli.errors import CheckpointError, RecipeError
from fmcli.events import InitialWeightsLoaded, StepFinished, StopRequest
from fmcli.networks.tracing import trace_recipe
from fmcli.recipe import SourceFacts, resolve_recipe
from fmcli.training import train_member
from tests.helpers import StopAt, draw_quadrants, write_idx_folder

CPU = torch.device("cpu")
CLASSES = tuple("abcd")
SMALL = "mobilenet_v3_small"


def draw_set(n_images, seed):
    images, labels = draw_quadrants(n_images, seed=seed, size=16)
    return ImageSet(images[:, None], labels.astype(np.int64), CLASSES)


@pytest.fixture(scope="module")
def splits():
    return Splits(draw_set(32, 0), draw_set(8, 1), draw_set(8, 2))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    torch.manual_seed(3)
    save_file(models.get_model(SMALL).state_dict(), path)
    return path


def small_recipe(*, trainer=(), **model):
    table = {
        "data": {"source": "idx:drawn", "validation": {"first": 1}},
        "model": {"family": "torchvision", "name": SMALL, **model},
        "trainer": {"epochs": 1, "batch_size": 16, "precision": "fp32", **dict(trainer)},
    }
    return resolve_recipe(table, name="drawn")


def train(recipe, splits, folder, **options):
    train_member(recipe, "m1", splits, folder, device=CPU, **options)
    return load_file(folder / MODEL_FILE)


# Both have dropout, and efficientnet_b0 has stochastic depth.
@pytest.mark.parametrize(("precision", "name"), [("fp32", "efficientnet_b0"), ("bf16", SMALL)])
def test_a_stopped_run_resumes_bit_for_bit(splits, tmp_path, precision, name):
    recipe = small_recipe(trainer={"precision": precision}, name=name)
    whole = train(recipe, splits, tmp_path / "whole")
    with pytest.raises(StopRequest):
        train(recipe, splits, tmp_path / "broken", reporter=StopAt(StepFinished, 1, StopRequest))
    resumed = train(recipe, splits, tmp_path / "broken", resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole.keys() | resumed.keys())


def test_a_file_of_weights_is_reported_once_recorded_and_not_needed_afterwards(splits, tmp_path, pretrained):
    path = tmp_path / "copy.safetensors"
    path.write_bytes(pretrained.read_bytes())
    recipe, events = small_recipe(weights=str(path), trainer={"keep": "retrained"}), []
    train(recipe, splits, tmp_path / "m1", reporter=events.append)
    [reported] = [event for event in events if isinstance(event, InitialWeightsLoaded)]
    random = ("features.0.0.weight", "classifier.3.weight", "classifier.3.bias")
    assert reported == InitialWeightsLoaded("m1", str(path), random)
    path.unlink()
    header = load_checkpoint(tmp_path / "m1", device=CPU).header
    assert len(header.trained_on["initial_weights"]) == 64
    train(small_recipe(), splits, tmp_path / "random")
    assert "initial_weights" not in read_header(tmp_path / "random").trained_on


def test_a_run_does_not_resume_from_different_initial_weights(splits, tmp_path, pretrained):
    path = tmp_path / "copy.safetensors"
    path.write_bytes(pretrained.read_bytes())
    recipe = small_recipe(weights=str(path))
    with pytest.raises(StopRequest):
        train(recipe, splits, tmp_path / "m1", reporter=StopAt(StepFinished, 1, StopRequest))
    tensors = load_file(path)
    tensors["features.0.1.bias"] += 1
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="was started from different initial weights; resuming from the current"):
        train(recipe, splits, tmp_path / "m1", resume=True)


def test_problems_of_all_members_have_their_paths(pretrained, tmp_path):
    table = {
        "data": {"source": "idx:drawn"},
        "model": {"family": "torchvision", "name": "resnet18"},
        "members": [
            {"name": "a", "model": {"name": "resnet17"}},
            {"name": "b", "model": {"weights": str(tmp_path / "nothing")}},
            {"name": "c", "model": {"weights": str(pretrained)}},
            {"name": "d", "model": {"family": "kernel-cnn", "kernel_size": 20, "widths": [2]}},
            {"name": "e"},
        ],
    }
    recipe = resolve_recipe(table, name="drawn")
    with pytest.raises(RecipeError) as caught:
        trace_recipe(recipe, SourceFacts((1, 16, 16), CLASSES))
    paths = [problem.split(": ")[0] for problem in caught.value.problems]
    expected = ["a.model.name", "b.model.weights", "c.model.weights", "d.model.layers[0]"]
    assert paths == [f"members.{path}" for path in expected]


def test_a_checkpoint_that_claims_a_huge_network_is_refused_before_memory_is_allocated(splits, tmp_path):
    train(small_recipe(name="squeezenet1_1"), splits, tmp_path / "m1")
    header = read_header(tmp_path / "m1")
    assert header.member.model.name == "squeezenet1_1"
    metadata, tensors = load_tensors(tmp_path / "m1" / MODEL_FILE)
    model = header.member.model.model_copy(update={"name": "vit_h_14"})
    claimed = header.model_copy(update={"member": header.member.model_copy(update={"model": model})})
    save_tensors(tmp_path / "m1" / MODEL_FILE, tensors, {**metadata, "header": claimed.model_dump_json()})
    with pytest.raises(CheckpointError, match=r"its header describes 6\d{8}"):
        load_checkpoint(tmp_path / "m1", device=CPU)


def test_every_command_handles_members_with_a_backbone(cli, tmp_path):
    recipe, run = tmp_path / "mixed.toml", tmp_path / "run"
    images = write_idx_folder(tmp_path / "images", *draw_quadrants(48, size=8))
    recipe.write_text(
        f"""# A network of torchvision and a kernel-cnn.
[data]
source = "idx:{images}"
validation = {{ first = 16 }}
[model]
family = "torchvision"
name = "{SMALL}"
[trainer]
epochs = 1
[[members]]
name = "net"
copies = 2
[[members]]
name = "k3"
model = {{ family = "kernel-cnn", form = "pooled", kernel_size = 3, widths = [4, 8] }}
"""
    )
    assert cli("recipe", "validate", recipe).status == 0
    assert f"backbone {SMALL}" in cli("recipe", "show", recipe, "--summary").out
    assert cli("train", "--recipe", recipe, "--output", run, "--jobs", 1).status == 0
    assert cli("evaluate", run).status == 0
    assert cli("ensemble", "evaluate", run).status == 0
    pack, soup = tmp_path / "pack.safetensors", tmp_path / "soup"
    assert cli("ensemble", "pack", run, "--output", pack).status == 0
    assert cli("ensemble", "evaluate", pack).status == 0
    assert cli("ensemble", "soup", run / "net-1", run / "net-2", "--output", soup).status == 0
    assert cli("evaluate", soup).status == 0

    wrong = cli(
        "train", "--recipe", recipe, "--output", run, "--set", "members.net.model.name='resnet81'", "--overwrite"
    )
    assert (wrong.status, "members.net-1.model.name: got 'resnet81'; did you mean" in wrong.err) == (2, True)
