"""Shared fixtures: small drawn images that a network learns in a second, and the real images."""

import itertools
import math
import os
from pathlib import Path

import hypothesis
import pytest
import torch

from tests.helpers import TINY_RECIPE, Result, draw_quadrants, write_idx_folder

# The database would be one more folder in the checkout, and deadlines fail on a busy machine.
hypothesis.settings.register_profile("fmcli", deadline=None, database=None)
hypothesis.settings.load_profile("fmcli")

_CACHES = itertools.count()  # a new one for each test


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Two would wait for each other wherever the machine has other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def every_epoch_is_saved(monkeypatch):
    """However short it is, so that tests know from where a training goes on."""
    monkeypatch.setattr("fmcli.training.loop.MAX_SAVING_SHARE", math.inf)


@pytest.fixture(scope="session")
def fashion_mnist() -> Path:
    """The folder of the real images; in a test that asks for it, FMCLI_DATA names it."""
    from fmcli.data.sources import find_fashion_mnist

    folder = find_fashion_mnist(None)
    if folder is None:
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say("Fashion-MNIST is not here: fmcli data fetch")
    return folder


@pytest.fixture(autouse=True)
def _no_data_of_the_users(request, monkeypatch, tmp_path_factory):
    """Hide the user's datasets and cache from a test, unless it uses the fixture `fashion_mnist`."""
    if "fashion_mnist" in request.fixturenames:
        monkeypatch.setenv("FMCLI_DATA", str(request.getfixturevalue("fashion_mnist")))
    else:
        monkeypatch.delenv("FMCLI_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "caches" / str(next(_CACHES))))


@pytest.fixture(scope="session")
def drawn_images(tmp_path_factory) -> Path:
    """An IDX folder of 240 training and 100 test images, 12×12, four classes; not to be written to."""
    images, labels = draw_quadrants(240, seed=1)
    return write_idx_folder(
        tmp_path_factory.mktemp("drawn") / "quadrants",
        images,
        labels,
        test=draw_quadrants(100, seed=2),
        classes=("top left", "top right", "bottom left", "bottom right"),
    )


@pytest.fixture
def tiny_recipe(drawn_images, tmp_path) -> Path:
    """A recipe of two members on `drawn_images` that trains in about a second."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_RECIPE.format(folder=drawn_images), "utf-8")
    return path


@pytest.fixture
def cli(capfd):
    """Call fmcli in this process; returns its exit status and both streams."""
    from fmcli.cli import run

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        status = run([str(argument) for argument in arguments])
        return Result(int(status), *capfd.readouterr())

    return call


@pytest.fixture
def forget_kernels():
    """Forget the compiled kernels before and after the test."""
    from fmcli.networks.cpu import loading

    loading._compile_kernels.cache_clear()
    yield
    loading._compile_kernels.cache_clear()
