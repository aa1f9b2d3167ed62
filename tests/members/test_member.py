"""The interface of members: networks share work, and members without a network refuse images."""

import numpy as np
import pytest
import torch

import fmcli.data
from fmcli.data import Normalization
from fmcli.ensemble.predictions import Predictions, save_predictions
from fmcli.members.member import ImageBatch, NoNetworkError, has_network
from fmcli.members.network import NetworkMember
from fmcli.members.pool import open_pool
from fmcli.members.predict import predict_pool
from fmcli.recipe import load_recipe
from fmcli.training.run import train_run
from tests.helpers import TINY_RECIPE


@pytest.fixture(scope="module")
def runs(drawn_images, tmp_path_factory):
    """Runs with different seeds and one member in each; the last one normalizes pixels differently."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "tiny.toml").write_text(TINY_RECIPE.format(folder=drawn_images), "utf-8")
    found = []
    for seed, normalize in enumerate(("standard", "standard", "unit")):
        sets = ["trainer.epochs=1", f"trainer.seed={seed}", f"data.normalize={normalize}"]
        recipe = load_recipe(str(folder / "tiny.toml"), sets)
        train_run(recipe, folder / str(seed), members=["k3"], device=torch.device("cpu"))
        found.append(folder / str(seed) / "k3")
    return found


@pytest.mark.parametrize("views", ["none", "flip-shift"])
def test_networks_load_and_normalize_the_same_images_once(runs, monkeypatch, views):
    alone = [predict_pool(open_pool([run], device="cpu"), "test", views=views)[0] for run in runs]
    loaded, normalized = [], []
    load, normalize = fmcli.data.load_splits, Normalization.__call__
    monkeypatch.setattr("fmcli.data.load_splits", lambda *arguments: loaded.append(arguments) or load(*arguments))
    monkeypatch.setattr(
        Normalization, "__call__", lambda self, images: normalized.append(self) or normalize(self, images)
    )
    together = predict_pool(open_pool(runs, device="cpu"), "test", views=views)
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one.logits, other.logits)
    assert len(loaded) == 2  # the recipes have two different [data] tables
    assert len(normalized) == 2 * {"none": 1, "flip-shift": 10}[views]  # one batch, two normalizations


def test_networks_keep_their_own_normalization_of_one_batch(runs):
    first, second, other = open_pool(runs, device="cpu").networks
    batch = ImageBatch(np.random.default_rng(0).integers(0, 256, (3, 1, 12, 12), dtype=np.uint8))
    for member in (first, other, second):
        found = member.predict_images(batch)
        assert (found.shape, found.dtype) == ((3, 4), np.float32)
        np.testing.assert_array_equal(found, member.predict_images(ImageBatch(batch.pixels)))


def test_a_network_predicts_a_split_like_its_pool(runs):
    pool = open_pool(runs[:1], device="cpu")
    assert isinstance(pool.members[0], NetworkMember)
    [expected] = predict_pool(pool, "test")
    np.testing.assert_array_equal(pool.members[0].predict("test").logits, expected.logits)


def test_a_member_without_a_network_refuses_images(tmp_path):
    stored = Predictions(np.zeros((2, 3), np.float32), np.arange(2), tuple("abc"), "one", "test")
    save_predictions(tmp_path / "one.safetensors", stored)
    [member] = open_pool([tmp_path]).members
    assert not has_network(member)
    assert (member.class_names, member.weights_digest, member.training) == (tuple("abc"), "", None)
    with pytest.raises(NoNetworkError, match="one has stored predictions but no network"):
        member.predict_images(ImageBatch(np.zeros((1, 1, 2, 2), np.uint8)))
