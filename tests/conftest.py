"""Shared fixtures: Fashion-MNIST, and small synthetic images on which a network trains in a second."""

import itertools
import math
import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and PyTorch start threads: parallel tests share the cores

import hypothesis
import pytest

from tests.helpers import TINY_RECIPE, Result, draw_quadrants, write_idx_folder
from tests.processes import ForkedContext

# Without a database, hypothesis writes no folder into the checkout. Deadlines would fail on a busy machine.
hypothesis.settings.register_profile("fmcli", deadline=None, database=None)
hypothesis.settings.load_profile("fmcli")

_CACHES = itertools.count()  # number of the cache folder; each test gets a new one


@pytest.fixture(autouse=True)
def every_epoch_is_saved(monkeypatch):
    """Save after every epoch, even a short one, so that tests know where a resumed run starts."""
    monkeypatch.setattr("fmcli.training.saving.MAX_SAVING_SHARE", math.inf)


@pytest.fixture(autouse=True)
def files_need_not_reach_the_disk(monkeypatch):
    """Do not wait for the disk, which is slow on some machines."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(autouse=True)
def members_are_forked(monkeypatch):
    """Fork the processes of parallel members from a server. A spawned process needs seconds to import PyTorch."""
    monkeypatch.setattr("fmcli.training.executors.processes._CONTEXT", ForkedContext())


@pytest.fixture(scope="session")
def fashion_mnist() -> Path:
    """The folder of Fashion-MNIST. In tests that use this fixture, FMCLI_DATA is set to it."""
    from fmcli.data.sources.fashion_mnist import find_fashion_mnist

    folder = find_fashion_mnist(None)
    if folder is None:
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say("Fashion-MNIST is missing; run fmcli data fetch")
    return folder


@pytest.fixture(autouse=True)
def _hide_user_data(request, monkeypatch, tmp_path_factory):
    """Hide the user's datasets and cache from a test, unless it uses the fixture `fashion_mnist`."""
    if "fashion_mnist" in request.fixturenames:
        monkeypatch.setenv("FMCLI_DATA", str(request.getfixturevalue("fashion_mnist")))
    else:
        monkeypatch.delenv("FMCLI_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "caches" / str(next(_CACHES))))


@pytest.fixture(scope="session")
def drawn_images(tmp_path_factory) -> Path:
    """An IDX folder of 240 training and 100 test images, 12×12, four classes. Tests must not write to it."""
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
    """A recipe with two members on `drawn_images`. It trains in about a second."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_RECIPE.format(folder=drawn_images), "utf-8")
    return path


@pytest.fixture
def cli(capfd):
    """A function that runs fmcli in this process and returns its exit status and output."""
    from fmcli.cli import run

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        status = run([str(argument) for argument in arguments])
        return Result(int(status), *capfd.readouterr())

    return call


@pytest.fixture
def forget_kernels():
    """Clear the cache of compiled kernels before and after the test."""
    from fmcli.networks.cpu import loading

    loading._compile_kernels.cache_clear()
    yield
    loading._compile_kernels.cache_clear()
