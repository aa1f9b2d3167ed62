"""Splits without a class or with very few images; predictions that do not depend on the other images of a batch."""

import numpy as np
import pytest
import torch

from fmcli.networks.build import build_model
from fmcli.networks.inference import InferenceNetwork, predict_logits
from fmcli.networks.tracing import trace_network
from fmcli.recipe import load_recipe
from tests.helpers import TINY_RECIPE, draw_quadrants, write_idx_folder

CLASSES = ("top left", "top right", "bottom left", "bottom right", "nowhere")


@pytest.fixture
def recipe_on(tmp_path):
    """Write a recipe on drawn images of some classes for each split, and return its path."""

    def write(train: set[int], test: set[int], *, validation: int = 40):
        def draw(n, seed, kept):
            images, labels = draw_quadrants(n, seed=seed)
            here = np.isin(labels, list(kept))
            return images[here], labels[here]

        folder = write_idx_folder(tmp_path / "images", *draw(240, 1, train), test=draw(100, 2, test), classes=CLASSES)
        path = tmp_path / "odd.toml"
        path.write_text(TINY_RECIPE.format(folder=folder).replace("first = 40", f"first = {validation}"), "utf-8")
        return path

    return write


def train_and_evaluate(cli, recipe, folder, split="test"):
    trained = cli("train", "--recipe", recipe, "--output", folder, "--quiet")
    assert trained.status == 0, trained.err
    answer = cli("ensemble", "evaluate", folder, "--split", split, "--format", "json")
    assert answer.status == 0, answer.err
    return answer.json["ensemble"]


def test_a_class_without_any_image_has_scores_of_0_and_no_support(cli, recipe_on, tmp_path):
    vote = train_and_evaluate(cli, recipe_on({0, 1, 2, 3}, {0, 1, 2, 3}), tmp_path / "run")
    nowhere = next(one for one in vote["classes"] if one["class"] == "nowhere")
    assert (nowhere["support"], nowhere["recall"], nowhere["f1"]) == (0, 0, 0)
    assert vote["accuracy"] > 0.5


def test_images_of_a_class_without_training_images_are_misclassified(cli, recipe_on, tmp_path):
    vote = train_and_evaluate(cli, recipe_on({0, 1, 2}, {0, 1, 2, 3}), tmp_path / "run")
    unseen = next(one for one in vote["classes"] if one["class"] == "bottom right")
    assert unseen["support"] > 0
    assert unseen["recall"] == 0


def test_a_class_without_test_images_has_only_false_positives(cli, recipe_on, tmp_path):
    vote = train_and_evaluate(cli, recipe_on({0, 1, 2, 3}, {0, 1}), tmp_path / "run")
    assert [one["support"] > 0 for one in vote["classes"]] == [True, True, False, False, False]


@pytest.mark.parametrize("keep", ["last", "best", "retrained"])
def test_one_validation_image_is_enough_to_train(cli, recipe_on, tmp_path, keep):
    recipe = recipe_on({0, 1, 2, 3}, {0, 1, 2, 3}, validation=1)
    recipe.write_text(recipe.read_text().replace("epochs = 3", f'epochs = 3\nkeep = "{keep}"'))
    vote = train_and_evaluate(cli, recipe, tmp_path / "run", split="validation")
    assert vote["accuracy"] in (0, 1)


def test_one_validation_image_is_too_few_to_fit_a_rule(cli, recipe_on, tmp_path):
    recipe = recipe_on({0, 1, 2, 3}, {0, 1, 2, 3}, validation=1)
    assert cli("train", "--recipe", recipe, "--output", tmp_path / "run", "--quiet").status == 0
    refused = cli("ensemble", "fit", tmp_path / "run", "--vote", "stacking", "--output", tmp_path / "fitted.toml")
    assert refused.status == 2
    assert "fitting needs at least 2 validation images; got 1" in refused.err


@pytest.mark.parametrize("name", ["k3", "k5", "k7"])
@pytest.mark.parametrize("bf16", [False, True])
def test_predictions_depend_neither_on_the_batch_nor_on_the_order(name, bf16):
    """Stated in the README: in fp32 the same labels and probabilities within 1e-5, in bfloat16 within 0.05."""
    member = next(one for one in load_recipe("quick").members if one.name == name)
    shape = (1, 28, 28)
    model = build_model(trace_network(member.model, shape, 10), generator=torch.Generator().manual_seed(0))
    network = InferenceNetwork(model, bf16=bf16)
    n_images = 20 if bf16 else 60  # CPUs without bfloat16 instructions are slow
    images = torch.randint(0, 256, (n_images, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))

    def answer(size: int, order: torch.Tensor) -> torch.Tensor:
        logits = predict_logits(network, images[order].split(size), lambda pixels: pixels / 255)
        return logits.softmax(dim=1)[order.argsort()]

    whole = answer(n_images, torch.arange(n_images))
    shuffled = torch.randperm(n_images, generator=torch.Generator().manual_seed(2))
    for size, order in ((1, shuffled), (7, torch.arange(n_images)), (32, shuffled)):
        again = answer(size, order)
        assert bf16 or torch.equal(again.argmax(dim=1), whole.argmax(dim=1))
        assert (again - whole).abs().max() <= (0.05 if bf16 else 1e-5)
