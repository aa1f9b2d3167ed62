"""Networks with inner layers in every command that reads or writes networks."""

import numpy as np
import pytest
import torch

from fmcli.events import StepFinished, StopRequest
from fmcli.members.pool import open_pool
from fmcli.recipe import load_recipe
from fmcli.training.run import train_run
from tests.helpers import StopAt, draw_quadrants

CLASSES = ("top left", "top right", "bottom left", "bottom right")
RECIPE = """
[data]
source = "idx:{folder}"
validation = {{ first = 40 }}
[optimizer]
lr = 0.01
[trainer]
epochs = 3
batch_size = 32
[[members]]
name = "r3"
copies = 2
[members.model]
family = "kernel-resnet"
kernel_size = 3
widths = [8, 12]
squeeze_excite = true
stochastic_depth = 0.2
[[members]]
name = "nested"
trainer.precision = "bf16"
[members.model]
family = "sequential"
layers = [
  {{ type = "conv", filters = 8, kernel_size = 3, activation = "relu" }},
  {{ type = "max-pool" }},
  {{ type = "residual", shortcut = "auto", activation = "relu", body = [
    {{ type = "conv", filters = 8, kernel_size = 3, padding = "same", groups = 8 }},
    {{ type = "batch-norm" }},
    {{ type = "residual", body = [
      {{ type = "conv", filters = 8, kernel_size = 1 }},
      {{ type = "dropout", rate = 0.2 }},
    ] }},
  ] }},
  {{ type = "flatten" }},
  {{ type = "dense", units = 4 }},
]
"""


@pytest.fixture(scope="module")
def recipe(drawn_images, tmp_path_factory):
    path = tmp_path_factory.mktemp("nested") / "nested.toml"
    path.write_text(RECIPE.format(folder=drawn_images), "utf-8")
    return path


@pytest.fixture(scope="module")
def run(recipe):
    folder = recipe.parent / "run"
    train_run(load_recipe(str(recipe)), folder, device=torch.device("cpu"))
    return folder


def test_a_vote_of_nested_networks_and_its_pack_give_equal_results(cli, run, tmp_path):
    result = cli("ensemble", "evaluate", run, "--format", "json").json
    assert result["ensemble"]["accuracy"] > 0.9
    assert [member["name"] for member in result["members"]] == ["r3-1", "r3-2", "nested"]
    packed = tmp_path / "packed.safetensors"
    assert cli("ensemble", "pack", run, "--output", packed).status == 0
    of_pack = cli("ensemble", "evaluate", packed, "--format", "json").json
    assert of_pack["members"] == result["members"]
    assert cli("ensemble", "unpack", packed, "--output", tmp_path / "again").status == 0
    for member in ("r3-1", "r3-2", "nested"):
        name = f"{member}/model.safetensors"
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes()
    images, labels = draw_quadrants(20, seed=9)
    np.save(tmp_path / "images.npy", images)
    of_run, of_pack = (
        [record["label"] for record in cli("predict", path, tmp_path / "images.npy", "--format", "jsonl").records]
        for path in (run, packed)
    )
    assert of_run == of_pack == [CLASSES[label] for label in labels]


def test_a_soup_averages_the_weights_of_inner_layers(cli, run, tmp_path):
    ingredients = [run / "r3-1", run / "r3-2"]
    made = cli("ensemble", "soup", *ingredients, "--method", "uniform", "--output", tmp_path / "soup")
    assert made.status == 0, made.err
    assert cli("evaluate", tmp_path / "soup").status == 0
    members = open_pool([*ingredients, tmp_path / "soup"], device="cpu").members
    first, second, soup = (member.checkpoint.model.state_dict() for member in members)
    kernels = [name for name, tensor in first.items() if tensor.ndim > 1]
    assert any("body" in name for name in kernels)
    assert any("shortcut" in name for name in kernels)
    for name in kernels:
        torch.testing.assert_close(soup[name], (first[name] + second[name]) / 2)


def test_a_stopped_run_of_nested_networks_resumes_exactly(cli, recipe, run, tmp_path):
    with pytest.raises(StopRequest):
        train_run(
            load_recipe(str(recipe)),
            tmp_path / "run",
            device=torch.device("cpu"),
            jobs=1,
            reporter=StopAt(StepFinished, 10, StopRequest),
        )
    resumed = cli("train", "--recipe", recipe, "--output", tmp_path / "run", "--resume", "--quiet")
    assert resumed.status == 0, resumed.err
    whole, again = (open_pool([folder], device="cpu").members for folder in (run, tmp_path / "run"))
    assert [member.weights_digest for member in whole] == [member.weights_digest for member in again]
